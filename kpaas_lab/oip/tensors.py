"""One tensor: JSON or binary data to a numpy array and back. Nothing is allocated from a size that a client states."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from kpaas_lab.errors import ModelError
from kpaas_lab.i18n import N_, _

Array = npt.NDArray[Any]

# Binary data is little-endian (binary tensor data extension). BYTES is an array of Python bytes.
DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype("?"),
    "UINT8": np.dtype("u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "BYTES": np.dtype("O"),
}
_NAMES: dict[tuple[str, int], str] = {
    (dtype.kind, dtype.itemsize): name for name, dtype in DTYPES.items() if dtype.kind != "O"
}
_MAX_RANK = 32

# What JSON values a datatype takes. null is a missing number: JSON has no NaN.
_INTEGERS = frozenset({int})
_JSON_TYPES = {"b": frozenset({bool}), "O": frozenset({str}), "f": frozenset({int, float, type(None)})}
_JSON_NAMES = {
    bool: N_("a boolean"),
    int: N_("an integer"),
    float: N_("a number with a fraction"),
    str: N_("a string"),
    list: N_("an array"),
    dict: N_("an object"),
    type(None): "null",
}


class ProtocolError(ModelError):
    """A request or an answer that isn't of the protocol or of the model's schema.

    Args:
        message: which tensor, what was expected, and what came.
        status: the HTTP status a server answers with.
    """

    code = "protocol_error"

    def __init__(self, message: str, *, hint: str = "", status: int = 400) -> None:
        super().__init__(message, hint=hint)
        self.status = status


def datatype_of(array: Array) -> str:
    """The datatype of an array's elements.

    Raises:
        ProtocolError: the protocol has none for it.

    Example:
        >>> datatype_of(np.zeros(1, dtype=np.float32)), datatype_of(np.array(["a"]))
        ('FP32', 'BYTES')
    """
    dtype = array.dtype
    if dtype.kind in "OSU":
        return "BYTES"
    name = _NAMES.get((dtype.kind, dtype.itemsize))
    if name is None:
        raise ProtocolError(
            _("No datatype of the protocol stands for {dtype}.").format(dtype=dtype),
            hint=_("Convert it, for example with astype('float32')."),
        )
    return name


def check_datatype(name: str, datatype: object) -> np.dtype[Any]:
    """The numpy type of a datatype's name.

    Raises:
        ProtocolError: no such datatype, or BF16, which numpy has no type for.
    """
    dtype = DTYPES.get(datatype) if isinstance(datatype, str) else None
    if dtype is not None:
        return dtype
    if datatype == "BF16":
        raise ProtocolError(
            _("Input '{name}': datatype BF16 is not supported.").format(name=name), hint=_("Send FP32 or FP16.")
        )
    raise ProtocolError(
        _("Input '{name}': {datatype} is not a datatype.").format(name=name, datatype=short(datatype)),
        hint=_("Datatypes: {names}.").format(names=", ".join(DTYPES)),
    )


def check_shape(name: str, shape: object) -> list[int]:
    """A shape as the protocol wants it: an array of integers that aren't negative.

    Raises:
        ProtocolError: it isn't.
    """
    if (
        not isinstance(shape, list)
        or len(shape) > _MAX_RANK
        or not all(type(size) is int and 0 <= size < 2**63 for size in shape)
    ):
        raise ProtocolError(
            _("Input '{name}': shape {shape} is not an array of at most {rank} integers from 0 up.").format(
                name=name, shape=short(shape), rank=_MAX_RANK
            )
        )
    return shape


def from_json(name: str, datatype: str, shape: Sequence[int], data: object) -> Array:
    """An array from JSON data, nested as its shape or flat in row-major order.

    Args:
        name: of the tensor, for messages.
        datatype: one of DTYPES.
        shape: checked by `check_shape`.
        data: what the JSON's `data` held.

    Raises:
        ProtocolError: another number of elements than the shape says, or an element of another type or range.

    Example:
        >>> from_json("x", "INT32", [2, 2], [[1, 2], [3, 4]]).tolist()
        [[1, 2], [3, 4]]
        >>> from_json("x", "UINT8", [1], [300])
        Traceback (most recent call last):
        kpaas_lab.oip.tensors.ProtocolError: Input 'x': a value is out of the range of UINT8.
    """
    dtype = DTYPES[datatype]
    if not isinstance(data, list):
        raise ProtocolError(
            _("Input '{name}': data must be an array, got {got}.").format(name=name, got=_kind_of(type(data)))
        )
    flat = _flatten(name, shape, data)
    kinds = set(map(type, flat))
    if not kinds <= _JSON_TYPES.get(dtype.kind, _INTEGERS):
        wrong = next(kind for kind in kinds if kind not in _JSON_TYPES.get(dtype.kind, _INTEGERS))
        raise ProtocolError(
            _("Input '{name}': an element of {datatype} can't be {got}.").format(
                name=name, datatype=datatype, got=_kind_of(wrong)
            )
        )
    if dtype.kind == "O":
        return _objects([text.encode() for text in flat], shape)
    try:
        with np.errstate(over="ignore"):
            array = np.array(flat, dtype=dtype)
    except OverflowError:
        array = None
    # JSON has no infinity: one that appears is a number too large for the type.
    if array is None or (dtype.kind == "f" and np.isinf(array).any()):
        raise ProtocolError(
            _("Input '{name}': a value is out of the range of {datatype}.").format(name=name, datatype=datatype)
        )
    return _reshape(name, array, shape)


def from_binary(name: str, datatype: str, shape: Sequence[int], data: bytes | memoryview) -> Array:
    """An array from binary data: little-endian, row-major; BYTES elements each after their length in 4 bytes.

    Raises:
        ProtocolError: another size than shape and datatype say.

    Example:
        >>> from_binary("x", "UINT16", [2], bytes([1, 0, 2, 0])).tolist()
        [1, 2]
    """
    dtype = DTYPES[datatype]
    count = math.prod(shape)
    if dtype.kind == "O":
        elements = _split_bytes(name, data, count)
        return _objects(elements, shape)
    if len(data) != count * dtype.itemsize:
        raise ProtocolError(
            _("Input '{name}': {datatype} of shape {shape} needs {need} bytes, got {got}.").format(
                name=name, datatype=datatype, shape=short(list(shape)), need=count * dtype.itemsize, got=len(data)
            )
        )
    if dtype.kind == "b":
        # Any byte but 0 and 1 would make a bool that numpy doesn't know how to compare.
        return _reshape(name, np.frombuffer(data, dtype=np.uint8) != 0, shape)
    # A copy: aligned, writable, and free of the request's body.
    return _reshape(name, np.frombuffer(data, dtype=dtype).copy(), shape)


def to_json(name: str, array: Array) -> Any:
    """Flat JSON data of an array, ready for orjson with OPT_SERIALIZE_NUMPY. NaN and infinities become null.

    Raises:
        ProtocolError: BYTES that aren't UTF-8, which JSON can't carry.
    """
    if array.dtype.kind not in "OSU":
        native = array.dtype.newbyteorder("=")
        return np.ascontiguousarray(array, dtype=native).reshape(-1)
    try:
        return [item if isinstance(item, str) else bytes(item).decode() for item in array.reshape(-1).tolist()]
    except UnicodeDecodeError as error:
        raise ProtocolError(
            _("Output '{name}' has bytes that are not UTF-8, which JSON can't carry.").format(name=name),
            hint=_("Ask for it with the parameter binary_data."),
        ) from error


def to_binary(array: Array) -> bytes:
    """Binary data of an array: little-endian, row-major.

    Example:
        >>> to_binary(np.array([1, 2], dtype=np.uint16)).hex()
        '01000200'
    """
    if array.dtype.kind not in "OSU":
        return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).tobytes()
    parts = [item.encode() if isinstance(item, str) else bytes(item) for item in array.reshape(-1).tolist()]
    return b"".join(chain.from_iterable((struct.pack("<I", len(part)), part) for part in parts))


def short(value: object, limit: int = 80) -> str:
    """A value for a message, cut so that a hostile one can't fill a log."""
    try:
        text = repr(value[:16] if isinstance(value, str | bytes | list) and len(value) > 16 else value)
    except RecursionError:
        text = "…"
    return text if len(text) <= limit else text[:limit] + "…"


def _flatten(name: str, shape: Sequence[int], data: list[Any]) -> list[Any]:
    count = math.prod(shape)
    if not data or type(data[0]) is not list:
        if len(data) != count and not (not data and count == 0):
            raise _wrong_count(name, shape, len(data))
        return data
    level = data
    for axis, size in enumerate(shape):
        if axis:
            if not all(type(item) is list for item in level):
                raise _ragged(name, shape)
            if any(len(item) != size for item in level):
                raise _ragged(name, shape)
            level = list(chain.from_iterable(level))
        elif len(level) != size:
            raise _ragged(name, shape)
    if any(type(item) is list for item in level):
        raise _ragged(name, shape)
    return level


def _ragged(name: str, shape: Sequence[int]) -> ProtocolError:
    return ProtocolError(
        _("Input '{name}': nested data doesn't have the shape {shape}.").format(name=name, shape=short(list(shape)))
    )


def _wrong_count(name: str, shape: Sequence[int], got: int) -> ProtocolError:
    return ProtocolError(
        _("Input '{name}': shape {shape} needs {need} elements, got {got}.").format(
            name=name, shape=short(list(shape)), need=math.prod(shape), got=got
        )
    )


def _split_bytes(name: str, data: bytes | memoryview, count: int) -> list[bytes]:
    elements: list[bytes] = []
    offset, size = 0, len(data)
    while offset + 4 <= size and len(elements) < count:
        (length,) = struct.unpack_from("<I", data, offset)
        if offset + 4 + length > size:
            break
        elements.append(bytes(data[offset + 4 : offset + 4 + length]))
        offset += 4 + length
    if offset != size or len(elements) != count:
        raise ProtocolError(
            _("Input '{name}': the binary data is not {count} elements, each after its length.").format(
                name=name, count=count
            )
        )
    return elements


def _objects(elements: Sequence[Any], shape: Sequence[int]) -> Array:
    array = np.empty(len(elements), dtype=object)
    array[:] = elements
    return array.reshape(tuple(shape))


def _reshape(name: str, array: Array, shape: Sequence[int]) -> Array:
    try:
        return array.reshape(tuple(shape))
    except (ValueError, OverflowError) as error:  # [0, 10**18, 10**18]: no element, and yet too large
        raise ProtocolError(
            _("Input '{name}': shape {shape} is too large.").format(name=name, shape=short(list(shape)))
        ) from error


def _kind_of(kind: type) -> str:
    return _(_JSON_NAMES[kind]) if kind in _JSON_NAMES else kind.__name__
