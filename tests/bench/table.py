"""One row of `make bench`. Each `bench_*.py` beside this file has `rows() -> Iterable[Row]`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """A figure, the peer's figure from the same run, and the goal.

    Attributes:
        what: what was measured, with its unit.
        ours: our figure.
        peer: name of the peer, "" where there is none.
        theirs: the peer's figure.
        goal: the goal in words.
    """

    what: str
    ours: str
    peer: str = ""
    theirs: str = ""
    goal: str = ""
