"""What a subscriber's notebook makes of a gateway or an endpoint that answers anything at all."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest

from kpaas_lab.errors import EngineUnavailableError, LabError, MarketError, ModelError, WaitTimeoutError
from kpaas_lab.market.calls import predict

TENSOR = {"name": "x", "datatype": "FP32", "shape": [-1, 2]}
LISTING = {"model": "m", "schema": {"inputs": [TENSOR], "outputs": [{**TENSOR, "name": "y"}]}}
OUTPUT = b'{"outputs":[{"name":"y","datatype":"FP32","shape":[1,2],"data":[1,2]}]}'
LENGTH = "Inference-Header-Content-Length"


class Upstream(ThreadingHTTPServer):
    """Answers what it is told to; None is silence."""

    daemon_threads = True
    answer: tuple[int, dict[str, str], bytes] | None = None
    cut = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.over = threading.Event()


class Handler(BaseHTTPRequestHandler):
    server: Upstream

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        if self.server.answer is None:
            self.server.over.wait(20)
            return
        status, headers, body = self.server.answer
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if self.server.cut else body)
        self.close_connection = True

    def log_message(self, *_arguments: object) -> None:
        pass


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    server = Upstream()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.over.set()
    server.shutdown()
    server.server_close()
    thread.join()


def call(upstream: Upstream, timeout: float = 20) -> object:
    with httpx.Client(trust_env=False) as http:
        address = f"http://127.0.0.1:{upstream.server_port}/services/api/ann/m"
        return predict(http, address, LISTING, "kpl_SECRET", [[1, 2]], timeout=timeout)


def refused(upstream: Upstream, **options: float) -> LabError:
    with pytest.raises(LabError) as caught:
        call(upstream, **options)
    assert "SECRET" not in str(caught.value)
    return caught.value


def test_an_answer(upstream: Upstream) -> None:
    upstream.answer = 200, {}, OUTPUT
    assert call(upstream).tolist() == [[1, 2]]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({}, b"garbage"),
        ({}, b""),
        ({}, b"[]"),
        ({}, b"\xff\xfe"),
        ({}, b'{"outputs": 5}'),
        ({}, OUTPUT.replace(b"[1,2]", b"[1000000000000]")),
        ({LENGTH: "abc"}, OUTPUT),
        ({LENGTH: "-1"}, OUTPUT),
        ({LENGTH: "9" * 400}, OUTPUT),
        ({LENGTH: "5000"}, OUTPUT),
    ],
)
def test_an_answer_of_garbage(upstream: Upstream, headers: dict[str, str], body: bytes) -> None:
    upstream.answer = 200, headers, body
    assert isinstance(refused(upstream), ModelError)


@pytest.mark.parametrize(("status", "kind"), [(502, EngineUnavailableError), (500, MarketError), (302, LabError)])
def test_an_error_that_is_a_page(upstream: Upstream, status: int, kind: type[LabError]) -> None:
    upstream.answer = status, {"Location": "http://127.0.0.1:9/"}, b"<html>Bad Gateway</html>"
    assert isinstance(refused(upstream), kind)


def test_one_that_dies_half_way(upstream: Upstream) -> None:
    upstream.answer, upstream.cut = (200, {}, OUTPUT), True
    assert isinstance(refused(upstream), EngineUnavailableError)


def test_one_that_hangs(upstream: Upstream) -> None:
    error = refused(upstream, timeout=0.3)
    assert isinstance(error, WaitTimeoutError)
    assert "0.3 s" in str(error)
