"""Counts: in memory and in the spool (torn, damaged, shared)."""

import datetime as dt
import os
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kpaas_lab.market.gateway.metering import Row, Tally, bucket
from kpaas_lab.market.gateway.spool import SEGMENT_BYTES, Spool

DAY = dt.date(2026, 11, 23)


@given(st.floats(0.0001, 10_000))
def test_a_bucket_holds_its_latency(seconds: float) -> None:
    number = bucket(seconds)
    assert 1.1**number * 0.0001 <= seconds * (1 + 1e-9)
    assert seconds <= 1.1 ** (number + 1) * 0.0001 * (1 + 1e-9)


def test_the_shortest_and_impossible_latencies_are_in_the_first_bucket() -> None:
    assert [bucket(seconds) for seconds in (0.0, -5.0, 1e-9, 0.0001)] == [0, 0, 0, 0]


def test_a_tally_sums_by_key_version_and_day() -> None:
    tally, who = Tally(), ("k", "s", 1, DAY)
    tally.call(who, error=False, bytes_in=2, bytes_out=3, seconds=0.001)
    tally.call(who, error=True, bytes_in=2, bytes_out=3, seconds=0.001)
    tally.rejection(who)
    tally.rejection(("k", "s", 2, DAY))
    assert tally.swap() == {
        who: Row(2, 1, 1, 4, 6, Counter({bucket(0.001): 2})),
        ("k", "s", 2, DAY): Row(rejected=1),
    }
    assert tally.swap() == {}


# --- the spool


def test_records_come_back_in_order_and_once(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    sent = [b"%d %s" % (number, b"x" * (number % 700)) for number in range(6000)]
    for record in sent[:3000]:
        spool.append(record)
    found = []
    while some := spool.take(limit=10_000):
        found += some
    for record in sent[3000:]:
        spool.append(record)
    while some := spool.take(limit=10_000):
        found += some
    assert found == sent
    assert spool.pending_bytes == 0
    dropped = spool.drop()
    spool.end_segment()
    assert dropped + spool.drop() == sent
    assert list(tmp_path.rglob("*.segment")) == []


def test_a_record_longer_than_a_read(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.append(b"a" * 100_000)
    spool.append(b"b")
    assert spool.take(limit=10) == [b"a" * 100_000]
    assert spool.take(limit=10) == [b"b"]


def test_what_was_taken_and_not_dropped_comes_back_after_a_crash(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.append(b"one")
    spool.append(b"two")
    assert spool.take() == [b"one", b"two"]
    assert spool.drop() == []  # its segment is still being written
    os.close(spool._lock)  # what the kernel does when the process dies
    again = Spool(tmp_path)
    assert again.take() == [b"one", b"two"]
    assert again.drop() == [b"one", b"two"]
    again.close()
    assert Spool(tmp_path).take() == []


@pytest.mark.parametrize("cut", range(1, 13))
def test_a_torn_last_line_is_left_out(tmp_path: Path, cut: int) -> None:
    spool = Spool(tmp_path)
    spool.append(b"whole")
    spool.append(b"torn")
    spool.close()
    (segment,) = tmp_path.rglob("*.segment")
    segment.write_bytes(segment.read_bytes()[:-cut])
    again = Spool(tmp_path)
    # A line that lacks only its end is whole: its checksum says so.
    assert again.take() == ([b"whole", b"torn"] if cut == 1 else [b"whole"])
    assert again.damaged == (0 if cut == 1 else 1)
    again.append(b"after")
    assert again.take() == [b"after"]


def test_a_damaged_line_costs_that_line_only(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    for record in (b"one", b"two", b"three"):
        spool.append(record)
    spool.close()
    (segment,) = tmp_path.rglob("*.segment")
    segment.write_bytes(segment.read_bytes().replace(b"two", b"tw0"))
    again = Spool(tmp_path)
    assert again.take() == [b"one", b"three"]
    assert again.damaged == 1


def test_two_gateways_share_a_folder_and_the_survivor_takes_over(tmp_path: Path) -> None:
    first, second = Spool(tmp_path), Spool(tmp_path)
    first.append(b"first")
    second.append(b"second")
    assert (first.take(), second.take()) == ([b"first"], [b"second"])
    first.close()
    second.close()
    survivor = Spool(tmp_path)
    assert sorted(survivor.take() + survivor.take()) == [b"first", b"second"]
    assert len(list(tmp_path.iterdir())) == 1


def test_segments_stay_small(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    for _ in range(40):
        spool.append(b"x" * 100_000)
    sizes = [path.stat().st_size for path in tmp_path.rglob("*.segment")]
    assert len(sizes) > 2
    assert max(sizes) <= SEGMENT_BYTES + 100_100
