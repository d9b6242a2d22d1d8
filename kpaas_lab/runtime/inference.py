"""The Open Inference Protocol v2 over HTTP, as an ASGI application.

Plain ASGI: with a dozen fixed routes a framework's routing would cost more than the answer of a small model.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

import orjson

import kpaas_lab
from kpaas_lab import oip
from kpaas_lab.i18n import _
from kpaas_lab.models import Predictor
from kpaas_lab.oip import ProtocolError
from kpaas_lab.runtime import metrics
from kpaas_lab.runtime.batching import Batcher

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

log = logging.getLogger("kpaas_lab.serve")

EXTENSIONS = ("binary_tensor_data", "example")
_JSON = (b"content-type", b"application/json")
_BINARY = (b"content-type", b"application/octet-stream")
_HEADER_LENGTH = oip.HEADER_LENGTH.lower().encode()
_BODY_SECONDS = 30.0
# In flight at once, as a multiple of the largest body: arrays of a request take several times its size.
_BODIES = 8
# A body up to this multiple of the limit is read and thrown away before the refusal.
_DISCARD = 4
# A model raises these where an input of the right type and shape still isn't one it takes.
_REFUSALS = (ValueError, TypeError, LookupError, ArithmeticError)


@dataclass(frozen=True, slots=True)
class Limits:
    """What one server allows.

    Attributes:
        max_batch: rows in one run of the model.
        max_delay: seconds a request waits for others.
        max_bytes: of one request's body.
    """

    max_batch: int = 32
    max_delay: float = 0.002
    max_bytes: int = 10 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class _Served:
    predictor: Predictor
    batcher: Batcher
    metadata: bytes


class InferenceApp:
    """One model behind the protocol's routes.

    Attributes:
        draining: answers "not ready" from now on, and still serves.
    """

    def __init__(self, name: str, limits: Limits) -> None:
        self.draining = False
        self.metrics = metrics.Metrics()
        self._name = name
        self._limits = limits
        self._served: _Served | None = None
        self._body_bytes = 0
        self._in_flight = 0
        self._infer_paths = {f"/v2/models/{name}/infer"}
        self.metrics.in_flight.set_function(lambda: self._in_flight)
        self.metrics.queued.set_function(lambda: self._served.batcher.queued if self._served else 0)

    def serve(self, predictor: Predictor) -> None:
        """Answer with this model from now on; requests in flight finish with the one before."""
        manifest, before = predictor.manifest, self._served
        batcher = Batcher(
            predictor.run,
            names=[spec.name for spec in manifest.inputs] if manifest.batched else None,
            max_batch=self._limits.max_batch,
            max_delay=self._limits.max_delay,
            observe=self.metrics.ran,
        )
        metadata = {
            "name": self._name,
            "versions": [manifest.version],
            "platform": manifest.platform,
            "inputs": [spec.to_json() for spec in manifest.inputs],
            "outputs": [spec.to_json() for spec in manifest.outputs],
        }
        self._served = _Served(predictor, batcher, orjson.dumps(metadata))
        path = f"/v2/models/{self._name}"
        self._infer_paths = {f"{path}/infer", f"{path}/versions/{manifest.version}/infer"}
        self.metrics.version.set(int(manifest.version))
        if before:
            before.batcher.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            raise RuntimeError("only HTTP is served")
        if scope["path"] in self._infer_paths and scope["method"] == "POST":
            await self._infer(scope, receive, send)
            return
        try:
            status, headers, body = self._route(scope["method"], scope["path"])
        except ProtocolError as error:
            status, headers, body = error.status, [_JSON], _error(error)
            if status == 405:
                headers = [*headers, (b"allow", b"POST" if scope["path"] in self._infer_paths else b"GET, HEAD")]
        await _answer(send, status, headers, body)

    def _route(self, method: str, path: str) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
        """Everything but inference itself."""
        parts = path.strip("/").split("/")
        if parts[:2] == ["v2", "models"] and len(parts) > 2:
            return self._model_route(method, path, parts[2:])
        if path not in _SERVER_ROUTES:
            raise ProtocolError(_("There is nothing at {path}.").format(path=path[:200]), status=404)
        _only_get(method)
        match path:
            case "/v2":
                server = {"name": "kpaas-lab", "version": kpaas_lab.__version__, "extensions": EXTENSIONS}
                return 200, [_JSON], orjson.dumps(server)
            case "/v2/health/live":
                return 200, [_JSON], b'{"live":true}'
            case "/v2/health/ready":
                return self._ready({})
            case _:
                return 200, [(b"content-type", metrics.CONTENT_TYPE.encode())], self.metrics.text()

    def _model_route(self, method: str, path: str, parts: list[str]) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
        name, rest = parts[0], parts[1:]
        if name != self._name:
            raise ProtocolError(
                _("There is no model '{name}' here.").format(name=name[:80]),
                hint=_("Models: {names}.").format(names=self._name),
                status=404,
            )
        if rest == ["ready"]:
            _only_get(method)
            return self._ready({"name": self._name})
        served = self._loaded()
        if rest[:1] == ["versions"] and len(rest) > 1:
            version, rest = rest[1], rest[2:]
            if version != served.predictor.manifest.version:
                raise ProtocolError(
                    _("Model '{name}' has no version '{version}' here.").format(name=name, version=version[:40]),
                    hint=_("Versions: {versions}.").format(versions=served.predictor.manifest.version),
                    status=404,
                )
        match rest:
            case ["infer"]:
                raise ProtocolError(_("Inference is a POST."), status=405)
            case []:
                _only_get(method)
                return 200, [_JSON], served.metadata
            case ["ready"]:
                _only_get(method)
                return self._ready({"name": self._name})
            case ["example"]:
                _only_get(method)
                if served.predictor.manifest.example is None:
                    raise ProtocolError(_("The model was saved without a small example."), status=404)
                return 200, [_JSON], orjson.dumps(served.predictor.manifest.example)
        raise ProtocolError(_("There is nothing at {path}.").format(path=path[:200]), status=404)

    def _ready(self, more: dict[str, Any]) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
        ready = self._served is not None and not self.draining
        return 200 if ready else 503, [_JSON], orjson.dumps({**more, "ready": ready})

    def _loaded(self) -> _Served:
        if self._served is None:
            raise ProtocolError(_("Model '{name}' is being loaded.").format(name=self._name), status=503)
        return self._served

    async def _infer(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = time.perf_counter()
        self._in_flight += 1
        size = 0
        headers = [_JSON]
        try:
            self._loaded()
            size, header_length = self._admit(scope["headers"])
            self._body_bytes += size
            body = await self._body(receive)
            served = self._loaded()  # now, not before the body: from here to submit nothing is awaited
            request = oip.parse_request(body, header_length)
            del body
            manifest = served.predictor.manifest
            oip.check_inputs(request.inputs, manifest.inputs)
            if request.outputs:
                oip.check_outputs_exist([output.name for output in request.outputs], manifest.outputs)
            outputs = await served.batcher.submit(request.inputs)
            status, headers, answer = self._encode(request, outputs, manifest.version)
        except ProtocolError as error:
            status, answer = error.status, _error(error)
        except asyncio.CancelledError:  # the grace is over
            status, answer = 503, _error(_("The server is stopping."))
        except Exception as error:
            status, answer = self._failed(error)
        finally:
            self._body_bytes -= size
            self._in_flight -= 1
        if status in _CLOSING:
            headers = [*headers, (b"connection", b"close")]
        if status == 503:
            headers = [*headers, (b"retry-after", b"1")]
        await _answer(send, status, headers, answer)
        self.metrics.count(status, time.perf_counter() - started)

    def _admit(self, headers: list[tuple[bytes, bytes]]) -> tuple[int, int | None]:
        """The size to account for, and the length of the JSON before binary data."""
        size, header_length = 0, None
        for name, value in headers:
            if name == b"content-length":
                size = int(value)  # the HTTP parser lets only digits through
            elif name == _HEADER_LENGTH:
                header_length = oip.header_length(value.decode("latin-1") or "-")
            elif name == b"content-encoding" and value.lower() != b"identity":
                raise ProtocolError(_("A compressed body is not supported."), status=415)
        if size > _DISCARD * self._limits.max_bytes:
            raise self._too_large()
        if self._body_bytes + size > _BODIES * self._limits.max_bytes:
            raise ProtocolError(_("The server is busy: too much data is in flight."), status=503)
        return size, header_length

    async def _body(self, receive: Receive) -> bytes:
        limit = self._limits.max_bytes
        chunks: list[bytes] = []
        total, more = 0, True
        try:
            async with asyncio.timeout(_BODY_SECONDS):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ProtocolError(_("The client went away."))
                    chunk = message.get("body", b"")
                    total += len(chunk)
                    if total <= limit:
                        chunks.append(chunk)
                    elif total > _DISCARD * limit:
                        raise self._too_large()
                    else:  # read on without keeping it: a client that is still sending doesn't see the answer
                        chunks.clear()
                    more = message.get("more_body", False)
        except TimeoutError as error:
            raise ProtocolError(
                _("The body did not arrive within {seconds:.0f} s.").format(seconds=_BODY_SECONDS), status=408
            ) from error
        if total > limit:
            raise self._too_large()
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def _too_large(self) -> ProtocolError:
        return ProtocolError(
            _("The request is larger than {limit} bytes.").format(limit=self._limits.max_bytes),
            hint=_("Send fewer rows at once, or binary data."),
            status=413,
        )

    def _encode(
        self, request: oip.InferRequest, outputs: dict[str, Any], version: str
    ) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
        missing = [output.name for output in request.outputs if output.name not in outputs]
        if missing:
            raise ProtocolError(
                _("The model gave no output '{name}' this time.").format(name=missing[0][:80]), status=500
            )
        response = oip.InferResponse(outputs, self._name, version, request.id)
        body, length = oip.encode_response(response, request.outputs, binary_output=request.binary_output)
        if length is None:
            return 200, [_JSON], body
        return 200, [_BINARY, (_HEADER_LENGTH, str(length).encode())], body

    def _failed(self, error: Exception) -> tuple[int, bytes]:
        """The answer where the model raised: its refusal of an input, or its own fault, which the log keeps."""
        text = f"{type(error).__name__}: {str(error)[:500]}"
        if isinstance(error, _REFUSALS) or type(error).__name__ == "InvalidArgument":  # ONNX Runtime's
            return 400, _error(_("Model '{name}' refuses this input: {error}").format(name=self._name, error=text))
        log.error("model '%s' failed", self._name, exc_info=error)
        return 500, _error(_("Model '{name}' failed: {error}").format(name=self._name, error=text))


_SERVER_ROUTES = frozenset({"/v2", "/v2/health/live", "/v2/health/ready", "/metrics"})
# The rest of the body isn't read, so the connection can't be used again.
_CLOSING = frozenset({408, 413, 415})


def _only_get(method: str) -> None:
    if method not in {"GET", "HEAD"}:
        raise ProtocolError(_("Only GET is allowed here."), status=405)


def _error(error: ProtocolError | str) -> bytes:
    return orjson.dumps({"error": str(error).encode("utf-8", "replace").decode()})


async def _answer(send: Send, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
    headers = [*headers, (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
