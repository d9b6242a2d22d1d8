"""Templates, and the little that they need: languages, numbers, safe descriptions, links."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fastapi import Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markdown_it import MarkdownIt
from markupsafe import Markup

from kpaas_lab.errors import LabError, NotConformantError
from kpaas_lab.i18n import _, language
from kpaas_lab.market.conformance import CHECKS
from kpaas_lab.market.identity import Person
from kpaas_lab.market.services import MarketSettings

HERE = Path(__file__).parent
# HTML in a description is text, links are http(s) or mailto, and pictures (which would tell their host who looks) are
# not loaded.
_markdown = MarkdownIt("js-default", {"html": False, "linkify": False}).disable(["image"])
_markdown.validateLink = lambda url: url.lower().startswith(("http://", "https://", "mailto:"))  # type: ignore[method-assign]


class Pages:
    """Renders the market's pages.

    Args:
        settings: of the service.
    """

    def __init__(self, settings: MarketSettings) -> None:
        self.settings = settings
        self._environment = Environment(
            loader=FileSystemLoader(HERE / "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._environment.globals.update(
            _=_,
            language=language,
            prefix=settings.prefix,
            link=self.link,
            check_text=check_text,
        )
        self._environment.filters.update(
            number=number, ms=milliseconds, price=price, day=day, markdown=markdown, plain=plain, shape=shape
        )

    def render(
        self, request: Request, template: str, *, person: Person | None, status: int = 200, **values: Any
    ) -> HTMLResponse:
        """A page.

        Args:
            request: what asked for it.
            template: its file.
            person: who is logged in.
            status: HTTP status.
            **values: for the template.
        """
        here = request.url.path + (f"?{request.url.query}" if request.url.query and request.method == "GET" else "")
        back = here if request.method == "GET" else self.settings.prefix
        content = self._environment.get_template(template).render(person=person, here=here, back=back, **values)
        return HTMLResponse(content, status)

    def error(self, request: Request, error: LabError, status: int) -> HTMLResponse:
        """A page that says what went wrong, and the next step."""
        failures = error.failures if isinstance(error, NotConformantError) else ()
        person = getattr(request.state, "person", None)
        return self.render(request, "error.html", person=person, status=status, error=error, failures=failures)

    def link(self, *parts: str, **query: str | int | None) -> str:
        """A path of ours; every part is quoted."""
        path = self.settings.prefix + "/".join(quote(part, safe="") for part in parts)
        filled = [
            f"{name.rstrip('_')}={quote(str(value), safe='')}"
            for name, value in query.items()
            if value not in (None, "")
        ]
        return f"{path}?{'&'.join(filled)}" if filled else path


def check_text(name: str) -> str:
    """What a check asked."""
    return _(CHECKS.get(name, name))


def number(value: int) -> str:
    """A whole number with separators.

    Example:
        >>> number(1234567)
        '1,234,567'
    """
    return f"{value:,}"


def milliseconds(value: float | None) -> str:
    """A latency, to three digits.

    Example:
        >>> milliseconds(8.4123), milliseconds(None)
        ('8.41 ms', '–')
    """
    return "–" if value is None else f"{value:.3g} ms" if value < 1000 else f"{value / 1000:.3g} s"


def price(value: Decimal) -> str:
    """The price of 1,000 calls.

    Example:
        >>> price(Decimal("1200.0000")), price(Decimal("0.5"))
        ('₩1,200', '₩0.5')
    """
    if not value:
        return _("Free")
    whole, _dot, fraction = f"{value:,.4f}".partition(".")
    fraction = fraction.rstrip("0")
    return f"₩{whole}.{fraction}" if fraction else f"₩{whole}"


def day(value: dt.datetime | dt.date) -> str:
    """A date, UTC."""
    return value.strftime("%Y-%m-%d")


def shape(values: list[int]) -> str:
    """A tensor's shape; any size is written n.

    Example:
        >>> shape([-1, 8, 8])
        'n × 8 × 8'
    """
    return " × ".join("n" if value == -1 else str(value) for value in values) or "1"


def markdown(text: str) -> Markup:
    """A description as safe HTML.

    Example:
        >>> str(markdown("**a** <b>")).strip()
        '<p><strong>a</strong> &lt;b&gt;</p>'
    """
    return Markup(_markdown.render(text))  # noqa: S704 (markdown-it escapes all HTML)


def plain(text: str, limit: int = 160) -> str:
    """The beginning of a description, for a card.

    Example:
        >>> plain("Reads **digits** of [this](https://example.org) data.", 30)
        'Reads digits of this data.'
        >>> plain("Reads many digits", 12)
        'Reads many…'
    """
    words = markdown(text[: limit * 8]).striptags()
    return words if len(words) <= limit else f"{words[:limit].rpartition(' ')[0] or words[:limit]}…"
