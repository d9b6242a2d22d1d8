"""The first process of a sandbox: starts the server, ends with it, and keeps the sandbox within its memory.

As process 1 of its own process list it can't be stopped or killed from inside, and when it ends the kernel ends all the
others. Standard library only, so that it starts in 20 ms. It is told what to do on one socket, in JSON lines:

    it says   {"ready": true}                      set up and confined
    it hears  {"command", "env", "workdir", "join"}    start the server; until then nothing has run
    it hears  {"pid": 7}                           with "join": a warm process has come in and would be the server
    it says   the order again                      it may; a closed socket instead says that it came too late
    (end of file without a pid)                    with "join": nobody came; start the server here
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from hub_config import confine

LOG_BYTES = 16 << 20  # the server's log starts again at this size
EVENTS_BYTES = 1 << 20
INODE_BYTES = 1024  # what the kernel keeps for an empty file
JOIN_SECONDS = 10.0


class Usage(NamedTuple):
    """Memory of one process, in bytes, without files in memory (those are counted once, where they are)."""

    pid: int
    memory: int
    command: str


def say(text: str) -> None:
    """One line in the log."""
    os.write(2, f"kpaas-lab sandbox: {text}\n".encode())


def _read(path: str) -> str:
    try:
        with open(path, errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def _pids() -> list[int]:
    """Everybody in the sandbox but this process: all there is to see, or what descends from it where more is seen."""
    if os.getpid() == 1:
        return [int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != 1]
    found = [os.getpid()]
    for pid in found:
        found += [int(child) for child in _read(f"/proc/{pid}/task/{pid}/children").split()]
    return found[1:]


def _resident(pid: int) -> int:
    fields = _read(f"/proc/{pid}/statm").split()
    return int(fields[1]) * os.sysconf("SC_PAGESIZE") if fields else 0


def _proportional(pid: int) -> int:
    """What the process has to itself and its share of the rest; a process that hides it counts in full."""
    rollup = _read(f"/proc/{pid}/smaps_rollup")
    sizes = dict(line.split(":", 1) for line in rollup.splitlines()[1:] if ":" in line)
    if "Pss_Anon" not in sizes:
        return _resident(pid)
    return sum(int(sizes[name].split()[0]) for name in ("Pss_Anon", "Pss_File")) << 10


def files_in_memory(folders: tuple[str, ...] = ("/tmp", "/run", "/dev/shm")) -> int:  # noqa: S108
    """Bytes of files that live in memory: the sandbox's own /tmp, /run, /dev/shm, and System V segments."""
    used = 0
    if os.getpid() != 1:
        return 0  # they are everybody's
    for folder in folders:
        facts = os.statvfs(folder)
        used += (facts.f_blocks - facts.f_bfree) * facts.f_frsize + (facts.f_files - facts.f_ffree) * INODE_BYTES
    segments = [line.split() for line in _read("/proc/sysvipc/shm").splitlines()[1:]]
    return used + sum(int(fields[14]) for fields in segments if len(fields) > 14)


def measured(limit: int, files: int) -> list[Usage]:
    """The processes, biggest first, if together they may use more than the limit; else nothing.

    The sum of resident sizes is never less than the true sum and cheap; only when it is over is the true one read.
    """
    pids = _pids()
    if files + sum(_resident(pid) for pid in pids) <= limit:
        return []
    usages = [Usage(pid, _proportional(pid), _read(f"/proc/{pid}/comm").strip()) for pid in pids]
    return sorted(usages, key=lambda usage: usage.memory, reverse=True)


def choose(usages: list[Usage], server: int) -> Usage | None:
    """Which process goes: the biggest, but the server only when nothing else is worth it.

    Example:
        >>> choose([Usage(2, 900 << 20, "server"), Usage(9, 700 << 20, "kernel")], server=2).pid
        9
        >>> choose([Usage(2, 900 << 20, "server"), Usage(9, 1 << 20, "sh")], server=2).pid
        2
    """
    others = [usage for usage in usages if usage.pid != server]
    if others and (others[0].memory >= 64 << 20 or usages[0].pid != server):
        return others[0]
    return usages[0] if usages else None


class Police:
    """Keeps the sum of a sandbox's memory under its limit."""

    def __init__(self, limit: int, events: str) -> None:
        self.limit = limit
        self.events = events

    def check(self, server: int) -> float:
        """Kill what is too big, until it fits, and write down what and why; seconds until it is worth another look."""
        for _round in range(8):
            files = files_in_memory()
            usages = measured(self.limit, files)
            used = files + sum(usage.memory for usage in usages)
            chosen = choose(usages, server) if used > self.limit else None
            if chosen is None:
                # Reading true sizes costs milliseconds a process: seldom while there is room.
                return 1.0 if usages and used < self.limit * 0.6 else 0.25
            _signal(chosen.pid, signal.SIGKILL)
            self._write_down(chosen, used, files)
            deadline = time.monotonic() + 2
            while _resident(chosen.pid) and time.monotonic() < deadline:
                time.sleep(0.01)
        return 0.25

    def _write_down(self, killed: Usage, used: int, files: int) -> None:
        event = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "event": "killed",
            "reason": "memory",
            "pid": killed.pid,
            "command": killed.command,
            "process_mib": killed.memory >> 20,
            "used_mib": used >> 20,
            "files_in_memory_mib": files >> 20,
            "limit_mib": self.limit >> 20,
        }
        line = json.dumps(event)
        say(line)
        try:
            os.makedirs(os.path.dirname(self.events), exist_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK
            file = os.open(self.events, flags, 0o600)
            try:
                if os.fstat(file).st_size > EVENTS_BYTES:
                    os.ftruncate(file, 0)
                os.write(file, f"{line}\n".encode())
            finally:
                os.close(file)
        except OSError as error:
            say(f"{self.events}: {error.strerror}")


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _reap() -> dict[int, int]:
    """Exit codes of children that have ended, by pid."""
    ended: dict[int, int] = {}
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if not pid:
            return ended
        ended[pid] = os.waitstatus_to_exitcode(status)


class Lines:
    """JSON lines on a socket."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.buffer = b""

    def read(self, timeout: float) -> dict[str, Any] | None:
        """The next line; None at the end of file or of the time."""
        deadline = time.monotonic() + timeout
        while b"\n" not in self.buffer:
            readable = select.select([self.connection], [], [], max(0.0, deadline - time.monotonic()))[0]
            data = self.connection.recv(1 << 16) if readable else b""
            if not data:
                return None
            self.buffer += data
        line, _newline, self.buffer = self.buffer.partition(b"\n")
        message = json.loads(line)
        return message if isinstance(message, dict) else None

    def write(self, message: Mapping[str, Any]) -> None:
        """Send one line."""
        self.connection.sendall(json.dumps(message).encode() + b"\n")


def start(command: list[str], env: dict[str, str], workdir: str, output: int, limits: confine.Limits) -> int:
    """Start the server as a child; its pid."""
    child = os.fork()
    if child:
        return child
    try:
        os.setsid()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)
        confine.set_limits(limits)
        confine.confine_sockets(limits["port"], limits["closed_ports"])
        nothing = os.open("/dev/null", os.O_RDONLY)
        for source, target in ((nothing, 0), (output, 1), (output, 2)):
            os.dup2(source, target)
        os.closerange(3, limits["open_files"])
        try:
            os.chdir(workdir)
        except OSError:
            os.chdir("/")
        os.execvpe(command[0], command, env)  # noqa: S606
    except BaseException as error:
        say(f"{command[0]}: {error}")
    os._exit(127)


def pump(source: int, log: int) -> bool:
    """Copy what the server has printed to its log, which never grows past LOG_BYTES; False at the end."""
    try:
        data = os.read(source, 1 << 16)
    except BlockingIOError:
        return True
    if data:
        try:
            if os.fstat(log).st_size > LOG_BYTES:
                os.ftruncate(log, 0)
            os.write(log, data)
        except OSError:
            pass  # a full disk must not stop the server
    return bool(data)


def watch(server: int, child: bool, output: int, log: int, police: Police) -> int:
    """Until the server ends: copy its output, reap, forward SIGTERM, police. Its exit code, 0 if nobody knows it."""
    wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, _frame: _signal(server, received))
    signal.signal(signal.SIGCHLD, lambda *_: None)
    try:
        ended = os.pidfd_open(server)
    except ProcessLookupError:
        return 0
    sources = [wake_read, ended, output]
    next_check = 0.0
    while True:
        readable = select.select(sources, [], [], max(0.0, next_check - time.monotonic()))[0]
        if output in readable and not pump(output, log):
            sources.remove(output)
        if wake_read in readable:
            os.read(wake_read, 512)
        exits = _reap()
        if server in exits:
            return exits[server]
        if ended in readable and not child:
            return 0
        if time.monotonic() >= next_check:
            next_check = time.monotonic() + police.check(server)


def main(settings_json: str) -> int:
    """Set up, confine, say so, wait for the order, run.

    Args:
        settings_json: `{"control", "output", "write_output", "log", "status", "uid", "gid", "limits", "events",
            "alone"}`; the first five are file descriptors; alone: there is no bubblewrap around this.
    """
    settings = json.loads(settings_json)
    limits: confine.Limits = settings["limits"]
    control, output, log = settings["control"], settings["output"], settings["log"]
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.set_blocking(output, False)
    confine.go_first_when_memory_runs_out()
    confine.drop_privileges(settings["uid"], settings["gid"], limits["shared_memory_files"])
    if settings["alone"]:
        confine.prctl(confine.PR_SET_CHILD_SUBREAPER, 1)
    confine.prctl(confine.PR_SET_DUMPABLE, 0)  # nobody inside may trace it or read its memory
    lines = Lines(socket.socket(fileno=control))
    lines.write({"ready": True})
    order = lines.read(60)
    if order is None:
        return 1
    joined = lines.read(JOIN_SECONDS) if order["join"] else None
    if joined is None:
        server = start(order["command"], order["env"], order["workdir"], settings["write_output"], limits)
    else:
        server = int(joined["pid"])
        lines.write(order)
    lines.connection.close()
    os.close(settings["write_output"])
    code = watch(server, joined is None, output, log, Police(limits["memory"], settings["events"]))
    for _round in range(64):  # its last words; not more, should something it left behind go on talking
        if not (select.select([output], [], [], 0)[0] and pump(output, log)):
            break
    code = code if code >= 0 else 128 - code
    if settings["alone"]:
        end_all()
        os.write(settings["status"], json.dumps({"exit-code": code}).encode() + b"\n")
    return code


def end_all() -> None:
    """What the kernel does for a process 1: nobody is left behind."""
    while pids := _pids():
        for pid in pids:
            _signal(pid, signal.SIGKILL)
        _reap()
        time.sleep(0.01)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
