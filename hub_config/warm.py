"""Servers that start in a fraction of a second: forked from a process that has their imports done (`zygote.py`)."""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hub_config.bubblewrap import OWN_HOME, ROOT
from hub_config.zygote import runnable

# What a JupyterLab server of the hub imports until it answers.
JUPYTERLAB = (
    "jupyterhub.singleuser",
    "jupyterhub.singleuser.extension",
    "jupyterlab.labapp",  # not labhubapp: importing that turns every handler into the old kind of server's
    "jupyter_core.migrate",
    "jupyter_server_terminals",
    "notebook_shim.nbserver",
    "kpaas_lab.server_extension",
    "IPython.core.interactiveshell",
    "IPython.core.completer",
    "IPython.lib",
    "IPython.terminal.interactiveshell",
    "ipykernel.kernelspec",
    "jinja2.ext",
    "tornado.platform.asyncio",
    "httpcore",
    *(
        f"jupyter_server.{part}.handlers"
        for part in (
            *(f"services.{name}" for name in ("api", "config", "contents", "events", "kernels", "kernelspecs")),
            *(f"services.{name}" for name in ("nbconvert", "security", "sessions")),
            *("files", "kernelspecs", "nbconvert", "view"),
        )
    ),
    "jupyter_server.services.shutdown",
)
# What a notebook kernel imports until it answers, and what lessons import first: `kpaas_lab/kernels`.
KERNELS = (
    "ipykernel.kernelapp",
    "ipykernel.ipkernel",
    "ipykernel.debugger",
    "IPython.core.completer",
    "IPython.core.interactiveshell",
    "matplotlib.backends.backend_agg",  # not matplotlib_inline: imported before there is a kernel, it shows no figure
    "ipywidgets",
    "threadpoolctl",
    "numpy",
    "torch",
    "kpaas_lab",
)
# Processors are shared: threads that spin while they wait for one another take them from the others. Measured with 2
# threads on 2 busy cores: an epoch of the first lesson takes 14.6 s spinning, 0.5 s sleeping. Read as torch is loaded.
SLEEPING_THREADS = {"OMP_WAIT_POLICY": "PASSIVE"}
# The warm process of kernels; one thread of numpy's, else it couldn't be forked safely. Kernels use all their cores.
# Figures go to the notebook: matplotlib reads that when it is imported, which is before the kernel says so.
KERNELS_ENV = {
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    **SLEEPING_THREADS,
}
NURSERY = ("python", "-m", "kpaas_lab.kernels.nursery")
RETRY_SECONDS = 10.0


class WarmPool:
    """One warm process; started again when it has died, and ended with this object.

    Without it, or while it isn't ready, sandboxes start their servers the ordinary way.

    Args:
        log: where it says what went wrong.
        modules: what it imports.
        env: its environment: settings that imported modules read at import; no secret.
    """

    def __init__(self, log: Path, modules: Sequence[str] = JUPYTERLAB, env: Mapping[str, str] | None = None) -> None:
        self.log = log
        self.modules = tuple(modules)
        self.env = {"PATH": os.defpath, "LANG": "C.UTF-8", "HOME": OWN_HOME, **(env or {})}
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._orders: socket.socket | None = None
        self._is_ready = False
        self._started = 0.0

    def start(self) -> None:
        """Start it, unless it runs. Returns at once; it is ready some seconds later."""
        with self._lock:
            self._start()

    def _start(self) -> None:
        if self._process and self._process.poll() is None:
            return
        self._forget()
        self._started = time.monotonic()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "hub_config.zygote", str(theirs.fileno()), *self.modules],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**self.env, "PYTHONPATH": str(ROOT)},
                cwd="/",
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        finally:
            os.close(log)
            theirs.close()
        ours.setblocking(False)  # one that hangs must not hang the hub
        self._orders = ours

    def _forget(self) -> None:
        if self._orders:
            self._orders.close()
        self._process = self._orders = None
        self._is_ready = False

    def ready(self, command: Sequence[str] | None = None) -> bool:
        """Whether it can take an order at once.

        Args:
            command: whether it can run that one, too.
        """
        if command is not None and not runnable(command):
            return False
        with self._lock:
            if not self._runs():
                return False
            if not self._is_ready and self._orders and select.select([self._orders], [], [], 0)[0]:
                self._is_ready = bool(self._orders.recv(256))
            return self._is_ready

    def running(self) -> bool:
        """Whether it can take an order now or, while it still imports, soon."""
        with self._lock:
            return self._runs()

    def _runs(self) -> bool:
        """One that has died is started again, though not again and again."""
        if self._process is None or self._process.poll() is not None:
            if time.monotonic() - self._started < RETRY_SECONDS:
                return False
            self._start()
        return True

    def join(
        self,
        pid: int,
        channel: socket.socket,
        output: int,
        settings: Mapping[str, Any],
        told: Mapping[str, Any] | None = None,
    ) -> None:
        """Send a process into the sandbox whose first process is `pid`.

        Nothing is raised: where it fails, the sandbox sees its socket closed and starts the server itself.

        Args:
            pid: as seen here.
            channel: to the first process, which says what to run.
            output: descriptor of what the process prints to.
            settings: uid, gid and limits.
            told: `{"command", "env", "workdir"}` to run instead, beside the server; the warm process sees it.
        """
        with contextlib.suppress(OSError), self._lock:
            pidfd = os.pidfd_open(pid)
            try:
                if self._orders:
                    order = {name: settings[name] for name in ("uid", "gid", "limits")} | {"pid": pid, "told": told}
                    message = json.dumps(order).encode()
                    socket.send_fds(self._orders, [message], [pidfd, channel.fileno(), output])
            finally:
                os.close(pidfd)

    def close(self) -> None:
        """End it. The servers it started go on."""
        with self._lock:
            process = self._process
            self._forget()
            if process:
                try:
                    process.wait(timeout=5)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
