"""One platform on a state folder at a time, and who it is."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

import psutil

from kpaas_lab import durable, locks
from kpaas_lab.errors import AlreadyExistsError
from kpaas_lab.i18n import _
from kpaas_lab.installation.layout import Layout


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """The `kpaas-lab up` that holds a state folder.

    Attributes:
        pid: its process.
        created: when that process began, seconds since 1970: a pid alone is reused.
        address: what people open.
    """

    pid: int
    created: float
    address: str

    def process(self) -> psutil.Process | None:
        """The process itself, if it still lives."""
        try:
            process = psutil.Process(self.pid)
            return process if abs(process.create_time() - self.created) < 1 else None
        except psutil.Error:
            return None


def announce(layout: Layout, address: str) -> None:
    """Say who holds the lock."""
    own = psutil.Process()
    durable.write(
        layout.running, json.dumps(asdict(Running(pid=own.pid, created=own.create_time(), address=address))) + "\n"
    )


def read(layout: Layout) -> Running | None:
    """Who held the lock last."""
    try:
        raw = json.loads(layout.running.read_text())
        return Running(pid=int(raw["pid"]), created=float(raw["created"]), address=str(raw["address"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def is_held(layout: Layout) -> bool:
    """Whether a platform runs on this state folder."""
    return locks.is_held(layout.lock)


def acquire(layout: Layout) -> int:
    """Take the lock: an open file to keep.

    Raises:
        AlreadyExistsError: it runs already; the message has its address.
    """
    handle = locks.take(layout.lock)
    if handle is None:
        running = read(layout)
        address = running.address if running else "?"
        raise AlreadyExistsError(
            _("K-PaaS Lab runs already on {home}, at {address}").format(home=layout.home, address=address),
            hint=_("Open that address, or stop it first: kpaas-lab down --home {home}").format(home=layout.home),
        )
    return handle
