"""HTML that can't be broken by what stands in it: every child and attribute is escaped unless it is `Html` already."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from kpaas_lab.i18n import _

# Copies what stands in the neighbouring <pre>: no text of anybody's is ever part of the script. Browsers give the
# clipboard to secure origins only (https, or this machine); elsewhere the text is selected and copied the old way.
_COPY = (
    "const p=this.parentNode.querySelector('pre'),s=getSelection();s.selectAllChildren(p);"
    "(navigator.clipboard?navigator.clipboard.writeText(p.textContent):Promise.resolve(document.execCommand('copy')))"
    ".then(()=>{this.textContent=this.dataset.done})"
)


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


def tag(name: str, /, *children: object, **attributes: object) -> Html:
    """One element. A child or an attribute that is None is left out; `class_` is `class`, `_` in a name is `-`.

    Example:
        >>> tag("p", "1 < 2", class_="kpl-soft")
        '<p class="kpl-soft">1 &lt; 2</p>'
    """
    shown = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Html(f"<{name}{shown}>{join(children)}</{name}>")


def join(children: Iterable[object]) -> Html:
    """Children one after another, escaped where they aren't `Html`."""
    return Html(
        "".join(child if isinstance(child, Html) else escape(str(child)) for child in children if child is not None)
    )


def card(*children: object) -> Html:
    """A framed box with the style that everything in this module needs."""
    return join([tag("style", _style()), tag("div", *children, class_="kpl")])


@functools.cache
def _style() -> Html:
    text = (Path(__file__).parent / "card.css").read_text(encoding="utf-8")
    return Html(re.sub(r"/\*.*?\*/|\s+", " ", text, flags=re.DOTALL))


def row(*children: object) -> Html:
    """Children side by side; they wrap where it is narrow."""
    return tag("div", *children, class_="kpl-row")


def soft(text: object) -> Html:
    """Text of less weight."""
    return tag("span", text, class_="kpl-soft")


def pill(text: object, tone: str = "") -> Html:
    """A short word on a coloured ground; the tone is "good", "warn", "bad", "busy" or ""."""
    return tag("span", text, class_=f"kpl-pill kpl-{tone}" if tone else "kpl-pill")


def table(header: Sequence[object], rows: Iterable[Sequence[object]]) -> Html:
    """A table that scrolls in its own box."""
    head = tag("tr", *(tag("th", cell) for cell in header))
    body = join(tag("tr", *(tag("td", cell) for cell in cells)) for cells in rows)
    return tag("div", tag("table", tag("thead", head), tag("tbody", body)), class_="kpl-scroll")


def code(title: str, text: str) -> Html:
    """Code behind a fold, with a button that copies it."""
    button = tag("button", _("Copy"), type="button", onclick=Html(_COPY), data_done=_("Copied"))
    return tag("details", tag("summary", title), button, tag("pre", text))
