"""Runs in MLflow: its own client reads what a run wrote."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kpaas_lab.engines.local import LocalEngine
from kpaas_lab.settings import from_environment
from kpaas_lab.training import Run, train
from kpaas_lab.workloads import Phase
from tests.contract.engines import CATALOGUE

TIMEOUT = 150


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[LocalEngine]:
    made = LocalEngine(tmp_path, CATALOGUE)
    yield made
    for status in made.list():
        made.delete(status.name)


def start(engine: LocalEngine, home: Path, function: Any, **more: Any) -> Run:
    return train(engine, from_environment({"KPAAS_LAB_USER_HOME": str(home)}), function, **more)


def doubles(steps: int, resumed: bool = False) -> Any:
    from kpaas_lab.training import checkpoint, report

    state = checkpoint.load()
    for step in range(state["step"] + 1 if state else 1, steps + 1):
        report(step=step, total=steps, loss=1 / step, rate=0.5)
        if resumed and not state and step == 2:
            checkpoint.save({}, step=2)
            raise RuntimeError("half way")

    def double(x: Any) -> Any:
        return 2 * x

    import numpy as np

    return double, np.array([1.0, 2.0])


def test_a_run_and_its_model_in_mlflow(engine: LocalEngine, tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    run = start(engine, tmp_path, doubles, steps=1200, seed=5).wait(TIMEOUT)
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = MlflowClient(store, store)
    (version,) = client.search_model_versions("name='doubles'")
    assert (version.version, version.source) == (1, run.model.path.as_uri())
    tracked = client.get_run(version.run_id)
    assert (tracked.info.run_name, tracked.info.status) == ("doubles-1", "FINISHED")
    assert tracked.data.params == {"steps": "1200"}
    assert {name: tracked.data.tags[name] for name in ("seed", "slice", "environment")} == {
        "seed": "5",
        "slice": "cpu",
        "environment": run.environment["digest"],
    }
    history = client.get_metric_history(version.run_id, "loss")
    assert [(point.step, point.value) for point in history] == [(step, 1 / step) for step in range(1, 1201)]

    again = start(engine, tmp_path, doubles, steps=4, resumed=True)
    with pytest.raises(Exception, match="half way"):
        again.wait(TIMEOUT)
    again.resume().wait(TIMEOUT)
    versions = client.search_model_versions("name='doubles'")
    assert sorted(one.version for one in versions) == [1, 2]
    second = client.get_run(next(one.run_id for one in versions if one.version == 2))
    assert second.info.status == "FINISHED"
    assert [point.step for point in client.get_metric_history(second.info.run_id, "loss")] == [1, 2, 3, 4]


def test_an_mlflow_that_cannot_be_reached(engine: LocalEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound, not listening: refused
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{closed.getsockname()[1]}")
        run = start(engine, tmp_path, doubles, steps=2).wait(TIMEOUT)
    assert run.status.phase is Phase.SUCCEEDED
    assert run.model.path.exists()
    assert any("MLflow can't be written" in line and "isn't affected" in line for line in run.logs())
