"""What only the local engine meets: a killed shim, a restarted machine, a full or read-only disk, a jumping clock."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kpaas_lab.engines import limits, records
from kpaas_lab.engines.local import LocalEngine
from kpaas_lab.errors import EngineUnavailableError
from kpaas_lab.workloads import Job, Phase, Service
from tests.contract.engines import CATALOGUE
from tests.waiting import until

TIMEOUT = 30
ANSWERING = str(Path(__file__).parents[1] / "contract" / "answering.py")


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[LocalEngine]:
    made = LocalEngine(tmp_path, CATALOGUE)
    yield made
    for status in made.list():
        made.delete(status.name)


def sleeper(home: Path, name: str = "sleeper") -> Job:
    code = "import os, time; print(os.getpid(), os.getppid()); time.sleep(600)"
    return Job(name=name, command=(sys.executable, "-c", code), workdir=home)


def pids(engine: LocalEngine, name: str) -> tuple[int, int]:
    """Of the workload's process and of its shim."""
    line = next(iter(engine.logs(name, follow=True)))
    process, shim = line.split()
    return int(process), int(shim)


def gone(pid: int) -> bool:
    try:
        return "State:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True


def test_a_job_whose_shim_is_killed_is_lost_and_leaves_nothing(engine: LocalEngine, tmp_path: Path) -> None:
    engine.create(sleeper(tmp_path))
    process, shim = pids(engine, "sleeper")
    os.kill(shim, signal.SIGKILL)
    until(lambda: engine.get("sleeper").phase is Phase.FAILED, TIMEOUT, "the loss noticed")
    status = engine.get("sleeper")
    assert status.reason == "Lost"
    assert "sleeper" in status.message
    until(lambda: gone(process), TIMEOUT, "end of the process")
    assert engine.restore() == []  # a Job is not repeated behind its owner's back
    assert engine.cancel("sleeper").reason == "Lost"


def test_a_service_whose_shim_is_killed_is_restored(engine: LocalEngine, tmp_path: Path) -> None:
    engine.create(
        Service(name="web", command=(sys.executable, ANSWERING), workdir=tmp_path, ready_path="/ready", slice="tiny")
    )
    until(lambda: engine.get("web").ready, TIMEOUT, "ready")
    os.kill(_shim_of(tmp_path / "workloads" / "web"), signal.SIGKILL)
    until(lambda: engine.get("web").reason == "Lost", TIMEOUT, "the loss noticed")
    environment = {**os.environ, "KPAAS_LAB_USER_HOME": str(tmp_path)}
    said = subprocess.run(
        [sys.executable, "-m", "kpaas_lab.engines.restore"], env=environment, capture_output=True, text=True, check=True
    )
    assert said.stdout == "restored: web\n"
    until(lambda: engine.get("web").ready, TIMEOUT, "ready again")
    assert engine.restore() == []
    engine.cancel("web")
    assert engine.restore() == []


def _shim_of(folder: Path) -> int:
    """The parent of the workload's first process."""
    process = limits.members(records.read_json(folder / records.SPEC)["id"])[0]
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


def test_a_service_survives_its_shims_sigterm_for_the_next_start(engine: LocalEngine, tmp_path: Path) -> None:
    engine.create(
        Service(name="web", command=(sys.executable, ANSWERING), workdir=tmp_path, ready_path="/ready", slice="tiny")
    )
    until(lambda: engine.get("web").ready, TIMEOUT, "ready")
    folder = tmp_path / "workloads" / "web"
    os.kill(_shim_of(folder), signal.SIGTERM)
    until(lambda: not records.is_held(folder), TIMEOUT, "end of the shim")
    assert limits.members(records.read_json(folder / records.SPEC)["id"]) == []
    assert engine.restore() == ["web"]
    until(lambda: engine.get("web").ready, TIMEOUT, "ready again")


def test_a_creator_killed_half_way_leaves_no_name(engine: LocalEngine, tmp_path: Path) -> None:
    draft = tmp_path / "workloads" / ".new-0"
    draft.mkdir(parents=True)
    (draft / records.SPEC).write_text('{"half')
    assert engine.list() == []
    engine.restore()
    assert not draft.exists()


def test_a_removed_home_leaves_no_process(engine: LocalEngine, tmp_path: Path) -> None:
    engine.create(sleeper(tmp_path))
    process, shim = pids(engine, "sleeper")
    shutil.rmtree(tmp_path / "workloads")
    until(lambda: gone(process) and gone(shim), TIMEOUT, "end of process and shim")


def test_a_full_disk_is_said_and_leaves_no_name(small_disk: Path) -> None:
    engine = LocalEngine(small_disk, CATALOGUE)
    filler = small_disk / "filler"
    with pytest.raises(OSError, match="space"):
        filler.write_bytes(b"x" * (2 << 20))
    with pytest.raises(EngineUnavailableError, match="full"):
        engine.create(sleeper(small_disk))
    filler.unlink()
    assert engine.list() == []
    engine.create(sleeper(small_disk))
    engine.delete("sleeper")


def test_the_end_is_recorded_on_a_disk_that_filled_up(small_disk: Path) -> None:
    engine = LocalEngine(small_disk, CATALOGUE)
    code = "print('x' * 3_000_000)"
    engine.create(Job(name="fills", command=(sys.executable, "-c", code), workdir=Path("/")))
    until(lambda: engine.get("fills").phase.ended, TIMEOUT, "end")
    assert engine.get("fills").phase is Phase.SUCCEEDED
    engine.delete("fills")
    assert engine.list() == []


def test_a_read_only_home_is_said(small_disk: Path) -> None:
    engine = LocalEngine(small_disk, CATALOGUE)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(EngineUnavailableError, match="read-only"):
        engine.create(sleeper(small_disk))
    assert engine.list() == []


def test_a_home_that_is_a_file_is_said(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("")
    engine = LocalEngine(tmp_path / "home", CATALOGUE)
    assert engine.list() == []
    with pytest.raises(EngineUnavailableError):
        engine.create(sleeper(tmp_path))


def test_times_never_run_backwards(engine: LocalEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "now", lambda: "2090-01-01T00:00:00+00:00")  # the clock was wrong at the creation
    engine.create(Job(name="time", command=(sys.executable, "-c", "pass"), workdir=tmp_path))
    until(lambda: engine.get("time").phase.ended, TIMEOUT, "end")
    status = engine.get("time")
    assert status.started is not None
    assert status.finished is not None
    assert status.created <= status.started <= status.finished
