"""Korean and English. English is the message's id; Korean comes from the gettext catalogue in `locale/`."""

from __future__ import annotations

import contextlib
import functools
import gettext
import os
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path

LANGUAGES = ("en", "ko")
LOCALE_DIR = Path(__file__).parent / "locale"
COOKIE = "kpaas_lab_lang"

_chosen: ContextVar[str | None] = ContextVar("kpaas_lab_language", default=None)


@functools.cache
def _catalogue(language: str) -> gettext.NullTranslations:
    return gettext.translation("kpaas_lab", LOCALE_DIR, languages=[language], fallback=True)


def language(environ: Mapping[str, str] | None = None) -> str:
    """The language in use: this context's, else KPAAS_LAB_LANG, else the locale's, else English.

    Example:
        >>> language({"LANG": "ko_KR.UTF-8"})
        'ko'
    """
    if environ is None:
        chosen = _chosen.get()
        if chosen:
            return chosen
        environ = os.environ
    for name in ("KPAAS_LAB_LANG", "LC_ALL", "LC_MESSAGES", "LANG"):
        value = environ.get(name, "")[:2].lower()
        if value in LANGUAGES:
            return value
    return "en"


@contextlib.contextmanager
def use_language(chosen: str) -> Iterator[None]:
    """Speak one language within the block (of this task or thread)."""
    token = _chosen.set(chosen if chosen in LANGUAGES else "en")
    try:
        yield
    finally:
        _chosen.reset(token)


def negotiate(accept_language: str, cookie: str = "") -> str:
    """The language a browser wants: its cookie's choice, else the best of `Accept-Language` (RFC 9110, 12.5.4).

    Example:
        >>> negotiate("fr;q=0.9, ko-KR;q=0.8, en;q=0.5")
        'ko'
        >>> negotiate("ko", cookie="en")
        'en'
    """
    if cookie in LANGUAGES:
        return cookie
    ranked: list[tuple[float, str]] = []
    for part in accept_language.split(","):
        tag, _sep, quality = part.strip().partition(";q=")
        try:
            weight = float(quality) if quality else 1.0
        except ValueError:
            weight = 0.0
        ranked.append((-weight, tag.strip()[:2].lower()))
    return next((tag for weight, tag in sorted(ranked, key=lambda pair: pair[0]) if tag in LANGUAGES and weight), "en")


def _(message: str) -> str:
    """The message in the language in use. Fill its fields with `.format` afterwards."""
    return _catalogue(language()).gettext(message)


def N_(message: str) -> str:
    """Mark a message for the catalogue; translate it later with `_`, where the reader's language is known."""
    return message
