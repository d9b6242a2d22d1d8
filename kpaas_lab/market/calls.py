"""One call of a listing through the gateway: arrays to the Open Inference Protocol and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx

from kpaas_lab import oip
from kpaas_lab.endpoint_client import arrange, unwrap
from kpaas_lab.errors import EngineUnavailableError, LabError, WaitTimeoutError, from_http
from kpaas_lab.i18n import _, language

_SIDES = ("inputs", "outputs")


def predict(
    http: httpx.Client,
    url: str,
    listing: Mapping[str, Any],
    key: str,
    data: Any,
    *,
    output: str | None = None,
    timeout: float = 60.0,
) -> Any:
    """Call a listing; data and answer are as those of `kpaas_lab.serving.Endpoint.predict`.

    Args:
        http: connections.
        url: of the listing at the gateway.
        listing: its model and schema, as the market says.
        key: of the subscription.
        data: an array for one input, or a mapping by name.
        output: of several outputs only this one.
        timeout: seconds.
    """
    inputs, outputs = ([oip.TensorSpec.from_json(raw) for raw in listing["schema"][side]] for side in _SIDES)
    arrays, one_row = arrange(data, inputs)
    body, _length = oip.encode_request(arrays, outputs=[output] if output else ())
    headers = {
        "Authorization": f"Bearer {key}",
        "Content-Type": "application/json",
        "Accept-Language": language(),
    }
    try:
        answer = http.post(f"{url}/v2/models/{listing['model']}/infer", content=body, headers=headers, timeout=timeout)
    except httpx.TimeoutException:
        raise WaitTimeoutError(
            _("'{url}' didn't answer within {seconds:g} s.").format(url=url, seconds=timeout),
            hint=_("Give it more time with timeout=, or fewer rows at once."),
        ) from None
    except httpx.HTTPError as error:
        raise EngineUnavailableError(
            _("The gateway {url} doesn't answer ({kind}).").format(url=url, kind=type(error).__name__),
            hint=_("Try again in a minute; if it stays, tell the operator."),
        ) from None
    if answer.is_error:
        raise error_of(answer)
    response = oip.parse_response(answer.content, oip.header_length(answer.headers.get(oip.HEADER_LENGTH)))
    return unwrap(response.outputs, outputs, one_row)


def error_of(answer: httpx.Response) -> LabError:
    """The error that an answer of the market or of the gateway stands for."""
    try:
        body = answer.json()
    except ValueError:
        body = None
    return from_http(answer.status_code, body, answer.headers)
