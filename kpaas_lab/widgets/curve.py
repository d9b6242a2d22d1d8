"""A metric's curve as inline SVG. Pure: points in, text out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from kpaas_lab.i18n import _
from kpaas_lab.widgets.markup import Html, join, tag

Point = tuple[float, float]

_WIDTH, _HEIGHT = 360, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 26, 26
_COLOURS = ("#1d5bd0", "#c2570c", "#0d8a5a", "#8a3ffc")
_MOST_POINTS = 240  # more can't be told apart at this width
_MOST_CHARTS = 4
_NOT_CURVES = frozenset({"step", "time", "timestamp", "epoch", "total"})


def series(records: Sequence[Mapping[str, object]]) -> dict[str, list[Point]]:
    """The curves in what a run reported, `loss` first, then by name.

    Args:
        records: one mapping for each report, with `step` and numbers.

    Returns:
        For each metric its points, (step, value).

    Example:
        >>> series([{"step": 1, "loss": 0.5, "acc": 0.8}, {"step": 2, "loss": 0.25}])
        {'loss': [(1.0, 0.5), (2.0, 0.25)], 'acc': [(1.0, 0.8)]}
    """
    found: dict[str, list[Point]] = {}
    for position, record in enumerate(records):
        step = record.get("step", position)
        for name, value in record.items():
            if name not in _NOT_CURVES and _is_number(value) and _is_number(step):
                found.setdefault(name, []).append((float(step), float(value)))  # type: ignore[arg-type]
    return {name: found[name] for name in sorted(found, key=lambda name: ("loss" not in name, name))}


def charts(curves: Mapping[str, Sequence[Point]]) -> Html:
    """One small chart for each metric, side by side; four at most."""
    shown = list(curves.items())[:_MOST_CHARTS]
    return tag(
        "div",
        *(chart(name, points, _COLOURS[number]) for number, (name, points) in enumerate(shown)),
        class_="kpl-charts",
    )


def chart(name: str, points: Sequence[Point], colour: str = _COLOURS[0]) -> Html:
    """One curve with its axes, its last value, and a word where values weren't finite."""
    finite = [point for point in points if math.isfinite(point[1])]
    if not finite:
        return _frame(name, _("not a number since step {step}").format(step=_short(points[0][0])), [])
    lost = next((step for step, value in points if not math.isfinite(value)), None)
    last = finite[-1]
    note = _short(last[1]) if lost is None else _("not a number since step {step}").format(step=_short(lost))
    steps = _range([step for step, _value in finite], pad=False)
    values = _range([value for _step, value in finite], pad=True)
    places = [(_x(step, steps), _y(value, values)) for step, value in thin(finite, _MOST_POINTS)]
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    marks = [
        *(_level(value, values) for value in ticks(*values)),
        _text(_LEFT, _HEIGHT - 8, _short(finite[0][0]), "start") if len(finite) > 1 else None,
        _text(_WIDTH - _RIGHT, _HEIGHT - 8, _("step {step}").format(step=_short(last[0])), "end"),
        tag("path", d=path, fill="none", stroke=colour, stroke_width="2", stroke_linejoin="round"),
        tag("circle", cx=f"{places[-1][0]:.1f}", cy=f"{places[-1][1]:.1f}", r="3.5", fill=colour),
    ]
    return _frame(name, note, marks)


def thin(points: Sequence[Point], most: int) -> list[Point]:
    """About `most` points: of each stretch its lowest and its highest, so that no spike is lost, and the last.

    Example:
        >>> thin([(0, 1.0), (1, 9.0), (2, 1.0), (3, 1.0), (4, 0.0), (5, 1.0)], 4)
        [(0, 1.0), (1, 9.0), (3, 1.0), (4, 0.0), (5, 1.0)]
    """
    if len(points) <= most:
        return list(points)
    size = math.ceil(len(points) / (most // 2))
    kept: list[Point] = []
    for start in range(0, len(points), size):
        stretch = points[start : start + size]
        ends = {min(stretch, key=lambda point: point[1]), max(stretch, key=lambda point: point[1])}
        kept += sorted(ends)
    if kept[-1] != points[-1]:
        kept.append(points[-1])
    return kept


def ticks(low: float, high: float, wanted: int = 4) -> list[float]:
    """Round values between low and high, about as many as wanted.

    Example:
        >>> ticks(0.0, 2.3)
        [0.0, 0.5, 1.0, 1.5, 2.0]
    """
    raw = (high - low) / wanted
    scale = 10.0 ** math.floor(math.log10(raw))
    step = next(scale * factor for factor in (1, 2, 2.5, 5, 10) if scale * factor >= raw * 0.85)
    first = math.ceil(low / step - 1e-9)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _range(values: Sequence[float], *, pad: bool) -> tuple[float, float]:
    low, high = min(values), max(values)
    if pad and low > 0 and low < high / 3:
        low = 0.0  # most losses and accuracies read best from zero
    if high - low <= abs(high) * 1e-9:
        low, high = low - (abs(low) * 0.1 or 1.0), high + (abs(high) * 0.1 or 1.0)
    return low, high


def _x(step: float, steps: tuple[float, float]) -> float:
    return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (step - steps[0]) / (steps[1] - steps[0])


def _y(value: float, values: tuple[float, float]) -> float:
    return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * (value - values[0]) / (values[1] - values[0])


def _short(value: float) -> str:
    return f"{value:.4g}"


def _text(x: float, y: float, text: str, anchor: str, **more: object) -> Html:
    return tag("text", text, x=f"{x:.1f}", y=f"{y:.1f}", text_anchor=anchor, **more)


def _level(value: float, values: tuple[float, float]) -> Html:
    y = _y(value, values)
    line = tag(
        "line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=f"{y:.1f}", y2=f"{y:.1f}", stroke="currentColor", stroke_opacity="0.15"
    )
    return join([line, _text(_LEFT - 6, y + 4, _short(value), "end")])


def _frame(name: str, note: str, marks: Sequence[Html | None]) -> Html:
    shown = name if len(name) <= 24 else f"{name[:23]}…"
    head = [
        _text(_LEFT, 16, shown, "start", font_weight="700"),
        _text(_WIDTH - _RIGHT, 16, note, "end", font_weight="700"),
    ]
    return tag(
        "svg",
        tag("title", f"{shown}: {note}"),
        *head,
        *marks,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {_WIDTH} {_HEIGHT}",
        width=_WIDTH,
        height=_HEIGHT,
        role="img",
        fill="currentColor",
        font_size="11",
    )
