"""Start the platform, watch over it, and stop all of it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from urllib.parse import urlsplit

from kpaas_lab import durable
from kpaas_lab.errors import LabError, SettingsError
from kpaas_lab.i18n import _
from kpaas_lab.installation import credentials, leftovers, lock, ports, programs, proxy, readiness, supervisor
from kpaas_lab.installation.credentials import Credentials
from kpaas_lab.installation.layout import Layout, open_home
from kpaas_lab.slices import load_catalogue

Say = Callable[[str], None]
START_SECONDS = 120.0  # on a slow, cold disk
STILL_SECONDS = 10.0  # how often a long wait says that it still waits
TRIES = 3  # of a process, before its start is called failed
STOP_SECONDS = 40.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the operator chose.

    Attributes:
        port: the public port; 0 is any that is free.
        bind: the address to listen on.
        public_url: what people open, where that isn't the address itself (behind a reverse proxy); "" otherwise.
        database_url: the market's database as a SQLAlchemy URL; "" is SQLite in the state folder.
        overcommit: how many times the machine's memory learners' slices may promise; None for the hub's default.
    """

    home: Path
    port: int
    bind: str
    public_url: str
    database_url: str
    slices: Path
    lang: str
    overcommit: float | None = None

    @property
    def environ(self) -> dict[str, str]:
        """This process's environment, with what the operator chose for the hub."""
        return {**os.environ, **({"KPAAS_LAB_OVERCOMMIT": str(self.overcommit)} if self.overcommit else {})}


def check_public_url(url: str) -> str:
    """An address that people can open, without a trailing slash; "" is none.

    Raises:
        SettingsError: not `http(s)://host[:port]`.

    Example:
        >>> check_public_url("https://lab.example.org/")
        'https://lab.example.org'
    """
    parts = urlsplit(url)
    try:
        usable = not url or (
            parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
            and not any((parts.path.strip("/"), parts.query, parts.fragment, parts.username))
        )  # fmt: skip
    except ValueError:  # a port that is none
        usable = False
    if not usable:
        raise SettingsError(
            _("{url!r} can't be the public address.").format(url=url[:200]),
            hint=_("It is http:// or https://, a host, and a port if it isn't the usual one: https://lab.example.org"),
        )
    return url.rstrip("/")


def address(options: Options, port: int) -> str:
    """What people open, without a trailing slash."""
    if options.public_url:
        return options.public_url
    host = readiness.local_host(options.bind)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class StopRequest:
    """Ctrl-C, `kill`, or a closed terminal. Asked for a second time, the stop doesn't wait any longer."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.hurry = False
        self._first = 0.0

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.asked.is_set():
            self._first = now
            self.asked.set()
        elif now - self._first > 1:  # one request can arrive twice: from the terminal, and from make
            self.hurry = True

    @contextlib.contextmanager
    def listening(self) -> Iterator[StopRequest]:
        """Take the signals within the block."""
        before = {number: signal.signal(number, self._on_signal) for number in self.SIGNALS}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class Platform:
    """One run of the platform: supervisor and what it needs to be started again."""

    def __init__(self, layout: Layout, environment: Mapping[str, str], chosen: Mapping[str, int], host: str, held: int):
        self.layout = layout
        self.environment = environment
        self.ports = chosen
        self.host = host
        self.held = held
        self.supervisor: subprocess.Popen[bytes] | None = None
        self.log_ends: dict[str, int] = {}

    def start(self) -> None:
        """Start supervisor, and remember where each log ends now."""
        for name in (*programs.NAMES, "supervisor-start"):
            log = self.layout.log(name)
            self.log_ends[name] = log.stat().st_size if log.exists() else 0
        self.supervisor = supervisor.start(self.layout, self.environment, self.held)

    def died(self) -> bool:
        """Whether supervisor is gone without having been asked."""
        return self.supervisor is not None and self.supervisor.poll() is not None

    def log_tail(self, name: str, lines: int = 12) -> list[str]:
        """The last lines that a process wrote since this start."""
        try:
            with self.layout.log(name).open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                begin = self.log_ends.get(name, 0)
                file.seek(max(begin if begin <= size else 0, size - 20_000))  # a smaller file was rotated
                text = file.read().decode(errors="replace")
        except OSError:
            return []
        # A process that was tried again says the same again.
        said = dict.fromkeys(line for line in text.splitlines() if line.strip())
        return list(said)[-lines:]

    def check(self, waiting: set[str]) -> None:
        """Raise where waiting longer makes no sense.

        Raises:
            LabError: supervisor ended, or a process dies again and again; with the end of its log.
        """
        failed = next((name for name in programs.NAMES if name in waiting and self._dies(name)), None)
        if failed is None and self.died():
            failed = "supervisor-start"
        if failed:
            raise LabError(
                _("{name} does not start. The end of its log:").format(name=failed),
                hint="\n  ".join(["", *self.log_tail(failed), _("Log: {path}").format(path=self.layout.log(failed))]),
            )

    def _dies(self, name: str) -> bool:
        return supervisor.starts(self.layout, name) >= TRIES

    def stop(self, say: Say, request: StopRequest) -> None:
        """Stop all processes, then the learners' sandboxes."""
        if self.supervisor is not None:
            self._stop_supervisor(self.supervisor, say, request)
        leftovers.sweep(self.layout)
        ended = leftovers.end_sandboxes(self.layout)
        if ended:
            say(_("Learners' servers stopped: {names}").format(names=", ".join(sorted(ended))))

    def _stop_supervisor(self, process: subprocess.Popen[bytes], say: Say, request: StopRequest) -> None:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        told = began
        while process.poll() is None:
            if request.hurry or time.monotonic() - began > STOP_SECONDS:
                process.kill()  # its processes die with it
                process.wait()
                return
            left = [one.name for one in supervisor.processes(self.layout) if one.pid]
            if time.monotonic() - told > 3:
                told = time.monotonic()
                names = ", ".join(left) or _("the supervisor")
                say(_("Still stopping: {names}. Ctrl-C once more doesn't wait.").format(names=names))
            time.sleep(0.05)


def _wait_until_ready(platform: Platform, say: Say, request: StopRequest) -> bool:
    """Say each process as it comes; False where a stop was asked for.

    Raises:
        LabError: one doesn't start.
    """
    began = told = time.monotonic()
    waiting = set(programs.NAMES)
    while waiting or not readiness.open_to_people(platform.ports, platform.host):
        for name in [name for name in programs.NAMES if name in waiting]:
            if readiness.answers(name, platform.ports, platform.host):
                waiting.discard(name)
                say(_("{name} ready after {seconds:.1f} s").format(name=name, seconds=time.monotonic() - began))
        supervisor.processes(platform.layout)
        platform.check(waiting)
        now = time.monotonic()
        if now - began > START_SECONDS:
            raise LabError(
                _("The platform did not answer within {seconds:.0f} s.").format(seconds=START_SECONDS),
                hint=_("Logs: {path}").format(path=platform.layout.home / "log"),
            )
        if now - told > STILL_SECONDS:
            told = now
            names = ", ".join(sorted(waiting)) or _("the way through the proxy")
            say(_("Still waiting after {seconds:.0f} s for: {names}").format(seconds=now - began, names=names))
        if request.asked.wait(0.05):
            return False
    return True


def _watch(platform: Platform, say: Say, request: StopRequest) -> None:
    """Until a stop is asked for: start supervisor again where it dies.

    Raises:
        LabError: it dies again and again.
    """
    deaths: list[float] = []
    while not request.asked.wait(0.5):
        if not platform.died():
            continue
        deaths = [moment for moment in deaths if time.monotonic() - moment < 60] + [time.monotonic()]
        if len(deaths) > TRIES:
            platform.check(set())
        say(_("The supervisor was ended from outside; starting everything again."))
        leftovers.sweep(platform.layout)
        platform.start()
        if _wait_until_ready(platform, say, request):
            say(_("Everything answers again."))


def _write_proxy_files(layout: Layout, options: Options, chosen: Mapping[str, int]) -> None:
    durable.write(layout.proxy_config, proxy.as_yaml(proxy.static_config(options.bind, chosen, layout.proxy_routes)))
    # The hub makes the routes anew at each start; Traefik needs the file to be there.
    durable.write(layout.proxy_routes, "")


def _to_whom_still_listens(say: Say) -> Say:
    """A closed terminal or pipe must not get in the way of an orderly stop."""

    def heard(line: str) -> None:
        with contextlib.suppress(OSError):
            say(line)

    return heard


def run(options: Options, say: Say, opened: Callable[[Say, str, Layout, Credentials, bool], None]) -> None:
    """Start everything, stay until a stop is asked for, stop everything.

    Args:
        options: the operator's choices.
        say: takes one line for each step.
        opened: called once all answers, with `say`, the address, the state folder, the secrets, and if these are new.

    Raises:
        LabError: it can't start; whatever had started is stopped again.
        OSError: the state folder couldn't be written.
    """
    say = _to_whom_still_listens(say)
    load_catalogue(options.slices)
    layout = open_home(options.home)
    held = lock.acquire(layout)
    request = StopRequest()
    try:
        with request.listening():
            leftovers.sweep(layout)
            secrets, new = credentials.load_or_make(layout.secrets)
            chosen = ports.allocate(layout.ports, options.bind, options.port)
            url = address(options, chosen["public"])
            lock.announce(layout, url)
            _write_proxy_files(layout, options, chosen)
            environment = programs.base_environment(
                options.environ, layout, chosen, public_url=url, database_url=options.database_url,
                slices=options.slices, lang=options.lang,
            )  # fmt: skip
            platform = Platform(layout, environment, chosen, readiness.local_host(options.bind), held)
            say(_("State folder: {home}").format(home=layout.home))
            try:
                platform.start()
                if _wait_until_ready(platform, say, request):
                    opened(say, url, layout, secrets, new)
                    _watch(platform, say, request)
                say(_("Stopping …"))
            finally:
                platform.stop(say, request)
            say(_("Everything is stopped."))
    finally:
        layout.running.unlink(missing_ok=True)
        os.close(held)
