"""Supervisor (supervisord.org): its configuration, its start, and its answers over a Unix socket."""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import sys
import time
import xmlrpc.client
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kpaas_lab import durable
from kpaas_lab.installation import programs
from kpaas_lab.installation.layout import Layout

GROUP = "lab"
# Seconds from SIGTERM to SIGKILL. The gateway drains calls and stores its meter; the hub saves its state.
PATIENCE = {"proxy": 5, "hub": 10, "market": 10, "api": 15}

_HEAD = """\
; Written by `kpaas-lab up` at each start. Paths are relative to the state folder, where supervisor starts, so that no
; odd character of its name can break this syntax, nor its length a socket's address.
[unix_http_server]
file=/proc/self/cwd/run/supervisor.sock
chmod=0700

[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface

[supervisord]
nodaemon=true
silent=true
logfile=log/supervisor.log
logfile_maxbytes=5MB
logfile_backups=3
pidfile=run/supervisord.pid
umask=077
"""

_PROGRAM = """
[program:{name}]
command="%(ENV_KPAAS_LAB_PYTHON)s" -P -m kpaas_lab.installation.programs {name}
autorestart=true
; Tried again for ever, a second later each time: a full disk or a database that is away comes back.
startretries=1000000
startsecs=2
stopasgroup=true
killasgroup=true
stopwaitsecs={patience}
redirect_stderr=true
stdout_logfile=log/{name}.log
stdout_logfile_maxbytes=10MB
stdout_logfile_backups=5
"""


def configuration() -> str:
    """supervisord.conf: one group, so that all are stopped at once.

    Example:
        >>> configuration().splitlines()[-1]
        'programs=proxy,hub,market,api'
    """
    sections = [_PROGRAM.format(name=name, patience=PATIENCE[name]) for name in programs.NAMES]
    return _HEAD + "".join(sections) + f"\n[group:{GROUP}]\nprograms={','.join(programs.NAMES)}\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """One process as supervisor sees it.

    Attributes:
        state: supervisor's word: RUNNING, STARTING, BACKOFF (died at once; tried again soon), STOPPING, STOPPED, FATAL.
        pid: 0 while there is none.
        uptime: seconds.
        restarts: since `up`.
    """

    name: str
    state: str
    pid: int
    uptime: float
    restarts: int


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=5)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        folder = os.open(self.path.parent, os.O_PATH | os.O_DIRECTORY)
        try:  # an address of a socket has 107 bytes at most, a path may have more
            self.sock.connect(f"/proc/self/fd/{folder}/{self.path.name}")
        finally:
            os.close(folder)


class _UnixTransport(xmlrpc.client.Transport):
    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def make_connection(self, host: Any) -> http.client.HTTPConnection:
        return _UnixConnection(self.path)


def start(layout: Layout, environment: Mapping[str, str], lock: int) -> subprocess.Popen[bytes]:
    """Start supervisord, which starts the rest. It holds the lock too, until the last process is gone."""
    durable.write(layout.supervisor_config, configuration())
    layout.supervisor_socket.unlink(missing_ok=True)
    for name in programs.NAMES:
        layout.starts(name).unlink(missing_ok=True)
    with layout.log("supervisor-start").open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "kpaas_lab.installation.programs", "supervisor"],
            env=dict(environment), stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for `up` alone, which stops things in order
            pass_fds=(lock,), cwd=layout.home,
        )  # fmt: skip


def starts(layout: Layout, name: str) -> int:
    """How often a process was started since `up`."""
    try:
        return layout.starts(name).read_text().count("\n")
    except OSError:
        return 0


def processes(layout: Layout) -> tuple[Process, ...]:
    """What supervisor says of each process; nothing where supervisor doesn't answer.

    Being asked also wakes it: by itself it looks for what is to be started or has ended once a second.
    """
    server = xmlrpc.client.ServerProxy("http://localhost", transport=_UnixTransport(layout.supervisor_socket))
    try:
        answer: Any = server.supervisor.getAllProcessInfo()
    except (OSError, xmlrpc.client.Error, http.client.HTTPException):
        return ()
    known = {str(info["name"]): info for info in answer}
    return tuple(
        Process(
            name=name,
            state=str(info["statename"]),
            pid=int(info["pid"]),
            uptime=max(0.0, time.time() - float(info["start"])) if info["pid"] else 0.0,
            restarts=max(0, starts(layout, name) - 1),
        )
        for name in programs.NAMES
        if (info := known.get(name))
    )
