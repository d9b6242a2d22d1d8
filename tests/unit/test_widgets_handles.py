"""Handles as HTML and as text. The handles here are small doubles of those that need a hub or a process."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from kpaas_lab import i18n
from kpaas_lab.errors import EngineUnavailableError, NotFoundError
from kpaas_lab.market.client import Count, Listing, Plan, Subscription, Usage
from kpaas_lab.market.keystore import StoredKey
from kpaas_lab.widgets.endpoint import endpoint_html
from kpaas_lab.widgets.market import (
    listing_html,
    listings_html,
    subscription_html,
    subscriptions_html,
    usage_html,
)
from kpaas_lab.widgets.phases import duration, phase_in_words
from kpaas_lab.widgets.run import draw, take
from kpaas_lab.widgets.tables import endpoints_html, runs_html
from kpaas_lab.workloads import Phase, Status
from tests.unit.test_widgets_markup import HOSTILE, Elements

NOW = dt.datetime.now(dt.UTC)
KEY = "kpl_" + "k" * 43


def status(phase: Phase = Phase.RUNNING, **more: Any) -> Status:
    return Status(**{"name": "digits", "kind": "Job", "phase": phase, "created": NOW, "started": NOW, **more})


class Run:
    """A double of a run."""

    name = "digits"

    def __init__(self, status: Status, text: str = "a line", metric: str = "loss") -> None:
        self.status, self.text, self.metric = status, text, metric

    def metrics(self) -> list[dict[str, Any]]:
        return [{"step": step, "total": 10, self.metric: 1.0 / step} for step in range(1, 5)]

    def logs(self) -> Any:
        return iter([self.text] * 9)

    def cancel(self) -> None: ...


class Endpoint:
    """A double of an endpoint; its metadata is what a hostile model could say."""

    name = "digits"

    def __init__(self, status: Status | None, text: str = "x") -> None:
        self._status, self.text = status, text

    @property
    def status(self) -> Status:
        if self._status is None:
            raise NotFoundError("No workload 'digits'.")
        return self._status

    def metadata(self) -> dict[str, Any]:
        if self.text == "gone":
            raise EngineUnavailableError("It stopped.")
        return {"inputs": [{"name": self.text, "datatype": self.text, "shape": [-1, self.text]}], "outputs": []}


def listing(text: str) -> Listing:
    plan = {"name": text, "calls_per_day": 5, "calls_per_second": None, "concurrency": None, "price_per_1000_calls": 1}
    raw = {"description": text, "plans": [plan]}
    return Listing(raw, text, text, text, 1, f"http://lab/{text}", SimpleNamespace())


def subscription(text: str, key: StoredKey | None) -> Subscription:
    market = SimpleNamespace(keys=SimpleNamespace(get=lambda _id: key))
    return Subscription({}, "s1", text, Plan(text), f"http://lab/{text}", market)


def usage(text: str) -> Usage:
    count = Count(of=text, calls=3, errors=1, rejected=1, p50_ms=1.5, p95_ms=None)
    day = Count(of="2026-01-01", calls=3, errors=1, rejected=1, p50_ms=1.5, p95_ms=None)
    return Usage(first=dt.date(2026, 1, 1), last=dt.date(2026, 1, 31), total=count, days=[day], keys=[count])


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize(
    "view",
    [
        lambda text: draw(take(Run(status(message=text, slice=text), text, text))),
        lambda text: runs_html({"digits": Run(status(slice=text), text, text)}),
        lambda text: endpoint_html(Endpoint(status(ready=1, message=text, slice=text, addresses=("a",)), text)),
        lambda text: endpoints_html({text: Endpoint(status(slice=text))}),
        lambda text: listing_html(listing(text)),
        lambda text: listings_html([listing(text)]),
        lambda text: subscription_html(subscription(text, StoredKey("x", KEY))),
        lambda text: subscriptions_html({text: subscription(text, None)}),
        lambda text: usage_html(usage(text)),
    ],
)
def test_nothing_hostile_becomes_an_element(view: Any, text: str) -> None:
    harmless, seen = Elements(view("harmless")), Elements(view(text))
    assert seen.names == harmless.names
    assert seen.attributes.keys() == harmless.attributes.keys()


def test_a_running_run_shows_how_far_it_is() -> None:
    seen = Elements(draw(replace(take(Run(status())), seconds=40.0)))
    assert "step 4 of 10, about 1 min 0 s left" in seen.text
    assert seen.attributes["aria-valuenow"] == ["40"]


def test_a_failed_run_says_what_next() -> None:
    seen = Elements(draw(take(Run(status(Phase.FAILED, message="digits ended with exit code 1.")))))
    assert "digits ended with exit code 1." in seen.text
    assert "run.resume()" in seen.text


def test_a_long_line_of_a_log_is_cut() -> None:
    assert len(draw(take(Run(status(), "x" * 100_000)))) < 12_000


def test_an_endpoint_that_is_gone_has_a_card_too() -> None:
    assert "No workload" in endpoint_html(Endpoint(None))
    assert "It stopped." in endpoint_html(Endpoint(status(ready=1, addresses=("a",)), "gone"))
    assert "wait_ready()" in endpoint_html(Endpoint(status(Phase.PENDING, started=None)))


def test_a_key_is_shown_by_its_beginning_only() -> None:
    shown = subscription_html(subscription("ann/digits", StoredKey("ann/digits", KEY)))
    assert KEY[:12] in shown
    assert KEY[:13] not in shown
    assert "makes one" in subscription_html(subscription("ann/digits", None))


def test_empty_states_say_the_next_step() -> None:
    assert "lab.train(" in runs_html({})
    assert "lab.serve(" in endpoints_html({})
    assert "lab.publish(" in listings_html([])
    assert "lab.subscribe(" in subscriptions_html({})


@pytest.mark.parametrize("language", i18n.LANGUAGES)
def test_every_phase_and_time_has_words(language: str) -> None:
    with i18n.use_language(language):
        assert all(phase_in_words(phase) for phase in Phase)
        assert all(duration(seconds) for seconds in (0, 9.99, 59, 3599, 100_000))
