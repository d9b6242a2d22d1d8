"""GPU slices of the local engine on doubles: scripts that answer as `nvidia-smi` and the MPS daemon's control do.

What a GPU makes of the variables is not tested here.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kpaas_lab.engines import machine
from kpaas_lab.engines.local import LocalEngine
from kpaas_lab.errors import NoCapacityError
from kpaas_lab.settings import from_environment
from kpaas_lab.slices import load_catalogue
from kpaas_lab.workloads import Job

CATALOGUE = load_catalogue(from_environment({"HOME": "/"}).slices_file)


@pytest.fixture
def double_of_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, script in (("nvidia-smi", "echo 40960"), ("nvidia-cuda-mps-control", "cat > /dev/null")):
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    machine._mps_memory_mib.cache_clear()
    yield folder
    machine._mps_memory_mib.cache_clear()


def totals(engine: LocalEngine) -> dict[str, tuple[int, int]]:
    return {one.profile.name: (one.total, one.free) for one in engine.slices()}


def test_without_a_gpu_there_is_no_gpu_slice(tmp_path: Path) -> None:
    machine._mps_memory_mib.cache_clear()
    engine = LocalEngine(tmp_path, CATALOGUE)
    assert set(totals(engine)) == {"cpu", "cpu-large"}
    with pytest.raises(NoCapacityError, match=r"mps-25.*cpu"):
        engine.create(Job(name="gpu", command=("true",), workdir=tmp_path, slice="mps-25"))


def test_a_daemon_that_does_not_answer_gives_no_slice(double_of_a_gpu: Path, tmp_path: Path) -> None:
    (double_of_a_gpu / "nvidia-cuda-mps-control").write_text("#!/bin/sh\nexit 1\n")
    assert set(totals(LocalEngine(tmp_path, CATALOGUE))) == {"cpu", "cpu-large"}


def test_slices_share_one_gpu(double_of_a_gpu: Path, tmp_path: Path) -> None:
    engine = LocalEngine(tmp_path, CATALOGUE)
    assert totals(engine)["mps-25"] == (4, 4)
    assert totals(engine)["mps-50"] == (2, 2)
    code = "import os, time; print(*(v for k, v in sorted(os.environ.items()) if k.startswith('CUDA_MPS')), flush=True)"
    engine.create(
        Job(
            name="gpu",
            command=(sys.executable, "-c", f"{code}; time.sleep(600)"),
            workdir=tmp_path,
            slice="mps-25",
            env={"CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": "100"},  # a learner asks for more than the slice
        )
    )
    assert next(iter(engine.logs("gpu", follow=True))) == "25 0=10240M /tmp/nvidia-mps"
    assert totals(engine)["mps-25"] == (4, 3)
    assert totals(engine)["mps-50"] == (2, 1)
    engine.delete("gpu")
    assert totals(engine)["mps-50"] == (2, 2)
