"""Sandboxes that were started: on disk, so that a restarted hub, or `kpaas-lab down`, finds, polls and ends them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

UNKNOWN_EXIT = 1

# Bubblewrap processes that this process started, so that their ends are waited for.
_children: dict[int, subprocess.Popen[bytes]] = {}


@dataclass(frozen=True, slots=True)
class Record:
    """A sandbox that was started; a small JSON file.

    Attributes:
        pid: of the sandbox's first process, as seen from outside.
        start_time: of that process, in clock ticks since boot: with the pid it names one process only.
        name: the learner's.
        path: where the record is kept.
    """

    pid: int
    start_time: int
    name: str
    path: Path

    @property
    def status(self) -> Path:
        """Where bubblewrap writes the exit code."""
        return self.path.with_suffix(".status")


def start_time(pid: int) -> int | None:
    """Clock ticks since boot (proc(5), stat, field 22); None for no such process or one that has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def keep(record: Record, child: subprocess.Popen[bytes]) -> None:
    """Store it, whole or not at all, and on the disk; `child` is what this process waits for at its end."""
    temporary = record.path.with_suffix(f".{os.getpid()}.tmp")
    with temporary.open("w") as file:
        json.dump({"pid": record.pid, "start_time": record.start_time, "name": record.name}, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(record.path)
    _children[record.pid] = child


def load(path: Path) -> Record | None:
    """The record in that file; None where there is none that can be read."""
    try:
        stored = json.loads(path.read_text())
        return Record(int(stored["pid"]), int(stored["start_time"]), str(stored["name"]), path)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def poll(record: Record) -> int | None:
    """None while it runs; then its exit code, as a shell counts (128 + signal), 1 where nobody knows it."""
    child = _children.get(record.pid)
    if start_time(record.pid) == record.start_time:
        return None
    if child is not None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(timeout=1)
            del _children[record.pid]
    return _exit_code(record.status)


async def end(record: Record) -> None:
    """Return when it has ended."""
    try:
        descriptor = os.pidfd_open(record.pid)
    except ProcessLookupError:
        return
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(descriptor, ended.set)
    try:
        if start_time(record.pid) == record.start_time:  # else the pid is another's by now
            await ended.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


def _exit_code(status: Path) -> int:
    try:
        lines = [json.loads(line) for line in status.read_text().splitlines()]
        return next(int(line["exit-code"]) for line in lines if "exit-code" in line)
    except (OSError, ValueError, StopIteration):
        return UNKNOWN_EXIT


def kill(pid: int, started: int, number: int = signal.SIGKILL, wait: float = 10.0) -> bool:
    """Signal exactly that process and wait for its end; whether it has ended."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        if start_time(pid) != started:
            return True
        signal.pidfd_send_signal(descriptor, number)
        return bool(select.select([descriptor], [], [], wait)[0])
    except ProcessLookupError:
        return True
    finally:
        os.close(descriptor)


def stop(record: Record, grace: float) -> None:
    """End it and everything in it: SIGTERM to the server, SIGKILL to all after `grace` seconds. Idempotent."""
    if not kill(record.pid, record.start_time, signal.SIGTERM, wait=grace):
        members = _descendants(record)
        kill(record.pid, record.start_time)
        for member in members:  # ended already, except where there was no list of processes of its own
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
    poll(record)
    record.path.unlink(missing_ok=True)


def _descendants(record: Record) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        if start_time(record.pid) == record.start_time:
            return psutil.Process(record.pid).children(recursive=True)
    return []


def stop_all(home: Path, grace: float = 10.0) -> list[str]:
    """End every sandbox of an installation, all at once; the names of those that ran.

    Args:
        home: KPAAS_LAB_HOME.
        grace: seconds for all of them together.
    """
    known = [record for path in sorted((home / "run" / "sandboxes").glob("*.json")) if (record := load(path))]
    running = [record for record in known if poll(record) is None]
    for record in running:
        kill(record.pid, record.start_time, signal.SIGTERM, wait=0)
    deadline = time.monotonic() + grace
    for record in known:
        stop(record, max(0.0, deadline - time.monotonic()))
    return [record.name for record in running]
