"""A plan's limits, with clocks that the test sets."""

import datetime as dt

from hypothesis import given
from hypothesis import strategies as st

from kpaas_lab.market.gateway.limiting import Exceeded, Limiter, PlanLimits

DAY = dt.date(2026, 11, 23)
NEXT = DAY + dt.timedelta(days=1)


def test_a_day_counts_what_others_had() -> None:
    limiter, plan = Limiter(), PlanLimits("free", calls_per_day=10)
    assert not limiter.counted("s", DAY)
    limiter.count("s", DAY, others=7)
    assert limiter.counted("s", DAY)
    for now in range(3):
        assert limiter.admit("s", plan, DAY, now=now) is None
    assert limiter.admit("s", plan, DAY, now=9) is Exceeded.DAY
    assert limiter.admit("other", plan, DAY, now=9) is None
    assert limiter.admit("s", plan, NEXT, now=9) is None


def test_a_clock_that_jumps_and_comes_back_finds_the_day_as_it_was() -> None:
    limiter, plan = Limiter(), PlanLimits("free", calls_per_day=1)
    assert limiter.admit("s", plan, DAY, now=0) is None
    assert limiter.admit("s", plan, NEXT, now=1) is None
    assert limiter.admit("s", plan, DAY, now=2) is Exceeded.DAY
    assert limiter.admit("s", plan, NEXT, now=3) is Exceeded.DAY


def test_what_reached_nobody_is_given_back() -> None:
    limiter, plan = Limiter(), PlanLimits("free", calls_per_day=1)
    assert limiter.admit("s", plan, DAY, now=0) is None
    limiter.leave("s")
    limiter.undo("s", DAY)
    assert limiter.admit("s", plan, DAY, now=1) is None


def test_a_refused_call_uses_up_nothing() -> None:
    limiter, plan = Limiter(), PlanLimits("p", calls_per_day=2, calls_per_second=1, concurrency=1)
    assert limiter.admit("s", plan, DAY, now=0.0) is None
    assert limiter.admit("s", plan, DAY, now=2.0) is Exceeded.CONCURRENCY
    limiter.leave("s")
    assert limiter.admit("s", plan, DAY, now=0.5) is Exceeded.SECOND
    assert limiter.admit("s", plan, DAY, now=1.0) is None
    limiter.leave("s")
    assert limiter.admit("s", plan, DAY, now=3.0) is Exceeded.DAY


def test_concurrency_is_of_the_subscription() -> None:
    limiter, plan = Limiter(), PlanLimits("p", concurrency=2)
    assert [limiter.admit("s", plan, DAY, now=0) for _ in range(3)] == [None, None, Exceeded.CONCURRENCY]
    limiter.leave("s")
    assert limiter.admit("s", plan, DAY, now=0) is None
    assert limiter.admit("t", plan, DAY, now=0) is None


def test_days_that_are_over_are_forgotten() -> None:
    limiter, plan = Limiter(), PlanLimits("p", calls_per_day=1)
    for number in range(100):
        assert limiter.admit("s", plan, DAY + dt.timedelta(days=number), now=number) is None
    assert len(limiter._states["s"].days) <= 3


@given(
    limit=st.integers(1, 5),
    gaps=st.lists(st.floats(0, 0.6, allow_nan=False), min_size=1, max_size=60),
)
def test_no_second_has_more_calls_than_the_plan_allows(limit: int, gaps: list[float]) -> None:
    limiter, plan, now = Limiter(), PlanLimits("p", calls_per_second=limit), 0.0
    admitted: list[float] = []
    for gap in gaps:
        now += gap
        verdict = limiter.admit("s", plan, DAY, now=now)
        within = [time for time in admitted if now - time < 1.0]
        assert (verdict is None) == (len(within) < limit)
        if verdict is None:
            admitted.append(now)
