"""The check before publishing, against endpoints that do all that an endpoint can do wrong."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kpaas_lab import models
from kpaas_lab.errors import NotConformantError
from kpaas_lab.market.conformance import CHECKS, Examiner
from tests.integration.model_server import model_server

Answer = tuple[int, Any] | bytes
GOOD_MODEL = {
    "name": "digits", "versions": ["1"], "platform": "x",
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}],
    "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1]}],
}  # fmt: skip
GOOD_OUTPUT = {"model_name": "digits", "outputs": [{"name": "y", "datatype": "FP32", "shape": [1], "data": [1.0]}]}


def good(path: str, body: bytes) -> Answer:
    """As an endpoint that conforms answers."""
    if path in {"/v2/health/live", "/v2/health/ready", "/v2/models/digits/ready"}:
        return 200, {}
    if path == "/v2":
        return 200, {"name": "s", "version": "1", "extensions": []}
    if path == "/v2/models/digits":
        return 200, GOOD_MODEL
    if path == "/v2/models/digits/infer":
        try:
            names = [tensor["name"] for tensor in json.loads(body)["inputs"]]
        except (ValueError, KeyError):
            names = []
        return (200, GOOD_OUTPUT) if names == ["x"] else (400, {"error": "wrong input"})
    return 404, {"error": "no such thing"}


def but(path: str, answer: Answer) -> Callable[[str, bytes], Answer]:
    """Good, but for one path."""
    return lambda asked, body: answer if asked == path else good(asked, body)


def raw(status: int, body: bytes, headers: str = "") -> bytes:
    return f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode() + body


@contextlib.asynccontextmanager
async def serving(
    learners: Path,
    behave: Callable[[str, bytes], Answer],
    slowly: Callable[[asyncio.StreamWriter], Awaitable[None]] | None = None,
) -> AsyncIterator[None]:
    """An endpoint on the Unix socket where ann's `digits` is."""
    folder = learners / "ann" / ".kpaas-lab" / "workloads" / "digits"
    folder.mkdir(parents=True)

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while head := await reader.readuntil(b"\r\n\r\n"):
                lines = head.decode().split("\r\n")
                length = next((int(line[15:]) for line in lines if line.lower().startswith("content-length:")), 0)
                body = await reader.readexactly(length)
                if slowly is not None:
                    await slowly(writer)
                    continue
                answer = behave(lines[0].split()[1], body)
                if isinstance(answer, tuple):
                    answer = raw(answer[0], json.dumps(answer[1]).encode())
                writer.write(answer)
                await writer.drain()
        writer.close()

    server = await asyncio.start_unix_server(connection, folder / "0.sock")
    try:
        yield
    finally:
        server.close()


@pytest.fixture
def learners(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("l")


async def failures(
    learners: Path, behave: Callable[[str, bytes], Answer] = good, *, slowly: Any = None, **more: Any
) -> list[str]:
    async with serving(learners, behave, slowly):
        with pytest.raises(NotConformantError) as caught:
            await Examiner(learners, "ann", "digits", "digits", **more).examine()
    return list(caught.value.failures)


async def test_one_that_conforms(learners: Path) -> None:
    async with serving(learners, good):
        finding = await Examiner(learners, "ann", "digits", "digits").examine()
    assert [check.name for check in finding.checks] == list(CHECKS)
    assert finding.example == {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [0.0, 0.0]}]}


async def test_its_own_example_is_taken(learners: Path) -> None:
    own = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [3.0, 4.0]}]}
    async with serving(learners, but("/v2/models/digits/example", (200, own))):
        finding = await Examiner(learners, "ann", "digits", "digits").examine()
    assert finding.example == own


async def test_none_runs(learners: Path) -> None:
    with pytest.raises(NotConformantError) as caught:
        await Examiner(learners, "ann", "digits", "digits").examine()
    assert "lab.serve" in caught.value.failures[0]
    assert len(caught.value.failures) == 1


def model(**changes: Any) -> tuple[int, Any]:
    return 200, {**GOOD_MODEL, **changes}


def tensor(**changes: Any) -> list[dict[str, Any]]:
    return [{"name": "x", "datatype": "FP32", "shape": [-1, 2], **changes}]


@pytest.mark.parametrize(
    ("path", "answer", "says"),
    [
        ("/v2/health/live", (503, {}), "/v2/health/live answered 503"),
        ("/v2/health/ready", (503, {}), "/v2/health/ready answered 503"),
        ("/v2/health/live", raw(302, b"", "Location: http://127.0.0.1:9/secret\r\n"), "answered 302"),
        ("/v2", raw(200, b"<html>"), "no JSON object"),
        ("/v2", raw(200, b"[" * 100_000), "more than"),
        ("/v2", raw(200, b"[" * 50_000), "no JSON object"),
        ("/v2", (200, {"version": "1"}), "without a name"),
        ("/v2/models/digits", (404, {}), "/v2/models/digits answered 404"),
        ("/v2/models/digits", model(name="other"), "another model: other"),
        ("/v2/models/digits", model(inputs=[]), "inputs are no list"),
        ("/v2/models/digits", model(inputs=tensor(datatype="PICKLE")), "datatype"),
        ("/v2/models/digits", model(inputs=tensor(shape=[-2])), "shape"),
        ("/v2/models/digits", model(inputs=tensor(shape=[1e308])), "shape"),
        ("/v2/models/digits", model(inputs=tensor(name="\x1b[2J")), "name"),
        ("/v2/models/digits", model(inputs=tensor() * 2), "two tensors of one name"),
        ("/v2/models/digits", model(inputs=tensor(shape=[2**20, 2**20])), "too large for an example"),
        ("/v2/models/digits", raw(200, b"x", "Content-Encoding: gzip\r\n"), "no JSON object"),
        ("/v2/models/digits/infer", (500, {"error": "boom"}), "answered 500"),
        ("/v2/models/digits/infer", (200, {"outputs": []}), "lacks the outputs"),
        ("/v2/models/digits/infer", (200, GOOD_OUTPUT), "the protocol says 4xx"),
        ("/v2/models/no-such-model/infer", (500, {"error": "boom"}), "answered 500; the protocol says 4xx"),
        ("/v2/models/no-such-model/infer", (404, {"detail": "no"}), '{"error": "..."}'),
        ("/v2/models/no-such-model/infer", raw(404, b"<h1>no"), "no JSON object"),
        ("/v2/models/digits/ready", b"SSH-2.0-OpenSSH_9.9\r\n", "no HTTP answer"),
        ("/v2/models/digits/ready", b"HTTP/1.1 200 OK\r\nX: " + b"a" * 100_000 + b"\r\n\r\n", "no HTTP answer"),
    ],
)
async def test_what_is_wrong_is_said(learners: Path, path: str, answer: Answer, says: str) -> None:
    found = await failures(learners, but(path, answer), question_timeout=5)
    assert any(says in sentence for sentence in found), found
    assert all(len(sentence) < 1000 for sentence in found)


@pytest.mark.parametrize(
    ("output", "says"),
    [
        ({"datatype": "INT64", "data": [1]}, "INT64"),
        ({"shape": [1, 1], "data": [1.0]}, "[1, 1]"),
        ({"name": "z"}, "lacks the outputs"),
        ({"shape": [10**12]}, "not of the protocol"),
    ],
)
async def test_an_answer_that_is_not_the_declared_one(learners: Path, output: dict[str, Any], says: str) -> None:
    answer = {"outputs": [{**GOOD_OUTPUT["outputs"][0], **output}]}  # type: ignore[dict-item]
    found = await failures(learners, but("/v2/models/digits/infer", (200, answer)))
    assert any(says in sentence for sentence in found), found


async def test_a_declared_schema_that_is_not_served(learners: Path) -> None:
    declared = {"inputs": tensor(shape=[-1, 64]), "outputs": GOOD_MODEL["outputs"]}
    found = await failures(learners, schema=declared)
    assert len(found) == 1
    assert "[-1, 64]" in found[0]
    assert "[-1, 2]" in found[0]


@pytest.mark.parametrize(
    "example", [{"inputs": [{"name": "y"}]}, {}, {"x": "\ud800"}, {"x": 2**80}, {"x": "a" * 2**21}]
)
async def test_an_example_that_does_not_work(learners: Path, example: dict[str, Any]) -> None:
    assert await failures(learners, example=example)


async def test_one_that_drips(learners: Path) -> None:
    async def drip(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        while True:
            writer.write(b" ")
            await writer.drain()
            await asyncio.sleep(0.01)

    found = await failures(learners, slowly=drip, question_timeout=0.3, timeout=1.0)
    assert "within 0.3 s" in found[0]


async def test_one_that_never_stops(learners: Path) -> None:
    async def flood(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            writer.write(b"10000\r\n" + b"a" * 65536 + b"\r\n")
            await writer.drain()

    found = await failures(learners, slowly=flood, question_timeout=5)
    assert "more than" in found[0]


async def test_all_checks_together_have_a_deadline(learners: Path) -> None:
    async def hang(_writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(60)

    found = await failures(learners, slowly=hang, question_timeout=5, timeout=0.3)
    assert any("took longer than 0.3 s" in sentence for sentence in found)


async def test_the_labs_own_server_conforms(learners: Path, tmp_path: Path) -> None:
    def greet(names: Any, times: Any) -> Any:
        import numpy as np

        return np.array([f"hello {name}" * int(n) for name, n in zip(names, times, strict=True)])

    example = {"names": np.array(["ann", "bob"]), "times": np.array([1, 2])}
    models.save(greet, tmp_path / "model", example=example)
    folder = learners / "ann" / ".kpaas-lab" / "workloads" / "greet"
    folder.parent.mkdir(parents=True)
    with model_server(folder, tmp_path / "model", name="greet") as server:
        await asyncio.to_thread(server.wait_ready)
        finding = await Examiner(learners, "ann", "greet", "greet").examine()
    assert [check.name for check in finding.checks] == list(CHECKS)
    assert {tensor["name"] for tensor in finding.schema["inputs"]} == {"names", "times"}
    assert "ann" in json.dumps(finding.example)
