"""What every answer of the market goes through: language, limits, security headers, and errors in one shape."""

from __future__ import annotations

import hashlib
import hmac
import http.cookies
import logging
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from sqlalchemy.exc import DataError, SQLAlchemyError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kpaas_lab.errors import (
    EngineUnavailableError,
    LabError,
    NotAuthorizedError,
    NotConformantError,
    NotFoundError,
    QuotaExceededError,
    SettingsError,
    http_status,
)
from kpaas_lab.i18n import COOKIE, N_, _, negotiate, use_language

MAX_BODY = 2 * 1024 * 1024  # bytes; an example request of 1 MiB fits
log = logging.getLogger("kpaas_lab.market")


class UnknownPersonError(NotAuthorizedError):
    """No token, or one that the hub doesn't know: 401 where other refusals are 403."""


class TooLargeError(LabError):
    """A request's body over the limit."""

    code = "too_large"


# pydantic's kinds of error, in words that are translated; others fall back to pydantic's own.
PROBLEMS = {
    "missing": N_("it is missing"),
    "extra_forbidden": N_("there is no such field"),
    "string_pattern_mismatch": N_("it may not look like this; the pattern is {pattern}"),
    "string_too_long": N_("it has more than {max_length} characters"),
    "string_too_short": N_("it has fewer than {min_length} characters"),
    "too_long": N_("it has more than {max_length} items"),
    "too_short": N_("it has fewer than {min_length} items"),
    "greater_than_equal": N_("it is less than {ge}"),
    "less_than_equal": N_("it is more than {le}"),
    "string_type": N_("it is no string"),
    "int_type": N_("it is no whole number"),
    "int_parsing": N_("it is no whole number"),
    "date_from_datetime_parsing": N_("it is no date such as 2026-01-31"),
    "date_parsing": N_("it is no date such as 2026-01-31"),
    "json_invalid": N_("the body is no JSON"),
}


class Gate:
    """ASGI middleware: the language of an answer, the size of a request, the headers that keep browsers careful."""

    def __init__(self, app: ASGIApp, *, api_url: str) -> None:
        self.app = app
        self._headers = [(name.encode(), value.encode()) for name, value in security_headers(api_url).items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        chosen = negotiate(headers.get(b"accept-language", ""), _cookie(headers.get(b"cookie", ""), COOKIE))

        async def guarded_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                there = {name.lower() for name, _value in message["headers"]}
                extra = [*self._headers, (b"content-language", chosen.encode())]
                message["headers"] = [*message["headers"], *(pair for pair in extra if pair[0] not in there)]
            await send(message)

        received = 0

        async def counted_receive() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > MAX_BODY:
                raise too_large()
            return message

        with use_language(chosen):
            length = headers.get(b"content-length", "0")
            if length.isascii() and length.isdigit() and int(length[:20]) > MAX_BODY:
                await error_response(too_large())(scope, receive, guarded_send)
                return
            await self.app(scope, counted_receive, guarded_send)


def security_headers(api_url: str) -> Mapping[str, str]:
    """Headers of every answer. Scripts and styles come from our own files only; the try-it form calls the gateway."""
    parts = urlsplit(api_url)
    gateway = f" {parts.scheme}://{parts.netloc}" if parts.netloc else ""
    policy = (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
        f"connect-src 'self'{gateway}; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    )
    return {
        "content-security-policy": policy,
        "x-content-type-options": "nosniff",
        "x-frame-options": "DENY",
        "referrer-policy": "same-origin",
        "cross-origin-opener-policy": "same-origin",
        "cache-control": "no-store",
        "vary": "Accept-Language, Cookie, Authorization",
    }


def xsrf_token(secret: bytes, session_token: str) -> str:
    """What a form must bring back: bound to the browser's session, and nobody else can compute it."""
    return hmac.new(secret, session_token.encode(), hashlib.sha256).hexdigest()


def check_xsrf(request: Request, secret: bytes, session_token: str, given: str) -> None:
    """Whether a form comes from our own page.

    Raises:
        NotAuthorizedError: it doesn't, or the page is from an earlier log-in.
    """
    site = request.headers.get("sec-fetch-site", "same-origin")
    expected = xsrf_token(secret, session_token)
    if site not in {"same-origin", "none"} or not hmac.compare_digest(expected.encode(), given.encode()):
        raise NotAuthorizedError(
            _("This form was not sent from the market's own page, or your log-in has changed since."),
            hint=_("Go back, load the page again, and send the form once more."),
        )


def too_large() -> TooLargeError:
    """The error for a body over the limit."""
    return TooLargeError(
        _("The request has more than {limit:,} bytes.").format(limit=MAX_BODY), hint=_("Send a smaller one.")
    )


def status_of(error: LabError) -> int:
    """HTTP status, with the two that only this service has."""
    return {UnknownPersonError: 401, TooLargeError: 413}.get(type(error)) or http_status(error)


def error_response(error: LabError) -> JSONResponse:
    """An error in the one shape."""
    detail: dict[str, Any] = {"code": error.code, "message": error.message, "hint": error.hint}
    headers = {}
    if isinstance(error, NotConformantError):
        detail["failures"] = list(error.failures)
    if isinstance(error, QuotaExceededError) and error.retry_after:
        headers["Retry-After"] = str(int(error.retry_after) + 1)
    if isinstance(error, UnknownPersonError):
        headers["WWW-Authenticate"] = "token"
    return JSONResponse({"error": detail}, status_of(error), headers)


def describe(errors: Sequence[Any]) -> SettingsError:
    """A request that doesn't fit, in one sentence for each field (three at most)."""
    sentences = []
    for error in errors[:3]:
        where = ".".join(str(part) for part in error["loc"] if part not in {"body", "query", "path"})[:100]
        words = PROBLEMS.get(error["type"])
        context = {name: value for name, value in (error.get("ctx") or {}).items() if name != "error"}
        problem = _(words).format(**context) if words else str(error["msg"]).removeprefix("Value error, ")
        sentences.append(f"{where}: {problem}" if where and error["type"] != "json_invalid" else problem)
    return SettingsError(
        _("The request isn't right: {problems}.").format(problems="; ".join(sentences)),
        hint=_("Correct it; the market's openapi.json describes each field."),
    )


def to_lab_error(error: Exception) -> LabError:
    """Any error as one of ours; what is not meant for others' eyes goes to the log."""
    if isinstance(error, LabError):
        return error
    if isinstance(error, RequestValidationError):
        return describe(error.errors())
    if isinstance(error, HTTPException):
        return _from_status(error)
    if isinstance(error, DataError):  # PostgreSQL takes no NUL in a text
        return SettingsError(
            _("Something in the request can't be stored or looked up."), hint=_("Leave out control characters.")
        )
    if isinstance(error, SQLAlchemyError):
        log.error("database: %s", type(error).__name__, exc_info=error)
        return EngineUnavailableError(
            _("The market's database doesn't answer."), hint=_("Try again in a minute; nothing was changed.")
        )
    log.error("unexpected", exc_info=error)
    return LabError(_("Something went wrong in the market."), hint=_("Try again; if it stays, tell the operator."))


def _from_status(error: HTTPException) -> LabError:
    if error.status_code == 404:
        return NotFoundError(_("There is no such page."), hint=_("Go to the catalogue."))
    shown = SettingsError(_("The request isn't right: {problems}.").format(problems=error.detail))
    shown.code = f"http_{error.status_code}"
    return shown


def install_errors(app: FastAPI, render_page: Any) -> None:
    """One shape for all errors of the API; a page for a browser's.

    Args:
        app: the application.
        render_page: `(request, error, status) -> Response`, for requests outside the API.
    """

    async def answer(request: Request, error: Exception) -> Response:
        if isinstance(error.__cause__, TooLargeError):  # the framework saw it while it read the body
            error = error.__cause__
        shown = to_lab_error(error)
        status = error.status_code if isinstance(error, HTTPException) else status_of(shown)
        if isinstance(error, RequestValidationError):
            status = 422
        if "/api/v1/" in request.url.path or "application/json" in request.headers.get("accept", ""):
            response = error_response(shown)
            response.status_code = status
        else:
            response = render_page(request, shown, status)
        if isinstance(error, HTTPException) and error.headers:
            response.headers.update(error.headers)
        return response

    for kind in (LabError, RequestValidationError, HTTPException, SQLAlchemyError, Exception):
        app.add_exception_handler(kind, answer)


def _cookie(header: str, name: str) -> str:
    try:
        found = http.cookies.SimpleCookie(header).get(name)
    except http.cookies.CookieError:
        return ""
    return found.value if found else ""
