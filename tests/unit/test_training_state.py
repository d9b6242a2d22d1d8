"""Checkpoints, reports and the story of several attempts, on disk but without processes."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kpaas_lab.errors import SettingsError
from kpaas_lab.training import checkpoint, folder, progress, report


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(folder.DIR_VARIABLE, str(tmp_path))
    monkeypatch.setattr(progress, "_files", {})
    return tmp_path


def test_what_is_saved_is_loaded(run: Path) -> None:
    torch = pytest.importorskip("torch")
    net = torch.nn.Linear(3, 2)
    tied = {"a": net.weight, "b": net.weight, "view": net.weight[:, 0], "half": net.weight.bfloat16()}
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    state = {
        "net": net.state_dict(),
        "opt": optimizer.state_dict(),
        "tied": tied,
        "array": np.arange(6).reshape(2, 3),
        "scalar": np.float32(0.5),
        "random": random.getstate(),
        "odd": {"$tensor": 1, "": None},
        "list": [1, "둘", 3.5, True, float("inf")],
    }
    checkpoint.save(state, step=7)
    loaded = checkpoint.load()
    assert loaded is not None
    assert loaded["step"] == 7
    assert loaded["random"] == random.getstate()
    assert (loaded["odd"], loaded["list"]) == (state["odd"], state["list"])
    assert (loaded["array"] == state["array"]).all()
    for name, tensor in tied.items():
        assert torch.equal(loaded["tied"][name], tensor)
    net.load_state_dict(loaded["net"])
    optimizer.load_state_dict(loaded["opt"])
    assert not list(run.rglob("*.pkl"))


def test_the_newest_two_are_kept_and_a_torn_one_is_passed_over(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for step in (1, 2, 10):
        checkpoint.save({"value": step}, step=step)
    assert checkpoint.steps(run / folder.CHECKPOINTS) == [2, 10]
    (run / folder.CHECKPOINTS / "step-0000000010" / checkpoint.STATE).write_text('{"step": 10, "st')
    assert checkpoint.load() == {"step": 2, "value": 2}
    assert "step 10" in capsys.readouterr().err


def test_the_same_step_again(run: Path) -> None:
    checkpoint.save({"value": 1}, step=1)
    checkpoint.save({"value": 2}, step=1)
    assert checkpoint.load() == {"step": 1, "value": 2}


@pytest.mark.parametrize(
    ("state", "word"),
    [
        ({"f": print}, r"state\['f'\].*builtin"),
        ({"deep": [{"x": object()}]}, r"state\['deep'\]\[0\]\['x'\].*object"),
        ({"objects": np.array([object()])}, "ndarray"),
        ({(1, 2): 3}, "dict"),
        ([1], "dict"),
    ],
)
def test_what_a_checkpoint_refuses(run: Path, state: Any, word: str) -> None:
    with pytest.raises(SettingsError, match=word):
        checkpoint.save(state, step=1)
    assert checkpoint.load() is None


def test_outside_a_run_nothing_is_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(folder.DIR_VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    checkpoint.save({"a": 1}, step=1)
    report(step=1, loss=0.5)
    assert checkpoint.load() is None
    assert list(tmp_path.iterdir()) == []


def test_only_node_0_writes(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KPAAS_LAB_NODE_RANK", "1")
    checkpoint.save({"a": 1}, step=1)
    report(step=1, loss=0.5)
    assert list(run.iterdir()) == []


def test_reports_are_lines(run: Path) -> None:
    report(step=1, total=2, loss=np.float32(0.5))
    report(step=np.int64(2), total=2, loss=float("nan"))
    lines = [json.loads(line) for line in (run / folder.METRICS).read_text().splitlines()]
    assert [(line["step"], line["total"], line["attempt"]) for line in lines] == [(1, 2, 1), (2, 2, 1)]


@pytest.mark.parametrize(
    "values", [{"loss": "low"}, {"loss": None}, {"loss": True}, {"loss": np.ones(2)}, {"time": 1.0}, {"loss": 1j}]
)
def test_reports_that_are_not_numbers(run: Path, values: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match=next(iter(values))):
        report(step=1, **values)
    with pytest.raises(SettingsError, match="step"):
        report(step=0.5)  # type: ignore[arg-type]


def test_a_line_that_a_kill_cut_short(run: Path) -> None:
    (run / folder.METRICS).write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "lo')
    report(step=2, loss=0.25)
    records = folder.read_lines((run / folder.METRICS).read_text())
    assert list(folder.merge(records)) == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25}]
