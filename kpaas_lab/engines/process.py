"""One process of a workload: its own session, its output, its end; and whether it answers. Standard library only."""

from __future__ import annotations

import contextlib
import ctypes
import os
import selectors
import signal
import socket
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
CHUNK = 1 << 16
DRAIN = 64  # chunks read after the end: more than a pipe holds, and an end to it if something disowned still writes

_libc = ctypes.CDLL(None, use_errno=True)


def adopt_orphans() -> None:
    """Become the parent of whatever this process's descendants disown, so that it is seen and counted."""
    _libc.prctl(PR_SET_CHILD_SUBREAPER, 1)


class Process:
    """A running process; `on_end(exit code)` is called once, after its last output went to `on_output`.

    Args:
        command: program and arguments.
        workdir: where it starts.
        env: its whole environment.
        prepare: called in the new process before the program: its limits.
        selector: of the loop that this process's events go through.
        on_output, on_end: what to do with them.

    Raises:
        OSError: the program or the folder isn't there or can't be used.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        workdir: Path,
        env: Mapping[str, str],
        prepare: Callable[[], None],
        selector: selectors.BaseSelector,
        on_output: Callable[[bytes], None],
        on_end: Callable[[int], None],
    ) -> None:
        def before_program() -> None:
            _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # no process outlives a shim that is killed
            prepare()

        self._selector, self._on_output, self._on_end = selector, on_output, on_end
        self._popen = subprocess.Popen(
            command,
            cwd=workdir,
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,
            start_new_session=True,
            preexec_fn=before_program,  # noqa: PLW1509 (the shim has one thread)
        )
        assert self._popen.stdout is not None  # noqa: S101
        self._output = self._popen.stdout.fileno()
        os.set_blocking(self._output, False)
        self.pid = self._popen.pid
        self._pidfd = os.pidfd_open(self.pid)
        selector.register(self._output, selectors.EVENT_READ, self._read)
        selector.register(self._pidfd, selectors.EVENT_READ, self._end)
        self._reading = True

    def signal(self, number: int) -> None:
        """Send a signal to the process and its group. The group's number is ours until the process is waited for."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    def _read(self) -> bool:
        if not self._reading:
            return False
        try:
            data = os.read(self._output, CHUNK)
        except BlockingIOError:
            return False
        if data:
            self._on_output(data)
            return True
        if self._reading:
            self._selector.unregister(self._output)
            self._reading = False
        return False

    def _end(self) -> None:
        self.signal(signal.SIGKILL)  # what it left behind
        self._selector.unregister(self._pidfd)
        os.close(self._pidfd)
        code = self._popen.wait()
        for _chunk in range(DRAIN):
            if not self._read():
                break
        if self._reading:
            self._selector.unregister(self._output)
            self._reading = False
        if self._popen.stdout:
            self._popen.stdout.close()
        self._on_end(code)


class Probe:
    """One GET over a Unix socket, without waiting: `on_answer(200?)` is called once."""

    def __init__(self, path: Path, target: str, selector: selectors.BaseSelector, on_answer: Callable[[bool], None]):
        self._selector, self._on_answer = selector, on_answer
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._socket.setblocking(False)
        try:
            connect(self._socket, path)
            self._socket.send(f"GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        except OSError:
            self._socket.close()
            self.open = False
            on_answer(False)
            return
        self.open = True
        selector.register(self._socket, selectors.EVENT_READ, self._read)

    def _read(self) -> None:
        try:
            status = self._socket.recv(64)
        except OSError:
            status = b""
        self.close()
        self._on_answer(status.startswith(b"HTTP/1.") and status[9:12] == b"200")

    def close(self) -> None:
        """Give up; nothing is called any more."""
        if self.open:
            self.open = False
            self._selector.unregister(self._socket)
            self._socket.close()


def connect(connection: socket.socket, path: Path) -> None:
    """Connect to a Unix socket whose path may be longer than the 107 bytes that an address holds (unix(7))."""
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        connection.connect(f"/proc/self/fd/{folder}/{path.name}")
    finally:
        os.close(folder)
