"""Runs as a learner makes them: real processes, real files, real ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kpaas_lab.engines.local import LocalEngine
from kpaas_lab.errors import (
    AlreadyExistsError,
    EngineUnavailableError,
    NotFoundError,
    RunFailedError,
    UnknownSliceError,
    WaitTimeoutError,
)
from kpaas_lab.models import load
from kpaas_lab.settings import from_environment
from kpaas_lab.training import Run, runs, train
from kpaas_lab.workloads import Phase
from tests.contract.engines import CATALOGUE, cpu_slice
from tests.waiting import until

TIMEOUT = 150
ROOT = Path(__file__).resolve().parents[2]


class Lab:
    """A learner's home and its engine, with what `lab.train` and `lab.runs` do."""

    def __init__(self, home: Path) -> None:
        self.settings = from_environment({"KPAAS_LAB_USER_HOME": str(home)})
        self.engine = LocalEngine(home, CATALOGUE, log_limit=1 << 20)

    def train(self, function: Callable[..., Any] | str, **more: Any) -> Run:
        return train(self.engine, self.settings, function, **more)

    @property
    def runs(self) -> Any:
        return runs(self.engine, self.settings)


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    monkeypatch.setenv("KPAAS_LAB_TRACKING", "off")  # tests/integration/test_training_tracking.py has it on
    made = Lab(tmp_path)
    yield made
    for status in made.engine.list():
        made.engine.delete(status.name)


def failed(run: Run) -> RunFailedError:
    with pytest.raises(RunFailedError) as caught:
        run.wait(TIMEOUT)
    return caught.value


def mean_model(data: Any, epochs: int = 3, *, scale: float = 1.0) -> Any:
    import random

    import numpy as np
    from sklearn.linear_model import LogisticRegression

    from kpaas_lab.training import report

    for epoch in range(1, epochs + 1):
        report(step=epoch, total=epochs, loss=scale / epoch, noise=random.random() + np.random.rand())
    model = LogisticRegression(max_iter=50)
    model.fit(data.train.images.reshape(len(data.train), -1), data.train.labels)
    return model, data.test.images[:2].reshape(2, -1)


def test_from_a_function_to_a_model(lab: Lab) -> None:
    run = lab.train(mean_model, data="kpaas/digits", epochs=2, seed=7)
    assert run.wait(TIMEOUT) is run
    assert (run.name, run.status.name, run.status.phase) == ("mean-model-1", "mean-model-1", Phase.SUCCEEDED)
    assert [(one["step"], one["total"], one["loss"]) for one in run.metrics()] == [(1, 2, 1.0), (2, 2, 0.5)]
    assert (run.params, run.seed, run.progress) == ({"epochs": 2}, 7, (2, 2))
    assert len(run.environment["digest"]) == 64
    lines = list(run.logs())
    assert lines[0] == "mean-model-1: mean_model(epochs=2) on slice cpu, seed 7"
    assert load(run.model.path).manifest.format == "skops"
    again = lab.train(mean_model, data="kpaas/digits", epochs=2, seed=7)
    assert again.name == "mean-model-2"
    assert again.wait(TIMEOUT).metrics() == run.metrics()  # seeds
    assert list(lab.runs) == ["mean-model-1", "mean-model-2"]
    assert repr(lab.runs["mean-model-1"]) == "Run('mean-model-1', Succeeded, step 2 of 2)"
    run.delete()
    run.delete()
    assert list(lab.runs) == ["mean-model-2"]
    assert repr(run) == "Run('mean-model-1', deleted)"
    with pytest.raises(NotFoundError):
        run.status  # noqa: B018
    with pytest.raises(KeyError, match="mean-model-2"):
        lab.runs["mean-model-1"]


def test_a_function_of_a_file(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("import os\nOF = 3\ndef fit(n): print('got', n, 'of', OF)\n")
    run = lab.train(f"{tmp_path}/mine.py:fit", n=2, name="from-file").wait(TIMEOUT)
    assert "got 2 of 3" in list(run.logs())
    with pytest.raises(NotFoundError, match="returned none"):
        run.model  # noqa: B018


def raises() -> None:
    values = [1, 2]
    print(values[5])


def leaves() -> None:
    import sys

    sys.exit(3)


def killed() -> None:
    import os
    import signal

    os.kill(os.getpid(), signal.SIGKILL)


def forgets_to_return_a_model() -> object:
    return object()


@pytest.mark.parametrize(
    ("function", "exit_code", "words"),
    [
        (raises, 1, ["exit code 1", "print(values[5])", "IndexError"]),
        (leaves, 3, ["exit code 3"]),
        (killed, -9, ["signal 9"]),
        (forgets_to_return_a_model, 1, ["ModelError", "object", "torch module"]),
    ],
)
def test_a_function_that_ends_badly(lab: Lab, function: Any, exit_code: int, words: list[str]) -> None:
    run = lab.train(function, name="bad")
    error = failed(run)
    assert error.exit_code == exit_code
    assert len(error.last_lines) <= 20
    for word in ["bad", *words]:
        assert word in str(error)
    assert "run-bad" not in str(error)
    assert "runtime/train.py" not in str(error)
    with pytest.raises(NotFoundError, match="no model"):
        run.model  # noqa: B018


def test_memory_that_runs_out(lab: Lab) -> None:
    def eats() -> None:
        blocks = []
        while True:
            blocks.append(bytearray(16 << 20))

    lab.engine = LocalEngine(lab.settings.home, [cpu_slice("small", 512)])
    run = lab.train(eats, slice="small")
    error = failed(run)
    assert run.status.reason == "OutOfMemory"
    assert "512 MiB" in str(error)
    assert "MemoryError" in str(error)


def test_a_hundred_megabytes_of_output(lab: Lab) -> None:
    def chatty() -> None:
        for number in range(100_000):
            print(number, "x" * 1016)

    run = lab.train(chatty).wait(TIMEOUT)
    lines = list(run.logs())
    assert lines[0].startswith("chatty-1: ")
    assert any("bytes cut" in line for line in lines)
    assert lines[-2].startswith("99999 x")
    kept = sum(path.stat().st_size for path in lab.settings.home.rglob("*") if path.is_file())
    assert kept < 4 << 20


def nothing() -> None:
    pass


def test_a_name_is_given_once_and_a_refused_run_leaves_nothing(lab: Lab) -> None:
    lab.train(nothing, name="same").wait(TIMEOUT)
    with pytest.raises(AlreadyExistsError, match="same"):
        lab.train(nothing, name="same")
    with pytest.raises(UnknownSliceError, match="cpu, small"):
        lab.train(nothing, name="other", slice="none")
    assert list(lab.runs) == ["same"]


def test_a_full_disk(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = Lab(small_disk)
    with pytest.raises(OSError, match="space"):
        (small_disk / "filler").write_bytes(b"x" * (2 << 20))
    with pytest.raises(EngineUnavailableError, match="full"):
        lab.train(nothing)
    (small_disk / "filler").unlink()
    assert list(lab.runs) == []


def test_a_read_only_home(small_disk: Path) -> None:
    lab = Lab(small_disk)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(EngineUnavailableError, match="read-only"):
        lab.train(nothing)


def counts(until: int, die_at: int) -> Any:
    import os
    import signal
    import time

    from kpaas_lab.training import checkpoint, report

    state = checkpoint.load() or {"step": 0, "total": 0}
    first, total = state["step"] + 1, state["total"]
    print("from", first)
    for step in range(first, until + 1):
        total += step
        report(step=step, total=until, sum=total)
        checkpoint.save({"total": total}, step=step)
        if step == die_at and first == 1:
            report(step=step + 1, sum=-1)  # beyond the checkpoint: the next attempt does this step again
            os.kill(os.getpid(), signal.SIGKILL)
        if die_at < 0:
            time.sleep(0.05)


def test_resume_after_a_kill(lab: Lab) -> None:
    run = lab.train(counts, until=5, die_at=3, name="counts")
    assert "resume" in str(failed(run))
    assert run.resume().wait(TIMEOUT).status.phase is Phase.SUCCEEDED
    assert [record["sum"] for record in run.metrics()] == [1, 3, 6, 10, 15]
    lines = list(run.logs())
    assert [line for line in lines if line.startswith("from")] == ["from 1", "from 4"]
    assert any("attempt 2" in line for line in lines)
    with pytest.raises(AlreadyExistsError, match="nothing to resume"):
        run.resume()


def test_cancel_and_resume(lab: Lab) -> None:
    run = lab.train(counts, until=40, die_at=-1)
    until(lambda: len(run.metrics()) >= 3, TIMEOUT, "three reports", log=lambda: "\n".join(run.logs()))
    with pytest.raises(WaitTimeoutError, match="counts-1"):
        run.wait(0.01)
    with pytest.raises(AlreadyExistsError):
        run.resume()
    assert run.cancel().status.phase is Phase.CANCELLED
    assert "cancelled" in str(failed(run))
    done = len(run.metrics())
    assert done < 40
    run.resume().wait(TIMEOUT)
    assert [record["step"] for record in run.metrics()] == list(range(1, 41))


def test_a_run_outlives_the_kernel_that_started_it(lab: Lab, tmp_path: Path) -> None:
    code = f"""if True:
        import os, signal
        from pathlib import Path
        from tests.integration.test_training_runs import Lab, counts
        Lab(Path({str(tmp_path)!r})).train(counts, until=20, die_at=-1, name="orphan")
        os.kill(os.getpid(), signal.SIGKILL)"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    kernel = subprocess.run([sys.executable, "-c", code], env=environment, check=False)
    assert kernel.returncode == -signal.SIGKILL
    run = lab.runs["orphan"]
    assert not run.status.phase.ended
    assert run.wait(TIMEOUT).progress == (20, 20)


def test_a_train_that_was_killed_half_way_can_be_resumed(lab: Lab) -> None:
    run = lab.train(nothing, name="half").wait(TIMEOUT)
    lab.engine.delete("run-half")  # as if the kernel had been killed before the Job was created
    assert (run.status.phase, run.status.reason) == (Phase.FAILED, "Lost")
    run.resume().wait(TIMEOUT)


def test_notebook_cells(lab: Lab, tmp_path: Path) -> None:
    """In IPython, a cell's function may use the notebook's imports and functions, not its values."""
    code = f"""if True:
        from pathlib import Path
        from IPython.core.interactiveshell import InteractiveShell
        shell = InteractiveShell.instance()
        def cell(text):
            result = shell.run_cell(text)
            if result.error_in_exec: print("ERROR", type(result.error_in_exec).__name__, result.error_in_exec)
        cell("from tests.integration.test_training_runs import Lab; from pathlib import Path; import math")
        cell("lab = Lab(Path({str(tmp_path)!r})); rate = 0.1")
        cell("def area(r):\\n    return math.pi * r * r")
        cell("def good(r):\\n    print('area', round(area(r), 2))")
        cell("def bad(r):\\n    return r * rate")
        cell("lab.train(good, r=2, name='good').wait(60)")
        cell("lab.train(bad, r=2, name='bad')")"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(tmp_path), "IPYTHONDIR": str(tmp_path / "ip")}
    said = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert "area 12.57" in list(lab.runs["good"].logs()), said.stdout
    assert "SettingsError" in said.stdout
    assert "'rate'" in said.stdout
    assert list(lab.runs) == ["good"]


def reduce(fail: bool = False) -> Any:
    import os
    import sys
    import time

    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    value = torch.tensor([float(dist.get_rank() + 1)])
    dist.all_reduce(value)
    print("rank", dist.get_rank(), "of", os.environ["WORLD_SIZE"], "sum", value.item())
    if fail and dist.get_rank() == 1:
        sys.exit(9)
    if fail:
        time.sleep(600)
    dist.destroy_process_group()


def test_two_nodes(lab: Lab) -> None:
    run = lab.train(reduce, nodes=2).wait(TIMEOUT)
    lines = list(run.logs())
    assert "[0] rank 0 of 2 sum 3.0" in lines
    assert "[1] rank 1 of 2 sum 3.0" in lines


def test_a_node_that_fails_stops_the_other(lab: Lab) -> None:
    assert failed(lab.train(reduce, nodes=2, fail=True)).exit_code == 9
