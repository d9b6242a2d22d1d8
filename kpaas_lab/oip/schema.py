"""What a model takes and gives: its tensors' metadata, and whether a request fits it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kpaas_lab.i18n import _
from kpaas_lab.oip.tensors import Array, ProtocolError, datatype_of, short


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Metadata of one tensor (`$metadata_tensor`).

    Attributes:
        name: of the tensor.
        datatype: one of DTYPES.
        shape: -1 is any size.
        text: BYTES whose elements are UTF-8 text; the model works with `str`.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    text: bool = False

    def to_json(self) -> dict[str, Any]:
        """As the protocol writes it.

        Example:
            >>> TensorSpec("x", "FP32", (-1, 64)).to_json()
            {'name': 'x', 'datatype': 'FP32', 'shape': [-1, 64]}
        """
        metadata = {"name": self.name, "datatype": self.datatype, "shape": list(self.shape)}
        return {**metadata, "parameters": {"content_type": "str"}} if self.text else metadata

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> TensorSpec:
        """From the protocol's writing.

        Raises:
            ProtocolError: a field is missing or of another type.
        """
        try:
            shape = tuple(int(size) for size in raw["shape"])
            text = (raw.get("parameters") or {}).get("content_type") == "str"
            return cls(str(raw["name"]), str(raw["datatype"]), shape, text)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ProtocolError(_("{raw} is not a tensor's metadata.").format(raw=short(raw))) from error


def spec_of(name: str, array: Array, *, any_batch: bool = True) -> TensorSpec:
    """The metadata of an array, its first dimension of any size.

    Example:
        >>> spec_of("x", np.zeros((2, 64), dtype=np.float32))
        TensorSpec(name='x', datatype='FP32', shape=(-1, 64), text=False)
    """
    shape = (-1, *array.shape[1:]) if any_batch and array.ndim else array.shape
    text = array.dtype.kind == "U" or (
        array.dtype.kind == "O" and array.size > 0 and all(isinstance(item, str) for item in array.reshape(-1).tolist())
    )
    return TensorSpec(name, datatype_of(array), shape, text)


def check_inputs(inputs: Mapping[str, Array], specs: Sequence[TensorSpec]) -> None:
    """Whether a request's inputs are those of the model.

    Raises:
        ProtocolError: names the input, what is expected and what came.

    Example:
        >>> check_inputs({"x": np.zeros((1, 3), np.float32)}, [TensorSpec("x", "FP32", (-1, 64))])
        Traceback (most recent call last):
        kpaas_lab.oip.tensors.ProtocolError: Input 'x': expected shape [-1, 64], got [1, 3].
    """
    if len(inputs) != len(specs) or any(spec.name not in inputs for spec in specs):
        expected = {spec.name for spec in specs}
        raise ProtocolError(
            _("The model's inputs are {expected}; got {got}.").format(
                expected=_names(spec.name for spec in specs), got=_names(inputs)
            ),
            hint=_("Missing: {missing}. Unknown: {unknown}.").format(
                missing=_names(sorted(expected - set(inputs))), unknown=_names(sorted(set(inputs) - expected))
            ),
        )
    for spec in specs:
        array = inputs[spec.name]
        datatype = datatype_of(array)
        if datatype != spec.datatype:
            raise ProtocolError(
                _("Input '{name}': expected datatype {expected}, got {got}.").format(
                    name=spec.name, expected=spec.datatype, got=datatype
                )
            )
        shape = array.shape
        if shape[1:] == spec.shape[1:] and shape and spec.shape[0] in {-1, shape[0]}:
            continue  # the usual case, without a loop over the dimensions
        if len(shape) != len(spec.shape) or any(
            want not in {-1, size} for want, size in zip(spec.shape, shape, strict=True)
        ):
            raise ProtocolError(
                _("Input '{name}': expected shape {expected}, got {got}.").format(
                    name=spec.name, expected=list(spec.shape), got=short(list(shape))
                )
            )


def check_outputs_exist(requested: Iterable[str], specs: Sequence[TensorSpec]) -> None:
    """Whether the outputs that a request asks for are the model's.

    Raises:
        ProtocolError: names the one that isn't, and those there are.
    """
    known = [spec.name for spec in specs]
    for name in requested:
        if name not in known:
            raise ProtocolError(
                _("The model has no output '{name}'.").format(name=name[:80]),
                hint=_("Outputs: {names}.").format(names=", ".join(known)),
            )


def decode_text(array: Array) -> Array:
    """An array of bytes as one of `str`.

    Raises:
        UnicodeDecodeError: an element isn't UTF-8.
    """
    decoded = np.empty(array.size, dtype=object)
    decoded[:] = [item if isinstance(item, str) else item.decode() for item in array.reshape(-1).tolist()]
    return decoded.reshape(array.shape)


def _names(names: Iterable[str]) -> str:
    return ", ".join(f"'{name[:80]}'" for name in list(names)[:16]) or _("none")
