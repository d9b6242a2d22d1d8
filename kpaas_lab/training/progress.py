"""`report`: how a training function tells its progress."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kpaas_lab.errors import SettingsError
from kpaas_lab.i18n import _
from kpaas_lab.training import folder

SAY_EVERY = 1.0  # seconds between progress lines in the log
RESERVED = {"attempt", "time"}

_said_at = -math.inf
_files: dict[Path, Any] = {}


def report(*, step: int, total: int | None = None, **values: float) -> None:
    """Tell how far the training is. Stored before it returns.

    Args:
        step: counts up: an epoch, a batch.
        total: steps in all, for a progress bar.
        **values: numbers, each a curve: `loss=0.3`. Tensors of one element are numbers too.

    Raises:
        SettingsError: a value that isn't a number; the message names it.

    Example:
        >>> report(step=1, total=2, loss=0.5)  # outside a run it is printed
        step 1/2  loss 0.5
    """
    record = checked(step, total, values)
    place = folder.current()
    if folder.rank() != 0:
        return
    if place is not None:
        _append(place / folder.METRICS, record)
    _say(record, always=place is None)


def checked(step: Any, total: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """One report as plain numbers.

    Example:
        >>> checked(1, None, {"loss": "low"})
        Traceback (most recent call last):
        kpaas_lab.errors.SettingsError: report(loss='low') is not a number. Give numbers only, for example loss=0.25.
    """
    record: dict[str, Any] = {"step": _number("step", step, whole=True)}
    if total is not None:
        record["total"] = _number("total", total, whole=True)
    taken = RESERVED & values.keys()
    if taken:
        raise SettingsError(_("report can't take a value named {name!r}.").format(name=min(taken)))
    return record | {name: _number(name, value) for name, value in values.items()}


def _number(name: str, value: Any, *, whole: bool = False) -> float | int:
    plain = value
    if not isinstance(value, int | float) and hasattr(value, "item"):  # numpy and torch
        try:
            plain = value.item()
        except (ValueError, RuntimeError, TypeError):
            plain = None
    if isinstance(plain, bool) or not isinstance(plain, int if whole else int | float):
        shown = repr(value) if len(repr(value)) < 60 else type(value).__name__
        raise SettingsError(
            _("report({name}={value}) is not a {kind}.").format(
                name=name, value=shown, kind=_("whole number") if whole else _("number")
            ),
            hint=_("Give numbers only, for example loss=0.25."),
        )
    return plain


def _append(path: Path, record: Mapping[str, Any]) -> None:
    line = {**record, "time": round(time.time(), 3), "attempt": int(os.environ.get(folder.ATTEMPT_VARIABLE, "1"))}
    file = _files.get(path)
    if file is None:
        file = _files[path] = path.open("ab+", buffering=0)
        if file.tell() and file.seek(-1, os.SEEK_END) and file.read() != b"\n":
            file.write(b"\n")  # a kill cut the last attempt's last line short
    file.write(json.dumps(line).encode() + b"\n")


def _say(record: Mapping[str, Any], *, always: bool) -> None:
    global _said_at
    now = time.monotonic()
    if not always and now - _said_at < SAY_EVERY and record["step"] != record.get("total"):
        return
    _said_at = now
    of = f"/{record['total']}" if "total" in record else ""
    values = [f"{name} {value:.4g}" for name, value in record.items() if name not in {"step", "total"}]
    sys.stdout.write("  ".join([f"step {record['step']}{of}", *values]) + "\n")
    sys.stdout.flush()
