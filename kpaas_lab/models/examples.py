"""Learning what a model takes and gives by running it on an example."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import orjson

from kpaas_lab import oip
from kpaas_lab.errors import ModelError
from kpaas_lab.i18n import _
from kpaas_lab.oip.tensors import Array

Run = Callable[[Mapping[str, Array]], dict[str, Array]]

_EXAMPLE_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Learned:
    """What an example told.

    Attributes:
        inputs, outputs: the tensors.
        batched: rows are independent: two rows together give what each gives alone.
        example: a request that works, or None where it would be large.
    """

    inputs: tuple[oip.TensorSpec, ...]
    outputs: tuple[oip.TensorSpec, ...]
    batched: bool
    example: dict[str, Any] | None


class Dumped(NamedTuple):
    """What a format hands to `save`: the model's file, what it takes and gives, and what only the format knows."""

    data: bytes
    learned: Learned
    details: dict[str, Any]


def as_array(name: str, value: Any) -> Array:
    """A numpy array from an array, a torch tensor, a list or a number.

    Raises:
        ModelError: it isn't an array of one of the protocol's datatypes.
    """
    if hasattr(value, "detach"):  # a torch tensor, without importing torch
        value = value.detach().cpu().numpy()
    try:
        array = np.asarray(value)
        oip.datatype_of(array)
    except (ValueError, TypeError, oip.ProtocolError) as error:
        raise ModelError(_("'{name}' is no array: {error}").format(name=name, error=error)) from error
    elements = array.reshape(-1)[:1000].tolist() if array.dtype.kind == "O" else []
    if not all(isinstance(item, str | bytes) for item in elements):
        kind = next(type(item).__name__ for item in elements if not isinstance(item, str | bytes))
        raise ModelError(
            _("'{name}' is no array of numbers or texts: it holds objects of type {kind}.").format(name=name, kind=kind)
        )
    return array


def as_outputs(value: Any) -> dict[str, Array]:
    """What a model returned, as named arrays: one is `output`, several are `output_0`, `output_1`, ...

    Example:
        >>> as_outputs((1.0, [2, 3]))
        {'output_0': array(1.), 'output_1': array([2, 3])}
    """
    if isinstance(value, Mapping):
        return {str(name): as_array(str(name), item) for name, item in value.items()}
    if isinstance(value, tuple):
        return {f"output_{number}": as_array(f"output_{number}", item) for number, item in enumerate(value)}
    return {"output": as_array("output", value)}


def learn(run: Run, example: Mapping[str, Array]) -> Learned:
    """Run a model on its example, alone and next to other rows, to learn its tensors.

    Raises:
        ModelError: it fails on its own example, or gives nothing.
    """
    try:
        outputs = run(example)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(
            _("The model fails on its example: {kind}: {error}").format(kind=type(error).__name__, error=error),
            hint=_("Give an example that it takes: example=..."),
        ) from error
    if not outputs:
        raise ModelError(_("The model gives no outputs."), hint=_("Return an array, or a dict of arrays."))
    twice = _try(run, _join(example, example))
    grows = twice is not None and set(twice) == set(outputs)
    batched = grows and _rows_are_independent(run, example, outputs)
    inputs = tuple(oip.spec_of(name, array, any_batch=grows) for name, array in example.items())
    shapes = tuple(
        oip.spec_of(name, array, any_batch=bool(grows and twice and twice[name].shape != array.shape))
        for name, array in outputs.items()
    )
    return Learned(inputs, shapes, batched, _request(example, first_row_only=batched))


def _rows_are_independent(run: Run, example: Mapping[str, Array], outputs: Mapping[str, Array]) -> bool:
    """Whether rows give together what they give apart: next to other rows, and, of several, the first one alone."""
    for companion in (_varied(example), {name: np.roll(array, 1, axis=0) for name, array in example.items()}):
        apart = _try(run, companion)
        if apart is not None:
            break
    else:
        return False
    together = _try(run, _join(example, companion))
    if together is None or not _same(together, _join(outputs, apart)):
        return False
    alone = _try(run, {name: array[:1] for name, array in example.items()})
    return alone is not None and _same(alone, {name: array[:1] for name, array in outputs.items()})


def _varied(example: Mapping[str, Array]) -> dict[str, Array]:
    """Other rows that the model probably takes: the example's values in another order, or moved by one."""
    return {name: _other_rows(array) for name, array in example.items()}


def _other_rows(array: Array) -> Array:
    if array.dtype.kind in "OSU":
        return np.array([item + item for item in array.reshape(-1).tolist()], dtype=object).reshape(array.shape)
    other = np.flip(array, axis=tuple(range(1, array.ndim)))
    if array.dtype.kind == "b":
        return ~other
    moved = array.dtype.kind == "f" or np.array_equal(other, array)
    return (other + 1).astype(array.dtype) if moved else other


def _join(first: Mapping[str, Array], second: Mapping[str, Array]) -> dict[str, Array] | None:
    """Two sets of rows as one; None where something has no rows."""
    if set(first) != set(second) or any(not array.ndim for array in [*first.values(), *second.values()]):
        return None
    try:
        return {name: np.concatenate([array, second[name]]) for name, array in first.items()}
    except ValueError:  # other dimensions differ
        return None


def _try(run: Run, inputs: Mapping[str, Array] | None) -> dict[str, Array] | None:
    """What the model gives, or None where it takes no such input."""
    if inputs is None or len({len(array) for array in inputs.values() if array.ndim}) != 1:
        return None
    try:
        return run(inputs)
    except Exception:
        return None


def _same(got: Mapping[str, Array], expected: Mapping[str, Array] | None) -> bool:
    return expected is not None and all(
        array.shape == got[name].shape
        and (
            np.allclose(got[name], array, rtol=1e-3, atol=1e-4, equal_nan=True)
            if array.dtype.kind == "f"
            else np.array_equal(got[name], array)
        )
        for name, array in expected.items()
    )


def _request(example: Mapping[str, Array], *, first_row_only: bool) -> dict[str, Any] | None:
    arrays = {name: array[:1] if first_row_only else array for name, array in example.items()}
    if sum(array.size for array in arrays.values()) > _EXAMPLE_BYTES:
        return None
    try:
        body, _length = oip.encode_request(arrays)
    except oip.ProtocolError:  # bytes that JSON can't carry
        return None
    request: dict[str, Any] = orjson.loads(body)
    return request if len(body) <= _EXAMPLE_BYTES else None
