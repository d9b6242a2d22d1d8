"""Usage as bars: the numbers of an SVG drawing, made on the server. Pure."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Mapping
from dataclasses import dataclass

from kpaas_lab.market.usage import Count

WIDTH, HEIGHT = 1000.0, 240.0


@dataclass(frozen=True, slots=True)
class Bar:
    """One day: where its column stands, and how high its good and its failed calls reach (SVG's y grows downwards)."""

    day: dt.date
    count: Count
    x: float
    width: float
    y: float
    height: float
    error_y: float
    error_height: float


@dataclass(frozen=True, slots=True)
class Plot:
    """Columns by day and the lines behind them: `(y, calls)`."""

    bars: list[Bar]
    lines: list[tuple[float, int]]


def by_day(days: Mapping[dt.date, Count]) -> Plot:
    """One column a day: failed calls stand on good ones."""
    top = ceiling(max((count.calls for count in days.values()), default=0))
    step = WIDTH / max(len(days), 1)
    bars = []
    for index, (day, count) in enumerate(days.items()):
        whole, failed = HEIGHT * count.calls / top, HEIGHT * min(count.errors, count.calls) / top
        bars.append(
            Bar(
                day=day,
                count=count,
                x=round(index * step + step * 0.12, 2),
                width=round(step * 0.76, 2),
                y=round(HEIGHT - whole + failed, 2),
                height=round(whole - failed, 2),
                error_y=round(HEIGHT - whole, 2),
                error_height=round(failed, 2),
            )
        )
    parts = 4 if top % 4 == 0 else 2 if top % 2 == 0 else 1
    lines = [(round(HEIGHT - HEIGHT * part / parts, 2), top * part // parts) for part in range(parts + 1)]
    return Plot(bars, lines)


def ceiling(value: int) -> int:
    """The next round number: 1, 2, 4, 6 or 8 times a power of ten, 4 at least.

    Example:
        >>> [ceiling(n) for n in (0, 7, 60, 1001)]
        [4, 8, 60, 2000]
    """
    if value <= 4:
        return 4
    power = 10 ** int(math.log10(value))
    return next(int(power * factor) for factor in (1, 2, 4, 6, 8, 10) if value <= power * factor)
