"""What is acknowledged is counted, once: over kills of the gateway, of the database's backends, and a database away."""

import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from kpaas_lab.market.database import open_database
from tests.fixtures.gateway import REQUEST, Gateway, Lab, Subscribed
from tests.waiting import until


@dataclass
class Load:
    """Calls from some threads until told to stop; what was sent and when each was acknowledged (monotonic)."""

    gateway: Gateway
    api: Subscribed
    at_once: int = 4
    sent: int = 0
    acknowledged: list[float] = field(default_factory=list)
    refused: int = 0

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._call) for _ in range(self.at_once)]
        for thread in self._threads:
            thread.start()

    def _call(self) -> None:
        while not self._stop.is_set():
            try:
                with self.gateway.client(headers=self.api.headers) as client:
                    while not self._stop.is_set():
                        self.sent += 1  # a race here would only make the bound looser
                        status = client.post(f"{self.api.path}/models/m/infer", json=REQUEST).status_code
                        if status == 200:
                            self.acknowledged.append(time.monotonic())
                        else:
                            self.refused += 1
            except httpx.TransportError:
                time.sleep(0.02)

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def go_on(self, seconds: float) -> None:
        """Return when calls were acknowledged again, and that long has passed."""
        since, calls = time.monotonic(), len(self.acknowledged)
        until(
            lambda: time.monotonic() - since > seconds and len(self.acknowledged) > calls + 50,
            30, "load", log=self.api.lab.log,
        )  # fmt: skip


def test_a_kill_of_the_gateway_under_load_loses_a_second_at_most_and_counts_nothing_twice(lab: Lab) -> None:
    api = lab.listing(calls_per_day=10**6)
    lab.endpoint()
    gateway = lab.gateway()
    load = Load(gateway, api)
    windows: list[tuple[float, float]] = []  # of what a kill may have cost
    for _ in range(3):
        load.go_on(seconds=1.3)
        killed = time.monotonic()
        gateway.process.kill()
        windows.append((killed - 1.6, killed + 0.1))  # a second, and the time it takes to store it on a busy machine
        gateway.start()
    load.go_on(seconds=0.5)
    load.stop()
    assert gateway.process.kill(15) in {0, -15}
    usage = lab.usage()
    durable = sum(not any(begin < at < end for begin, end in windows) for at in load.acknowledged)
    assert durable <= usage["calls"] <= load.sent, (durable, usage, len(load.acknowledged), load.sent)
    assert usage["timed"] == usage["calls"]


def test_an_orderly_stop_counts_every_call_exactly(lab: Lab) -> None:
    api = lab.listing()
    lab.endpoint()
    gateway = lab.gateway()
    load = Load(gateway, api)
    until(lambda: len(load.acknowledged) > 100, 20, "load", log=lab.log)
    load.stop()
    gateway.process.kill(15)
    assert lab.usage()["calls"] == len(load.acknowledged) == load.sent
    assert list((lab.home / "spool").rglob("*.segment")) == []


def test_postgresqls_backends_are_killed_again_and_again(
    tmp_path: Path, postgres: str, request: pytest.FixtureRequest
) -> None:
    lab = Lab(tmp_path, postgres, open_database(postgres, migrate=True))
    request.addfinalizer(lab.stop)
    api = lab.listing()
    lab.endpoint()
    gateway = lab.gateway()
    load = Load(gateway, api)
    load.go_on(seconds=0.1)
    kill = (
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
        " WHERE pid <> pg_backend_pid() AND datname = current_database() AND application_name <> 'test'"
    )
    killed = 0
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        address = postgres.replace("+psycopg", "")
        with psycopg.connect(address, autocommit=True, application_name="test") as connection:
            for _ in range(20):
                row = connection.execute(kill).fetchone()
                assert row is not None
                killed += row[0]
                time.sleep(0.01)
    load.stop()
    assert killed > 5
    assert load.refused == 0, lab.log()[-3000:]
    assert len(load.acknowledged) == load.sent
    usage = lab.settled(lambda usage: usage["calls"] >= len(load.acknowledged))
    assert usage["calls"] == len(load.acknowledged)
    gateway.process.kill(15)
    assert lab.usage()["calls"] == len(load.acknowledged)


def test_a_database_that_is_locked_for_long_loses_nothing(sqlite_lab: Lab) -> None:
    api = sqlite_lab.listing(calls_per_day=10**6)
    sqlite_lab.endpoint()
    gateway = sqlite_lab.gateway()
    assert gateway.call(api).status_code == 200
    sqlite_lab.settled(lambda usage: usage["calls"] == 1)
    other = sqlite3.connect(sqlite_lab.home / "market" / "market.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    load = Load(gateway, api, at_once=2)
    with gateway.client() as client:

        def waits() -> bool:
            return client.get("/services/api/healthz").json()["spool"]["pending_bytes"] > 500

        until(waits, 10, "counts that wait", log=sqlite_lab.log)
    load.stop()
    assert load.refused == 0
    gateway.process.kill()  # with all of it in the spool but the last second
    other.execute("ROLLBACK")
    gateway.start()
    sqlite_lab.settled(lambda usage: usage["calls"] > len(load.acknowledged) * 0.3)
    assert sqlite_lab.usage()["calls"] <= 1 + len(load.acknowledged)


def test_a_writer_killed_in_the_middle_of_its_transaction(sqlite_lab: Lab) -> None:
    """Another writer of the same SQLite file dies with its transaction open; its lock dies with it."""
    api = sqlite_lab.listing()
    sqlite_lab.endpoint()
    gateway = sqlite_lab.gateway()
    code = (
        "import sqlite3, sys, time; c = sqlite3.connect(sys.argv[1], isolation_level=None);"
        "c.execute('BEGIN IMMEDIATE'); c.execute('UPDATE usage SET calls = calls + 1000'); print('in', flush=True);"
        "time.sleep(60)"
    )
    writer = subprocess.Popen(
        [sys.executable, "-c", code, sqlite_lab.home / "market" / "market.sqlite"], stdout=subprocess.PIPE
    )
    assert writer.stdout is not None
    assert writer.stdout.readline() == b"in\n"
    assert [gateway.call(api).status_code for _ in range(5)] == [200] * 5
    writer.kill()
    writer.wait()
    assert sqlite_lab.settled(lambda usage: usage["calls"] >= 5)["calls"] == 5


def away_and_back(lab: Lab) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """How to take SQLite's file away so that it can neither be read nor written, and to bring it back."""
    folder, elsewhere = lab.home / "market", lab.home / "elsewhere"

    def away() -> None:
        lab.engine.dispose()
        folder.rename(elsewhere)
        folder.write_text("")  # so that none can be made in its place

    def back() -> None:
        folder.unlink()
        elsewhere.rename(folder)

    return away, back


def test_a_database_away_over_a_restart(sqlite_lab: Lab) -> None:
    api = sqlite_lab.listing()
    sqlite_lab.endpoint()
    gateway = sqlite_lab.gateway()
    assert [gateway.call(api).status_code for _ in range(3)] == [200] * 3
    sqlite_lab.settled(lambda usage: usage["calls"] == 3)
    gateway.process.kill()
    away, back = away_and_back(sqlite_lab)
    away()
    gateway.start()  # it answers without a database
    with gateway.client() as client:
        health = client.get("/services/api/healthz").json()
        assert (health["status"], health["database"]) == ("degraded", "away")
        assert "kpaas_gateway_database_up 0.0" in client.get("/services/api/metrics").text
    answer = gateway.call(api)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    back()
    until(lambda: gateway.call(api).status_code == 200, 15, "an answer", log=sqlite_lab.log)
    assert sqlite_lab.settled(lambda usage: usage["calls"] >= 4)["calls"] == 4


def test_a_spool_that_cannot_be_written_is_told_and_caught_up(sqlite_lab: Lab) -> None:
    api = sqlite_lab.listing()
    sqlite_lab.endpoint()
    gateway = sqlite_lab.gateway()
    (spool,) = (sqlite_lab.home / "spool").iterdir()
    shutil.move(spool, sqlite_lab.home / "moved")  # no segment can be begun there now
    assert gateway.call(api).status_code == 200
    with gateway.client() as client:

        def told() -> bool:
            return not client.get("/services/api/healthz").json()["spool"]["writable"]

        until(told, 5, "a word about the spool", log=sqlite_lab.log)
        assert gateway.call(api).status_code == 200
        shutil.move(sqlite_lab.home / "moved", spool)
    assert sqlite_lab.settled(lambda usage: usage["calls"] >= 2)["calls"] == 2
