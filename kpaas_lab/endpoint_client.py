"""Calling an endpoint: arrays in, arrays out, over its replicas' Unix sockets or addresses."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import orjson

from kpaas_lab import oip
from kpaas_lab.errors import EngineUnavailableError, LabError, ModelError, WaitTimeoutError
from kpaas_lab.i18n import _
from kpaas_lab.oip.schema import decode_text
from kpaas_lab.oip.tensors import Array

_Schema = tuple[tuple[oip.TensorSpec, ...], tuple[oip.TensorSpec, ...]]  # inputs, outputs

_SUN_PATH = 100  # bytes of a Unix address that surely fit (107)
_COUNTED = {
    "requests": "kpaas_lab_infer_seconds_count",
    "seconds": "kpaas_lab_infer_seconds_sum",
    "runs": "kpaas_lab_batch_rows_count",
    "rows": "kpaas_lab_batch_rows_sum",
    "in_flight": "kpaas_lab_requests_in_flight",
    "queued": "kpaas_lab_requests_queued",
}


class EndpointClient:
    """Talks to whichever replica answers.

    Args:
        name: of the model in the protocol's paths.
        addresses: asked again when a replica can't be reached; `unix:<path>` or `http://<host>:<port>`.
    """

    def __init__(self, name: str, addresses: Callable[[], Sequence[str]]) -> None:
        self._name = name
        self._find = addresses
        self._addresses: tuple[str, ...] = ()
        self._clients: dict[str, httpx.Client] = {}
        self._folders: list[int] = []
        self._specs: _Schema | None = None
        self._version: str | None = None

    def close(self) -> None:
        """Close every connection."""
        for client in self._clients.values():
            client.close()
        for folder in self._folders:
            os.close(folder)
        self._clients, self._folders, self._specs = {}, [], None

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self.close()

    def get(self, path: str) -> dict[str, Any]:
        """A JSON answer."""
        answer: dict[str, Any] = orjson.loads(self._request("GET", path, timeout=10).content)
        return answer

    def predict(self, data: Any, *, output: str | None, timeout: float) -> Any:
        """See `kpaas_lab.serving.Endpoint.predict`."""
        known = self._schema()
        try:
            response, one_row = self._infer(data, known, output, timeout)
        except ModelError:
            self._specs = None  # it may have been updated since
            if self._schema() == known:
                raise
            response, one_row = self._infer(data, self._schema(), output, timeout)
        if response.model_version != self._version:
            self._specs = None
        return unwrap(response.outputs, self._schema()[1], one_row)

    def versions(self) -> list[str]:
        """The version that each replica serves; "" of one that doesn't answer."""
        found = []
        for address in self._find():
            version = ""
            with contextlib.suppress(httpx.TransportError, KeyError, IndexError, orjson.JSONDecodeError):
                answer = self._client(address).get(f"/v2/models/{self._name}", timeout=10)
                version = str(orjson.loads(answer.content)["versions"][0])
            found.append(version)
        return found

    def metrics(self) -> dict[str, float]:
        """The counters of all replicas that answer, added up."""
        total = dict.fromkeys([*_COUNTED, "errors"], 0.0)
        for address in self._find():
            with contextlib.suppress(httpx.TransportError):
                text = self._client(address).get("/metrics", timeout=10).text
                for key, value in _read_metrics(text):
                    total[key] += value
        return total

    def _infer(self, data: Any, schema: _Schema, output: str | None, timeout: float) -> tuple[oip.InferResponse, bool]:
        inputs, one_row = arrange(data, schema[0])
        body, length = oip.encode_request(inputs, outputs=[output] if output else (), binary=True)
        headers = {"Content-Type": "application/octet-stream", oip.HEADER_LENGTH: str(length)}
        answer = self._request("POST", f"/v2/models/{self._name}/infer", timeout=timeout, content=body, headers=headers)
        return oip.parse_response(answer.content, oip.header_length(answer.headers.get(oip.HEADER_LENGTH))), one_row

    def _schema(self) -> _Schema:
        if self._specs is None:
            metadata = self.get(f"/v2/models/{self._name}")
            self._version = metadata["versions"][0]
            self._specs = (
                tuple(oip.TensorSpec.from_json(raw) for raw in metadata["inputs"]),
                tuple(oip.TensorSpec.from_json(raw) for raw in metadata["outputs"]),
            )
        return self._specs

    def _request(self, method: str, path: str, *, timeout: float, **more: Any) -> httpx.Response:
        """The answer of the first replica that can be reached, in random order; then of those the engine names now."""
        broken: httpx.TransportError | None = None
        for again in (False, True):
            for address in self._replicas(again):
                try:
                    answer = self._client(address).request(method, path, timeout=timeout, **more)
                except (httpx.ConnectError, FileNotFoundError):
                    self._forget(address)
                    continue
                except httpx.TimeoutException as error:
                    raise self._late(timeout) from error
                except httpx.TransportError as error:
                    self._forget(address)
                    if broken:  # the first time it may have been an idle connection that a restart had closed
                        raise self._broke_off(error) from error
                    broken = error
                    continue
                if answer.status_code == 200:
                    return answer
                raise self._error(answer)
        raise (
            self._broke_off(broken)
            if broken
            else EngineUnavailableError(
                _("No replica of endpoint {name!r} answers.").format(name=self._name),
                hint=_("Look at its status and its logs(), or wait_ready()."),
            )
        )

    def _replicas(self, again: bool) -> list[str]:
        if again or not self._addresses:
            self._addresses = tuple(self._find())
        return random.sample(self._addresses, len(self._addresses))

    def _late(self, timeout: float) -> WaitTimeoutError:
        return WaitTimeoutError(
            _("Endpoint {name!r} didn't answer within {seconds:g} s.").format(name=self._name, seconds=timeout),
            hint=_("Give it more time with timeout=, or look at its logs()."),
        )

    def _broke_off(self, error: httpx.TransportError) -> EngineUnavailableError:
        return EngineUnavailableError(
            _("Endpoint {name!r} broke off: {error}").format(name=self._name, error=error),
            hint=_("It may have been restarted: try again, and look at its logs()."),
        )

    def _client(self, address: str) -> httpx.Client:
        if address not in self._clients:
            kind, _colon, path = address.partition(":")
            transport, base = None, address
            if kind == "unix":
                transport, base = httpx.HTTPTransport(uds=self._short(path)), "http://endpoint"
            self._clients[address] = httpx.Client(transport=transport, base_url=base, trust_env=False)
        return self._clients[address]

    def _short(self, path: str) -> str:
        """A Unix address may have 107 bytes; through its open folder any path fits."""
        if len(os.fsencode(path)) <= _SUN_PATH:
            return path
        folder = os.open(Path(path).parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._folders.append(folder)
        return f"/proc/self/fd/{folder}/{Path(path).name}"

    def _forget(self, address: str) -> None:
        client = self._clients.pop(address, None)
        if client:
            client.close()

    def _error(self, answer: httpx.Response) -> LabError:
        try:
            message = str(orjson.loads(answer.content)["error"])
        except (orjson.JSONDecodeError, KeyError, TypeError):
            message = _("The endpoint answered {status}.").format(status=answer.status_code)
        if answer.status_code == 503:
            return EngineUnavailableError(message, hint=_("Try again in a moment."))
        if answer.status_code == 500:
            return ModelError(message, hint=_("Its logs() have the traceback."))
        return oip.ProtocolError(message, status=answer.status_code)


def arrange(data: Any, specs: Sequence[oip.TensorSpec]) -> tuple[dict[str, Array], bool]:
    """A caller's data as the model's inputs.

    Returns:
        Arrays by name, of the model's datatypes; and whether it was one row without its batch dimension.

    Raises:
        ModelError: says which input, what is expected and what came.

    Example:
        >>> arrange([1, 2], [oip.TensorSpec("x", "FP32", (-1, 2))])
        ({'x': array([[1., 2.]], dtype=float32)}, True)
    """
    names = [spec.name for spec in specs]
    if hasattr(data, "iloc") and hasattr(data, "columns") and len(specs) > 1:  # a data frame
        data = {str(name): data[name].to_numpy() for name in data.columns}
    if isinstance(data, Mapping):
        given = {str(name): value for name, value in data.items()}
    elif isinstance(data, tuple) and len(specs) > 1:
        given = dict(zip(names, data, strict=False))
    elif len(specs) == 1:
        given = {names[0]: data}
    else:
        raise ModelError(
            _("The model has {count} inputs.").format(count=len(specs)),
            hint=_("Give a dict by name: {names}.").format(names=", ".join(names)),
        )
    if set(given) != set(names):
        raise ModelError(
            _("The model's inputs are {expected}; got {got}.").format(
                expected=", ".join(names), got=", ".join(list(given)[:16]) or _("none")
            )
        )
    arrays = {spec.name: _converted(spec, given[spec.name]) for spec in specs}
    one_row = all(spec.shape[:1] == (-1,) and arrays[spec.name].ndim == len(spec.shape) - 1 for spec in specs)
    if one_row:
        arrays = {name: array[np.newaxis] for name, array in arrays.items()}
    oip.check_inputs(arrays, specs)
    return arrays, one_row


def unwrap(outputs: Mapping[str, Array], specs: Sequence[oip.TensorSpec], one_row: bool) -> Any:
    """A model's outputs as a caller gets them: the other direction of `arrange`.

    Args:
        outputs: arrays by name.
        specs: of the model's outputs; those that are text become strings.
        one_row: give the row without its batch dimension.

    Returns:
        An array where there is one output, else a dict of arrays by name.

    Example:
        >>> unwrap({"y": np.array([[0.5, 0.5]])}, [oip.TensorSpec("y", "FP64", (-1, 2))], one_row=True)
        array([0.5, 0.5])
    """
    texts = {spec.name for spec in specs if spec.text}
    found = {name: decode_text(array) if name in texts else array for name, array in outputs.items()}
    if one_row:
        found = {name: array[0] if array.ndim and len(array) == 1 else array for name, array in found.items()}
    return next(iter(found.values())) if len(found) == 1 else found


def _converted(spec: oip.TensorSpec, value: Any) -> Array:
    """An array of the model's datatype, where no number changes by more than its precision."""
    if hasattr(value, "detach"):  # a torch tensor, without importing torch
        value = value.detach().cpu().numpy()
    try:
        array = np.asarray(value)
        got = oip.datatype_of(array)
    except (ValueError, oip.ProtocolError) as error:
        raise ModelError(_("Input '{name}' is no array: {error}").format(name=spec.name, error=error)) from error
    if got == spec.datatype:
        return array
    target = oip.DTYPES[spec.datatype]
    whole = array.dtype.kind in "iu" and target.kind in "iu"
    if got != "BYTES" and spec.datatype != "BYTES" and (whole or np.can_cast(array.dtype, target, "same_kind")):
        with np.errstate(over="ignore"):
            converted = array.astype(target)
        if target.kind == "f" or np.array_equal(converted, array):
            return converted
    raise ModelError(
        _("Input '{name}': expected {expected}, got {got}.").format(name=spec.name, expected=spec.datatype, got=got),
        hint=_("Convert it, for example with astype('{dtype}').").format(dtype=target.name),
    )


def _read_metrics(text: str) -> Iterator[tuple[str, float]]:
    """Counters by our names, from Prometheus' text format."""
    by_name = {name: key for key, name in _COUNTED.items()}
    for line in text.splitlines():
        name, _space, value = line.rpartition(" ")
        if name in by_name:
            yield by_name[name], float(value)
        elif name.startswith('kpaas_lab_infer_requests_total{status="') and not name.endswith('"200"}'):
            yield "errors", float(value)
