"""What counts as activity."""

import os
from pathlib import Path

from kpaas_lab import server_extension
from kpaas_lab.engines import records


def test_a_held_lock_is_work_and_a_released_one_is_not(tmp_path: Path) -> None:
    folder = tmp_path / "workloads" / "run"
    folder.mkdir(parents=True)
    assert not server_extension.works(tmp_path)
    lock = records.take_lock(folder)
    assert lock is not None
    assert server_extension.works(tmp_path)
    os.close(lock)
    assert not server_extension.works(tmp_path)
