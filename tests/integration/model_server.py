"""A real model server in a process of its own, on a Unix socket."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.waiting import until


@dataclass
class ModelServer:
    process: subprocess.Popen[bytes]
    socket_path: Path
    log: Path
    client: httpx.Client

    def ready(self) -> bool:
        if self.process.poll() is not None:
            raise AssertionError(f"the server ended with {self.process.returncode}\n{self.log.read_text()}")
        try:
            return self.client.get("/v2/health/ready").status_code == 200
        except httpx.TransportError:
            return False

    def wait_ready(self) -> None:
        until(self.ready, 30, "ready server", log=self.log)

    def raw(self, data: bytes, *, timeout: float = 20.0) -> bytes:
        """Send bytes and read until the server closes or the timeout."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(timeout)
            sock.connect(str(self.socket_path))
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            answer = b""
            while chunk := sock.recv(65536):
                answer += chunk
            return answer

    def memory(self) -> int:
        """Resident memory at its highest, in bytes."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024
        raise AssertionError("no VmHWM")


@contextmanager
def model_server(folder: Path, model: Path, *arguments: str, name: str = "m") -> Iterator[ModelServer]:
    folder.mkdir(exist_ok=True)
    path, log = folder / "0.sock", folder / "server.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "kpaas_lab.runtime.serve", "--model", model, "--name", name, *arguments],
            env={**os.environ, "KPAAS_LAB_LISTEN": f"unix:{path}", "OMP_NUM_THREADS": "1"},
            stdout=output,
            stderr=output,
        )
    client = httpx.Client(
        transport=httpx.HTTPTransport(uds=str(path)), base_url="http://endpoint", timeout=httpx.Timeout(30)
    )
    server = ModelServer(process, path, log, client)
    try:
        yield server
    finally:
        client.close()
        process.kill()
        process.wait()
