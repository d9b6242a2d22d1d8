"""Two learners at once, from log-in to usage: the issue's steps 1 to 6, in a real browser against the real platform."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import time

import httpx
from playwright.sync_api import Browser, Page, expect

from tests.e2e.shots import shoot, shoot_all
from tests.e2e.steps import CELL, Learner
from tests.fixtures.platform import Platform
from tests.waiting import until

LESSON = "courses/kpaas-ai/01-first-api"
CALLS_A_DAY = 50  # of the plan "trial" in the lesson


def test_journey(browser: Browser, platform: Platform) -> None:
    ann = Learner.arrive(browser, platform.address, "ann")
    bob = Learner.arrive(browser, platform.address, "bob", language="ko")
    try:
        _journey(ann, bob, platform)
    except BaseException:
        shoot(ann.page, "failed-ann")
        shoot(bob.page, "failed-bob")
        print(platform.logs())
        raise


def _journey(ann: Learner, bob: Learner, platform: Platform) -> None:

    # 1, 2: log in, choose a slice
    shoot_all(ann.page, "01-login")
    ann.give_password("wrong")
    expect(ann.page.locator(".login_error")).to_be_visible()
    ann.log_in(platform.password)
    shoot_all(ann.page, "02-slices")
    ann.choose_slice("cpu")
    shoot(ann.page, "03-starting")
    bob.log_in(platform.password)
    bob.choose_slice("cpu")

    # 3, 4: JupyterLab opens on the course; Run All on the first lesson
    ann.wait_for_lab()
    expect(ann.page.locator(".jp-NotebookPanel")).to_contain_text("나의 첫 AI API")
    ann.run_all()
    expect(ann.output(".kpl-charts svg")).to_be_visible(timeout=CELL)
    ann.page.locator(".jp-OutputArea-output:has(.kpl-charts)").first.scroll_into_view_if_needed()
    shoot(ann.page, "04-lesson-live")

    # 5: meanwhile the marketplace is empty for bob
    market = f"{platform.address}/services/market/"
    bob.page.goto(market)
    shoot_all(bob.page, "05-market-empty")

    published = ann.output("a:has-text('Open it in the marketplace')")
    expect(published).to_be_visible(timeout=CELL)
    expect(ann.output("img")).to_be_visible()
    assert ann.errors() == []
    ann.shoot_notebook("06-lesson")
    ann.page.goto(published.get_attribute("href") or "")
    shoot_all(ann.page, "07-listing-of-publisher")

    # 5: bob searches, subscribes, copies the key that is shown once
    bob.page.goto(market)
    shoot_all(bob.page, "08-market")
    bob.page.locator("#q").fill("손글씨")
    bob.page.locator("#q").press("Enter")
    bob.page.locator(".m-card a").first.click()
    shoot_all(bob.page, "09-listing")
    bob.page.locator("form:has(input[name=plan][value=trial]) button").click()
    expect(bob.page.locator("#new-key")).to_be_visible()
    shoot(bob.page, "10-key")
    bob.page.locator("[data-copy=new-key]").click()
    key = bob.page.evaluate("navigator.clipboard.readText()")
    assert key.startswith("kpl_")
    assert key not in bob.page.goto(f"{market}subscriptions").text()  # type: ignore[union-attr]
    shoot_all(bob.page, "11-subscriptions")
    _try_it(bob.page, f"{market}listings/ann/digits")

    # 5: from a notebook, and from curl outside
    bob.open(f"{LESSON}/the-other-side.ipynb")
    bob.run_all()
    expect(bob.output("h4:has-text('Usage'), h4:has-text('사용량')")).to_be_visible(timeout=CELL)
    assert bob.errors() == []
    bob.shoot_notebook("13-the-other-side")
    url = f"{platform.address}/services/api/ann/digits/v2/models/digits/infer"
    refused = _exhaust(url, key)
    assert int(refused.headers["Retry-After"]) > 0
    assert "trial" in refused.json()["error"]

    # 6: both see the same usage
    for learner, query in ((ann, "listing=ann%2Fdigits"), (bob, "listing=ann%2Fdigits")):
        calls = until(lambda: _usage(learner, market, query), 30, "usage of 50 calls", log=platform.logs)  # noqa: B023
        assert calls == CALLS_A_DAY
    ann.page.goto(f"{market}usage?listing=ann%2Fdigits")
    shoot_all(ann.page, "14-usage-of-publisher")
    bob.page.goto(f"{market}usage")
    shoot_all(bob.page, "15-usage")
    ann.page.goto(f"{market}mine")
    shoot_all(ann.page, "16-mine")
    ann.page.goto(f"{platform.address}/hub/home")
    shoot_all(ann.page, "17-home")


def _try_it(page: Page, listing: str) -> None:
    page.goto(listing)
    page.locator("#try-form [type=submit]").click()
    expect(page.locator("#try-status")).to_contain_text("200")
    shoot(page, "12-try-it")


def _exhaust(url: str, key: str) -> httpx.Response:
    """Call with curl until the day's quota is used up; the refusal."""
    body = json.dumps({"inputs": [{"name": "input", "datatype": "FP32", "shape": [1, 1, 8, 8], "data": [0.0] * 64}]})
    command = [
        "curl",
        "-s",
        "--retry",
        "5",
        "-w",
        "%{http_code}",
        "-H",
        f"Authorization: Bearer {key}",
        "-d",
        body,
        url,
    ]
    # The notebook may have used up this second's calls a moment ago.
    until(lambda: _printed(command).endswith("200"), 30, "answer to curl", log=lambda: _printed(command))
    with httpx.Client(headers={"Authorization": f"Bearer {key}"}, timeout=60) as client:
        for _call in range(3 * CALLS_A_DAY):
            answer = client.post(url, content=body)
            wait = float(answer.headers.get("Retry-After", 0))
            if answer.status_code == 429 and wait > 2:
                return answer
            if answer.status_code == 429:
                time.sleep(wait)  # as the gateway asked
            else:
                assert answer.status_code == 200, answer.text
    raise AssertionError("the quota was never used up")


def _printed(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def _usage(learner: Learner, market: str, query: str) -> int:
    """Calls of all days in the CSV that the page offers, once all 50 are there."""
    answer = learner.context.request.get(f"{market}usage?{query}&format=csv")
    assert answer.ok, answer.text()
    rows = list(csv.DictReader(io.StringIO(answer.text().lstrip("\ufeff"))))
    calls = sum(int(row["calls"]) for row in rows)
    return calls if calls >= CALLS_A_DAY else 0
