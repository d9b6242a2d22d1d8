"""What a learner's JupyterLab loads: a run or an endpoint is activity, and endpoints come back with the server."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from kpaas_lab import settings
from kpaas_lab.engines import records

if TYPE_CHECKING:
    from jupyter_server.serverapp import ServerApp

SECONDS = 30.0


def works(home: Path) -> bool:
    """Whether a workload of this lab lives: a run that computes, or an endpoint that serves.

    Args:
        home: KPAAS_LAB_USER_HOME.

    Example:
        >>> works(Path("/nonexistent"))
        False
    """
    try:
        folders = list((home / "workloads").iterdir())
    except OSError:
        return False
    return any(records.is_held(folder) for folder in folders)


def _jupyter_server_extension_points() -> list[dict[str, str]]:
    return [{"module": "kpaas_lab.server_extension"}]


def _load_jupyter_server_extension(server: ServerApp) -> None:
    """Tell Jupyter of the lab's activity, which the hub's idle culler goes by, and restore endpoints."""
    from tornado.ioloop import PeriodicCallback

    mine = settings.from_environment()

    def look() -> None:
        if works(mine.home):
            server.web_app.settings["last_activity_times"]["kpaas_lab"] = datetime.now(UTC)

    look()
    PeriodicCallback(look, SECONDS * 1000).start()
    if mine.engine == "local":
        # In a process of its own: the first page must not wait for it.
        subprocess.Popen([sys.executable, "-m", "kpaas_lab.engines.restore"], stdin=subprocess.DEVNULL)
