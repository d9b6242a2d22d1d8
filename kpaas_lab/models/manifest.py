"""`model.json`: what a saved model is, and the digest of each of its files."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from kpaas_lab.oip import TensorSpec

FILE = "model.json"


class Manifest(BaseModel):
    """What `model.json` says.

    Attributes:
        layout: version of this schema.
        format: "onnx", "skops" or "python".
        version: of the model, as the Open Inference Protocol shows it; an update of an endpoint makes the next one.
        inputs: tensors the model takes; -1 is any size.
        outputs: tensors it gives.
        batched: rows are independent of one another, so requests may be joined along the first dimension.
        files: SHA-256 by file name.
        libraries: versions of what it was saved with.
        example: an inference request that works, as the protocol writes it; None where it would be large.
        details: what only the format knows.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    layout: Literal[1] = 1
    format: Literal["onnx", "skops", "python"]
    version: Annotated[str, Field(pattern=r"^[1-9][0-9]{0,8}$")] = "1"
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    batched: bool
    files: dict[
        Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,80}\.(onnx|skops|py)$")],
        Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")],
    ]
    libraries: dict[str, str]
    example: dict[str, Any] | None = None
    details: dict[str, Any] = {}

    @property
    def platform(self) -> str:
        """The name of the format in the protocol's model metadata (`<project>_<format>`)."""
        return {"onnx": "onnx_onnxv1", "skops": "sklearn_skops", "python": "python_source"}[self.format]
