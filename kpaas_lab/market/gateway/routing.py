"""Which paths and which headers pass the gateway: lists of what may, in both directions. Pure functions.

Nothing is cleaned or decoded and then used: what doesn't match exactly is refused. So there is no `..`, no `%2e`, no
`//`, and no header with a meaning for this hop or for the marketplace's own origin (`Set-Cookie`, `Location`, a
content type that a browser would render).
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import unquote

_CALL = re.compile(r"/([^/]{1,1024})/([^/]{1,256})(/v2(?:/.*)?)", re.DOTALL)
_NAME = r"(?!\.{1,2}(?:/|$))[A-Za-z0-9._~-]{1,128}"
_PATHS = (
    ("GET", re.compile(r"/v2/?")),
    ("GET", re.compile(r"/v2/health/(?:live|ready)")),
    ("GET", re.compile(rf"/v2/models/(?P<model>{_NAME})(?:/versions/{_NAME})?(?:/ready)?")),
    ("POST", re.compile(rf"/v2/models/(?P<model>{_NAME})(?:/versions/{_NAME})?/(?:infer|generate|generate_stream)")),
)
_QUERY = re.compile(rb"[A-Za-z0-9._~!$&'()*+,;=:@/?%-]{0,2048}")
_TRACEPARENT = re.compile(rb"00-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-([0-9a-f]{2})")

Headers = Iterable[tuple[bytes, bytes]]

# To the endpoint. No cookie, no address of the caller, no key: its publisher needs none of them.
_FORWARDED = frozenset(
    {
        b"accept",
        b"accept-encoding",
        b"accept-language",
        b"content-encoding",
        b"content-type",
        b"inference-header-content-length",
        b"tracestate",
        b"x-request-id",
    }
)
# To the caller.
_RETURNED = frozenset(
    {"content-encoding", "content-language", "inference-header-content-length", "retry-after", "server-timing"}
)
_TYPES = frozenset({"application/json", "application/octet-stream", "application/x-ndjson", "text/event-stream"})
_ENCODINGS = frozenset({"gzip", "deflate", "br", "zstd", "identity"})
_VALUE = re.compile(r"[\x20-\x7e]{0,1024}")

# An answer is data. Whoever opens it in a browser, on the marketplace's own origin, gets data.
SAFE: tuple[tuple[bytes, bytes], ...] = (
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"sandbox; default-src 'none'; frame-ancestors 'none'"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
)


@dataclass(frozen=True, slots=True)
class Call:
    """A path under a listing: `/{publisher}/{listing}/v2...`, names decoded, the rest as it came."""

    publisher: str
    listing: str
    path: str


def call_of(path: str) -> Call | None:
    """The call that a raw path is, None where it is something else.

    Example:
        >>> call_of("/ann/digits/v2/models/digits/infer")
        Call(publisher='ann', listing='digits', path='/v2/models/digits/infer')
        >>> call_of("/healthz")
    """
    match = _CALL.fullmatch(path)
    return Call(unquote(match[1]), unquote(match[2]), match[3]) if match else None


def methods(path: str, model: str) -> set[str]:
    """With which methods a model's path may be called; none: there is no such path.

    Example:
        >>> methods("/v2/models/digits/infer", "digits"), methods("/v2/models/other/infer", "digits")
        ({'POST'}, set())
        >>> methods("/v2/models/../../admin", "digits"), methods("/v2/repository/index", "digits")
        (set(), set())
    """
    found = ((method, pattern.fullmatch(path)) for method, pattern in _PATHS)
    return {method for method, match in found if match and match.groupdict().get("model", model) == model}


def query_of(raw: bytes) -> str:
    """A query that can be passed on, "" for one that can't."""
    return raw.decode("ascii") if raw and _QUERY.fullmatch(raw) else ""


def key_of(headers: Headers) -> str:
    """The key that a call carries, "" for none. Two that differ are none.

    Example:
        >>> key_of([(b"authorization", b"Bearer abc")]), key_of([(b"x-api-key", b"abc")]), key_of([])
        ('abc', 'abc', '')
        >>> key_of([(b"authorization", b"Bearer abc"), (b"x-api-key", b"def")])
        ''
    """
    found: set[bytes] = set()
    for name, value in headers:
        if name == b"x-api-key":
            found.add(value.strip())
        elif name == b"authorization":
            scheme, _space, text = value.partition(b" ")
            found.add(text.strip() if scheme.lower() == b"bearer" else b"")
    return found.pop().decode("latin-1") if len(found) == 1 else ""


def forwarded(headers: Headers) -> dict[str, str]:
    """Of a request's headers, those that the endpoint gets."""
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in headers if name in _FORWARDED}


def returned(headers: Iterable[tuple[str, str]]) -> list[tuple[bytes, bytes]]:
    """Of an answer's headers, those that the caller gets, with those that make it harmless.

    Example:
        >>> dict(returned([("Content-Type", "text/html"), ("Set-Cookie", "a=b")]))[b"content-type"]
        b'application/octet-stream'
    """
    kept = list(SAFE)
    content_type = ""
    for name, value in headers:
        lower = name.lower()
        if lower == "content-type":
            content_type = value.partition(";")[0].strip().lower()
        elif lower == "content-encoding" and value.strip().lower() not in _ENCODINGS:
            continue
        elif lower in _RETURNED and _VALUE.fullmatch(value):
            kept.append((lower.encode(), value.encode()))
    if content_type not in _TYPES:
        content_type = "application/octet-stream"
    kept.append((b"content-type", content_type.encode()))
    if content_type == "application/octet-stream":
        kept.append((b"content-disposition", b"attachment"))
    return kept


def trace_of(traceparent: bytes | None) -> tuple[str, str]:
    """The trace's id and the `traceparent` of our span in it (W3C Trace Context, level 1).

    Example:
        >>> trace_of(b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")[0]
        '4bf92f3577b34da6a3ce929d0e0e4736'
    """
    match = _TRACEPARENT.fullmatch(traceparent) if traceparent else None
    random = secrets.token_hex(24)
    if match is None:
        return random[:32], f"00-{random[:32]}-{random[32:]}-01"
    trace = match[1].decode()
    return trace, f"00-{trace}-{random[32:]}-{match[2].decode()}"
