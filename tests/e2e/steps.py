"""What a person does: log in, choose a slice, run a notebook. Every wait has a deadline."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from playwright.sync_api import Browser, BrowserContext, Locator, Page, expect

from tests.e2e.shots import NARROW, WIDE, shoot

PAGE = 30_000  # ms, for a page
SERVER = 90_000  # for a learner's server and its JupyterLab
PHONE = (
    "Mozilla/5.0 (Linux; Android 14; K) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 Mobile Safari/537.36"
)
CELL = 240_000  # for a cell that trains


@dataclass
class Learner:
    """A person with a browser of their own."""

    name: str
    address: str
    context: BrowserContext
    page: Page

    @classmethod
    def arrive(cls, browser: Browser, address: str, name: str, language: str = "en") -> Learner:
        """Open a browser at the platform's address."""
        locale = {"en": "en-US", "ko": "ko-KR"}[language]
        context = browser.new_context(viewport=WIDE, locale=locale)  # type: ignore[arg-type]
        context.grant_permissions(["clipboard-read", "clipboard-write"], origin=address)
        page = context.new_page()
        page.set_default_timeout(PAGE)
        page.goto(address)
        return cls(name, address, context, page)

    def give_password(self, password: str) -> None:
        """Send the log-in form."""
        self.page.locator("#username_input").fill(self.name)
        self.page.locator("#password_input").fill(password)
        self.page.locator("#login_submit").click()

    def log_in(self, password: str) -> None:
        """Be in."""
        self.give_password(password)
        expect(self.page.locator("#logout")).to_be_visible(timeout=PAGE)

    def choose_slice(self, name: str) -> None:
        """On the spawn page; returns while the server starts."""
        self.page.goto(f"{self.address}/hub/spawn")
        self.page.locator(f"input[name=slice][value={name}]").check()
        self.page.locator("#spawn_form button[type=submit]").click()

    def wait_for_lab(self) -> None:
        """Until JupyterLab shows a notebook that can be run."""
        self.page.wait_for_url(re.compile(rf"/user/{self.name}/lab"), timeout=SERVER)
        self.notebook()

    def open(self, path: str) -> None:
        """A notebook of the course, alone, in this tab."""
        self.page.goto(f"{self.address}/user/{self.name}/lab/tree/{path}?reset", timeout=SERVER)
        self.notebook()

    def notebook(self) -> Locator:
        """The notebook in front, once its kernel is idle."""
        panel = self.page.locator(".jp-NotebookPanel:not(.lm-mod-hidden)")
        expect(panel.locator(".jp-Cell").first).to_be_visible(timeout=SERVER)
        expect(panel.locator(".jp-Toolbar-kernelStatus, .jp-Notebook-ExecutionIndicator").first).to_have_attribute(
            "data-status", "idle", timeout=SERVER
        )
        return panel

    def run_all(self) -> None:
        """Menu Run, Run All Cells; once more where nothing began, as a person would.

        JupyterLab forgets what it was told to run while it connects to a kernel anew, which on a busy machine it does
        within the first seconds: the kernel is idle, the cells show no number.
        """
        first = self.page.locator(".jp-NotebookPanel:not(.lm-mod-hidden) .jp-CodeCell .jp-InputPrompt").first
        question = self.page.locator(".jp-Dialog .jp-mod-accept")  # which kernel, where it has lost it
        for attempt in range(3):
            self.page.get_by_role("menuitem", name=re.compile("^(Run|실행)$")).click()
            self.page.locator(".lm-Menu-item[data-command='runmenu:run-all']").click()
            try:
                expect(first).not_to_have_text("[ ]:", timeout=PAGE / 3)
                return
            except AssertionError:
                if attempt == 2:
                    raise
                if question.count():
                    question.click()

    def output(self, selector: str) -> Locator:
        """Something in the outputs of the notebook in front."""
        return self.page.locator(f".jp-NotebookPanel:not(.lm-mod-hidden) .jp-OutputArea-output {selector}").first

    def errors(self) -> list[str]:
        """Tracebacks in the notebook in front."""
        return self.page.locator(".jp-NotebookPanel:not(.lm-mod-hidden) .jp-mod-error").all_inner_texts()

    def shoot_notebook(self, name: str) -> None:
        """The whole notebook, and the same on a phone."""
        self.page.set_viewport_size({"width": 1280, "height": 3600})
        self.page.locator(".jp-NotebookPanel:not(.lm-mod-hidden) .jp-Cell").first.scroll_into_view_if_needed()
        shoot(self.page, f"{name}-1280")
        self.page.set_viewport_size(WIDE)
        with self.phone() as phone:
            phone.goto(self.page.url, timeout=SERVER)
            cell = phone.locator(".jp-NotebookPanel:not(.lm-mod-hidden) .jp-Cell").first
            expect(cell).to_be_visible(timeout=SERVER)
            wide = "document.querySelector('.jp-NotebookPanel:not(.lm-mod-hidden) .jp-Cell').clientWidth > 250"
            phone.wait_for_function(wide)
            shoot(phone, f"{name}-390")

    @contextmanager
    def phone(self) -> Iterator[Page]:
        """A page of a phone's browser where the same person is logged in."""
        browser, state = self.context.browser, self.context.storage_state()
        assert browser
        with browser.new_context(viewport=NARROW, user_agent=PHONE, storage_state=state) as context:  # type: ignore[arg-type]
            yield context.new_page()

    def stop_server(self) -> None:
        """As at the end of a class."""
        self.page.goto(f"{self.address}/hub/home")
        self.page.locator("#stop").click()
        expect(self.page.locator("#stop")).to_be_hidden(timeout=PAGE)
