"""What keeps a workload of the local engine: starts, watches and stops its processes, keeps its log and its record.

One thread, one loop, standard library only. `job.py` and `service.py` say what a process's end means.
"""

from __future__ import annotations

import contextlib
import functools
import os
import selectors
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

from kpaas_lab.engines import limits, records
from kpaas_lab.engines.logfile import LogWriter
from kpaas_lab.engines.process import Probe, Process
from kpaas_lab.i18n import _

WATCH = 0.5  # seconds between looks at memory and processes


class Member:
    """One rank of a Job or one replica of a Service: a process, or the time at which the next one starts."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.process: Process | None = None
        self.done = False
        self.failures = 0
        self.started = 0.0
        self.start_at = 0.0
        self.excess = ""  # why the watch ended it
        self.ready = False
        self.probe: Probe | None = None
        self.probe_at = 0.0
        self.probe_failures = 0
        self.rest = b""


class Keeper:
    """What Jobs and Services have in common: processes, log, control, record."""

    def __init__(self, folder: Path, spec: dict[str, Any]) -> None:
        self.folder, self.spec = folder, spec
        self.workload = spec["workload"]
        self.members = [Member(index) for index in range(self.copies)]
        self.selector = selectors.DefaultSelector()
        self.log = LogWriter(folder, spec["log_limit"])
        self.clock = time.monotonic()
        self.watch_at = 0.0
        self.oom_kills = limits.kernel_oom_kills()
        self.kernel_killed_at = -60.0
        self.stopping = ""  # why it stops: a phase
        self.kill_at: float | None = None
        self.stop_requested = False  # by SIGTERM to this shim
        started = records.read_json(folder / records.STATUS).get("started")
        self.status: dict[str, Any] = {"phase": "Pending", "reason": "", "exit_code": None, "ready": 0}
        self.status["started"] = started if self.is_service else None
        self.begun = records.later(max(records.now(), spec["created"]), 0)

    is_service = False
    copies = 1

    # -- the loop ----------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Until the workload has ended and its end is recorded."""
        os.mkfifo(self.folder / records.WAKE, 0o600)
        wake = os.open(self.folder / records.WAKE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self.selector.register(wake, selectors.EVENT_READ, functools.partial(os.read, wake, 4096))
        self._watch_signals()
        self.record()
        self.read_control()
        while not (self.over() and not any(member.process for member in self.members)):
            self.tick(time.monotonic())
            for key, _mask in self.selector.select(self.patience()):
                key.data()
            self.read_control()
        limits.kill_members(self.spec["id"])
        self.finish()

    def _watch_signals(self) -> None:
        reader, writer = socket.socketpair()
        writer.setblocking(False)
        signal.set_wakeup_fd(writer.fileno())
        self._wakeup = (reader, writer)
        self.selector.register(reader, selectors.EVENT_READ, functools.partial(reader.recv, 64))
        signal.signal(signal.SIGTERM, self._on_sigterm)
        for number in (signal.SIGINT, signal.SIGHUP):  # a handler, since "ignore" would be passed on to the processes
            signal.signal(number, lambda *_signal: None)

    def _on_sigterm(self, _number: int, _frame: object) -> None:
        self.stop_requested = True

    def patience(self) -> float:
        """Seconds until something is due."""
        now = time.monotonic()
        due = [self.watch_at, *([self.kill_at] if self.kill_at else []), *self.due()]
        return max(0.0, min(due) - now)

    def due(self) -> list[float]:
        """Moments at which `tick` has something to do."""
        return []

    def tick(self, now: float) -> None:
        """What is due: starts, the watch, SIGKILL after the grace."""
        if self.stop_requested and not self.stopping:
            self.stop("Pending" if self.is_service else "Failed", "Killed")
        for member in self.members:
            if not (member.process or member.done or self.stopping) and now >= member.start_at:
                self.start(member)
        if now >= self.watch_at:
            self.watch_at = now + WATCH
            self._watch()
            if self._is_forgotten():
                self.stop("Cancelled", "")
        if self.kill_at is not None and now >= self.kill_at:
            self.kill_at = now + 1.0
            self.signal_all(signal.SIGKILL)

    def _watch(self) -> None:
        """End what takes more memory or more processes than its slice has."""
        own = [member.process.pid for member in self.members if member.process]
        orphans = limits.adopted(own)
        for member in self.members:
            if member.process:
                pids = [*limits.descendants(member.process.pid), *(orphans if member.index == 0 else [])]
                member.excess = member.excess or limits.excess(self.spec["slice"], pids)
                if member.excess:
                    member.process.signal(signal.SIGKILL)
        kills = limits.kernel_oom_kills()
        if kills > self.oom_kills:
            self.oom_kills, self.kernel_killed_at = kills, time.monotonic()

    def _is_forgotten(self) -> bool:
        """Whether somebody removed the whole home: nobody could stop the workload any more."""
        try:
            (self.folder / records.SPEC).stat()
        except FileNotFoundError:
            return not self.stopping
        except OSError:
            return False
        return False

    def read_control(self) -> None:
        """Stop where that is wanted."""
        if not self.stopping and records.read_json(self.folder / records.CONTROL).get("cancel"):
            self.stop("Cancelled", "")

    def over(self) -> bool:
        """Whether no process will be started any more."""
        return bool(self.stopping) or all(member.done for member in self.members)

    def stop(self, phase: str, reason: str) -> None:
        """SIGTERM to everything; SIGKILL after the grace."""
        self.stopping = phase
        self.status["reason"] = self.status["reason"] or reason
        self.signal_all(signal.SIGTERM)
        self.kill_at = time.monotonic() + self.spec["grace"]

    def signal_all(self, number: int) -> None:
        """To the process group of every member."""
        for member in self.members:
            if member.process:
                member.process.signal(number)

    # -- processes ---------------------------------------------------------------------------------------------

    def environment(self, member: Member) -> dict[str, str]:
        """The whole environment of a process."""
        return {
            **os.environ,
            "PYTHONUNBUFFERED": "1",
            **self.workload["env"],
            **limits.environment(self.spec["slice"], os.environ),
            **self.place(member),
            "KPAAS_LAB_WORKLOAD": self.workload["name"],
            "KPAAS_LAB_SLICE": self.spec["slice"]["name"],
            records.ID_VARIABLE: self.spec["id"],
        }

    def place(self, member: Member) -> dict[str, str]:
        """Variables that tell a process which one it is."""
        raise NotImplementedError

    def start(self, member: Member) -> None:
        """Start a member's process; one that can't be started ends with 127, as in a shell."""
        seed = f"{self.workload['name']}/{member.index}"
        member.started = time.monotonic()
        member.excess = ""
        try:
            member.process = Process(
                self.workload["command"],
                workdir=Path(self.workload["workdir"]),
                env=self.environment(member),
                prepare=functools.partial(limits.apply, self.spec["slice"], seed),
                selector=self.selector,
                on_output=functools.partial(self.on_output, member),
                on_end=functools.partial(self._on_end, member),
            )
        except (OSError, subprocess.SubprocessError) as error:
            program = self.workload["command"][0]
            line = _("{program} can't be started: {error}").format(program=program, error=error)
            self.on_output(member, f"{line}\n".encode())
            self.on_end(member, 127)
            return
        self.on_start(member)

    def on_start(self, member: Member) -> None:
        """A process runs."""

    def on_output(self, member: Member, data: bytes) -> None:
        """To the log; where there are several processes, whole lines with the number of the process before each."""
        if self.copies == 1:
            self.log.write(data)
            return
        *lines, member.rest = (member.rest + data).split(b"\n")
        self.log.write(b"".join(b"[%d] %s\n" % (member.index, line) for line in lines))
        if len(member.rest) > self.spec["log_limit"] // 8:
            self._flush(member)

    def _flush(self, member: Member) -> None:
        if member.rest:
            self.log.write(b"[%d] %s\n" % (member.index, member.rest))
            member.rest = b""

    def _on_end(self, member: Member, code: int) -> None:
        member.process = None
        self._flush(member)
        if code == -signal.SIGKILL and not member.excess:
            self._watch()
            if time.monotonic() - self.kernel_killed_at < 2 * WATCH:
                member.excess = "OutOfMemory"
        self.on_end(member, code)

    def on_end(self, member: Member, code: int) -> None:
        """A process has ended."""
        raise NotImplementedError

    def reason(self, member: Member, code: int) -> str:
        """One word for an end. 137 is what this library's runtime exits with when it runs out of memory."""
        if member.excess or code == 137:
            return member.excess or "OutOfMemory"
        return "Killed" if code < 0 else "Error"

    # -- the record --------------------------------------------------------------------------------------------

    def record(self, **changes: Any) -> bool:
        """Write status.json, making room where the disk is full; whether it is written."""
        self.status.update(changes)
        for make_room in (None, (self.folder / records.RESERVE).unlink, self.log.drop_tail):
            with contextlib.suppress(OSError):
                if make_room:
                    make_room()
                records.write_json(self.folder / records.STATUS, self.status)
                return True
        return False  # the next change is written with it, and the last one is tried again

    def elapsed(self) -> str:
        """The time now, as the start plus what a clock that doesn't jump has counted since."""
        return records.later(self.begun, time.monotonic() - self.clock)

    def finish(self) -> None:
        """Record the end and let the folder go."""
        phase = self.stopping or ("Failed" if self.status["exit_code"] else "Succeeded")
        ended = phase != "Pending"
        changes = {"phase": phase, "ready": 0, "finished": self.elapsed() if ended else None}
        while not self.record(**changes) and self.folder.exists():
            time.sleep(1.0)
        self.log.close()
        for name in (records.WAKE, records.RESERVE):
            with contextlib.suppress(OSError):
                (self.folder / name).unlink()
