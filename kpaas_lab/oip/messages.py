"""Requests and answers of `infer`: bytes to arrays and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from kpaas_lab.i18n import _
from kpaas_lab.oip.tensors import (
    Array,
    ProtocolError,
    check_datatype,
    check_shape,
    datatype_of,
    from_binary,
    from_json,
    short,
    to_binary,
    to_json,
)

# The binary tensor data extension: how much of the body is JSON.
HEADER_LENGTH = "Inference-Header-Content-Length"


@dataclass(frozen=True, slots=True)
class RequestedOutput:
    """An output that a request asks for; `binary` None is the request's default."""

    name: str
    binary: bool | None = None


@dataclass(frozen=True, slots=True)
class InferRequest:
    """One inference request.

    Attributes:
        inputs: by name, in the request's order.
        outputs: those asked for; empty is all of them.
        id: echoed in the answer; None where there is none.
        parameters: of the request.
        binary_output: whether outputs are wanted as binary data where they don't say otherwise.
    """

    inputs: Mapping[str, Array]
    outputs: Sequence[RequestedOutput] = ()
    id: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    binary_output: bool = False


@dataclass(frozen=True, slots=True)
class InferResponse:
    """One answer."""

    outputs: Mapping[str, Array]
    model_name: str = ""
    model_version: str | None = None
    id: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)


def parse_request(body: bytes, header_length: int | None = None) -> InferRequest:
    """An inference request from an HTTP body.

    Args:
        body: the whole body.
        header_length: of the `Inference-Header-Content-Length` header, in bytes; None where there is none.

    Raises:
        ProtocolError: says what isn't of the protocol.
    """
    raw, binary = _split(body, header_length)
    inputs = raw.get("inputs")
    if not isinstance(inputs, list) or not inputs:
        raise ProtocolError(_("The request needs 'inputs', an array of at least one tensor."))
    request_id = raw.get("id")
    if request_id is not None and not isinstance(request_id, str):
        raise ProtocolError(_("'id' must be a string, got {got}.").format(got=short(request_id)))
    parameters = _parameters(_("the request"), raw)
    return InferRequest(
        inputs=_tensors(inputs, binary),
        outputs=_requested(raw.get("outputs")),
        id=request_id,
        parameters=parameters,
        binary_output=_flag(parameters, "binary_data_output") or False,
    )


def encode_request(
    inputs: Mapping[str, Array],
    *,
    outputs: Sequence[str] = (),
    id: str | None = None,
    binary: bool = False,
) -> tuple[bytes, int | None]:
    """The HTTP body of a request.

    Args:
        inputs: arrays by name.
        outputs: names of those wanted; empty is all.
        id: echoed by the server.
        binary: send the arrays, and ask for the answer, as binary data: exact and faster.

    Returns:
        The body, and the value of `Inference-Header-Content-Length` (None: no such header).
    """
    message: dict[str, Any] = {} if id is None else {"id": id}
    if binary:
        message["parameters"] = {"binary_data_output": True}
    tail: list[bytes] = []
    message["inputs"] = [_tensor_message(name, array, binary, tail) for name, array in inputs.items()]
    if outputs:
        message["outputs"] = [{"name": name} for name in outputs]
    return _join(message, tail)


def encode_response(
    response: InferResponse, requested: Sequence[RequestedOutput] = (), *, binary_output: bool = False
) -> tuple[bytes, int | None]:
    """The HTTP body of an answer, with the outputs asked for.

    Returns:
        The body, and the value of `Inference-Header-Content-Length` (None: no such header).

    Raises:
        ProtocolError: an output that JSON can't carry.
    """
    message: dict[str, Any] = {"model_name": response.model_name}
    if response.model_version is not None:
        message["model_version"] = response.model_version
    if response.id is not None:
        message["id"] = response.id
    if response.parameters:
        message["parameters"] = dict(response.parameters)
    tail: list[bytes] = []
    wanted = requested or [RequestedOutput(name) for name in response.outputs]
    message["outputs"] = [
        _tensor_message(
            output.name,
            response.outputs[output.name],
            binary_output if output.binary is None else output.binary,
            tail,
        )
        for output in wanted
    ]
    return _join(message, tail)


def parse_response(body: bytes, header_length: int | None = None) -> InferResponse:
    """An answer from an HTTP body.

    Raises:
        ProtocolError: says what isn't of the protocol.
    """
    raw, binary = _split(body, header_length)
    outputs = raw.get("outputs")
    if not isinstance(outputs, list):
        raise ProtocolError(_("The answer has no 'outputs'."), status=502)
    version = raw.get("model_version")
    return InferResponse(
        outputs=_tensors(outputs, binary),
        model_name=str(raw.get("model_name", "")),
        model_version=None if version is None else str(version),
        id=raw.get("id"),
        parameters=_parameters(_("the answer"), raw),
    )


def header_length(text: str | None) -> int | None:
    """The length of the JSON before binary data, from its HTTP header; None where there is none.

    Raises:
        ProtocolError: it is no number of bytes.

    Example:
        >>> header_length("120"), header_length(None)
        (120, None)
    """
    if not text:
        return None
    if not (text.isascii() and text.isdigit()) or len(text) > 18:
        raise ProtocolError(
            _("{header} must be a number of bytes, got {got}.").format(header=HEADER_LENGTH, got=repr(text[:40]))
        )
    return int(text)


def _split(body: bytes, header_length: int | None) -> tuple[dict[str, Any], memoryview]:
    if header_length is not None and not 0 <= header_length <= len(body):
        raise ProtocolError(
            _("{header} is {got}, but the body has {size} bytes.").format(
                header=HEADER_LENGTH, got=header_length, size=len(body)
            )
        )
    view = memoryview(body)
    head = body if header_length is None else view[:header_length]
    try:
        raw = orjson.loads(head)
    except orjson.JSONDecodeError as error:
        raise ProtocolError(_("The body is not JSON: {error}.").format(error=error)) from error
    if not isinstance(raw, dict):
        raise ProtocolError(_("The body must be a JSON object."))
    return raw, view[len(head) :]


def _tensors(raws: list[Any], binary: memoryview) -> dict[str, Array]:
    arrays: dict[str, Array] = {}
    for raw in raws:
        name = raw.get("name") if isinstance(raw, dict) else None
        if not isinstance(name, str) or not name:
            raise ProtocolError(_("Each tensor must be an object with a 'name', got {got}.").format(got=short(raw)))
        label = name[:80]
        if name in arrays:
            raise ProtocolError(_("Input '{name}' is there twice.").format(name=label))
        datatype = raw.get("datatype")
        check_datatype(label, datatype)
        shape = check_shape(label, raw.get("shape"))
        size = _parameters(label, raw).get("binary_data_size")
        if size is None:
            if "data" not in raw:
                raise ProtocolError(_("Input '{name}' has no 'data'.").format(name=label))
            arrays[name] = from_json(label, datatype, shape, raw["data"])
            continue
        if type(size) is not int or not 0 <= size <= len(binary):
            raise ProtocolError(
                _("Input '{name}': binary_data_size is {got}, but {size} bytes of binary data are left.").format(
                    name=label, got=short(size), size=len(binary)
                )
            )
        arrays[name] = from_binary(label, datatype, shape, binary[:size])
        binary = binary[size:]
    if len(binary):
        raise ProtocolError(
            _("{size} bytes of binary data belong to no tensor.").format(size=len(binary)),
            hint=_("Give each its parameter binary_data_size."),
        )
    return arrays


def _requested(raw: object) -> tuple[RequestedOutput, ...]:
    if raw is None:
        return ()
    if not isinstance(raw, list):
        raise ProtocolError(_("'outputs' must be an array, got {got}.").format(got=short(raw)))
    outputs: dict[str, RequestedOutput] = {}
    for item in raw:
        name = item.get("name") if isinstance(item, dict) else None
        if not isinstance(name, str) or not name or name in outputs:
            raise ProtocolError(
                _("Each requested output must be an object with a 'name' of its own, got {got}.").format(
                    got=short(item)
                )
            )
        outputs[name] = RequestedOutput(name, _flag(_parameters(name[:80], item), "binary_data"))
    return tuple(outputs.values())


def _parameters(owner: str, raw: Mapping[str, Any]) -> dict[str, Any]:
    parameters = raw.get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict) or not all(
        isinstance(value, str | int | float | bool) for value in parameters.values()
    ):
        raise ProtocolError(
            _("'parameters' of {owner} must be an object of strings, numbers and booleans.").format(owner=owner)
        )
    return parameters


def _flag(parameters: Mapping[str, Any], name: str) -> bool | None:
    value = parameters.get(name)
    if value is not None and not isinstance(value, bool):
        raise ProtocolError(_("The parameter {name} must be true or false.").format(name=name))
    return value


def _tensor_message(name: str, array: Array, binary: bool, tail: list[bytes]) -> dict[str, Any]:
    message: dict[str, Any] = {"name": name, "shape": array.shape, "datatype": datatype_of(array)}
    if binary:
        data = to_binary(array)
        tail.append(data)
        message["parameters"] = {"binary_data_size": len(data)}
    else:
        message["data"] = to_json(name, array)
    return message


def _join(message: dict[str, Any], tail: list[bytes]) -> tuple[bytes, int | None]:
    head = orjson.dumps(message, option=orjson.OPT_SERIALIZE_NUMPY)
    return (b"".join([head, *tail]), len(head)) if tail else (head, None)
