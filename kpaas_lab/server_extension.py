"""What a learner's JupyterLab loads.

A run or an endpoint is activity, endpoints come back with the server, and a phone sees one document at a time: with its
file browser open, as JupyterLab starts, a notebook there is one syllable wide.
"""

from __future__ import annotations

import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from kpaas_lab import settings
from kpaas_lab.engines import records

if TYPE_CHECKING:
    from collections.abc import Mapping

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


def is_phone(headers: Mapping[str, str]) -> bool:
    """Whether a phone's browser asks (developer.mozilla.org, "Browser detection using the user agent").

    Example:
        >>> is_phone({"User-Agent": "Mozilla/5.0 (Linux; Android 10; K) AppleWebKit/537.36 Chrome/140 Mobile Safari"})
        True
    """
    return headers.get("Sec-CH-UA-Mobile") == "?1" or "Mobi" in headers.get("User-Agent", "")


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
    _show_phones_one_document(server)
    if mine.engine == "local":
        # In a process of its own: the first page must not wait for it.
        subprocess.Popen([sys.executable, "-m", "kpaas_lab.engines.restore"], stdin=subprocess.DEVNULL)


def _show_phones_one_document(server: ServerApp) -> None:
    """Lead phones from `/lab/...` to `/doc/...`, JupyterLab's simple interface, whose side panels start closed.

    In a workspace of its own: a desktop's layout, with its panels open, isn't restored there.
    """
    from tornado.httputil import HTTPServerRequest
    from tornado.routing import PathMatches, Rule
    from tornado.web import RequestHandler

    class OpenedByPhone(PathMatches):
        def match(self, request: HTTPServerRequest) -> dict[str, object] | None:
            return super().match(request) if is_phone(request.headers) else None

    class Simple(RequestHandler):
        def get(self, _place: bytes) -> None:
            path = self.request.uri or ""
            self.redirect(f"{base}doc/workspaces/phone{path.removeprefix(f'{base}lab')}")

    base = server.web_app.settings["base_url"]
    rule = Rule(OpenedByPhone(rf"{re.escape(base)}lab(/tree/.*)?"), Simple)
    server.web_app.default_router.rules.insert(0, rule)
