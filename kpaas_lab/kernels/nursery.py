"""Forks kernels: `python -m kpaas_lab.kernels.nursery`, itself a fork of a process that has the imports done.

It listens on a Unix socket in the sandbox's own /run, which nobody else sees. A connection is one kernel:

    it hears  {"argv": [...], "env": {...}, "cwd": "..."}    argv of `ipykernel_launcher`
    it says   {"pid": 7}
    it says   {"exit": 0}                                    when the kernel has ended; negative is a signal
"""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import selectors
import signal
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SOCKET = "/run/kpaas-lab/kernels.sock"
LAUNCHER = "ipykernel_launcher"
REQUEST_BYTES = 1 << 20


class Nursery:
    """The loop around one listening socket. One thread: a fork of more would be unsafe."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener.bind(str(path))
        self.listener.listen()
        self.kernels: dict[int, socket.socket] = {}
        self.waiting = selectors.DefaultSelector()
        self.wake_read, self.wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def serve(self) -> dict[str, Any]:
        """Fork kernels; returns in each of them, with its request."""
        signal.set_wakeup_fd(self.wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self.waiting.register(self.listener, selectors.EVENT_READ)
        self.waiting.register(self.wake_read, selectors.EVENT_READ)
        while True:
            for key, _events in self.waiting.select():
                if key.fileobj is self.listener:
                    self.waiting.register(self.listener.accept()[0], selectors.EVENT_READ)
                elif key.fileobj == self.wake_read:
                    os.read(self.wake_read, 512)
                    self._say_who_ended()
                elif isinstance(key.fileobj, socket.socket):
                    request = self._fork_for(key.fileobj)
                    if request is not None:
                        return request

    def _fork_for(self, connection: socket.socket) -> dict[str, Any] | None:
        """Fork the kernel that was asked for; its request, in the kernel; None here."""
        self.waiting.unregister(connection)
        try:
            request = json.loads(connection.recv(REQUEST_BYTES))
        except (OSError, ValueError):
            connection.close()
            return None
        pid = os.fork()
        if not pid:
            self._leave()
            return dict(request)
        self.kernels[pid] = connection
        with contextlib.suppress(OSError):
            connection.send(json.dumps({"pid": pid}).encode())
        return None

    def _leave(self) -> None:
        """In the kernel: a session of its own, and nothing of the nursery's kept open."""
        os.setsid()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))

    def _say_who_ended(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                connection = self.kernels.pop(ended[0], None)
                if connection:
                    with contextlib.suppress(OSError):
                        connection.send(json.dumps({"exit": os.waitstatus_to_exitcode(ended[1])}).encode())
                    connection.close()


def threads(env: Mapping[str, str], cores: int) -> int:
    """How many threads numerical libraries should use.

    Example:
        >>> threads({"OMP_NUM_THREADS": "1"}, 8), threads({"OMP_NUM_THREADS": "all"}, 8), threads({}, 4)
        (1, 8, 4)
    """
    wanted = env.get("OMP_NUM_THREADS", "")
    return int(wanted) if wanted.isdigit() and int(wanted) > 0 else cores


def become(request: Mapping[str, Any]) -> None:
    """Be the kernel that was asked for."""
    os.environ.clear()
    os.environ.update(request["env"])
    os.environ.pop("JPY_PARENT_PID", None)  # it lives as long as its sandbox, not as long as its parent
    os.chdir(request["cwd"])
    sys.argv = [LAUNCHER, *request["argv"]]
    count = threads(os.environ, len(os.sched_getaffinity(0)))
    # Libraries read these when they were imported, in another process with another environment.
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(count)
    elif "threadpoolctl" in sys.modules:
        sys.modules["threadpoolctl"].threadpool_limits(count)
    runpy.run_module(LAUNCHER, run_name="__main__", alter_sys=True)


def main() -> None:
    """Serve until the sandbox ends."""
    become(Nursery(Path(SOCKET)).serve())


if __name__ == "__main__":
    main()
