"""The codec of the Open Inference Protocol: what goes in comes out, and nothing hostile gets through."""

from __future__ import annotations

import math
from typing import Any

import hypothesis.extra.numpy as hnp
import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kpaas_lab import oip
from kpaas_lab.oip import ProtocolError, TensorSpec

NUMERIC = {name: dtype for name, dtype in oip.DTYPES.items() if name != "BYTES"}


def arrays() -> st.SearchStrategy[np.ndarray]:
    return st.sampled_from(sorted(NUMERIC)).flatmap(
        lambda name: hnp.arrays(NUMERIC[name], hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
    )


def texts() -> st.SearchStrategy[np.ndarray]:
    def pack(items: list[bytes]) -> np.ndarray:
        array = np.empty(len(items), dtype=object)
        array[:] = items
        return array

    return st.lists(st.binary(max_size=20), max_size=6).map(pack)


def request(**tensor: Any) -> bytes:
    return orjson.dumps({"inputs": [{"name": "x", **tensor}]})


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.text(min_size=1, max_size=8), arrays() | texts(), min_size=1, max_size=3))
def test_binary_data_is_exact(inputs: dict[str, np.ndarray]) -> None:
    body, length = oip.encode_request(inputs, binary=True)
    parsed = oip.parse_request(body, length)
    assert list(parsed.inputs) == list(inputs)
    assert parsed.binary_output
    for name, array in inputs.items():
        back = parsed.inputs[name]
        assert back.dtype == array.dtype
        assert back.shape == array.shape
        assert back.tolist() == array.tolist() or np.array_equal(back, array, equal_nan=True)
        assert back.flags.writeable


@settings(max_examples=150, deadline=None)
@given(arrays())
def test_json_data_is_exact_but_for_infinity(array: np.ndarray) -> None:
    body, length = oip.encode_response(oip.InferResponse({"y": array}, "m", "1", "42"))
    assert length is None
    answer = oip.parse_response(body)
    back = answer.outputs["y"]
    assert (answer.model_name, answer.model_version, answer.id) == ("m", "1", "42")
    assert back.dtype == array.dtype
    if array.dtype.kind == "f":
        array = np.where(np.isfinite(array), array, np.nan).astype(array.dtype)
        assert np.array_equal(back, array, equal_nan=True)
    else:
        assert np.array_equal(back, array)


@settings(max_examples=300, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(max_size=4),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
        max_leaves=12,
    ),
    st.sampled_from(["inputs", "name", "shape", "datatype", "data", "parameters", "outputs", "id", "extra"]),
    st.sampled_from([None, 0, 5, 10**9]),
)
def test_no_json_gets_past_the_parser_with_another_error(value: Any, where: str, length: int | None) -> None:
    tensor = {"name": "x", "shape": [1], "datatype": "FP32", "data": [1.0]}
    message: dict[str, Any] = {"inputs": [tensor]}
    (tensor if where in tensor or where == "parameters" else message)[where] = value
    caught: ProtocolError | None = None
    try:
        parsed = oip.parse_request(orjson.dumps(message, option=orjson.OPT_NON_STR_KEYS), length)
    except ProtocolError as error:
        caught = error
    if caught is None:
        assert all(isinstance(array, np.ndarray) for array in parsed.inputs.values())
    else:
        assert (caught.status, len(str(caught)) < 1000) == (400, True)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200), st.none() | st.integers(-5, 300))
def test_no_bytes_get_past_the_parser_with_another_error(body: bytes, length: int | None) -> None:
    with pytest.raises(ProtocolError):
        oip.parse_request(body, length)


@pytest.mark.parametrize(
    ("tensor", "says"),
    [
        ({"shape": [2], "datatype": "FP32", "data": [1.0]}, "'x': shape [2] needs 2 elements, got 1"),
        ({"shape": [10**9, 10**9], "datatype": "FP32", "data": [1.0]}, "needs 1000000000000000000 elements, got 1"),
        ({"shape": [-1], "datatype": "FP32", "data": [1.0]}, "'x': shape [-1] is not an array"),
        ({"shape": [2**63], "datatype": "FP32", "data": [1.0]}, "is not an array of at most"),
        ({"shape": [True], "datatype": "FP32", "data": [1.0]}, "is not an array"),
        ({"shape": [1.0], "datatype": "FP32", "data": [1.0]}, "is not an array"),
        ({"shape": [1] * 40, "datatype": "FP32", "data": [1.0]}, "at most 32 integers"),
        ({"shape": [0, 2**62, 2**62], "datatype": "FP32", "data": []}, "too large"),
        ({"shape": "1", "datatype": "FP32", "data": [1.0]}, "is not an array"),
        ({"shape": [1], "datatype": "BF16", "data": [1.0]}, "BF16 is not supported"),
        ({"shape": [1], "datatype": "FLOAT", "data": [1.0]}, "'FLOAT' is not a datatype"),
        ({"shape": [1], "datatype": ["FP32"], "data": [1.0]}, "is not a datatype"),
        ({"shape": [1], "datatype": "FP32"}, "'x' has no 'data'"),
        ({"shape": [1], "datatype": "FP32", "data": 1.0}, "data must be an array, got a number"),
        ({"shape": [1], "datatype": "FP32", "data": ["1.5"]}, "FP32 can't be a string"),
        ({"shape": [1], "datatype": "FP32", "data": [{}]}, "FP32 can't be an object"),
        ({"shape": [1], "datatype": "FP32", "data": [1e300]}, "out of the range of FP32"),
        ({"shape": [1], "datatype": "FP16", "data": [70000]}, "out of the range of FP16"),
        ({"shape": [1], "datatype": "INT32", "data": [1.5]}, "INT32 can't be a number with a fraction"),
        ({"shape": [1], "datatype": "INT32", "data": [None]}, "INT32 can't be null"),
        ({"shape": [1], "datatype": "INT32", "data": [True]}, "INT32 can't be a boolean"),
        ({"shape": [1], "datatype": "UINT8", "data": [-1]}, "out of the range of UINT8"),
        ({"shape": [1], "datatype": "INT64", "data": [2**63]}, "out of the range of INT64"),
        ({"shape": [1], "datatype": "BOOL", "data": [1]}, "BOOL can't be an integer"),
        ({"shape": [1], "datatype": "BYTES", "data": [1]}, "BYTES can't be an integer"),
        ({"shape": [2, 2], "datatype": "INT8", "data": [[1, 2], [3]]}, "nested data doesn't have the shape [2, 2]"),
        ({"shape": [2, 2], "datatype": "INT8", "data": [[1, 2], 3]}, "nested data"),
        ({"shape": [4], "datatype": "INT8", "data": [[1, 2], [3, 4]]}, "nested data"),
        ({"shape": [2], "datatype": "INT8", "data": [1, [2]]}, "INT8 can't be an array"),
        ({"shape": [1], "datatype": "INT8", "data": [1], "parameters": 3}, "'parameters' of x"),
        ({"shape": [1], "datatype": "INT8", "parameters": {"binary_data_size": 5}}, "0 bytes of binary data are left"),
        ({"shape": [1], "datatype": "INT8", "parameters": {"binary_data_size": -1}}, "binary_data_size is -1"),
    ],
)
def test_a_wrong_tensor_is_named_with_what_is_wrong(tensor: dict[str, Any], says: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        oip.parse_request(request(**tensor))
    assert says in str(caught.value)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "not JSON"),
        (b"[]", "must be a JSON object"),
        (b"{}", "needs 'inputs'"),
        (b'{"inputs":[]}', "at least one"),
        (b'{"inputs":[3]}', "must be an object with a 'name'"),
        (b'{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":[NaN]}]}', "not JSON"),
        (b'{"inputs":"\xff"}', "not JSON"),
        (b'{"inputs":' + b"[" * 100_000, "not JSON"),
        (b'{"id":5,"inputs":[{"name":"x","shape":[1],"datatype":"INT8","data":[1]}]}', "'id' must be a string"),
        (b'{"outputs":3,"inputs":[{"name":"x","shape":[1],"datatype":"INT8","data":[1]}]}', "'outputs' must be"),
        (
            b'{"outputs":[{"name":"y"},{"name":"y"}],"inputs":[{"name":"x","shape":[1],"datatype":"INT8","data":[1]}]}',
            "a 'name' of its own",
        ),
    ],
)
def test_a_wrong_body_is_refused(body: bytes, says: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        oip.parse_request(body)
    assert says in str(caught.value)


def test_one_name_twice_is_refused() -> None:
    tensor = {"name": "x", "shape": [1], "datatype": "INT8", "data": [1]}
    with pytest.raises(ProtocolError, match="there twice"):
        oip.parse_request(orjson.dumps({"inputs": [tensor, tensor]}))


def test_nested_and_flat_data_are_the_same() -> None:
    nested = oip.parse_request(request(shape=[2, 2, 1], datatype="FP64", data=[[[1], [2.5]], [[3], [None]]]))
    flat = oip.parse_request(request(shape=[2, 2, 1], datatype="FP64", data=[1, 2.5, 3, None]))
    assert np.array_equal(nested.inputs["x"], flat.inputs["x"], equal_nan=True)
    assert math.isnan(flat.inputs["x"][1, 1, 0])


def test_one_long_string_doesnt_make_all_elements_as_long() -> None:
    texts = ["a" * 1_000_000] + ["b"] * 100_000  # as numpy's own text type: 400 GB
    array = oip.parse_request(request(shape=[len(texts)], datatype="BYTES", data=texts)).inputs["x"]
    assert array[0] == b"a" * 1_000_000
    with pytest.raises(ProtocolError, match="can't be a string"):
        oip.parse_request(request(shape=[len(texts)], datatype="FP32", data=texts))


def test_the_specifications_binary_example() -> None:
    head = orjson.dumps(
        {
            "model_name": "mymodel",
            "inputs": [
                {"name": "input0", "shape": [2, 2], "datatype": "UINT32", "parameters": {"binary_data_size": 16}},
                {"name": "input1", "shape": [3], "datatype": "BOOL", "parameters": {"binary_data_size": 3}},
            ],
            "outputs": [{"name": "output0", "parameters": {"binary_data": True}}],
        }
    )
    body = head + np.arange(4, dtype="<u4").tobytes() + bytes([1, 0, 1])
    parsed = oip.parse_request(body, len(head))
    assert parsed.inputs["input0"].tolist() == [[0, 1], [2, 3]]
    assert parsed.inputs["input1"].tolist() == [True, False, True]
    answer = oip.InferResponse({"output0": np.zeros((3, 2), dtype=np.float32)}, "mymodel")
    out, length = oip.encode_response(answer, parsed.outputs)
    assert length is not None
    assert len(out) == length + 24
    with pytest.raises(ProtocolError, match="1 bytes of binary data belong to no tensor"):
        oip.parse_request(body + b"!", len(head))
    with pytest.raises(ProtocolError, match="but the body has"):
        oip.parse_request(body, len(body) + 1)


def test_one_output_may_be_binary_and_another_json() -> None:
    answer = oip.InferResponse({"a": np.array([1]), "b": np.array([b"\xff"], dtype=object)}, "m")
    wanted = [oip.RequestedOutput("a"), oip.RequestedOutput("b", binary=True)]
    body, length = oip.encode_response(answer, wanted)
    back = oip.parse_response(body, length)
    assert (back.outputs["a"].tolist(), back.outputs["b"].tolist()) == ([1], [b"\xff"])
    with pytest.raises(ProtocolError, match="not UTF-8"):
        oip.encode_response(answer)


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ({}, "inputs are 'x'; got none. Missing: 'x'"),
        ({"y": np.zeros((1, 3), np.float32)}, "Missing: 'x'. Unknown: 'y'"),
        ({"x": np.zeros((1, 3), np.float32), "y": np.zeros(1)}, "Unknown: 'y'"),
        ({"x": np.zeros((1, 3))}, "expected datatype FP32, got FP64"),
        ({"x": np.zeros((1, 4), np.float32)}, "expected shape [-1, 3], got [1, 4]"),
        ({"x": np.zeros(3, np.float32)}, "expected shape [-1, 3], got [3]"),
        ({"x": np.zeros((), np.float32)}, "expected shape [-1, 3], got []"),
    ],
)
def test_a_request_that_doesnt_fit_the_model_is_told_what_does(inputs: dict[str, np.ndarray], says: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        oip.check_inputs(inputs, [TensorSpec("x", "FP32", (-1, 3))])
    assert says in str(caught.value)


def test_what_fits_passes() -> None:
    specs = [TensorSpec("x", "FP32", (-1, -1, 3)), TensorSpec("n", "INT64", ())]
    oip.check_inputs({"n": np.zeros((), np.int64), "x": np.zeros((0, 7, 3), np.float32)}, specs)


def test_metadata_goes_there_and_back() -> None:
    for spec in (TensorSpec("x", "FP32", (-1, 3)), TensorSpec("t", "BYTES", (-1,), text=True)):
        assert TensorSpec.from_json(spec.to_json()) == spec
    with pytest.raises(ProtocolError):
        TensorSpec.from_json({"name": "x"})


def test_dtypes_outside_the_protocol_are_named() -> None:
    with pytest.raises(ProtocolError, match="complex128"):
        oip.datatype_of(np.zeros(1, dtype=np.complex128))
