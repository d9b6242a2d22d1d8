"""Everything that goes wrong, by name. A message says what and which one; the hint says the next step.

No token and no key ever stands in a message.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kpaas_lab.i18n import _


class LabError(Exception):
    """Base of all errors that this library raises on purpose.

    Args:
        message: what happened, and to which one.
        hint: the choices, or the next step.

    Example:
        >>> str(LabError("No slice '2g.20gb' here.", hint="Slices: cpu."))
        "No slice '2g.20gb' here. Slices: cpu."
    """

    code = "error"

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message, hint)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()


class SettingsError(LabError, ValueError):
    """A setting or an argument that can't be used."""

    code = "invalid_setting"


class EngineError(LabError):
    """An engine couldn't do what was asked."""

    code = "engine_error"


class EngineUnavailableError(EngineError):
    """The engine itself can't be reached or written to."""

    code = "engine_unavailable"


class NotFoundError(EngineError):
    """No workload, listing or file of that name."""

    code = "not_found"


class AlreadyExistsError(EngineError):
    """The name is taken."""

    code = "already_exists"


class UnknownSliceError(EngineError):
    """This installation has no such slice."""

    code = "unknown_slice"


class NoCapacityError(EngineError):
    """The slice exists; none of it is free."""

    code = "no_capacity"


class RunFailedError(LabError):
    """A run that ended badly.

    Args:
        message: which run, and how it ended.
        hint: the next step.
        exit_code: the process's exit status; negative is the signal that killed it.
        last_lines: the end of its log, 20 lines at most.
    """

    code = "run_failed"

    def __init__(
        self, message: str, *, hint: str = "", exit_code: int | None = None, last_lines: Sequence[str] = ()
    ) -> None:
        super().__init__(message, hint=hint)
        self.exit_code = exit_code
        self.last_lines = tuple(last_lines)

    def __str__(self) -> str:
        return "\n".join([super().__str__(), *self.last_lines])


class WaitTimeoutError(LabError, TimeoutError):
    """A wait reached its deadline; what was waited for goes on."""

    code = "timeout"


class ModelError(LabError):
    """A model that can't be saved, loaded or called safely."""

    code = "model_error"


class GradingError(LabError):
    """A submission couldn't be graded."""

    code = "grading_error"


class MarketError(LabError):
    """The market refused."""

    code = "market_error"


class NotAuthorizedError(MarketError):
    """The identity is known and may not do this, or isn't known."""

    code = "not_authorized"


class NotSubscribedError(MarketError):
    """The key belongs to no active subscription of this listing."""

    code = "not_subscribed"


class QuotaExceededError(MarketError):
    """The plan's quota is used up.

    Args:
        message: which plan, and its limit.
        hint: when it renews.
        retry_after: seconds until the next call can pass.
    """

    code = "quota_exceeded"

    def __init__(self, message: str, *, hint: str = "", retry_after: float = 0.0) -> None:
        super().__init__(message, hint=hint)
        self.retry_after = retry_after


class NotConformantError(MarketError):
    """The endpoint doesn't do what its protocol or its schema says.

    Args:
        message: which endpoint.
        hint: the next step.
        failures: one sentence for each check that failed.
    """

    code = "not_conformant"

    def __init__(self, message: str, *, hint: str = "", failures: Sequence[str] = ()) -> None:
        super().__init__(message, hint=hint)
        self.failures = tuple(failures)

    def __str__(self) -> str:
        return "\n".join([super().__str__(), *(f"- {failure}" for failure in self.failures)])


# One table for the services that answer with these and for the clients that raise them again.
HTTP_STATUS: dict[type[LabError], int] = {
    SettingsError: 400,
    NotAuthorizedError: 403,
    NotSubscribedError: 403,
    NotFoundError: 404,
    UnknownSliceError: 404,
    AlreadyExistsError: 409,
    NotConformantError: 422,
    ModelError: 422,
    QuotaExceededError: 429,
    NoCapacityError: 503,
    EngineUnavailableError: 503,
    WaitTimeoutError: 504,
}


def http_status(error: LabError) -> int:
    """The HTTP status that stands for an error.

    Example:
        >>> http_status(QuotaExceededError("Plan 'free' is used up."))
        429
    """
    return next((HTTP_STATUS[kind] for kind in type(error).__mro__ if kind in HTTP_STATUS), 500)


# What a status stands for where an answer has no code that this library knows.
_BY_STATUS: dict[int, type[LabError]] = {
    401: NotAuthorizedError,
    403: NotAuthorizedError,
    404: NotFoundError,
    409: AlreadyExistsError,
    429: QuotaExceededError,
    502: EngineUnavailableError,
    503: EngineUnavailableError,
    504: WaitTimeoutError,
}
_BY_MODELS_STATUS = {**_BY_STATUS, 400: ModelError, 413: ModelError, 422: ModelError, 500: ModelError}


def from_http(status: int, body: object, headers: Mapping[str, str] | None = None) -> LabError:
    """The error that a service's answer stands for.

    Args:
        status: HTTP status, 400 to 599.
        body: the answer's JSON: `{"error": {"code", "message", "hint", ...}}`; in the Open Inference Protocol's shape
            `{"error": "..."}`; or anything else.
        headers: the answer's, with names in lower case or of any case (httpx): `retry-after` in seconds, and
            `x-kpaas-error`, the gateway's code beside an error of the protocol's shape.

    Example:
        >>> from_http(404, {"error": {"code": "not_found", "message": "No listing 'a/b'.", "hint": ""}})
        NotFoundError("No listing 'a/b'.", '')
        >>> from_http(403, {"error": "Cancelled."}, {"x-kpaas-error": "not_subscribed"})
        NotSubscribedError('Cancelled.', '')
    """
    headers = headers or {}
    detail = body.get("error") if isinstance(body, dict) else None
    by_status = _BY_STATUS
    if isinstance(detail, str):
        detail, by_status = {"message": detail, "code": headers.get("x-kpaas-error", "")}, _BY_MODELS_STATUS
    detail = detail if isinstance(detail, dict) else {}
    message = str(detail.get("message") or _("The service answered {status}.").format(status=status))
    hint = str(detail.get("hint") or "")
    by_code: dict[object, type[LabError]] = {each.code: each for each in HTTP_STATUS}
    kind = by_code.get(str(detail.get("code"))) or by_status.get(status, MarketError)
    if kind is QuotaExceededError:
        wait = headers.get("retry-after", "")
        return QuotaExceededError(message, hint=hint, retry_after=float(wait) if wait.isdigit() else 0.0)
    if kind is NotConformantError:
        return NotConformantError(message, hint=hint, failures=[str(line) for line in detail.get("failures", [])])
    return kind(message, hint=hint)
