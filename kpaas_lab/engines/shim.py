"""The process that keeps one workload of the local engine.

It has a session of its own and outlives whoever created the workload; the lock that it holds on the workload's folder
is how others know that it lives. Started by `spawn.py`.
"""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

from kpaas_lab.engines import limits, records
from kpaas_lab.engines.job import JobKeeper
from kpaas_lab.engines.process import adopt_orphans
from kpaas_lab.engines.service import ServiceKeeper


def main(folder: Path, lock: int) -> None:
    """Keep the workload of this folder; `lock` is its lock's descriptor, held already."""
    os.set_inheritable(lock, False)
    adopt_orphans()
    spec = records.read_json(folder / records.SPEC)
    with contextlib.suppress(FileNotFoundError):
        (folder / records.WAKE).unlink()
    keeper = (ServiceKeeper if spec["workload"]["kind"] == "Service" else JobKeeper)(folder, spec)
    try:
        keeper.run()
    except Exception as error:
        keeper.signal_all(signal.SIGKILL)
        limits.kill_members(spec["id"])
        keeper.on_output(keeper.members[0], f"The workload's keeper failed: {error!r}\n".encode())
        keeper.stopping = "Failed"
        keeper.record(phase="Failed", reason="Lost", finished=keeper.elapsed())
