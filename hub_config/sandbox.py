"""A learner's server in a sandbox: how it starts. It outlives the hub (`records.py` finds it again), and dies whole.

What protects what is in ARCHITECTURE.md; the view of the file system in bubblewrap.py; what the inside gives up in
confine.py; the sandbox's first process, which also keeps it within its memory, in sandbox_init.py.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import select
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hub_config import bubblewrap, records
from hub_config.confine import Limits
from hub_config.homes import own
from hub_config.records import Record
from hub_config.sandbox_init import Lines
from hub_config.warm import NURSERY, WarmPool
from kpaas_lab.errors import AlreadyExistsError, EngineUnavailableError, SettingsError
from kpaas_lab.i18n import _
from kpaas_lab.slices import SliceProfile

# One that a passwd file and a path can hold.
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._@+-]{0,62}")
CPU_SECONDS = 7 * 24 * 3600
FILE_SIZE = 32 << 30
OPEN_FILES = 4096
SETUP_SECONDS = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sandbox:
    """What to run, where and within which limits.

    Attributes:
        name: the learner's; their home is /home/<name> inside.
        home: their home outside; made if it isn't there.
        profile: the slice, whose limits hold for the whole sandbox.
        env: the whole environment of the command; nothing of the caller's is added.
        command: program and arguments, as seen inside.
        record: `<KPAAS_LAB_HOME>/run/sandboxes/<name>.json`.
        log: where the command's output goes.
        warm: a pool to fork the command from; None to exec it.
        port: that the command listens on; 0 for none.
        closed_ports: on which nothing in the sandbox may listen, besides others' of `confine.RESERVED_PORTS`.
        kernels: a pool to fork notebook kernels from (`kpaas_lab/kernels`); None to exec them.
    """

    name: str
    home: Path
    profile: SliceProfile
    env: Mapping[str, str]
    command: Sequence[str]
    record: Path
    log: Path
    warm: WarmPool | None = None
    kernels: WarmPool | None = None
    port: int = 0
    closed_ports: Sequence[int] = ()
    readable: Sequence[Path] = field(default_factory=tuple)

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name) or self.name in {"root", "nobody"}:
            raise SettingsError(
                _("{name!r} can't be the name of a learner's home.").format(name=self.name[:80]),
                hint=_("Use 1 to 63 letters, digits and . _ @ + -, for example 'ann'."),
            )

    @property
    def state(self) -> Path:
        """KPAAS_LAB_HOME, of which nothing but the home may be seen."""
        return self.record.parent.parent.parent


def limits(profile: SliceProfile, name: str, cores: Sequence[int]) -> Limits:
    """A slice as the limits of its sandbox.

    Args:
        profile: the slice.
        name: the learner's; learners with less than all cores are spread over them by it.
        cores: the cores of this machine that the platform may use.
    """
    memory = profile.memory_mib << 20
    wanted = math.ceil(profile.cpus)
    first = sum(name.encode()) % len(cores)
    chosen = sorted((*cores[first:], *cores[:first])[:wanted]) if wanted < len(cores) else []
    gpu = profile.gpu_memory_mib > 0
    return Limits(
        memory=memory,
        # One process alone may reserve more than it can use: torch and threads do. A GPU's driver reserves everything.
        data=0 if gpu else 2 * memory + (2 << 30),
        processes=profile.processes,
        file_size=FILE_SIZE,
        open_files=OPEN_FILES,
        cpu_seconds=CPU_SECONDS,
        cpus=chosen,
        shared_memory_files=gpu,
        port=0,
        closed_ports=[],
    )


def start(sandbox: Sandbox) -> Record:
    """Start it. The record is on disk before anything of the learner's runs.

    Raises:
        AlreadyExistsError: a sandbox of this record is running.
        SettingsError: sandboxes can't be made on this machine, or the home can't be used.
        EngineUnavailableError: bubblewrap failed; the message ends with what it said.
    """
    running = records.load(sandbox.record)
    if running and records.poll(running) is None:
        raise AlreadyExistsError(
            _("{name!r} has a sandbox already.").format(name=sandbox.name), hint=_("Stop that server first.")
        )
    mode = _mode(sandbox)
    uid, gid = own(sandbox.home, sandbox.name)
    sandbox.record.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    sandbox.log.parent.mkdir(parents=True, exist_ok=True)
    with _Wires(sandbox) as wires, _memory_files(_texts(sandbox.name, uid, gid)) as files:
        settings = {
            "control": wires.inner.fileno(),
            "output": wires.output,
            "write_output": wires.write_output,
            "log": wires.log,
            "uid": uid,
            "gid": gid,
            "limits": _limits_here(sandbox, mode),
            "events": f"{_inside(sandbox, mode)}/.kpaas-lab/events.log",
            "alone": mode is None,
            "status": wires.status,
        }
        command = _first_process(settings)
        if mode is not None:
            words = bubblewrap.arguments(_view(sandbox, uid, gid, files), mode, exists=bubblewrap.top_folders())
            command = [bubblewrap.program(), *wires.options(), *words, "--", *command]
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=wires.log,
            stderr=wires.log,
            env={"LANG": "C.UTF-8"},
            cwd="/",
            pass_fds=[*wires.of_the_child(), *files.values()],
            start_new_session=True,
        )
        if mode is None:
            os.write(wires.info, json.dumps({"child-pid": child.pid}).encode())  # as bubblewrap says it
        wires.close_inner()
        return _begin(sandbox, child, wires, settings, _order(sandbox, mode))


def _mode(sandbox: Sandbox) -> bubblewrap.Mode | None:
    """How to make the sandbox; None where none can be made and this learner is alone on the machine.

    Raises:
        SettingsError: none can be made, and there is somebody to protect: another learner, or root.
    """
    try:
        return bubblewrap.mode()
    except SettingsError as error:
        homes = sandbox.home.parent
        others = [path.name for path in homes.iterdir() if path.name != sandbox.home.name] if homes.exists() else []
        if os.geteuid() != 0 and not others:
            return None
        why = _("{why} So only one learner can use this machine, not as root.").format(why=error.message)
        raise SettingsError(why, hint=error.hint) from error


def _limits_here(sandbox: Sandbox, mode: bubblewrap.Mode | None) -> Limits:
    here = limits(sandbox.profile, sandbox.name, sorted(os.sched_getaffinity(0)))
    here["port"], here["closed_ports"] = sandbox.port, list(sandbox.closed_ports)
    if mode is None:
        here["processes"] = 0  # it would count all of this user's processes, the platform's, too
    return here


def _inside(sandbox: Sandbox, mode: bubblewrap.Mode | None) -> str:
    """Where the home is for the learner's programs."""
    return f"/home/{sandbox.name}" if mode is not None else str(sandbox.home)


def _order(sandbox: Sandbox, mode: bubblewrap.Mode | None) -> dict[str, Any]:
    """What the first process is to run."""
    inside = _inside(sandbox, mode)
    env = dict(sandbox.env)
    if mode is None:
        shown = re.compile(rf"/home/{re.escape(sandbox.name)}(?=/|$)")
        env = {name: shown.sub(lambda _match: inside, value) for name, value in env.items()}
    else:
        # Short, for the paths of kernels' sockets may have 107 characters; and gone with the sandbox.
        env.setdefault("JUPYTER_RUNTIME_DIR", "/run/jupyter")
    return {"command": list(sandbox.command), "env": env, "workdir": inside}


class _Wires:
    """The descriptors between this process, bubblewrap and the sandbox's first process."""

    def __init__(self, sandbox: Sandbox) -> None:
        new = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        self.log = os.open(sandbox.log, new | os.O_APPEND, 0o600)
        self.status = os.open(sandbox.record.with_suffix(".status"), new | os.O_TRUNC, 0o600)
        self.channel, self.inner = socket.socketpair()
        self.output, self.write_output = os.pipe()
        self.told, self.info = os.pipe()

    def __enter__(self) -> _Wires:
        return self

    def of_the_child(self) -> list[int]:
        """What bubblewrap and the first process use."""
        return [self.log, self.status, self.inner.fileno(), self.output, self.write_output, self.info]

    def options(self) -> list[str]:
        """How bubblewrap is told where to report."""
        return ["--info-fd", str(self.info), "--json-status-fd", str(self.status)]

    def close_inner(self) -> None:
        """Close what only the child may hold open, so that its end is seen as an end of file."""
        self.inner.close()
        os.close(self.info)
        self.info = -1

    def __exit__(self, *_exception: object) -> None:
        self.channel.close()
        self.inner.close()
        for descriptor in (self.log, self.status, self.output, self.write_output, self.told, self.info):
            if descriptor >= 0:
                os.close(descriptor)


def _begin(
    sandbox: Sandbox,
    child: subprocess.Popen[bytes],
    wires: _Wires,
    settings: Mapping[str, Any],
    order: Mapping[str, Any],
) -> Record:
    """Wait until the sandbox stands, record it, and let it run."""
    lines = Lines(wires.channel)
    pid = _first_pid(wires.told)
    started = records.start_time(pid) if pid else None
    ready = _ready(lines) if started else False
    if pid is None or started is None or not ready:
        if pid and started:
            records.kill(pid, started)
        child.kill()
        child.wait()
        tail = sandbox.log.read_text(errors="replace")[-500:].strip()
        raise EngineUnavailableError(
            _("The sandbox of {name!r} did not start: {why}").format(name=sandbox.name, why=tail or "?"),
            hint=_("`kpaas-lab doctor` says what this machine can do."),
        )
    record = Record(pid, started, sandbox.name, sandbox.record)
    records.keep(record, child)
    joining = bool(not settings["alone"] and sandbox.warm and sandbox.warm.ready(sandbox.command))
    lines.write({**order, "join": joining})
    if joining and sandbox.warm:
        sandbox.warm.join(pid, wires.channel, wires.write_output, settings)
    if not settings["alone"] and sandbox.kernels and sandbox.kernels.running():
        told = {"command": list(NURSERY), "env": {"LANG": "C.UTF-8"}, "workdir": order["workdir"]}
        sandbox.kernels.join(pid, wires.channel, wires.write_output, settings, told)
    return record


def _ready(lines: Lines) -> bool:
    try:
        return lines.read(SETUP_SECONDS) is not None
    except OSError:
        return False


def _texts(name: str, uid: int, gid: int) -> dict[str, str]:
    return bubblewrap.made_files(name, uid, gid, bubblewrap.hosts())


def _view(sandbox: Sandbox, uid: int, gid: int, files: Mapping[str, int]) -> bubblewrap.View:
    pipe = sandbox.env.get("CUDA_MPS_PIPE_DIRECTORY")
    return bubblewrap.View(
        name=sandbox.name,
        home=sandbox.home,
        uid=uid,
        gid=gid,
        profile=sandbox.profile,
        readable=[*bubblewrap.readable_here(), *sandbox.readable],
        hidden=sandbox.state.resolve(),
        files=files,
        mps_pipe=Path(pipe) if pipe else None,
    )


def _first_process(settings: Mapping[str, Any]) -> list[str]:
    interpreter = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
    code = f"import sys; sys.path.insert(0, {str(bubblewrap.ROOT)!r})\n"
    code += "from hub_config.sandbox_init import main; sys.exit(main(sys.argv[1]))"
    return [interpreter, "-I", "-S", "-B", "-c", code, json.dumps(settings)]


@contextlib.contextmanager
def _memory_files(contents: Mapping[str, str]) -> Iterator[dict[str, int]]:
    """Each text in an open file of no name, at its beginning."""
    files: dict[str, int] = {}
    try:
        for path, text in contents.items():
            files[path] = os.memfd_create("kpaas-lab", os.MFD_CLOEXEC)
            os.write(files[path], text.encode())
            os.lseek(files[path], 0, os.SEEK_SET)
        yield files
    finally:
        for descriptor in files.values():
            os.close(descriptor)


def _first_pid(told: int) -> int | None:
    """The pid that bubblewrap tells; None when it failed before."""
    text = b""
    while select.select([told], [], [], SETUP_SECONDS)[0] and (part := os.read(told, 4096)):
        text += part
        with contextlib.suppress(ValueError, KeyError):
            return int(json.loads(text)["child-pid"])
    return None
