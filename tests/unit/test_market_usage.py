"""Percentiles, periods, CSV, plots: pure."""

from __future__ import annotations

import csv
import datetime as dt
import io
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kpaas_lab.errors import SettingsError
from kpaas_lab.market import plot
from kpaas_lab.market.usage import Count, KeyInfo, Period, Report, percentile, period, safe_cell, to_csv


def bucket(ms: float) -> int:
    return math.floor(math.log(ms / 0.1, 1.1))


@pytest.mark.parametrize("q", [0.5, 0.95])
def test_percentile_is_within_a_bucket_of_the_exact_one(q: float) -> None:
    chance = random.Random(7)
    latencies = sorted(chance.lognormvariate(2, 0.8) for _ in range(5000))
    counts: dict[int, int] = {}
    for ms in latencies:
        counts[bucket(ms)] = counts.get(bucket(ms), 0) + 1
    exact = latencies[math.ceil(q * len(latencies)) - 1]
    found = percentile(counts, q)
    assert found is not None
    assert exact / 1.1 <= found <= exact * 1.1


@given(st.dictionaries(st.integers(-20, 150), st.integers(0, 1000), max_size=20))
def test_percentiles_are_ordered_and_within_the_buckets(counts: dict[int, int]) -> None:
    low, high = percentile(counts, 0.5), percentile(counts, 0.95)
    if not sum(counts.values()):
        assert low is None
        assert high is None
        return
    used = [b for b, n in counts.items() if n]
    assert low is not None
    assert high is not None
    assert 0.1 * 1.1 ** min(used) <= low <= high * (1 + 1e-9)
    assert high <= 0.1 * 1.1 ** (max(used) + 1) * (1 + 1e-9)


def test_periods() -> None:
    today = dt.date(2026, 11, 23)
    assert period(None, None, today=today) == Period(dt.date(2026, 10, 25), today)
    assert len(period(None, None, today=today).days()) == 30
    assert period(dt.date(2026, 1, 1), dt.date(2026, 1, 1)).days() == [dt.date(2026, 1, 1)]
    with pytest.raises(SettingsError, match="ends"):
        period(dt.date(2026, 2, 1), dt.date(2026, 1, 1))
    with pytest.raises(SettingsError, match="366"):
        period(dt.date(2020, 1, 1), dt.date(2026, 1, 1))
    assert period(None, dt.date.min).first == dt.date.min


@pytest.mark.parametrize("start", [*"=+-@\t\r\n", "＝", "＋", "－", "＠"])
def test_no_cell_starts_a_formula(start: str) -> None:
    assert safe_cell(f"{start}cmd|' /C calc'!A0").startswith("'")


def test_csv_reads_back() -> None:
    day, info = dt.date(2026, 1, 2), KeyInfo("k", "kpl_abcdefgh", '=1+1,"한글"\n', "ann/digits")
    count = Count(3, 1, 2, 10, 20, {40: 3})
    report = Report(Period(day, day), count, {day: count}, {info: count}, {(day, info): count})
    header, row = csv.reader(io.StringIO(to_csv(report), newline=""))
    assert dict(zip(header, row, strict=True)) == {
        "day": "2026-01-02", "listing": "ann/digits", "key": "kpl_abcdefgh", "label": "'=1+1,\"한글\"\n", "calls": "3",
        "errors": "1", "rejected": "2", "bytes_in": "10", "bytes_out": "20", "p50_ms": "4.75", "p95_ms": "4.95",
    }  # fmt: skip


@given(st.lists(st.tuples(st.integers(0, 10**9), st.integers(0, 10**9)), min_size=1, max_size=40))
def test_plot_stays_inside(counts: list[tuple[int, int]]) -> None:
    days = {dt.date(2026, 1, 1) + dt.timedelta(days=n): Count(c, e) for n, (c, e) in enumerate(counts)}
    drawn = plot.by_day(days)
    for bar in drawn.bars:
        assert -0.01 <= bar.error_y <= bar.y + 0.01 <= plot.HEIGHT + 0.02
        assert bar.y + bar.height <= plot.HEIGHT + 0.02
        assert 0 <= bar.x <= bar.x + bar.width <= plot.WIDTH
    assert drawn.lines[0] == (plot.HEIGHT, 0)
    assert drawn.lines[-1][0] == 0
