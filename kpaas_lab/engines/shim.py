"""The process that keeps one workload of the local engine: starts, watches, restarts and stops it, keeps its log.

It has a session of its own and outlives whoever created the workload; the lock that it holds on the workload's folder
is how others know that it lives. One thread, one loop, standard library only: `main` is started by `spawn.py`.
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

WATCH = 0.5  # seconds between looks at memory
JOB_GRACE = 10.0
FIRST_DELAY, LONGEST_DELAY = 0.5, 30.0  # of a restart; doubled at each failure
STEADY = 30.0  # a replica that ran this long starts again with the first delay
PROBE_TIMEOUT = 2.0


class Member:
    """One rank of a Job or one replica of a Service: a process, or the time at which the next one starts."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.process: Process | None = None
        self.done = False
        self.failures = 0
        self.started = 0.0
        self.start_at = 0.0
        self.over_memory = False
        self.ready = False
        self.probe: Probe | None = None
        self.probe_at = 0.0
        self.probe_failures = 0
        self.rest = b""


class Shim:
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
    grace = JOB_GRACE

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
            for key, _events in self.selector.select(self.patience()):
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
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

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
        """What is due: starts, the memory watch, SIGKILL after the grace."""
        if self.stop_requested and not self.stopping:
            self.stop("Pending" if self.is_service else "Failed", "Killed")
        for member in self.members:
            if not (member.process or member.done or self.stopping) and now >= member.start_at:
                self.start(member)
        if now >= self.watch_at:
            self.watch_at = now + WATCH
            self._watch_memory()
        if self.kill_at is not None and now >= self.kill_at:
            self.kill_at = now + 1.0
            self._signal_all(signal.SIGKILL)

    def _watch_memory(self) -> None:
        allowed = self.spec["slice"]["memory_mib"] * limits.MIB
        for member in self.members:
            if member.process and limits.memory(list(limits.descendants(member.process.pid)), allowed) > allowed:
                member.over_memory = True
                member.process.signal(signal.SIGKILL)
        kills = limits.kernel_oom_kills()
        if kills > self.oom_kills:
            self.oom_kills, self.kernel_killed_at = kills, time.monotonic()

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
        self._signal_all(signal.SIGTERM)
        self.kill_at = time.monotonic() + self.grace

    def _signal_all(self, number: int) -> None:
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
        member.over_memory = False
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
            self.on_output(member, f"{self.workload['command'][0]} can't be started: {error}\n".encode())
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
        if code < 0 and not member.over_memory:
            self._watch_memory()
            member.over_memory = code == -signal.SIGKILL and time.monotonic() - self.kernel_killed_at < 2 * WATCH
        self.on_end(member, code)

    def on_end(self, member: Member, code: int) -> None:
        """A process has ended."""
        raise NotImplementedError

    def reason(self, member: Member, code: int) -> str:
        """One word for an end. 137 is what this library's runtime exits with when it runs out of memory."""
        if member.over_memory or code == 137:
            return "OutOfMemory"
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


class JobShim(Shim):
    """Every rank once; the first failure ends them all."""

    def __init__(self, folder: Path, spec: dict[str, Any]) -> None:
        self.copies = spec["workload"]["nodes"]
        super().__init__(folder, spec)
        self.master = f"127.0.0.1:{free_port()}" if self.copies > 1 else ""

    def place(self, member: Member) -> dict[str, str]:
        """Rank, number of ranks and where they meet."""
        variables = {"KPAAS_LAB_NODE_RANK": str(member.index), "KPAAS_LAB_NODES": str(self.copies)}
        return variables | ({"KPAAS_LAB_MASTER": self.master} if self.master else {})

    def on_start(self, member: Member) -> None:
        """Running once the last rank runs."""
        if member.index == self.copies - 1:
            self.record(phase="Running", started=self.elapsed())

    def on_end(self, member: Member, code: int) -> None:
        """Keep the first failure; the other ranks can't go on without this one."""
        member.done = True
        if code and self.status["exit_code"] is None and self.stopping != "Cancelled":
            self.status.update(exit_code=code, reason=self.reason(member, code))
            if not self.stopping:
                self.stop("Failed", "")
        elif code == 0 and not self.stopping and all(other.done for other in self.members):
            self.status["exit_code"] = 0


class ServiceShim(Shim):
    """Every replica for ever: one that ends is started again, later each time."""

    is_service = True

    def __init__(self, folder: Path, spec: dict[str, Any]) -> None:
        self.copies = spec["workload"]["replicas"]
        self.grace = spec["workload"]["grace"]
        super().__init__(folder, spec)

    def socket_path(self, member: Member) -> Path:
        """Where a replica listens."""
        return self.folder / f"{member.index}.sock"

    def place(self, member: Member) -> dict[str, str]:
        """Where to listen, and which replica it is."""
        return {
            "KPAAS_LAB_LISTEN": f"unix:{self.socket_path(member)}",
            "KPAAS_LAB_REPLICA": str(member.index),
        }

    def due(self) -> list[float]:
        """The next probe or start of each replica."""
        if self.stopping:
            return []
        return [member.probe_at if member.process else member.start_at for member in self.members]

    def start(self, member: Member) -> None:
        """Remove the socket that the last process left; then as any."""
        self.socket_path(member).unlink(missing_ok=True)
        member.probe_at = time.monotonic()
        member.probe_failures = 0
        super().start(member)

    def tick(self, now: float) -> None:
        """Probe what is due."""
        super().tick(now)
        for member in self.members:
            if member.process and now >= member.probe_at and not self.stopping:
                if member.probe:  # no answer in time
                    member.probe.close()
                    self._answered(member, False)
                member.probe_at = now + PROBE_TIMEOUT
                member.probe = None
                probe = Probe(
                    self.socket_path(member),
                    self.workload["ready_path"],
                    self.selector,
                    functools.partial(self._answered, member),
                )
                member.probe = probe if probe.open else None

    def _answered(self, member: Member, ready: bool) -> None:
        now = time.monotonic()
        member.probe = None
        member.probe_failures = 0 if ready else member.probe_failures + 1
        wait = PROBE_TIMEOUT if ready else min(1.0, 0.05 * 1.2**member.probe_failures)
        member.probe_at = now + wait
        if ready != member.ready:
            member.ready = ready
            self._record_ready()

    def _record_ready(self) -> None:
        ready = sum(member.ready for member in self.members)
        changes: dict[str, Any] = {"ready": ready, "phase": "Running" if ready else "Pending"}
        if ready == self.copies:
            changes |= {"reason": "", "exit_code": None}
        self.record(**changes, started=self.status["started"] or self.elapsed())

    def on_end(self, member: Member, code: int) -> None:
        """Start it again, unless the Service stops."""
        if member.probe:
            member.probe.close()
            member.probe = None
        member.ready = False
        if self.stopping:
            return
        now = time.monotonic()
        member.failures = 1 if now - member.started > STEADY else member.failures + 1
        delay = min(LONGEST_DELAY, FIRST_DELAY * 2 ** (member.failures - 1))
        member.start_at = now + delay
        self.log.write(f"Replica {member.index} ended with {code}; it starts again in {delay:g} s.\n".encode())
        ready = sum(other.ready for other in self.members)
        phase = "Running" if ready else "Pending"
        self.record(phase=phase, ready=ready, exit_code=code, reason=self.reason(member, code))


def free_port() -> int:
    """A TCP port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main(folder: Path, lock: int) -> None:
    """Keep the workload of this folder; `lock` is its lock's descriptor, held already."""
    os.set_inheritable(lock, False)
    spec = records.read_json(folder / records.SPEC)
    with contextlib.suppress(FileNotFoundError):
        (folder / records.WAKE).unlink()
    shim = (ServiceShim if spec["workload"]["kind"] == "Service" else JobShim)(folder, spec)
    try:
        shim.run()
    except Exception as error:
        shim._signal_all(signal.SIGKILL)
        limits.kill_members(spec["id"])
        shim.on_output(shim.members[0], f"The workload's keeper failed: {error!r}\n".encode())
        shim.stopping = "Failed"
        shim.record(phase="Failed", reason="Lost", finished=shim.elapsed())
