"""A run at one moment, and its picture. Pure but for `take`, which reads the run."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

from kpaas_lab.i18n import _
from kpaas_lab.widgets.curve import Point, charts, series
from kpaas_lab.widgets.markup import Html, card, join, row, soft, tag
from kpaas_lab.widgets.phases import duration, phase_pill
from kpaas_lab.workloads import Phase, Status

LOG_LINES = 6
LONGEST_LINE = 400


class RunHandle(Protocol):
    """What a picture needs of `kpaas_lab.training.Run`."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def status(self) -> Status: ...  # noqa: D102
    def metrics(self) -> Sequence[Mapping[str, Any]]: ...  # noqa: D102
    def logs(self) -> Iterator[str]: ...  # noqa: D102
    def cancel(self) -> object: ...  # noqa: D102


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A run at one moment.

    Attributes:
        seconds: since it started; 0 before.
        progress: (steps done, steps in all), where the run has said how many there are.
        curves: for each metric its points.
        tail: the last lines of its log.
    """

    status: Status
    seconds: float = 0.0
    progress: tuple[float, float] | None = None
    curves: Mapping[str, Sequence[Point]] = field(default_factory=dict)
    tail: Sequence[str] = ()


def take(run: RunHandle) -> Picture:
    """Look at a run. The status is read first, so that an ended run's picture has all that it reported."""
    status = run.status
    records = run.metrics()
    begin, end = status.started, status.finished or datetime.now(UTC)
    return Picture(
        status=status,
        seconds=max(0.0, (end - begin).total_seconds()) if begin else 0.0,
        progress=progress(records),
        curves=series(records),
        tail=[line[:LONGEST_LINE] for line in deque(run.logs(), maxlen=LOG_LINES)],
    )


def progress(records: Sequence[Mapping[str, Any]]) -> tuple[float, float] | None:
    """Steps done and steps in all, from the last report that says a `total`.

    Example:
        >>> progress([{"step": 1, "total": 20}, {"step": 2, "total": 20, "loss": 0.3}])
        (2.0, 20.0)
    """
    for record in reversed(records):
        step, total = record.get("step"), record.get("total")
        if isinstance(step, int | float) and isinstance(total, int | float) and total > 0:
            return min(float(step), float(total)), float(total)
    return None


def draw(picture: Picture) -> Html:
    """The picture as HTML."""
    status = picture.status
    return card(
        row(
            tag("h4", status.name),
            phase_pill(status.phase),
            soft(duration(picture.seconds)) if status.started else None,
            soft(_("slice {name}").format(name=status.slice)) if status.slice else None,
            soft(_left(picture)),
        ),
        _bar(picture),
        tag("p", status.message) if status.message else None,
        _hint(picture),
        charts(picture.curves) if picture.curves else None,
        join([tag("p", soft(_("The end of its log"))), tag("pre", "\n".join(picture.tail))]) if picture.tail else None,
    )


def _bar(picture: Picture) -> Html | None:
    if not picture.progress or picture.status.phase is Phase.SUCCEEDED:
        return None
    done, total = picture.progress
    percent = f"{100 * done / total:.0f}"
    inner = tag("div", style=f"width:{percent}%")
    return tag(
        "div", inner, class_="kpl-bar", role="progressbar", aria_valuenow=percent, aria_valuemin=0, aria_valuemax=100
    )


def _left(picture: Picture) -> str:
    """How far it is; and how long it still takes, once enough is done to tell."""
    if not picture.progress:
        return ""
    done, total = picture.progress
    text = _("step {done} of {total}").format(done=f"{done:g}", total=f"{total:g}")
    if picture.status.phase is Phase.RUNNING and 0.05 * total <= done < total and picture.seconds > 2:
        rest = duration(picture.seconds * (total - done) / done)
        text += ", " + _("about {time} left").format(time=rest)
    return text


def _hint(picture: Picture) -> Html | None:
    phase = picture.status.phase
    hint = {
        Phase.PENDING: _("It waits for its processes to start."),
        Phase.FAILED: _(
            "run.logs() has the whole log; run.resume() goes on from the last checkpoint, if there is one."
        ),
        Phase.CANCELLED: _("run.resume() goes on from the last checkpoint, or begins anew where there is none."),
    }.get(phase)
    return tag("p", soft(hint)) if hint and not (phase is Phase.PENDING and picture.status.message) else None
