"""What a plan allows: calls a day, calls a second, calls at once.

Held in memory by each gateway, for each subscription (a second key gives no second quota). Calls a day also count what
the database has, other gateways' calls included; the other two are each gateway's own. A day begins at 00:00 UTC by
the wall clock; the second is a moving window on the monotonic clock. That is why this isn't the library `limits`: its
window reads the wall clock, so that a clock set back by an hour would refuse calls for an hour.
"""

from __future__ import annotations

import datetime as dt
from collections import deque
from dataclasses import dataclass, field
from enum import Enum

_DAYS_KEPT = 3


@dataclass(frozen=True, slots=True)
class PlanLimits:
    """A plan's name and limits; None is no limit."""

    name: str
    calls_per_day: int | None = None
    calls_per_second: int | None = None
    concurrency: int | None = None


class Exceeded(Enum):
    """Which limit a call met."""

    DAY = "calls_per_day"
    SECOND = "calls_per_second"
    CONCURRENCY = "concurrency"


@dataclass(slots=True)
class _Day:
    admitted: int = 0  # by this gateway, since it started
    others: int | None = None  # in the database, admitted by other gateways or an earlier life of this one


@dataclass(slots=True)
class _State:
    days: dict[dt.date, _Day] = field(default_factory=dict)
    recent: deque[float] = field(default_factory=deque)
    in_flight: int = 0


class Limiter:
    """Admits calls.

    Example:
        >>> limiter, plan, day = Limiter(), PlanLimits("free", calls_per_day=1), dt.date(2026, 11, 23)
        >>> limiter.admit("s", plan, day, now=0.0)
        >>> limiter.leave("s")
        >>> limiter.admit("s", plan, day, now=0.1)
        <Exceeded.DAY: 'calls_per_day'>
    """

    def __init__(self) -> None:
        self._states: dict[str, _State] = {}

    def counted(self, subscription: str, day: dt.date) -> bool:
        """Whether this day's calls in the database are known here."""
        state = self._states.get(subscription)
        return state is not None and day in state.days and state.days[day].others is not None

    def count(self, subscription: str, day: dt.date, *, others: int) -> None:
        """Tell how many calls of a day the database has that this gateway didn't admit since it started."""
        self._day(self._state(subscription), day).others = others

    def admit(self, subscription: str, plan: PlanLimits, day: dt.date, *, now: float) -> Exceeded | None:
        """Count a call in, or say which limit forbids it. One that was let in must `leave`.

        Args:
            subscription: whose.
            plan: what it allows.
            day: UTC.
            now: seconds on the monotonic clock.
        """
        state = self._state(subscription)
        today = self._day(state, day)
        if plan.calls_per_day is not None and today.admitted + (today.others or 0) >= plan.calls_per_day:
            return Exceeded.DAY
        if plan.concurrency is not None and state.in_flight >= plan.concurrency:
            return Exceeded.CONCURRENCY
        if plan.calls_per_second is not None:
            recent = state.recent
            while recent and now - recent[0] >= 1.0:
                recent.popleft()
            if len(recent) >= plan.calls_per_second:
                return Exceeded.SECOND
            recent.append(now)
        today.admitted += 1
        state.in_flight += 1
        return None

    def leave(self, subscription: str) -> None:
        """A call that was let in has ended."""
        self._states[subscription].in_flight -= 1

    def undo(self, subscription: str, day: dt.date) -> None:
        """A call that was let in reached no upstream: it doesn't count for the day."""
        self._day(self._states[subscription], day).admitted -= 1

    def _state(self, subscription: str) -> _State:
        state = self._states.get(subscription)
        if state is None:
            state = self._states[subscription] = _State()
        return state

    def _day(self, state: _State, day: dt.date) -> _Day:
        today = state.days.get(day)
        if today is None:
            today = state.days[day] = _Day()
            while len(state.days) > _DAYS_KEPT:
                del state.days[next(iter(state.days))]
        return today
