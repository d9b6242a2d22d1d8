"""The warm process: it has the imports of a server done, and forks servers that enter a sandbox.

It runs as the platform's user and learns no secret: its environment is nearly empty, and a server is told its own (its
tokens) by its sandbox, in its own process. What this process once had in memory, every later server would have too. It
has one thread; a fork of more would be unsafe.

    it says   {"ready": true}
    it hears  an order (`warm.WarmPool.join`), with three descriptors: the sandbox's first process (a pidfd), the socket
              to that process, and the pipe that is the server's output
    end of file: the hub is gone; so is it. The servers it forked go on.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from typing import Any

from hub_config import confine
from hub_config.sandbox_init import Lines, say

NAMESPACES = {"user": 0x10000000, "mnt": 0x20000, "pid": 0x20000000, "ipc": 0x08000000, "uts": 0x04000000}
NAMESPACES |= {"cgroup": 0x02000000}
ORDER_BYTES = 1 << 20


def runnable(command: Sequence[str]) -> bool:
    """Whether a forked Python can stand for that command: `python -m module ...` or `python -c code ...`.

    Example:
        >>> runnable(["/usr/bin/python3", "-m", "jupyterhub.singleuser"]), runnable(["/bin/bash"])
        (True, False)
    """
    return len(command) >= 3 and "python" in os.path.basename(command[0]) and command[1] in {"-m", "-c"}


def enter(pidfd: int, pid: int) -> None:
    """Join the namespaces of that process that aren't ours already.

    Raises:
        OSError: it has ended, or the kernel refuses.
    """
    flags = 0
    for name, flag in NAMESPACES.items():
        if os.readlink(f"/proc/{pid}/ns/{name}") != os.readlink(f"/proc/self/ns/{name}"):
            flags |= flag
    signal.pidfd_send_signal(pidfd, 0)  # still there, so the links above were its own
    if confine.libc.setns(pidfd, flags):
        number = ctypes.get_errno()
        raise OSError(number, f"setns: {os.strerror(number)}")


def become_server(order: dict[str, Any], channel: int, output: int) -> list[str]:
    """In the forked process, inside the sandbox's namespaces: give up everything else, then ask what to do.

    Returns:
        The command to run.

    Raises:
        OSError: something couldn't be given up.
        ConnectionError: too late; the sandbox does without.
    """
    os.setsid()
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    nothing = os.open("/dev/null", os.O_RDONLY)
    for source, target in ((nothing, 0), (output, 1), (output, 2), (channel, 3)):
        os.dup2(source, target, inheritable=target < 3)
    os.closerange(4, os.sysconf("SC_OPEN_MAX"))
    limits: confine.Limits = order["limits"]
    confine.set_limits(limits)
    confine.confine_sockets(limits["port"], limits["closed_ports"])
    confine.drop_privileges(order["uid"], order["gid"], limits["shared_memory_files"])
    confine.prctl(confine.PR_SET_DUMPABLE, 1)  # as any process that was exec'ed; without it /proc/self is closed
    with socket.socket(fileno=3) as connection:
        told = order["told"] or ask_the_sandbox(connection)
    os.environ.clear()
    os.environ.update(told["env"])
    os.chdir(told["workdir"])
    command: list[str] = told["command"]
    return command


def ask_the_sandbox(channel: socket.socket) -> dict[str, Any]:
    """What to run, from the sandbox's first process, which takes this one for the server from now on.

    Raises:
        ConnectionError: it no longer waits.
    """
    lines = Lines(channel)
    lines.write({"pid": os.getpid()})
    told = lines.read(30)
    if told is None:
        raise ConnectionError("the sandbox did not wait")
    return told


def run(command: Sequence[str]) -> None:
    """What `python -m module ...` or `python -c code ...` does, in this process."""
    _interpreter, kind, what, *rest = command
    sys.argv = ["-c" if kind == "-c" else what, *rest]
    gc.enable()
    if kind == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})  # noqa: S102 - as `python -c` does


def fork_into(order: dict[str, Any], pidfd: int, channel: int, output: int) -> list[str] | None:
    """Fork a server; the command to run, in the server; None here.

    Twice: a process enters a list of processes only by being born there. The one between ends at once, and the server
    becomes a child of this process again (a subreaper), which waits for its end.
    """
    if os.fork():
        return None
    try:
        confine.go_first_when_memory_runs_out()
        enter(pidfd, order["pid"])
        if os.fork():
            os._exit(0)
        return become_server(order, channel, output)
    except BaseException as error:
        say(f"warm start: {error}")
        os._exit(1)


def _reap() -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def serve(orders: socket.socket) -> list[str] | None:
    """Fork a server for each order: the command to run, in the server; None at the end, in the warm process."""
    wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    while True:
        readable = select.select([orders.fileno(), wake_read], [], [])[0]
        if wake_read in readable:
            os.read(wake_read, 512)
            _reap()
        if orders.fileno() not in readable:
            continue
        data, descriptors, _flags, _address = socket.recv_fds(orders, ORDER_BYTES, 3)
        if not data:
            return None
        command = fork_into(json.loads(data), *descriptors) if len(descriptors) == 3 else None
        if command is not None:
            return command
        for descriptor in descriptors:
            os.close(descriptor)


def warm_up(modules: Sequence[str], announce: Callable[[], None]) -> None:
    """Import, and make what was imported cheap to share: never looked at again by the garbage collector."""
    for module in modules:
        try:
            importlib.import_module(module)
        except Exception as error:  # a package that isn't there makes a server slower, not impossible
            say(f"warm process: {module}: {error}")
    if len(os.listdir("/proc/self/task")) > 1:
        raise RuntimeError("an import started a thread: this process can't be forked safely")
    gc.collect()
    gc.disable()
    gc.freeze()
    announce()


def main(descriptor: int, modules: Sequence[str]) -> None:
    """Serve on that socket with those modules imported."""
    orders = socket.socket(fileno=descriptor)
    confine.prctl(confine.PR_SET_CHILD_SUBREAPER, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for who started the hub
    warm_up(modules, lambda: orders.sendall(b'{"ready": true}'))
    command = serve(orders)
    if command is not None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        run(command)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
