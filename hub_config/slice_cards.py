"""The spawn page's choice: cards of slices, as HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from hub_config.language import render
from kpaas_lab.slices import SliceCapacity


def cards(entries: Sequence[SliceCapacity], before: Mapping[str, Any]) -> Markup:
    """A radio button for each slice, with all that a learner chooses by.

    Args:
        entries: what the learner may choose, and what of it is free.
        before: the options of the last start; its slice is chosen already, where it is free.
    """
    free = [entry.profile.name for entry in entries if entry.free > 0]
    wanted = before.get("slice")
    return render(
        "slices.html",
        entries=entries,
        preset=wanted if wanted in free else next(iter(free), None),
        amount=amount,
        number=number,
    )


def amount(mib: int) -> str:
    """Memory in the unit that a person reads.

    Example:
        >>> amount(512), amount(4096), amount(10240 + 512)
        ('512 MiB', '4 GiB', '10.5 GiB')
    """
    return f"{mib} MiB" if mib < 1024 else f"{number(round(mib / 1024, 1))} GiB"


def number(value: float) -> str:
    """Without a needless fraction.

    Example:
        >>> number(2.0), number(0.5)
        ('2', '0.5')
    """
    return f"{value:g}"
