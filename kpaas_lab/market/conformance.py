"""Whether a publisher's endpoint speaks the Open Inference Protocol as it says, asked before anything is published.

The endpoint is a learner's program and may do anything: answer for ever, drip, redirect, send garbage. So every
question has a deadline and a size, nothing is followed, nothing is decompressed, and what it says is only data.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import orjson

from kpaas_lab import oip
from kpaas_lab.errors import LabError, NotConformantError
from kpaas_lab.i18n import N_, _
from kpaas_lab.market.connector import ReplicaConnector
from kpaas_lab.market.endpoints import replicas

PROTOCOL = "oip-v2"
MAX_METADATA = 64 * 1024  # bytes
MAX_ANSWER = 16 * 1024 * 1024
MAX_EXAMPLE = 1024 * 1024
MAX_TENSORS = 64
MAX_TENSOR_NAME = 128

# What each check asks, in the order in which they are made.
CHECKS = {
    "running": N_("The endpoint runs."),
    "live": N_("The server says that it is live."),
    "ready": N_("The server says that it is ready."),
    "server": N_("The server's metadata is well-formed."),
    "model_ready": N_("The model says that it is ready."),
    "model": N_("The model's metadata is well-formed."),
    "schema": N_("The served schema is the declared one."),
    "example": N_("The example request is answered as the schema says."),
    "garbage": N_("A request that is no JSON is refused in the protocol's form."),
    "wrong_input": N_("A request with a wrong input is refused in the protocol's form."),
    "unknown_model": N_("A request for an unknown model is refused in the protocol's form."),
}
_NEEDS = {"running": set(CHECKS) - {"running"}, "model": {"schema", "example", "wrong_input"}}


@dataclass(frozen=True, slots=True)
class Check:
    """One question and how it went; `sentence` says what failed."""

    name: str
    ok: bool
    sentence: str


@dataclass(frozen=True, slots=True)
class Finding:
    """What a conforming endpoint serves."""

    schema: dict[str, Any]
    example: dict[str, Any]
    checks: list[Check]

    def record(self) -> dict[str, Any]:
        """For the listing's version: names only, so that a reader sees them in the reader's language."""
        return {"passed": [check.name for check in self.checks]}


class _Failed(Exception):
    """A check failed; the text says how."""


@dataclass(slots=True)
class _Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self, what: str) -> dict[str, Any]:
        try:
            value = orjson.loads(self.body)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise _Failed(_("{what} answered something that is no JSON object.").format(what=what))
        return value


@dataclass(slots=True)
class Examiner:
    """Puts the questions to one endpoint.

    Args:
        learners_dir: where endpoints' sockets are.
        publisher: whose endpoint.
        endpoint: its name.
        model: the model's name in the protocol's paths.
        schema: the declared one, None to take the served one.
        example: a request that works, None to take the endpoint's own, or to make one of zeros.
        question_timeout: seconds for one answer, whole.
        timeout: seconds for all.
    """

    learners_dir: Path
    publisher: str
    endpoint: str
    model: str
    schema: Mapping[str, Any] | None = None
    example: Mapping[str, Any] | None = None
    question_timeout: float = 10.0
    timeout: float = 40.0
    _http: aiohttp.ClientSession = field(init=False)
    _base: str = field(init=False, default="")
    _inputs: list[oip.TensorSpec] = field(init=False, default_factory=list)
    _outputs: list[oip.TensorSpec] = field(init=False, default_factory=list)

    async def examine(self) -> Finding:
        """All checks.

        Raises:
            NotConformantError: with a sentence for each check that failed.
        """
        connector = ReplicaConnector(self.learners_dir)
        checks: list[Check] = []
        async with aiohttp.ClientSession(connector=connector, auto_decompress=False) as self._http:
            try:
                async with asyncio.timeout(self.timeout):
                    await self._ask_all(checks)
            except TimeoutError:
                sentence = _("All checks together took longer than {seconds:g} s.").format(seconds=self.timeout)
                checks.append(Check("timeout", False, sentence))
        failures = [check.sentence for check in checks if not check.ok]
        if failures:
            raise NotConformantError(
                _("The endpoint '{endpoint}' doesn't do what its protocol says.").format(endpoint=self.endpoint),
                hint=_("Mend what is listed, try endpoint.predict, then publish again."),
                failures=failures,
            )
        schema = {"inputs": _tensors(self._inputs), "outputs": _tensors(self._outputs)}
        return Finding(schema, orjson.loads(self._example()), checks)

    async def _ask_all(self, checks: list[Check]) -> None:
        questions: dict[str, Callable[[], Awaitable[None]]] = {name: getattr(self, f"_check_{name}") for name in CHECKS}
        skipped: set[str] = set()
        for name, question in questions.items():
            if name in skipped:
                continue
            try:
                await question()
            except _Failed as error:
                checks.append(Check(name, False, str(error)))
                skipped |= _NEEDS.get(name, set())
            else:
                checks.append(Check(name, True, _(CHECKS[name])))

    async def _check_running(self) -> None:
        found = replicas(self.learners_dir, self.publisher, self.endpoint)
        if not found:
            raise _Failed(
                _("No endpoint '{endpoint}' of yours runs. lab.serve(model, name='{endpoint}') starts one.").format(
                    endpoint=self.endpoint
                )
            )
        self._base = f"http://{found[0].host}"
        await self._ask("GET", "/v2/health/live")

    async def _check_live(self) -> None:
        await self._expect_200("/v2/health/live")

    async def _check_ready(self) -> None:
        await self._expect_200("/v2/health/ready")

    async def _check_model_ready(self) -> None:
        await self._expect_200(f"/v2/models/{self.model}/ready")

    async def _check_server(self) -> None:
        metadata = (await self._expect_200("/v2")).json("/v2")
        if not isinstance(metadata.get("name"), str) or not isinstance(metadata.get("extensions", []), list):
            raise _Failed(_("/v2 answered metadata without a name or with extensions that are no list."))

    async def _check_model(self) -> None:
        path = f"/v2/models/{self.model}"
        metadata = (await self._expect_200(path)).json(path)
        if metadata.get("name") != self.model:
            raise _Failed(
                _("{path} answered metadata of another model: {name}.").format(
                    path=path, name=_short(metadata.get("name"))
                )
            )
        self._inputs = _specs(metadata, "inputs")
        self._outputs = _specs(metadata, "outputs")

    async def _check_schema(self) -> None:
        for side, served in (("inputs", self._inputs), ("outputs", self._outputs)):
            if self.schema is None:
                continue
            declared = _specs(self.schema, side)
            if declared != served:
                raise _Failed(
                    _("The declared {side} are {declared}; the endpoint serves {served}.").format(
                        side=side, declared=_short(_tensors(declared)), served=_short(_tensors(served))
                    )
                )

    async def _check_example(self) -> None:
        if self.example is None:
            self.example = await self._served_example()
        body = self._example()
        path = f"/v2/models/{self.model}/infer"
        answer = await self._ask("POST", path, body)
        if answer.status != 200:
            raise _Failed(
                _("The example request was answered {status}: {text}").format(
                    status=answer.status, text=_short(answer.body[:500].decode(errors="replace"))
                )
            )
        try:
            length = oip.header_length(answer.headers.get(oip.HEADER_LENGTH))
            response = await asyncio.to_thread(oip.parse_response, answer.body, length)
        except LabError as error:
            raise _Failed(_("The example's answer is not of the protocol: {error}").format(error=error)) from error
        _compare(response.outputs, self._outputs)

    async def _check_garbage(self) -> None:
        await self._expect_refusal(f"/v2/models/{self.model}/infer", b"this is no JSON")

    async def _check_wrong_input(self) -> None:
        unknown = {"name": "no-such-input", "shape": [1], "datatype": "FP32", "data": [0]}
        await self._expect_refusal(f"/v2/models/{self.model}/infer", orjson.dumps({"inputs": [unknown]}))

    async def _check_unknown_model(self) -> None:
        await self._expect_refusal("/v2/models/no-such-model/infer", b'{"inputs": []}')

    async def _served_example(self) -> dict[str, Any] | None:
        """The one that an endpoint of the lab offers (its server's extension "example"), if it is small enough."""
        try:
            answer = await self._ask("GET", f"/v2/models/{self.model}/example", limit=MAX_EXAMPLE)
            return answer.json("example") if answer.status == 200 else None
        except _Failed:
            return None

    def _example(self) -> bytes:
        """The example as it is sent and stored."""
        if self.example is None:
            zeros = {spec.name: _zeros(spec) for spec in self._inputs}
            body = oip.encode_request(zeros)[0]
        else:
            try:
                body = orjson.dumps(self.example)
            except (TypeError, ValueError) as error:
                raise _Failed(_("The example can't be written as JSON: {error}.").format(error=error)) from error
        if len(body) > MAX_EXAMPLE:
            raise _Failed(
                _("The example request has {size:,} bytes; {limit:,} are allowed.").format(
                    size=len(body), limit=MAX_EXAMPLE
                )
            )
        return body

    async def _expect_200(self, path: str) -> _Answer:
        answer = await self._ask("GET", path, limit=MAX_METADATA)
        if answer.status != 200:
            raise _Failed(_("{path} answered {status}, not 200.").format(path=path, status=answer.status))
        return answer

    async def _expect_refusal(self, path: str, body: bytes) -> None:
        answer = await self._ask("POST", path, body, limit=MAX_METADATA)
        if not 400 <= answer.status < 500:
            raise _Failed(
                _("A wrong request to {path} was answered {status}; the protocol says 4xx.").format(
                    path=path, status=answer.status
                )
            )
        if not isinstance(answer.json(path).get("error"), str):
            raise _Failed(
                _('A wrong request to {path} was refused without the protocol\'s {{"error": "..."}}.').format(path=path)
            )

    async def _ask(self, method: str, path: str, body: bytes | None = None, *, limit: int = MAX_ANSWER) -> _Answer:
        """One whole answer within the deadline and the size."""
        headers = {"Content-Type": "application/json"} if body is not None else {}
        try:
            async with (
                asyncio.timeout(self.question_timeout),
                self._http.request(
                    method, self._base + path, data=body, headers=headers, allow_redirects=False
                ) as answer,
            ):
                content = bytearray()
                async for chunk in answer.content.iter_chunked(64 * 1024):
                    content += chunk
                    if len(content) > limit:
                        raise _Failed(_("{path} answered more than {limit:,} bytes.").format(path=path, limit=limit))
                return _Answer(answer.status, answer.headers, bytes(content))
        except TimeoutError as error:
            raise _Failed(
                _("{path} gave no whole answer within {seconds:g} s.").format(path=path, seconds=self.question_timeout)
            ) from error
        except (aiohttp.ClientError, ValueError, OSError) as error:
            raise _Failed(
                _("{path} gave no HTTP answer ({kind}).").format(path=path, kind=type(error).__name__)
            ) from error


def _specs(metadata: Mapping[str, Any], side: str) -> list[oip.TensorSpec]:
    """The tensors of one side, checked."""
    raw = metadata.get(side)
    if not isinstance(raw, list) or not raw or len(raw) > MAX_TENSORS:
        raise _Failed(_("The model's {side} are no list of 1 to {limit} tensors.").format(side=side, limit=MAX_TENSORS))
    specs = []
    for tensor in raw:
        try:
            spec = oip.TensorSpec.from_json(tensor)
        except LabError as error:
            raise _Failed(_("The model's {side}: {error}").format(side=side, error=error)) from error
        name_ok = 0 < len(spec.name) <= MAX_TENSOR_NAME and spec.name.isprintable()
        if not name_ok or spec.datatype not in oip.DTYPES or not all(-1 <= size < 2**31 for size in spec.shape):
            raise _Failed(
                _("The model's {side}: {tensor} has no usable name, datatype or shape.").format(
                    side=side, tensor=_short(tensor)
                )
            )
        specs.append(spec)
    if len({spec.name for spec in specs}) < len(specs):
        raise _Failed(_("The model's {side} have two tensors of one name.").format(side=side))
    return specs


def _compare(outputs: Mapping[str, Any], specs: list[oip.TensorSpec]) -> None:
    """Whether an answer's outputs are the declared ones."""
    missing = [spec.name for spec in specs if spec.name not in outputs]
    if missing:
        raise _Failed(_("The example's answer lacks the outputs {names}.").format(names=_short(missing)))
    for spec in specs:
        array = outputs[spec.name]
        fits = len(array.shape) == len(spec.shape) and all(
            want in (-1, have) for want, have in zip(spec.shape, array.shape, strict=True)
        )
        if oip.datatype_of(array) != spec.datatype or not fits:
            raise _Failed(
                _("Output '{name}' is declared {datatype} {shape}; the example's answer has {got} {got_shape}.").format(
                    name=spec.name,
                    datatype=spec.datatype,
                    shape=list(spec.shape),
                    got=oip.datatype_of(array),
                    got_shape=list(array.shape),
                )
            )


def _zeros(spec: oip.TensorSpec) -> Any:
    shape = tuple(1 if size == -1 else size for size in spec.shape)
    if any(size > MAX_EXAMPLE for size in shape) or int(np.prod(shape, dtype=np.float64)) > MAX_EXAMPLE:
        raise _Failed(_("Input '{name}' is too large for an example of zeros; give one.").format(name=spec.name))
    if spec.datatype == "BYTES":
        return np.full(shape, "text", dtype=object)
    return np.zeros(shape, dtype=oip.DTYPES[spec.datatype])


def _tensors(specs: list[oip.TensorSpec]) -> list[dict[str, Any]]:
    return [spec.to_json() for spec in specs]


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 200 else f"{text[:200]}…"
