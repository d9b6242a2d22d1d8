"""Phases and times in words."""

from __future__ import annotations

from kpaas_lab.i18n import _
from kpaas_lab.widgets.markup import Html, pill
from kpaas_lab.workloads import Phase

_TONES = {Phase.RUNNING: "busy", Phase.SUCCEEDED: "good", Phase.FAILED: "bad", Phase.CANCELLED: "warn"}


def phase_in_words(phase: Phase) -> str:
    """The phase in the reader's language."""
    return _(phase.value)


def phase_pill(phase: Phase, tone: str | None = None) -> Html:
    """The phase on its colour."""
    return pill(phase_in_words(phase), _TONES.get(phase, "") if tone is None else tone)


def duration(seconds: float) -> str:
    """A length of time, as short as can be.

    Example:
        >>> duration(0.42), duration(75), duration(3 * 3600 + 120)
        ('0.4 s', '1 min 15 s', '3 h 2 min')
    """
    if seconds < 10:
        return _("{seconds} s").format(seconds=f"{seconds:.1f}")
    if seconds < 60:
        return _("{seconds} s").format(seconds=int(seconds))
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return _("{minutes} min {seconds} s").format(minutes=minutes, seconds=rest)
    return _("{hours} h {minutes} min").format(hours=minutes // 60, minutes=minutes % 60)
