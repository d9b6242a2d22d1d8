from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kpaas_lab.engines.base import Engine
from kpaas_lab.errors import LabError
from tests.contract.engines import ENGINES, Bench


@pytest.fixture(params=sorted(ENGINES))
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    made = ENGINES[request.param](tmp_path, sys.executable)
    yield made
    engine = made.make()
    for status in engine.list():
        with contextlib.suppress(LabError):
            engine.delete(status.name)


@pytest.fixture
def engine(bench: Bench) -> Engine:
    return bench.make()
