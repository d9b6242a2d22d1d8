"""From `lab.train(...)` to the first line of its log. The floor is a bare interpreter that prints."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from kpaas_lab.engines.local import LocalEngine
from kpaas_lab.settings import from_environment
from kpaas_lab.slices import load_catalogue
from kpaas_lab.training import train
from kpaas_lab.workloads import Job
from tests.bench.table import Row

TIMES = 7


def nothing() -> None:
    print("first")


def rows() -> Iterator[Row]:
    """Of a bare Job, and of a training run, by the median of seven."""
    floor = _median(_subprocess)
    with tempfile.TemporaryDirectory() as home:
        settings = from_environment({"KPAAS_LAB_USER_HOME": home})
        engine = LocalEngine(Path(home), load_catalogue(settings.slices_file))

        def job() -> None:
            command = (sys.executable, "-c", "print('first')")
            name = engine.create(Job(name="bench", command=command, workdir=Path(home))).name
            next(iter(engine.logs(name, follow=True)))

        def run() -> None:
            next(iter(train(engine, settings, nothing, name="bench").logs(follow=True)))

        def first_of_function() -> None:
            next(line for line in train(engine, settings, nothing, name="bench").logs(follow=True) if line == "first")

        peer = "python -c print, subprocess"
        for what, measured, goal in (
            ("engine.create -> first log line, s", job, ""),
            ("lab.train -> first log line, s", run, "<= 2"),
            ("lab.train -> first line of the function, s", first_of_function, ""),
        ):
            ours = _median(measured, after=lambda: _clean(engine))
            yield Row(what, f"{ours:.2f}", peer, f"{floor:.2f}", goal)


def _clean(engine: LocalEngine) -> None:
    import shutil

    for status in engine.list():
        engine.delete(status.name)
    shutil.rmtree(engine._folder.parent / "runs", ignore_errors=True)


def _subprocess() -> None:
    subprocess.run([sys.executable, "-c", "print('first')"], capture_output=True, check=True)


def _median(measured: Callable[[], None], after: Callable[[], None] = lambda: None) -> float:
    seconds = []
    for _time in range(TIMES):
        begin = time.perf_counter()
        measured()
        seconds.append(time.perf_counter() - begin)
        after()
    return statistics.median(seconds)
