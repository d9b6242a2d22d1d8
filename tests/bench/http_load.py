"""A load generator for HTTP on this machine: a bounded number of requests over connections that stay open."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Load:
    """What a run of requests took.

    Attributes:
        seconds: of all of it.
        latencies: of each request, in seconds, sorted.
        failed: answers that weren't 200.
    """

    seconds: float
    latencies: Sequence[float]
    failed: int

    def percentile(self, percent: float) -> float:
        """A latency, in seconds."""
        return self.latencies[min(len(self.latencies) - 1, int(len(self.latencies) * percent / 100))]

    @property
    def per_second(self) -> float:
        """Requests a second."""
        return len(self.latencies) / self.seconds


def post(
    address: str,
    path: str,
    body: bytes,
    *,
    requests: int,
    connections: int,
    headers: Mapping[str, str] | None = None,
) -> Load:
    """POST one body again and again.

    Args:
        address: `unix:<path>` or `<host>:<port>` of this machine.
        path: of the URL.
        body: JSON.
        requests: in all.
        connections: each sends its next request when the last one is answered.
        headers: more headers.
    """
    return asyncio.run(_post(address, path, body, requests, connections, headers or {}))


async def _post(
    address: str, path: str, body: bytes, requests: int, connections: int, headers: Mapping[str, str]
) -> Load:
    every = {"Host": "bench", "Content-Type": "application/json", "Content-Length": str(len(body)), **headers}
    head = "".join(f"{name}: {value}\r\n" for name, value in every.items())
    request = f"POST {path} HTTP/1.1\r\n{head}\r\n".encode() + body
    left = [requests]
    latencies: list[float] = []
    failed = [0]

    async def client() -> None:
        kind, _colon, rest = address.rpartition(":") if not address.startswith("unix:") else ("unix", "", address[5:])
        if kind == "unix":
            reader, writer = await asyncio.open_unix_connection(rest)
        else:
            reader, writer = await asyncio.open_connection(kind, int(rest))
        while left[0] > 0:
            left[0] -= 1
            started = time.perf_counter()
            writer.write(request)
            answer = await reader.readuntil(b"\r\n\r\n")
            lower = answer.lower()
            length = int(lower.split(b"content-length:", 1)[1].split(b"\r\n", 1)[0])
            await reader.readexactly(length)
            latencies.append(time.perf_counter() - started)
            failed[0] += not answer.startswith(b"HTTP/1.1 200")
        writer.close()

    started = time.perf_counter()
    async with asyncio.timeout(300):
        await asyncio.gather(*(client() for _number in range(connections)))
    return Load(time.perf_counter() - started, sorted(latencies), failed[0])


def cpu_seconds(pid: int) -> float:
    """User and system time that a process and its children that still run have used (proc(5))."""
    total = 0.0
    pids = [pid]
    while pids:
        current = pids.pop()
        try:
            with open(f"/proc/{current}/stat") as file:
                fields = file.read().rpartition(")")[2].split()
            for task in os.listdir(f"/proc/{current}/task"):
                with open(f"/proc/{current}/task/{task}/children") as file:
                    pids.extend(int(child) for child in file.read().split())
        except FileNotFoundError:
            continue
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total
