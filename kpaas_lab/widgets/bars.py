"""Amounts by day as inline SVG. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from kpaas_lab.widgets.markup import Html, tag

_WIDTH, _HEIGHT, _FLOOR = 560, 120, 100
_COLOUR = "#1d5bd0"


def bars(amounts: Sequence[tuple[str, int]]) -> Html:
    """One bar for each day, its date and amount as a tooltip; first and last date below.

    Args:
        amounts: (ISO date, amount), oldest first; one at least.
    """
    most = max(amount for _day, amount in amounts) or 1
    step = _WIDTH / max(len(amounts), 7)
    columns = [
        tag(
            "rect",
            tag("title", f"{day}: {amount:,}"),
            x=f"{number * step + 1:.1f}",
            y=f"{_FLOOR - 84 * amount / most:.1f}",
            width=f"{step - 2:.1f}",
            height=f"{84 * amount / most:.1f}",
            fill=_COLOUR,
        )
        for number, (day, amount) in enumerate(amounts)
    ]
    end = step * len(amounts)
    return tag(
        "svg",
        tag("title", f"{amounts[0][0]} – {amounts[-1][0]}"),
        *columns,
        tag("line", x1=0, x2=_WIDTH, y1=_FLOOR, y2=_FLOOR, stroke="currentColor", stroke_opacity="0.3"),
        tag("text", amounts[0][0], x=0, y=_HEIGHT - 5),
        tag("text", amounts[-1][0], x=f"{max(end, 150):.1f}", y=_HEIGHT - 5, text_anchor="end")
        if len(amounts) > 1
        else None,
        tag("text", f"{most:,}", x=0, y=12, font_weight="700"),
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {_WIDTH} {_HEIGHT}",
        width=_WIDTH,
        height=_HEIGHT,
        role="img",
        fill="currentColor",
        font_size="11",
    )
