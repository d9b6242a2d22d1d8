"""The Open Inference Protocol v2, REST, without a server: bytes to numpy arrays and back.

Source: github.com/kserve/open-inference-protocol, `inference_rest.md`, and KServe's `required_api.md` for tensor data;
the binary tensor data extension as KServe and Triton describe it.

Example:
    >>> import numpy as np
    >>> from kpaas_lab import oip
    >>> body, header_length = oip.encode_request({"x": np.array([[1.0, 2.0]], dtype=np.float32)})
    >>> body
    b'{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[1.0,2.0]}]}'
    >>> oip.parse_request(body).inputs["x"]
    array([[1., 2.]], dtype=float32)
"""

from __future__ import annotations

from kpaas_lab.oip.messages import (
    HEADER_LENGTH,
    InferRequest,
    InferResponse,
    RequestedOutput,
    encode_request,
    encode_response,
    header_length,
    parse_request,
    parse_response,
)
from kpaas_lab.oip.schema import TensorSpec, check_inputs, check_outputs_exist, spec_of
from kpaas_lab.oip.tensors import DTYPES, ProtocolError, datatype_of

__all__ = [
    "DTYPES",
    "HEADER_LENGTH",
    "InferRequest",
    "InferResponse",
    "ProtocolError",
    "RequestedOutput",
    "TensorSpec",
    "check_inputs",
    "check_outputs_exist",
    "datatype_of",
    "encode_request",
    "encode_response",
    "header_length",
    "parse_request",
    "parse_response",
    "spec_of",
]
