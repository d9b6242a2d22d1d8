"""Ports of learners' servers: found free, and checked to be their own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket

import psutil

LOOPBACK = "127.0.0.1"
# Below the kernel's range for outgoing connections and apart from the platform's own; in confine.RESERVED_PORTS.
CANDIDATES = range(10000, 20000)


def free_port() -> int:
    """A port of the loopback on which nobody listens now.

    Raises:
        OSError: there is none.
    """
    for port in random.sample(CANDIDATES, len(CANDIDATES)):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port in TIME_WAIT is free
            probe.bind((LOOPBACK, port))
            return port
    raise OSError("no port of the loopback is free")


async def accepts(port: int) -> bool:
    """Whether somebody listens on it."""
    try:
        _reader, writer = await asyncio.open_connection(LOOPBACK, port)
    except OSError:
        return False
    writer.close()
    return True


def belongs(port: int, pid: int) -> bool:
    """Whether all who listen on the port are in the same sandbox (list of processes) as this process."""
    listeners = {
        connection.pid
        for connection in psutil.net_connections(kind="tcp")
        if connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port
    }
    mine = _processes(pid)
    return bool(mine and listeners) and all(other and _processes(other) == mine for other in listeners)


def _processes(pid: int) -> str:
    """The name of the process's PID namespace; "" where it has ended."""
    try:
        return os.readlink(f"/proc/{pid}/ns/pid")
    except OSError:
        return ""
