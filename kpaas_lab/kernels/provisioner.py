"""A kernel provisioner for jupyter_client: asks the sandbox's nursery for a kernel, else starts one the ordinary way.

Chosen by `JUPYTER_DEFAULT_PROVISIONER_NAME=kpaas-lab-warm` (an entry point of `jupyter_client.kernel_provisioners`).
"""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.provisioning.local_provisioner import LocalProvisioner

from kpaas_lab.kernels import nursery

ANSWER_SECONDS = 5.0


class Forked:
    """A kernel that is somebody else's child, with the part of `subprocess.Popen` that jupyter_client uses."""

    stdin = stdout = stderr = None

    def __init__(self, pid: int, connection: socket.socket) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._connection = connection
        self._descriptor = os.pidfd_open(pid)

    def poll(self) -> int | None:
        """None while it runs, else its exit code."""
        if self.returncode is None and select.select([self._descriptor], [], [], 0)[0]:
            self.returncode = self._exit_code()
            os.close(self._descriptor)
            self._connection.close()
        return self.returncode

    def _exit_code(self) -> int:
        """What the nursery says; 1 where the nursery is gone, too."""
        try:
            self._connection.settimeout(1)
            return int(json.loads(self._connection.recv(256))["exit"])
        except (OSError, ValueError, KeyError):
            return 1

    def wait(self) -> int:
        """Its exit code, once it has ended."""
        while (code := self.poll()) is None:
            select.select([self._descriptor], [], [])
        return code

    def send_signal(self, number: int) -> None:
        """Signal exactly this process."""
        if self.poll() is None:
            signal.pidfd_send_signal(self._descriptor, number)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)


def launcher_arguments(command: Sequence[str]) -> list[str] | None:
    """The arguments of ipykernel's launcher; None for any other command, which is started the ordinary way.

    Example:
        >>> launcher_arguments(["/env/bin/python", "-Xfrozen_modules=off", "-m", "ipykernel_launcher", "-f", "k.json"])
        ['-f', 'k.json']
        >>> launcher_arguments(["R", "--slave"])
    """
    words = [word for word in command[1:] if not word.startswith("-X")]
    is_python = bool(command) and Path(command[0]).name.startswith("python")
    return words[2:] if is_python and words[:2] == ["-m", nursery.LAUNCHER] else None


def ask(argv: Sequence[str], env: Mapping[str, str], cwd: str, path: str | None = None) -> Forked | None:
    """A kernel of the nursery's; None where there is no nursery or it doesn't answer."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.settimeout(ANSWER_SECONDS)
    try:
        connection.connect(path or nursery.SOCKET)
        connection.send(json.dumps({"argv": list(argv), "env": dict(env), "cwd": cwd}).encode())
        return Forked(int(json.loads(connection.recv(256))["pid"]), connection)
    except (OSError, ValueError, KeyError):
        connection.close()
        return None


class WarmProvisioner(LocalProvisioner):
    """Local kernels, forked where that is possible."""

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> KernelConnectionInfo:
        """Start the kernel; the rest of its life is LocalProvisioner's."""
        argv = launcher_arguments(cmd)
        cwd = str(kwargs.get("cwd") or Path.cwd())
        forked = None
        if argv is not None and not kwargs.get("independent"):
            forked = await asyncio.to_thread(ask, argv, kwargs.get("env") or os.environ, cwd)
        if forked is None:
            return await super().launch_kernel(cmd, **kwargs)
        self.process = forked  # type: ignore[assignment]  # it does of Popen what LocalProvisioner needs
        self.pid = self.pgid = forked.pid
        self.cwd = cwd
        return self.connection_info
