"""A workload of the local engine on disk: the files of its folder, how they are written, and its lock.

Standard library only: the shim reads and writes the same files, in a process that starts in 20 ms.

    spec.json     what was asked for; written once, before `create` returns
    status.json   how it is, by its shim
    control.json  what is wanted now ({"cancel": true}); the FIFO `wake` tells the shim to look
    lock          held by the shim (flock); a kill releases it, whatever pid it had, in whatever sandbox
    log, log.<offset>   its output (logfile.py)
    <replica>.sock      where a Service's replica listens
    reserve       a block of disk that lets the last status be written when the disk is full
"""

from __future__ import annotations

import contextlib
import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from kpaas_lab import durable, locks

SPEC, STATUS, CONTROL, LOCK, WAKE, RESERVE = "spec.json", "status.json", "control.json", "lock", "wake", "reserve"
ID_VARIABLE = "KPAAS_LAB_WORKLOAD_ID"  # in every process of a workload, so that none is missed and none mistaken


def write_json(path: Path, data: object) -> None:
    """Write a file whole or not at all."""
    durable.write(path, json.dumps(data, ensure_ascii=False))


def read_json(path: Path) -> dict[str, Any]:
    """The file's object; {} where there is none (yet, or any more)."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return {}
    return data if isinstance(data, dict) else {}


def take_lock(folder: Path) -> int | None:
    """Hold the folder's lock; the descriptor, or None where another process holds it."""
    return locks.take(folder / LOCK)


def is_held(folder: Path) -> bool:
    """Whether a shim lives: whether somebody holds the folder's lock."""
    return locks.is_held(folder / LOCK)


def wake(folder: Path) -> None:
    """Tell the shim to read control.json; nothing happens where no shim listens."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder / WAKE, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            os.write(descriptor, b"!")
        finally:
            os.close(descriptor)


def later(start: str, seconds: float) -> str:
    """The time that many seconds after an ISO time, never before it, whatever the clock does.

    Example:
        >>> later("2026-01-01T00:00:00+00:00", 1.5)
        '2026-01-01T00:00:01.500000+00:00'
    """
    return (datetime.fromisoformat(start) + timedelta(seconds=max(0.0, seconds))).isoformat()


def now() -> str:
    """The time, UTC, in ISO 8601."""
    return datetime.now(UTC).isoformat()
