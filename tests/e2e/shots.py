"""Screenshots of pages, wide and narrow, in both languages, kept in artifacts/screenshots/ for people to look at."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Error, Page

from kpaas_lab.i18n import COOKIE, LANGUAGES

FOLDER = Path(__file__).resolve().parents[2] / "artifacts" / "screenshots"
WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
MOST_HEIGHT = 4000


def shoot(page: Page, name: str) -> None:
    """This page as it is now, 1280 px wide."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    _capture(page, FOLDER / f"{name}.png")


def shoot_all(page: Page, name: str) -> None:
    """This page in both languages and both widths, whole. It is loaded again for each language."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for language in LANGUAGES:
        with speaking(page, language):
            page.reload()
            page.wait_for_load_state("load")
            for width, size in ((1280, WIDE), (390, NARROW)):
                page.set_viewport_size(size)
                _check_no_sideways_scroll(page, name, width)
                _capture(page, FOLDER / f"{name}-{language}-{width}.png", full_page=True)
    page.set_viewport_size(WIDE)
    page.reload()
    page.wait_for_load_state("load")


@contextmanager
def speaking(page: Page, language: str) -> Iterator[None]:
    """The pages' language for a while."""
    before = [cookie for cookie in page.context.cookies() if cookie["name"] == COOKIE]
    page.context.clear_cookies(name=COOKIE)
    page.context.add_cookies([{"name": COOKIE, "value": language, "url": page.url}])
    try:
        yield
    finally:
        page.context.clear_cookies(name=COOKIE)
        page.context.add_cookies(before)  # type: ignore[arg-type]


def _capture(page: Page, path: Path, *, full_page: bool = False) -> None:
    """Chromium says now and then that it can't, just after its window has changed its size."""
    for attempt in range(3):
        try:
            page.screenshot(path=path, full_page=full_page)
            return
        except Error as error:
            if attempt == 2 or "Unable to capture" not in error.message:
                raise


def _check_no_sideways_scroll(page: Page, name: str, width: int) -> None:
    wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide <= 0, f"{name} at {width} px is {wide} px too wide"
    cut = "[...document.querySelectorAll('.lab-table-box')].filter((box) => box.scrollWidth > box.clientWidth).length"
    assert page.evaluate(cut) == 0, f"{name} at {width} px has a table that is cut"
