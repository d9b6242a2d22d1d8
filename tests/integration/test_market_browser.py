"""The market's pages in a real Chromium, behind a real traefik and hub, with the gateway and an endpoint that run."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import expect

from kpaas_lab.market import store
from kpaas_lab.market.conformance import Examiner
from kpaas_lab.market.database import open_database, writing
from tests.fixtures.hub import Hub, running_hub
from tests.fixtures.market import ENDPOINT, ROOT
from tests.waiting import until

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = ["--no-sandbox", "--disable-quic", "--disable-background-networking"]
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: apt-get install chromium")


@pytest.fixture(scope="module")
def lab() -> Iterator[Hub]:
    with tempfile.TemporaryDirectory(prefix="kpl-b-") as folder, running_hub(Path(folder) / "h") as hub:
        for name in ("market", "api"):
            hub.start(name)
            address = f"{hub.url}/services/{name}/healthz"
            until(lambda a=address: answers(a), 60, name, log=hub.layout.log(name))
        socket = hub.home / "learners" / "ann" / ".kpaas-lab" / "workloads" / "digits" / "0.sock"
        socket.parent.mkdir(parents=True)
        (hub.home / "endpoint.py").write_text(ENDPOINT)
        endpoint = subprocess.Popen(
            [sys.executable, str(hub.home / "endpoint.py"), str(socket), "digits"],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        try:
            until(socket.exists, 30, "endpoint")
            publish(hub)
            yield hub
        finally:
            endpoint.kill()
            endpoint.wait()


def answers(address: str) -> bool:
    try:
        return httpx.get(address).status_code == 200
    except httpx.HTTPError:
        return False


def publish(hub: Hub) -> None:
    """As the API does it: examined, then stored."""
    finding = asyncio.run(Examiner(hub.home / "learners", "ann", "digits", "digits").examine())
    engine = open_database(f"sqlite:///{hub.home}/market/market.sqlite", migrate=False)
    draft = store.Draft(
        title="손글씨 숫자 <img src=x onerror=window.stolen=1>",
        description="**굵게** <script>window.stolen=1</script>",
        endpoint="digits", protocol="oip-v2", model="digits", schema=finding.schema, example=finding.example,
        conformance=finding.record(),
        plans=[store.PlanTerms(name="free", calls_per_day=1000), store.PlanTerms(name="pro")],
    )  # fmt: skip
    with writing(engine) as session:
        store.publish(session, "ann", "digits", draft)
    engine.dispose()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


def visit(lab: Hub, chromium: Any, name: str, *, locale: str = "en-US", width: int = 1280) -> tuple[Any, list[str]]:
    """A page of somebody logged in, at the market, and what the browser complained about."""
    page = chromium.new_context(locale=locale, viewport={"width": width, "height": 900}).new_page()
    page.set_default_timeout(20_000)
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(f"{lab.url}/services/market/")
    page.fill("#username_input", name)
    page.fill("#password_input", lab.secrets.user_password)
    page.click("#login_submit")
    page.wait_for_url(f"{lab.url}/services/market/")
    complaints.clear()  # the hub's pages are another's
    return page, complaints


def test_search_subscribe_try_and_revoke(lab: Hub, chromium: Any) -> None:
    page, complaints = visit(lab, chromium, "bob")
    page.fill("#q", "숫자")
    page.press("#q", "Enter")
    page.click("text=손글씨 숫자")
    assert page.evaluate("window.stolen") is None
    page.click("[aria-label='Subscribe to the plan free']")
    key = page.inner_text("#new-key")
    assert key.startswith("kpl_")
    assert len(key) == 47
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.click("[data-copy=new-key]")
    page.wait_for_selector("text=Copied")
    assert page.evaluate("navigator.clipboard.readText()") == key

    page.click("text=Try it")
    assert not page.is_visible("#try-stop"), "a button that is hidden isn't shown"
    page.fill("#try-body", page.input_value("#try-body").replace("[0.0, 0.0, 0.0, 0.0]", "[1, 2, 3, 4.5]"))
    page.click("#try-form button[type=submit]")
    page.wait_for_selector("#try-answer:not([hidden])")
    assert page.inner_text("#try-status").startswith("200"), page.inner_text("#try-output")
    assert "10.5" in page.inner_text("#try-output")
    assert re.fullmatch(r"[0-9.]+ ms", page.inner_text("#try-overhead"))
    page.fill("#try-body", "{")
    page.click("#try-form button[type=submit]")
    expect(page.locator("#try-output")).to_contain_text("no JSON")
    page.fill("#try-body", '{"inputs": []}')
    page.click("#try-form button[type=submit]")
    expect(page.locator("#try-status")).to_contain_text("400")

    page.click("nav >> text=My subscriptions")
    assert key not in page.content()
    assert key[:12] in page.content()
    page.once("dialog", lambda dialog: dialog.accept())
    page.click("tr:has-text('first key') >> text=Revoke")
    page.wait_for_selector("tr:has-text('first key') >> text=revoked")

    page.click("nav >> text=Usage")
    until(lambda: page.reload() and page.locator("svg[role=img]").count() == 1, 30, "usage with a plot")
    with page.expect_download() as download:
        page.click("text=Download CSV")
    assert "ann/digits" in Path(download.value.path()).read_text()
    ours = [text for text in complaints if "400 (Bad Request)" not in text]
    assert ours == [], "the browser refused something of ours"


def test_the_language_is_chosen_once_for_all_pages(lab: Hub, chromium: Any) -> None:
    page, _complaints = visit(lab, chromium, "carol", locale="ko-KR")
    assert page.get_attribute("html", "lang") == "ko"
    page.click("a[lang=en]")
    assert page.get_attribute("html", "lang") == "en"
    page.goto(f"{lab.url}/hub/home")
    assert page.get_attribute("html", "lang") == "en"


@pytest.mark.parametrize("locale", ["en-US", "ko-KR"])
def test_every_page_fits_a_phone(lab: Hub, chromium: Any, locale: str) -> None:
    page, complaints = visit(lab, chromium, f"dave-{locale[:2]}", locale=locale, width=390)
    for path in ("", "?q=none", "listings/ann/digits", "subscriptions", "mine", "usage"):
        page.goto(f"{lab.url}/services/market/{path}")
        wider = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wider <= 0, path
    assert complaints == []
