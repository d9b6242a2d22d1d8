"""What every engine promises of a Service."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from kpaas_lab.engines.base import Engine
from kpaas_lab.engines.process import connect
from kpaas_lab.workloads import Phase, Service, Status
from tests.contract.engines import Bench
from tests.waiting import until

TIMEOUT = 30
PROGRAM = str(Path(__file__).with_name("answering.py"))


def service(bench: Bench, name: str, *arguments: str, replicas: int = 1) -> Service:
    return Service(
        name=name,
        command=(bench.python, PROGRAM, *arguments),
        workdir=bench.home,
        replicas=replicas,
        ready_path="/ready",
        slice="tiny",
        grace=2.0,
    )


def ready(engine: Engine, name: str, replicas: int = 1) -> Status:
    def status() -> Status | None:
        found = engine.get(name)
        return found if found.ready == replicas else None

    return until(status, TIMEOUT, f"{name} ready", log=lambda: "\n".join(engine.logs(name)))


def ask(address: str, path: str) -> tuple[int, str]:
    """GET; the process id and the replica's number."""
    with socket.socket(socket.AF_UNIX) as connection:
        connect(connection, Path(address.removeprefix("unix:")))
        connection.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
        answer = b""
        while piece := connection.recv(1000):
            answer += piece
    pid, _space, replica = answer.partition(b"\r\n\r\n")[2].decode().partition(" ")
    return (int(pid), replica) if pid else (0, "")


def test_a_service_answers_on_each_replica(bench: Bench, engine: Engine) -> None:
    engine.create(service(bench, "web", replicas=2))
    status = ready(engine, "web", 2)
    assert (status.kind, status.phase, len(status.addresses)) == ("Service", Phase.RUNNING, 2)
    assert [ask(address, "/pid")[1] for address in status.addresses] == ["0", "1"]


def test_a_replica_that_dies_comes_back(bench: Bench, engine: Engine) -> None:
    engine.create(service(bench, "web"))
    address = ready(engine, "web").addresses[0]
    before = ask(address, "/pid")[0]
    assert ask(address, "/die") == (0, "")
    until(lambda: engine.get("web").ready == 0, TIMEOUT, "the death noticed")
    status = engine.get("web")
    assert (status.phase, status.reason, status.exit_code) == (Phase.PENDING, "Error", 5)
    after = ready(engine, "web")
    assert ask(address, "/pid")[0] != before
    assert (after.phase, after.reason, after.exit_code) == (Phase.RUNNING, "", None)


def test_a_service_that_cannot_start_says_why_and_keeps_trying(bench: Bench, engine: Engine) -> None:
    engine.create(service(bench, "broken", "crash"))
    until(lambda: sum("starts again" in line for line in engine.logs("broken")) >= 2, TIMEOUT, "two tries")
    status = engine.get("broken")
    assert (status.phase, status.reason, status.exit_code) == (Phase.PENDING, "Error", 5)
    waits = [line.split()[-2] for line in engine.logs("broken") if "starts again" in line]
    assert waits[:2] == ["0.5", "1"]


def test_a_service_is_cancelled(bench: Bench, engine: Engine) -> None:
    engine.create(service(bench, "web"))
    address = ready(engine, "web").addresses[0]
    assert engine.cancel("web").phase is Phase.CANCELLED
    with pytest.raises(OSError, match=r"."):
        ask(address, "/pid")


def test_delete_while_starting(bench: Bench, engine: Engine) -> None:
    for attempt in range(5):
        engine.create(service(bench, "quick"))
        engine.delete("quick")
        assert engine.list() == [], attempt


def test_a_second_engine_sees_the_same(bench: Bench, engine: Engine) -> None:
    engine.create(service(bench, "web"))
    status = ready(engine, "web")
    other = bench.make()
    assert other.get("web").addresses == status.addresses
    other.delete("web")
    assert engine.list() == []
