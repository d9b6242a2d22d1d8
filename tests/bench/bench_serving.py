"""Serving: an echo's CPU time beside KServe's ModelServer and LitServe; micro-batching beside batches of one.

All servers run on this machine, one worker each, one after the other, with the same body and the same load.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import orjson

from kpaas_lab import models
from tests.bench import http_load, peers
from tests.bench.table import Row
from tests.waiting import until

REQUESTS = 4000
CONNECTIONS = 8
SERVERS = Path(__file__).parent / "peer_servers"
BODY = orjson.dumps({"inputs": [{"name": "x", "shape": [1, 64], "datatype": "FP32", "data": [0.5] * 64}]})


def echo(x: np.ndarray) -> np.ndarray:
    return x


def rows() -> Iterable[Row]:
    """The figures."""
    with tempfile.TemporaryDirectory() as folder:
        yield from _echo_rows(Path(folder))
        yield from _batching_rows(Path(folder))


def _echo_rows(folder: Path) -> Iterator[Row]:
    models.save(echo, folder / "echo", example=np.zeros((2, 64), dtype=np.float32))
    with _ours(folder / "echo") as (pid, port):
        ours = _cpu_us(pid, port, "/v2/models/echo/infer")
    goals = {"KServe ModelServer": "≤ 150 µs, 5 × less", "LitServe": "≤ 150 µs, 10 × less"}
    contenders = (
        ("KServe ModelServer", peers.KSERVE, "kserve_echo.py", "/v2/models/echo/infer", "/v2/health/ready"),
        ("LitServe", peers.LITSERVE, "litserve_echo.py", "/predict", "/health"),
    )
    what = f"echo of 64 FP32, {CONNECTIONS} connections: CPU µs a request"
    for name, requirements, script, path, ready in contenders:
        try:
            with _process([str(peers.python(requirements)), str(SERVERS / script)], ready) as (pid, port):
                theirs = _cpu_us(pid, port, path)
            yield Row(what, f"{ours:.0f}", name, f"{theirs:.0f} ({theirs / ours:.1f} ×)", goals[name])
        except (peers.PeerUnavailableError, AssertionError) as error:
            yield Row(what, f"{ours:.0f}", name, f"not measured: {str(error).strip()[-200:]}", goals[name])


def _batching_rows(folder: Path) -> Iterator[Row]:
    """Two models of learners: a forest, whose call costs the same for one row and for many; and a network."""
    import torch
    from sklearn.datasets import load_digits
    from sklearn.ensemble import RandomForestClassifier
    from torch import nn

    torch.manual_seed(0)
    torch.set_num_threads(1)
    layers = [nn.Linear(64, 2048), nn.ReLU(), nn.Linear(2048, 2048), nn.ReLU(), nn.Linear(2048, 10)]
    models.save(nn.Sequential(*layers), folder / "network", example=torch.zeros(2, 64))
    forest = RandomForestClassifier(n_estimators=100, random_state=0).fit(*load_digits(return_X_y=True))
    models.save(forest, folder / "forest")
    for name, body in (("forest", BODY.replace(b"FP32", b"FP64")), ("network", BODY.replace(b'"x"', b'"input"'))):
        yield from _batching(folder / name, body)


def _batching(model: Path, body: bytes) -> Iterator[Row]:
    path = f"/v2/models/{model.name}/infer"
    figures = {}
    for batch in (1, 32):
        with _ours(model, "--max-batch", str(batch), "--threads", "1") as (_pid, port):
            _load(port, path, body, requests=64, connections=32)
            figures[batch] = _load(port, path, body, requests=300 if batch == 1 else 1500, connections=32)
    one, many = figures[1], figures[32]
    ratio = many.per_second / one.per_second
    peer = "the same with max_batch=1"
    yield Row(
        f"micro-batching, {model.name}, 32 connections: calls a second",
        f"{many.per_second:.0f} ({ratio:.1f} ×)",
        peer,
        f"{one.per_second:.0f}",
        "≥ 3 × where a call costs more than a row",
    )
    yield Row(
        f"micro-batching, {model.name}: p50 / p99 ms",
        f"{many.percentile(50) * 1e3:.1f} / {many.percentile(99) * 1e3:.1f}",
        peer,
        f"{one.percentile(50) * 1e3:.1f} / {one.percentile(99) * 1e3:.1f}",
        "max_delay and two runs",
    )


def _cpu_us(pid: int, port: int, path: str) -> float:
    """CPU time of the server and its workers, in microseconds a request."""
    _load(port, path, BODY, requests=500, connections=CONNECTIONS)
    before = http_load.cpu_seconds(pid)
    _load(port, path, BODY, requests=REQUESTS, connections=CONNECTIONS)
    return (http_load.cpu_seconds(pid) - before) / REQUESTS * 1e6


def _load(port: int, path: str, body: bytes, *, requests: int, connections: int) -> http_load.Load:
    load = http_load.post(f"127.0.0.1:{port}", path, body, requests=requests, connections=connections)
    assert not load.failed, f"{load.failed} requests failed"
    return load


@contextmanager
def _ours(model: Path, *options: str) -> Iterator[tuple[int, int]]:
    command = [sys.executable, "-m", "kpaas_lab.runtime.serve", "--model", str(model), "--name", model.name, *options]
    with _process(command, "/v2/health/ready", listen=True) as running:
        yield running


@contextmanager
def _process(command: list[str], ready: str, *, listen: bool = False) -> Iterator[tuple[int, int]]:
    """A server in a process group of its own; its pid and port once it is ready."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if listen:
        environment["KPAAS_LAB_LISTEN"] = f"127.0.0.1:{port}"
    with tempfile.NamedTemporaryFile() as log:
        process = subprocess.Popen(
            command if listen else [*command, str(port)],
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            until(lambda: _answers(port, ready), 120, f"ready server {command[-1]}", log=Path(log.name))
            yield process.pid, port
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _answers(port: int, path: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
