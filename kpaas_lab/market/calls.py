"""One call of a listing through the gateway: arrays to the Open Inference Protocol and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt

from kpaas_lab import oip
from kpaas_lab.errors import EngineUnavailableError, LabError, ModelError, from_http
from kpaas_lab.i18n import _, language

Inputs = npt.ArrayLike | Mapping[str, npt.ArrayLike]


def predict(
    http: httpx.Client, url: str, listing: Mapping[str, Any], key: str, inputs: Inputs | None, more: Mapping[str, Any]
) -> Any:
    """Call a listing.

    Args:
        http: connections.
        url: of the listing at the gateway.
        listing: its model and schema, as the market says.
        key: of the subscription.
        inputs: an array for one input, a mapping by name, or None.
        more: further inputs by name.

    Returns:
        An array where there is one output, else a dict by name.
    """
    specs = [oip.TensorSpec.from_json(raw) for raw in listing["schema"]["inputs"]]
    body, header_length = oip.encode_request(arrays(specs, inputs, more))
    headers = {
        "Authorization": f"Bearer {key}",
        "Content-Type": "application/json",
        "Accept-Language": language(),
    }
    if header_length is not None:
        headers[oip.HEADER_LENGTH] = str(header_length)
    try:
        answer = http.post(f"{url}/v2/models/{listing['model']}/infer", content=body, headers=headers)
    except httpx.HTTPError as error:
        raise EngineUnavailableError(
            _("The gateway {url} doesn't answer ({kind}).").format(url=url, kind=type(error).__name__),
            hint=_("Try again in a minute; if it stays, tell the operator."),
        ) from None
    if answer.is_error:
        raise _error(answer)
    length = answer.headers.get(oip.HEADER_LENGTH)
    outputs = oip.parse_response(answer.content, int(length) if length else None).outputs
    return next(iter(outputs.values())) if len(outputs) == 1 else dict(outputs)


def arrays(
    specs: Sequence[oip.TensorSpec], inputs: Inputs | None, more: Mapping[str, Any]
) -> dict[str, npt.NDArray[Any]]:
    """Inputs by name, in the types that the API takes.

    Raises:
        ModelError: an input is missing or unknown, or its values don't fit the type.

    Example:
        >>> arrays([oip.TensorSpec("x", "FP32", (-1, 2))], [[1, 2]], {})
        {'x': array([[1., 2.]], dtype=float32)}
    """
    named: dict[str, Any] = dict(inputs) if isinstance(inputs, Mapping) else {specs[0].name: inputs}
    named = {} if inputs is None else named
    named |= more
    wanted = {spec.name: spec for spec in specs}
    if set(named) != set(wanted):
        raise ModelError(
            _("The API takes the inputs {wanted}; given: {given}.").format(
                wanted=", ".join(wanted), given=", ".join(map(str, named))
            ),
            hint=_("Give a dict by name."),
        )
    return {name: _fitted(wanted[name], value) for name, value in named.items()}


def _fitted(spec: oip.TensorSpec, value: Any) -> npt.NDArray[Any]:
    if spec.datatype == "BYTES":
        return np.asarray(value, dtype=object) if not isinstance(value, np.ndarray) else value
    array = np.asarray(value)
    dtype = oip.DTYPES[spec.datatype]
    if array.dtype.kind not in "biuf":
        raise ModelError(
            _("Input '{name}' takes {datatype}, not {given}.").format(
                name=spec.name, datatype=spec.datatype, given=array.dtype
            )
        )
    fitted = array.astype(dtype, copy=False)
    if dtype.kind != "f" and not np.array_equal(fitted, array):
        raise ModelError(
            _("Input '{name}' takes {datatype}; some of the values don't fit it.").format(
                name=spec.name, datatype=spec.datatype
            ),
            hint=_("Convert it, for example with numpy's astype."),
        )
    return fitted


def _error(answer: httpx.Response) -> LabError:
    """The protocol's errors are one string, the gateway's own have a code; both become one of ours."""
    try:
        body = answer.json()
    except ValueError:
        body = None
    if isinstance(body, dict) and isinstance(body.get("error"), str):
        code = answer.headers.get("X-KPaaS-Error") or (ModelError.code if answer.status_code in {400, 422} else "")
        body = {"error": {"code": code, "message": body["error"]}}
    wait = answer.headers.get("Retry-After", "")
    return from_http(answer.status_code, body, retry_after=float(wait) if wait.isdigit() else 0.0)
