"""Tables as plain text, for places without HTML."""

from __future__ import annotations

from collections.abc import Sequence
from unicodedata import east_asian_width


def plain_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Columns aligned; a Hangul syllable is two columns wide.

    Example:
        >>> print(plain_table(["slice", "free"], [["cpu", 2], ["1g.10gb", 0]]))
        slice    free
        cpu      2
        1g.10gb  0
    """
    lines = [[str(cell) for cell in cells] for cells in (header, *rows)]
    widths = [max(map(_columns, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell + " " * (width - _columns(cell)) for cell, width in zip(cells, widths, strict=True)).rstrip()
        for cells in lines
    )


def _columns(text: str) -> int:
    return sum(2 if east_asian_width(letter) in "WF" else 1 for letter in text)
