"""A model server's life: loading, updates, SIGTERM, SIGKILL, bad starts."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import orjson
import pytest

from kpaas_lab import models
from tests.integration.model_server import ModelServer, model_server
from tests.waiting import until

X = np.array([[1.0], [2.0]])


def double(x: np.ndarray) -> np.ndarray:
    return 2 * x


def triple(x: np.ndarray) -> np.ndarray:
    return 3 * x


def slow(x: np.ndarray) -> np.ndarray:
    import time

    time.sleep(float(x.max()))
    return x


def infer(server: ModelServer, value: float) -> httpx.Response:
    tensor = {"name": "x", "shape": [1, 1], "datatype": "FP64", "data": [value]}
    return server.client.post("/v2/models/m/infer", content=orjson.dumps({"inputs": [tensor]}))


def in_flight(server: ModelServer) -> bool:
    return "kpaas_lab_requests_in_flight 1.0" in server.client.get("/metrics").text


def test_sigterm_finishes_what_is_in_flight(tmp_path: Path) -> None:
    models.save(slow, tmp_path / "model", example=np.array([[0.0], [0.001]]))
    with model_server(tmp_path / "run", tmp_path / "model", "--drain", "0.4") as server, ThreadPoolExecutor() as pool:
        server.wait_ready()
        answer = pool.submit(infer, server, 1.5)
        until(lambda: in_flight(server), 10, "request in flight", log=server.log)
        server.process.send_signal(signal.SIGTERM)
        until(
            lambda: server.client.get("/v2/health/ready").status_code == 503, 5, "not ready", log=server.log
        )  # load balancers see it before connections are refused
        assert server.client.get("/v2/health/live").status_code == 200
        assert answer.result(timeout=10).json()["outputs"][0]["data"] == [1.5]
        assert server.process.wait(timeout=10) == 0
        assert not server.socket_path.exists()


def test_a_request_longer_than_the_grace_is_cut(tmp_path: Path) -> None:
    models.save(slow, tmp_path / "model", example=np.array([[0.0], [0.001]]))
    arguments = ("--drain", "0", "--grace", "1")
    with model_server(tmp_path / "run", tmp_path / "model", *arguments) as server, ThreadPoolExecutor() as pool:
        server.wait_ready()
        answer = pool.submit(infer, server, 20.0)
        until(lambda: in_flight(server), 10, "request in flight", log=server.log)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(timeout=10) == 0
        cut = answer.exception(timeout=10)
        assert isinstance(cut, httpx.TransportError) if cut else answer.result().status_code == 503


def test_after_sigkill_the_next_one_takes_the_socket(tmp_path: Path) -> None:
    models.save(double, tmp_path / "model", example=X)
    with model_server(tmp_path / "run", tmp_path / "model") as server:
        server.wait_ready()
        assert stat.S_IMODE(server.socket_path.stat().st_mode) == 0o600
        server.process.kill()
        server.process.wait()
        assert server.socket_path.exists()
        with model_server(tmp_path / "run", tmp_path / "model") as second:
            second.wait_ready()
            assert infer(second, 4.0).json()["outputs"][0]["data"] == [8.0]


def test_an_update_loses_no_request(tmp_path: Path) -> None:
    models.save(double, tmp_path / "model", example=X)
    models.save(triple, tmp_path / "next", example=X)
    with model_server(tmp_path / "run", tmp_path / "model") as server, ThreadPoolExecutor() as pool:
        server.wait_ready()
        stop = False

        def call() -> set[tuple[int, str, float]]:
            seen = set()
            while not stop:
                answer = infer(server, 5.0)
                seen.add((answer.status_code, answer.json()["model_version"], answer.json()["outputs"][0]["data"][0]))
            return seen

        callers = [pool.submit(call) for _number in range(3)]
        models.install(tmp_path / "next", tmp_path / "model", version="2")
        until(lambda: server.client.get("/v2/models/m").json()["versions"] == ["2"], 10, "version 2", log=server.log)
        assert infer(server, 5.0).json()["outputs"][0]["data"] == [15.0]
        stop = True
        seen = set().union(*(caller.result() for caller in callers))
        assert seen <= {(200, "1", 10.0), (200, "2", 15.0)}
        assert server.client.get("/v2/models/m/versions/1").status_code == 404


def test_an_update_that_cant_be_loaded_leaves_the_old_model(tmp_path: Path) -> None:
    models.save(double, tmp_path / "model", example=X)
    with model_server(tmp_path / "run", tmp_path / "model") as server:
        server.wait_ready()
        (tmp_path / "model" / "model.json").write_text("{}")
        until(
            lambda: "kpaas_lab_model_load_failures_total 1.0" in server.client.get("/metrics").text,
            10,
            "failed load",
            log=server.log,
        )
        assert infer(server, 4.0).json()["outputs"][0]["data"] == [8.0]
        assert "doesn't describe a model" in server.log.read_text()


def test_a_model_that_cant_be_loaded_ends_it_with_the_reason(tmp_path: Path) -> None:
    with model_server(tmp_path / "run", tmp_path / "none") as server:
        assert server.process.wait(timeout=20) == 1
        assert "There is no model at" in server.log.read_text()
        assert "Traceback" not in server.log.read_text()


def test_a_deep_folder_is_no_problem_for_the_socket(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 60) / ("e" * 60)
    deep.mkdir(parents=True)
    models.save(double, tmp_path / "model", example=X)
    with model_server(deep / "run", tmp_path / "model") as server:
        until((deep / "run" / "0.sock").exists, 20, "socket", log=server.log)
        folder = os.open(deep / "run", os.O_RDONLY)
        try:
            with httpx.Client(transport=httpx.HTTPTransport(uds=f"/proc/self/fd/{folder}/0.sock")) as client:
                until(lambda: client.get("http://e/v2/health/ready").status_code == 200, 20, "ready", log=server.log)
        finally:
            os.close(folder)


@pytest.mark.parametrize(
    ("listen", "says"),
    [
        ("nonsense", "can't be listened on"),
        ("127.0.0.1:99999", "can't be listened on"),
        ("unix:/nonexistent/folder/0.sock", "No such file"),
        ("unix:{tmp}/file", "another file is there"),
    ],
)
def test_an_address_that_cant_be_used_is_said(tmp_path: Path, listen: str, says: str) -> None:
    models.save(double, tmp_path / "model", example=X)
    (tmp_path / "file").write_text("mine")
    done = subprocess.run(
        [sys.executable, "-m", "kpaas_lab.runtime.serve", "--model", tmp_path / "model", "--name", "m"],
        env={**os.environ, "KPAAS_LAB_LISTEN": listen.format(tmp=tmp_path)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 1
    assert says in done.stderr
    assert "KPAAS_LAB_LISTEN" in done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "file").read_text() == "mine"


def test_a_taken_port_is_said(tmp_path: Path) -> None:
    models.save(double, tmp_path / "model", example=X)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = subprocess.run(
            [sys.executable, "-m", "kpaas_lab.runtime.serve", "--model", tmp_path / "model", "--name", "m"],
            env={**os.environ, "KPAAS_LAB_LISTEN": f"127.0.0.1:{taken.getsockname()[1]}"},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    assert (done.returncode, "Address already in use" in done.stderr) == (1, True)


def test_bad_options_are_said(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "kpaas_lab.runtime.serve", "--model", "m", "--name", "m", "--max-batch", "0"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, "--max-batch and --threads start at 1" in done.stderr) == (2, True)
