"""The Open Inference Protocol v2 over a real socket: what the server promises, and what is thrown at it."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import orjson
import pytest

from kpaas_lab import models, oip
from tests.integration.model_server import ModelServer, model_server

DATATYPES = {name: dtype for name, dtype in oip.DTYPES.items() if name != "BYTES"}


def every(
    bool_: np.ndarray,
    uint8: np.ndarray,
    uint16: np.ndarray,
    uint32: np.ndarray,
    uint64: np.ndarray,
    int8: np.ndarray,
    int16: np.ndarray,
    int32: np.ndarray,
    int64: np.ndarray,
    fp16: np.ndarray,
    fp32: np.ndarray,
    fp64: np.ndarray,
    bytes_: np.ndarray,
) -> dict[str, np.ndarray]:
    return dict(locals())


def moody(x: np.ndarray) -> np.ndarray:
    """Fails by what a row says."""
    import sys
    import time

    if (x == 13).any():
        raise ValueError("thirteen is refused")
    if (x == 66).any():
        raise RuntimeError("broken")
    if (x == 77).any():
        sys.exit(3)
    if (x == 99).any():
        time.sleep(0.3)
    return x * 2


def example() -> dict[str, np.ndarray]:
    arrays = {name.lower(): np.array([[0, 1], [1, 0]]).astype(dtype) for name, dtype in DATATYPES.items()}
    arrays["bool_"] = arrays.pop("bool")
    arrays["bytes_"] = np.array([[b"a", b"b"], ["한".encode(), b""]], dtype=object)
    return arrays


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelServer]:
    folder = tmp_path_factory.mktemp("every")
    models.save(every, folder / "model", example=example())
    with model_server(folder / "run", folder / "model", "--max-bytes", "1000000") as running:
        running.wait_ready()
        yield running


@pytest.fixture(scope="module")
def mood(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelServer]:
    folder = tmp_path_factory.mktemp("moody")
    models.save(moody, folder / "model", example=np.array([[1.0], [2.0]]))
    with model_server(folder / "run", folder / "model", "--max-bytes", "1000000") as running:
        running.wait_ready()
        yield running


def infer(server: ModelServer, message: Any, **headers: str) -> httpx.Response:
    body = message if isinstance(message, bytes) else orjson.dumps(message)
    return server.client.post("/v2/models/m/infer", content=body, headers=headers)


def row(*values: Any) -> dict[str, Any]:
    return {"inputs": [{"name": "x", "shape": [len(values), 1], "datatype": "FP64", "data": list(values)}]}


def test_server_and_model_metadata_and_health(server: ModelServer) -> None:
    get = server.client.get
    about = get("/v2").json()
    assert about["name"] == "kpaas-lab"
    assert "binary_tensor_data" in about["extensions"]
    assert get("/v2/health/live").json() == {"live": True}
    assert get("/v2/health/ready").json() == {"ready": True}
    for path in ("/v2/models/m", "/v2/models/m/versions/1"):
        metadata = get(path).json()
        assert metadata["name"] == "m"
        assert metadata["versions"] == ["1"]
        assert metadata["platform"] == "python_source"
        assert {"name": "fp16", "datatype": "FP16", "shape": [-1, 2]} in metadata["inputs"]
        assert len(metadata["inputs"]) == len(metadata["outputs"]) == 13
        assert get(f"{path}/ready").json() == {"name": "m", "ready": True}
    assert "kpaas_lab_infer_requests" in get("/metrics").text


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/v2/", 404),
        ("GET", "/v2/models", 404),
        ("GET", "/v2/models/other", 404),
        ("GET", "/v2/models/other/ready", 404),
        ("POST", "/v2/models/other/infer", 404),
        ("GET", "/v2/models/m/versions/2", 404),
        ("POST", "/v2/models/m/versions/2/infer", 404),
        ("GET", "/v2/models/m/versions", 404),
        ("GET", "/v2/models/m/nothing", 404),
        ("GET", "/v2/models/m/../../../etc/passwd", 404),
        ("GET", "/v2/models/%00", 404),
        ("GET", "/v2/models/m/infer", 405),
        ("POST", "/v2", 405),
        ("DELETE", "/v2/models/m", 405),
        ("POST", "/v2/models/m/ready", 405),
    ],
)
def test_wrong_addresses_answer_the_protocols_error(server: ModelServer, method: str, path: str, status: int) -> None:
    answer = server.client.request(method, path)
    assert answer.status_code == status
    assert isinstance(answer.json()["error"], str)
    assert set(answer.json()) == {"error"}


@pytest.mark.parametrize("binary", [False, True])
def test_every_datatype_comes_back_as_it_went(server: ModelServer, binary: bool) -> None:
    arrays = example()
    for name, array in arrays.items():
        if array.dtype.kind in "iu":
            limits = np.iinfo(array.dtype)
            arrays[name] = np.array([[limits.min, limits.max]], dtype=array.dtype)
        elif array.dtype.kind == "f":
            arrays[name] = np.array([[np.finfo(array.dtype).max, 0.1]], dtype=array.dtype)
        else:
            arrays[name] = array[:1]
    body, length = oip.encode_request(arrays, id="한-42", binary=binary)
    headers = {oip.HEADER_LENGTH: str(length)} if length is not None else {}
    answer = infer(server, body, **headers)
    assert answer.status_code == 200, answer.text
    given = answer.headers.get(oip.HEADER_LENGTH)
    assert (given is not None) == binary
    response = oip.parse_response(answer.content, int(given) if given else None)
    assert (response.id, response.model_name, response.model_version) == ("한-42", "m", "1")
    for name, array in arrays.items():
        assert response.outputs[name].dtype == array.dtype
        assert response.outputs[name].tolist() == array.tolist()


def test_requested_outputs_come_alone_and_as_asked(server: ModelServer) -> None:
    body, _length = oip.encode_request({name: array[:1] for name, array in example().items()})
    message = orjson.loads(body)
    message["outputs"] = [{"name": "int8", "parameters": {"binary_data": True}}, {"name": "bool_"}]
    answer = infer(server, message)
    response = oip.parse_response(answer.content, int(answer.headers[oip.HEADER_LENGTH]))
    assert list(response.outputs) == ["int8", "bool_"]
    assert "id" not in orjson.loads(answer.content[: int(answer.headers[oip.HEADER_LENGTH])])
    message["outputs"] = [{"name": "none"}]
    answer = infer(server, message)
    assert (answer.status_code, "no output 'none'" in answer.json()["error"]) == (400, True)


def test_the_example_it_gives_works(mood: ModelServer) -> None:
    given = mood.client.get("/v2/models/m/example")
    assert infer(mood, given.content).json()["outputs"][0]["data"] == [2.0]


def test_nested_data_and_a_versions_path(mood: ModelServer) -> None:
    message = {"inputs": [{"name": "x", "shape": [2, 1], "datatype": "FP64", "data": [[1], [2.5]]}]}
    answer = mood.client.post("/v2/models/m/versions/1/infer", content=orjson.dumps(message))
    assert answer.json()["outputs"] == [{"name": "output", "shape": [2, 1], "datatype": "FP64", "data": [2.0, 5.0]}]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"name": "y"}, "inputs are 'x'; got 'y'"),
        ({"datatype": "FP32"}, "'x': expected datatype FP64, got FP32"),
        ({"datatype": "BF16"}, "BF16 is not supported"),
        ({"shape": [1, 2], "data": [1, 2]}, "'x': expected shape [-1, 1], got [1, 2]"),
        ({"shape": [1]}, "'x': expected shape [-1, 1], got [1]"),
        ({"shape": [2, 1]}, "shape [2, 1] needs 2 elements, got 1"),
        ({"shape": [-1, 1]}, "shape [-1, 1] is not"),
        ({"shape": [10**9, 10**9]}, "got 1"),
        ({"shape": [2**62, 2**62, 2**62]}, "got 1"),
        ({"shape": [1, 1] * 1000}, "at most 32"),
        ({"data": ["1"]}, "FP64 can't be a string"),
        ({"data": [[[[1]]]]}, "nested data"),
        ({"data": {}}, "must be an array"),
    ],
)
def test_a_wrong_input_is_named(mood: ModelServer, change: dict[str, Any], says: str) -> None:
    answer = infer(mood, {"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP64", "data": [1.0], **change}]})
    assert answer.status_code == 400
    assert says in answer.json()["error"]


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"", {}, 400),
        (b"{", {}, 400),
        (b"null", {}, 400),
        (b"\xff\xfe{}", {}, 400),
        (b'{"inputs":[{"name":"\xc3\x28"}]}', {}, 400),
        (b"[" * 200_000, {}, 400),
        (b'{"inputs":' * 100_000, {}, 400),
        (b'{"inputs":[{"name":"x","shape":[1,1],"datatype":"FP64","data":[NaN]}]}', {}, 400),
        (b'{"inputs":[{"name":"x","shape":[1,1],"datatype":"FP64","data":[1e999]}]}', {}, 400),
        (b'{"inputs":[{"name":"x","shape":[1,1],"datatype":"FP64","data":[' + b"9" * 5000 + b"]}]}", {}, 400),
        (b'{"inputs":[{"name":"x","shape":[1e400,1],"datatype":"FP64","data":[1]}]}', {}, 400),
        (b'{"inputs":[{"name":"x","shape":[' + b"9" * 400 + b',1],"datatype":"FP64","data":[1]}]}', {}, 400),
        (b'{"inputs":[' + b"[]," * 300_000 + b"[]]}", {}, 400),
        (b'{"inputs":[{"name":"x","shape":[1],"datatype":"FP64","data":[' + b"[]," * 300_000 + b"[]]}]}", {}, 400),
        (b"{}", {"Inference-Header-Content-Length": "1000000000"}, 400),
        (b"{}", {"Inference-Header-Content-Length": "-1"}, 400),
        (b"{}", {"Inference-Header-Content-Length": "9" * 4000}, 400),
        (b"{}", {"Inference-Header-Content-Length": "\u0661"}, 400),
        (b"{}", {"Content-Encoding": "gzip"}, 415),
        (b'{"a":"' + b"x" * 1_000_000 + b'"}', {}, 413),
        (b'{"a":"' + b"x" * 9_000_000 + b'"}', {}, 413),
    ],
    ids=range(21),
)
def test_hostile_bodies_are_refused(mood: ModelServer, body: bytes, headers: dict[str, str], status: int) -> None:
    try:
        raw = {name: value.encode() for name, value in headers.items()}
        answer = mood.client.post("/v2/models/m/infer", content=body, headers=raw)
    except httpx.TransportError:  # refused by its size while it was still being sent
        assert status == 413
    else:
        assert answer.status_code == status
        assert set(answer.json()) == {"error"}
        assert len(answer.content) < 2000
    assert infer(mood, row(1.0)).status_code == 200
    assert mood.memory() < 400_000_000


def test_a_chunked_body_is_limited_too(mood: ModelServer) -> None:
    def chunks(count: int) -> Iterator[bytes]:
        yield b'{"a":"'
        for _number in range(count):
            yield b"x" * 10_000

    assert mood.client.post("/v2/models/m/infer", content=chunks(150)).status_code == 413
    assert mood.client.post("/v2/models/m/infer", content=iter([orjson.dumps(row(1.0))])).status_code == 200


@pytest.mark.parametrize(
    "data",
    [
        b"POST /v2/models/m/infer HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000000\r\n\r\n{}",
        b"POST /v2/models/m/infer HTTP/1.1\r\nHost: a\r\nContent-Length: 500\r\n\r\n{}",
        b"POST /v2/models/m/infer HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\n{}",
        b"POST /v2/models/m/infer HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999999\r\n\r\n{}",
        b"POST /v2/models/m/infer HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
        b"POST /v2/models/m/infer HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n{}",
        b"POST /v2/models/m/infer HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n{}{}",
        b"\x00\xff\xfe garbage \r\n\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
    ],
    ids=range(9),
)
def test_hostile_http_never_makes_an_error_of_the_server(mood: ModelServer, data: bytes) -> None:
    answer = mood.raw(data)
    assert b" 500 " not in answer.split(b"\r\n", 1)[0]
    assert infer(mood, row(1.0)).status_code == 200
    assert "Traceback" not in mood.log.read_text()


def test_one_bad_request_doesnt_spoil_the_batch(mood: ModelServer) -> None:
    """While a slow run keeps the model busy, others wait and run as one batch; some of them fail."""
    values = [99.0, *range(1, 7), 13.0, 66.0, 77.0, *range(20, 25)]
    with ThreadPoolExecutor(len(values)) as pool:
        answers = list(pool.map(lambda value: infer(mood, row(float(value))), values))
    for value, answer in zip(values, answers, strict=True):
        if value == 13:
            assert answer.status_code == 400
            assert answer.json()["error"].endswith("refuses this input: ValueError: thirteen is refused")
        elif value in {66, 77}:
            assert answer.status_code == 500
            assert "failed: " in answer.json()["error"]
        else:
            assert answer.json()["outputs"][0]["data"] == [value * 2]
    text = mood.client.get("/metrics").text
    counted = {line.split(" ")[0]: float(line.split(" ")[1]) for line in text.splitlines() if not line.startswith("#")}
    assert counted["kpaas_lab_batch_rows_sum"] > counted["kpaas_lab_batch_rows_count"]
    assert counted['kpaas_lab_infer_requests_total{status="500"}'] >= 2
    assert "RuntimeError: broken" in mood.log.read_text()
