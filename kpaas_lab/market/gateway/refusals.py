"""What the gateway answers when it doesn't pass a call on: statuses and texts, as data."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus

import orjson

from kpaas_lab.i18n import N_, _, negotiate, use_language
from kpaas_lab.market.gateway.limiting import Exceeded, PlanLimits


@dataclass(slots=True, eq=False)
class Refusal(Exception):
    """An answer of the gateway's own.

    Attributes:
        status: HTTP.
        code: one word that a program can read; also stands in the header X-KPaaS-Error.
        message: English, to be translated.
        hint: the next step, the same way.
        fields: of both.
        headers: more headers of the answer.
        metered: whether it counts as a rejected call of the key.
    """

    status: int
    code: str
    message: str
    hint: str = ""
    fields: Mapping[str, object] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    metered: bool = False

    def text(self, language: str) -> tuple[str, str]:
        """Message and hint in a language."""
        with use_language(language):
            return tuple(_(part).format(**self.fields) if part else "" for part in (self.message, self.hint))  # type: ignore[return-value]

    def answer(self, accept_language: str, cookie: str, *, oip: bool) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body.

        Args:
            accept_language: the caller's header.
            cookie: the language chosen on the market's pages.
            oip: in the shape of the Open Inference Protocol, else in the market's.
        """
        language = negotiate(accept_language, cookie)
        message, hint = self.text(language)
        body: object = (
            {"error": f"{message} {hint}".strip()}
            if oip
            else {"error": {"code": self.code, "message": message, "hint": hint}}
        )
        headers = {"x-kpaas-error": self.code, "content-language": language, **self.headers}
        return self.status, headers, orjson.dumps(body)


def no_key() -> Refusal:
    """No key, or something that isn't one."""
    return Refusal(
        HTTPStatus.UNAUTHORIZED,
        "not_authorized",
        N_("This call has no API key."),
        N_("Send the header 'Authorization: Bearer <your key>'; a subscription in the marketplace gives you one."),
        headers={"www-authenticate": "Bearer"},
    )


def unknown_key() -> Refusal:
    """Well formed, and nobody's."""
    return Refusal(
        HTTPStatus.UNAUTHORIZED,
        "not_authorized",
        N_("This API key isn't known."),
        N_("Compare it with the key that was shown when you subscribed, or make a new one in the marketplace."),
        headers={"www-authenticate": 'Bearer error="invalid_token"'},
    )


def dead_key(why: str, listing: str) -> Refusal:
    """A key that worked once: why is "revoked", "expired", "cancelled" or "withdrawn"."""
    status, code, message, hint = {
        "revoked": (401, "not_authorized", N_("This API key was revoked."), N_("Make a new one in the marketplace.")),
        "expired": (401, "not_authorized", N_("This API key has expired."), N_("Make a new one in the marketplace.")),
        "cancelled": (
            403,
            "not_subscribed",
            N_("The subscription of '{listing}' was cancelled."),
            N_("Subscribe again in the marketplace."),
        ),
        "withdrawn": (
            404,
            "not_found",
            N_("'{listing}' was withdrawn by its publisher."),
            N_("Look for another API in the marketplace."),
        ),
    }[why]
    headers = {"www-authenticate": 'Bearer error="invalid_token"'} if status == 401 else {}
    return Refusal(status, code, message, hint, {"listing": listing}, headers)


def other_listing(listing: str) -> Refusal:
    """A key of another listing."""
    return Refusal(
        HTTPStatus.FORBIDDEN,
        "not_subscribed",
        N_("This API key is for '{listing}', not for the API you called."),
        N_("Use the key of your subscription to that API."),
        {"listing": listing},
    )


def no_path(model: str = "") -> Refusal:
    """A path that the protocol doesn't have."""
    hint = N_("Paths: /v2, /v2/health/live, /v2/health/ready, /v2/models/{model}, /v2/models/{model}/infer.")
    return Refusal(
        HTTPStatus.NOT_FOUND, "not_found", N_("There is nothing at this path."), hint, {"model": model or "<model>"}
    )


def no_method(allowed: str) -> Refusal:
    """A method that the path doesn't have."""
    return Refusal(
        HTTPStatus.METHOD_NOT_ALLOWED,
        "method_not_allowed",
        N_("This path doesn't answer that method."),
        N_("Use {allowed}."),
        {"allowed": allowed},
        {"allow": allowed},
    )


def too_large(limit: int) -> Refusal:
    """A request's body."""
    return Refusal(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        "too_large",
        N_("The request is larger than {limit} bytes."),
        N_("Send fewer or smaller inputs in one call."),
        {"limit": limit},
    )


def over_limit(what: Exceeded, plan: PlanLimits, now: dt.datetime) -> Refusal:
    """A plan's limit. `now` is UTC."""
    midnight = dt.datetime.combine(now.date() + dt.timedelta(days=1), dt.time(), dt.UTC)
    left = max(1, round((midnight - now).total_seconds()))
    limit = getattr(plan, what.value)
    message, hint, wait = {
        Exceeded.DAY: (
            N_("Plan '{plan}' allows {limit} calls a day, and today's are used up."),
            N_("It renews at 00:00 UTC, in {hours} h {minutes} min; or subscribe to a larger plan."),
            left,
        ),
        Exceeded.SECOND: (
            N_("Plan '{plan}' allows {limit} calls a second."),
            N_("It renews within a second: wait and call again."),
            1,
        ),
        Exceeded.CONCURRENCY: (
            N_("Plan '{plan}' allows {limit} calls at once."),
            N_("It renews as soon as one of yours has ended: wait and call again."),
            1,
        ),
    }[what]
    fields = {"plan": plan.name, "limit": limit, "hours": left // 3600, "minutes": left % 3600 // 60}
    return Refusal(
        HTTPStatus.TOO_MANY_REQUESTS, "quota_exceeded", message, hint, fields, {"retry-after": str(wait)}, metered=True
    )


def busy() -> Refusal:
    """More calls at once than the gateway takes."""
    return Refusal(
        HTTPStatus.SERVICE_UNAVAILABLE,
        "busy",
        N_("Too many calls are in flight just now."),
        N_("Call again in a moment."),
        headers={"retry-after": "1"},
        metered=True,
    )


def no_replica(listing: str) -> Refusal:
    """The publisher's endpoint isn't there."""
    return Refusal(
        HTTPStatus.SERVICE_UNAVAILABLE,
        "unavailable",
        N_("The endpoint of '{listing}' doesn't run just now."),
        N_("Call again in a few seconds; if it stays so, tell its publisher."),
        {"listing": listing},
        {"retry-after": "5"},
        metered=True,
    )


def no_directory() -> Refusal:
    """The database is away and the key wasn't used of late."""
    return Refusal(
        HTTPStatus.SERVICE_UNAVAILABLE,
        "unavailable",
        N_("API keys can't be checked just now."),
        N_("Call again in a few seconds."),
        headers={"retry-after": "5"},
    )


def bad_upstream(listing: str) -> Refusal:
    """The endpoint's answer isn't one."""
    return Refusal(
        HTTPStatus.BAD_GATEWAY,
        "bad_answer",
        N_("The endpoint of '{listing}' broke off, or its answer isn't valid."),
        N_("If it happens again, tell its publisher."),
        {"listing": listing},
    )


def slow_upstream(listing: str, seconds: float) -> Refusal:
    """The endpoint didn't answer in time."""
    return Refusal(
        HTTPStatus.GATEWAY_TIMEOUT,
        "timeout",
        N_("The endpoint of '{listing}' didn't answer within {seconds} seconds."),
        N_("Send fewer inputs in one call; if it happens again, tell its publisher."),
        {"listing": listing, "seconds": round(seconds)},
    )
