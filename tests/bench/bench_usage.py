"""The usage page with a million calls behind it, as a browser gets it from a running market."""

from __future__ import annotations

import datetime as dt
import random
import statistics
import time
from collections.abc import Iterable

import httpx
import psutil

from kpaas_lab.market import store, subscriptions
from kpaas_lab.market.database import open_database, writing
from kpaas_lab.market.models import Usage, UsageLatency
from tests.bench.table import Row
from tests.fixtures.market import Site, running_site

CALLS, DAYS, PEOPLE = 1_000_000, 30, 50
REPEATS = 15


def rows() -> Iterable[Row]:
    """Median of 15 requests, each with its own queries: nothing is cached."""
    with running_site() as site:
        fill(site)
        browser = site.browser("ann")
        for what, path in (("page", "/usage?listing=ann/digits"), ("CSV", "/usage?listing=ann/digits&format=csv")):
            wall, cpu = measure(site, browser, path)
            goal = "<= 200" if what == "page" else ""
            yield Row(f"usage {what} at 1,000,000 calls, ms (CPU ms)", f"{wall:.0f} ({cpu:.0f})", goal=goal)


def measure(site: Site, browser: httpx.Client, path: str) -> tuple[float, float]:
    """Median time and the market's mean CPU time of a request."""
    market = psutil.Process(site.processes["market"].pid)
    times = []
    before = market.cpu_times()
    for _ in range(REPEATS):
        begun = time.perf_counter()
        answer = browser.get(path)
        times.append((time.perf_counter() - begun) * 1000)
        assert answer.status_code == 200
        assert "1,000,000" in answer.text or path.endswith("csv")
    after = market.cpu_times()
    cpu = (after.user + after.system - before.user - before.system) * 1000 / REPEATS
    return statistics.median(times), cpu


def fill(site: Site) -> None:
    """A month of 50 subscribers, each day's latencies over 40 buckets: 1,500 sums and up to 60,000 buckets."""
    chance = random.Random(1)
    engine = open_database(site.database, migrate=False)
    terms = store.Draft(
        title="Digits", description="", endpoint="digits", protocol="oip-v2", model="digits", schema={"inputs": [],
        "outputs": []}, example={}, conformance={}, plans=[store.PlanTerms(name="free")],
    )  # fmt: skip
    with writing(engine) as session:
        version = store.current(store.publish(session, "ann", "digits", terms)).id
        today = dt.datetime.now(dt.UTC).date()
        cells = [(n, today - dt.timedelta(days=day)) for n in range(PEOPLE) for day in range(DAYS)]
        share, left = CALLS // len(cells), CALLS % len(cells)
        keys = []
        for n in range(PEOPLE):
            _subscription, key = subscriptions.subscribe(session, f"person-{n}", "ann", "digits", "free")
            assert key is not None
            keys.append(key.record.id)
        for index, (n, day) in enumerate(cells):
            calls = share + (index < left)
            session.add(
                Usage(key_id=keys[n], version_id=version, day=day, calls=calls, errors=calls // 50, rejected=0,
                      bytes_in=calls * 900, bytes_out=calls * 200)
            )  # fmt: skip
            buckets: dict[int, int] = {}
            for _ in range(calls):
                bucket = min(max(round(chance.gauss(50, 9)), 20), 80)
                buckets[bucket] = buckets.get(bucket, 0) + 1
            session.add_all(
                UsageLatency(key_id=keys[n], version_id=version, day=day, bucket=bucket, calls=count)
                for bucket, count in buckets.items()
            )
    engine.dispose()
