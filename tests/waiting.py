"""Waiting in tests: always for a condition, always with a deadline, with the server's log where it fails."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


def until(condition: Callable[[], T], timeout: float, what: str, *, log: Path | Callable[[], str] | None = None) -> T:
    """Poll until the condition is true and return its value.

    Raises:
        AssertionError: the deadline passed; the message ends with the log's last 4,000 characters.
    """
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            text = ""
            if isinstance(log, Path):
                text = log.read_text(errors="replace") if log.exists() else f"({log} does not exist)"
            elif log:
                text = log()
            raise AssertionError(f"after {timeout} s still no {what}\n{text[-4000:]}")
        time.sleep(0.05)
