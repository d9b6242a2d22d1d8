"""API keys: random, shown once, known afterwards by their SHA-256 only.

A key holds 256 random bits, so a plain hash can't be searched for it; a slow password hash would only slow each call.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass, field

PREFIX_LENGTH = 12
_FORMAT = re.compile(r"kpl_[A-Za-z0-9_-]{43}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Key:
    """A new key: the only moment at which its text is known here.

    Attributes:
        text: `kpl_` and 43 characters of base64url; shown once, stored nowhere, in no repr.
        prefix: its first 12 characters, by which its owner recognises it.
        sha256: of the text, in hexadecimal.
    """

    text: str = field(repr=False)
    prefix: str
    sha256: str


def new_key() -> Key:
    """A key of 256 random bits.

    Example:
        >>> key = new_key()
        >>> well_formed(key.text), key.text.startswith(key.prefix), same(key.sha256, fingerprint(key.text))
        (True, True, True)
    """
    text = f"kpl_{secrets.token_urlsafe(32)}"
    return Key(text=text, prefix=text[:PREFIX_LENGTH], sha256=fingerprint(text))


def well_formed(text: str) -> bool:
    """Whether this could be a key at all, so that nothing else is looked up.

    Example:
        >>> well_formed("kpl_" + "a" * 43), well_formed("kpl_" + "a" * 42), well_formed("")
        (True, False, False)
    """
    return _FORMAT.fullmatch(text) is not None


def fingerprint(text: str) -> str:
    """SHA-256 of a key, in hexadecimal: what is stored and looked up.

    Example:
        >>> fingerprint("kpl_" + "a" * 43)[:8]
        '495e7f43'
    """
    return hashlib.sha256(text.encode()).hexdigest()


def same(left: str, right: str) -> bool:
    """Whether two fingerprints are equal, in a time that doesn't depend on where they differ."""
    return hmac.compare_digest(left.encode(), right.encode())
