"""What a service answers becomes the error that it stands for."""

import pytest

from kpaas_lab.errors import (
    AlreadyExistsError,
    EngineUnavailableError,
    LabError,
    MarketError,
    ModelError,
    NotAuthorizedError,
    NotConformantError,
    NotFoundError,
    NotSubscribedError,
    QuotaExceededError,
    WaitTimeoutError,
    from_http,
    http_status,
)


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (401, "not_authorized", NotAuthorizedError),
        (403, "not_subscribed", NotSubscribedError),
        (404, "not_found", NotFoundError),
        (405, "method_not_allowed", MarketError),
        (413, "too_large", ModelError),
        (429, "quota_exceeded", QuotaExceededError),
        (502, "bad_answer", EngineUnavailableError),
        (503, "unavailable", EngineUnavailableError),
        (503, "busy", EngineUnavailableError),
        (504, "timeout", WaitTimeoutError),
    ],
)
def test_a_refusal_of_the_gateway(status: int, code: str, kind: type[LabError]) -> None:
    error = from_http(status, {"error": "No. Do this."}, {"x-kpaas-error": code, "retry-after": "7"})
    assert (type(error), str(error)) == (kind, "No. Do this.")
    assert getattr(error, "retry_after", 7) == 7


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, ModelError), (404, NotFoundError), (413, ModelError), (500, ModelError), (503, EngineUnavailableError)],
)
def test_an_error_of_the_model_itself(status: int, kind: type[LabError]) -> None:
    error = from_http(status, {"error": "input 'x' has shape [1, 3]"})
    assert (type(error), error.message) == (kind, "input 'x' has shape [1, 3]")


def test_an_error_of_the_market() -> None:
    error = from_http(422, {"error": {"code": "not_conformant", "message": "No.", "hint": "", "failures": ["a", "b"]}})
    assert isinstance(error, NotConformantError)
    assert error.failures == ("a", "b")
    assert http_status(error) == 422
    assert type(from_http(409, {"error": {"code": "already_exists", "message": "x"}})) is AlreadyExistsError


@pytest.mark.parametrize("body", [None, "<html>", [], {}, {"error": None}, {"error": []}, {"error": {"code": {}}}])
@pytest.mark.parametrize(("status", "kind"), [(418, MarketError), (500, MarketError), (502, EngineUnavailableError)])
def test_an_answer_that_is_none(status: int, kind: type[LabError], body: object) -> None:
    error = from_http(status, body, {"retry-after": "Mon, 23 Nov 2026 00:00:00 GMT"})
    assert type(error) is kind
    assert str(status) in str(error)
