"""Both languages in one page: JupyterHub's templates know no request, so a page holds Korean and English and shows one.

`static/language.js` sets `<html lang>` from the cookie or the browser; `lab.css` hides the other language.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from kpaas_lab.i18n import LANGUAGES, _, use_language

WEB = Path(__file__).parent.parent / "kpaas_lab" / "web"
HERE = Path(__file__).parent


def both(say: Callable[[], object]) -> Markup:
    """What is said in each language, one span each; plain where it is the same. Text is escaped, Markup is not.

    Example:
        >>> both(lambda: "<3 GiB>")
        Markup('&lt;3 GiB&gt;')
    """
    texts = _in_each(say)
    if texts["en"] == texts["ko"]:
        return texts["en"]
    span = Markup('<span class="t" lang="{}">{}</span>')
    return Markup("").join(span.format(language, text) for language, text in texts.items())


def t(message: str, /, **fields: object) -> Markup:
    """A message of the catalogue in both languages; fields are escaped, unless they are Markup.

    Example:
        >>> t("{name}: {count} MiB", name="<b>", count=3)
        Markup('&lt;b&gt;: 3 MiB')
    """
    return both(lambda: escape(_(message)).format(**fields))


def t_attr(name: str, message: str, /, **fields: object) -> Markup:
    """An attribute in both languages.

    Example:
        >>> t_attr("title", "OK")
        Markup('title="OK" data-t="{&#34;title&#34;: [&#34;OK&#34;, &#34;OK&#34;]}"')
    """
    texts = _in_each(lambda: _(message).format(**fields))
    english = texts["en"].unescape()
    data = json.dumps({name: [english, texts["ko"].unescape()]}, ensure_ascii=False)
    return Markup('{}="{}" data-t="{}"').format(name, english, data)


def render(template: str, **values: object) -> Markup:
    """A fragment of a page, by the template of that name."""
    return Markup(_environment().get_template(template).render(t=t, both=both, **values))  # noqa: S704 (autoescaped)


def template_paths() -> list[str]:
    """Where the hub finds our templates, and the style sheets and scripts that they include."""
    return [str(HERE / "templates"), str(HERE / "static"), str(WEB)]


def _in_each(say: Callable[[], object]) -> dict[str, Markup]:
    texts = {}
    for language in LANGUAGES:
        with use_language(language):
            texts[language] = escape(say())
    return texts


@functools.cache
def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(template_paths()), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
