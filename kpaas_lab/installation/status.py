"""What runs on a state folder now."""

from __future__ import annotations

import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kpaas_lab.installation import leftovers, lock, supervisor
from kpaas_lab.installation.layout import Layout
from kpaas_lab.installation.supervisor import Process


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """The platform at one moment.

    Attributes:
        address: what people open; "" where it doesn't run.
        learners: whose servers run.
        disk_used, disk_free: bytes, of the state folder and of its disk.
    """

    home: Path
    running: bool
    address: str
    processes: tuple[Process, ...]
    learners: tuple[str, ...]
    disk_used: int
    disk_free: int

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {**asdict(self), "home": str(self.home)}


def _used(folder: Path) -> int:
    """Bytes on disk; what can't be read, or goes away meanwhile, counts nothing."""
    total = 0
    for where, _folders, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(where, name)).st_blocks * 512
            except OSError:
                continue
    return total


def overview(layout: Layout) -> Overview:
    """Look."""
    running = lock.is_held(layout)
    known = lock.read(layout) if running else None
    return Overview(
        home=layout.home,
        running=running,
        address=known.address if known else "",
        processes=supervisor.processes(layout) if running else (),
        learners=leftovers.learners(layout),
        disk_used=_used(layout.home),
        disk_free=shutil.disk_usage(layout.home).free,
    )
