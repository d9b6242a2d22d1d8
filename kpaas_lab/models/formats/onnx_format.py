"""torch modules, as ONNX: exported from the module, served by ONNX Runtime without torch."""

from __future__ import annotations

import copy
import inspect
import io
import logging
import tempfile
import warnings
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np

from kpaas_lab.errors import ModelError
from kpaas_lab.i18n import _
from kpaas_lab.models.examples import Dumped, Run, as_array, as_outputs, learn
from kpaas_lab.models.manifest import Manifest
from kpaas_lab.oip.tensors import Array

LIBRARIES = ("torch", "onnx", "onnxruntime", "numpy")
_LIMIT = 2**31 - 1  # of one protobuf message, which an ONNX file is


def dump(model: Any, example: Any) -> Dumped:
    """The module as an ONNX file; see `kpaas_lab.models.save`.

    The example is repeated to two rows: torch.export takes a dimension of size 1 for a constant.
    """
    names, tensors = _example(model, example)
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    if size > _LIMIT:
        raise ModelError(
            _("The module's weights are {size:.1f} GB; an ONNX file holds 2 GB.").format(size=size / 1e9),
            hint=_("Serve a language model with an engine made for it, or save a smaller module."),
        )
    try:
        module = copy.deepcopy(model).cpu().eval()
    except Exception as error:
        raise ModelError(_("The module can't be copied: {error}").format(error=error)) from error
    reference = _module_runner(module, names)
    expected = learn(reference, {name: as_array(name, value) for name, value in zip(names, tensors, strict=True)})
    outputs = [spec.name for spec in expected.outputs]
    dynamic = any(spec.shape[:1] == (-1,) for spec in expected.inputs)
    data = _export(module, names, tensors, outputs, dynamic=dynamic)
    run = _session(data, threads=1)
    inputs = {name: as_array(name, value) for name, value in zip(names, tensors, strict=True)}
    learned = learn(run, inputs)
    _compare(reference, run, inputs)
    if learned.batched:
        _compare(reference, run, {name: np.concatenate([array] * 3) for name, array in inputs.items()})
    return Dumped(data, learned, {})


def load(data: bytes, manifest: Manifest, threads: int) -> Run:
    """What runs the module, without torch."""
    return _session(data, threads)


def _example(model: Any, example: Any) -> tuple[list[str], list[Any]]:
    """Input names, from the parameters of `forward`, and their tensors."""
    import torch

    parameters = [
        parameter
        for parameter in inspect.signature(model.forward).parameters.values()
        if parameter.kind in {parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD}
    ]
    if example is None:
        raise ModelError(
            _("A torch module is saved with an example of its input."),
            hint=_("For example: example=images[:2]."),
        )
    if isinstance(example, Mapping):
        known = {parameter.name for parameter in parameters}
        unknown = [str(name) for name in example if name not in known]
        if unknown:
            raise ModelError(
                _("The module's forward has no parameter {names}.").format(names=", ".join(unknown)),
                hint=_("Parameters: {names}.").format(names=", ".join(parameter.name for parameter in parameters)),
            )
        parameters = [parameter for parameter in parameters if parameter.name in example]
        values = [example[parameter.name] for parameter in parameters]
    else:
        values = list(example) if isinstance(example, tuple) else [example]
    if len(values) > len(parameters) or not values:
        raise ModelError(
            _("The example has {got} inputs; the module's forward takes {want}.").format(
                got=len(values), want=len(parameters)
            )
        )
    names = [parameter.name for parameter in parameters[: len(values)]]
    return names, [torch.from_numpy(np.array(as_array(name, value))) for name, value in zip(names, values, strict=True)]


def _module_runner(module: Any, names: list[str]) -> Run:
    import torch

    def run(inputs: Mapping[str, Array]) -> dict[str, Array]:
        with torch.no_grad():
            return as_outputs(module(*(torch.from_numpy(np.array(inputs[name])) for name in names)))

    return run


def _export(module: Any, names: list[str], tensors: list[Any], outputs: list[str], *, dynamic: bool) -> bytes:
    import torch

    if dynamic and tensors[0].shape[0] < 2:
        tensors = [torch.cat([tensor, tensor]) for tensor in tensors]
    shapes = tuple({0: torch.export.Dim("batch")} for _tensor in tensors) if dynamic else None
    chatter = io.StringIO()
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with (
            tempfile.TemporaryDirectory() as folder,
            warnings.catch_warnings(),
            redirect_stdout(chatter),
            redirect_stderr(chatter),
            torch.no_grad(),
        ):
            warnings.simplefilter("ignore")
            file = Path(folder) / "model.onnx"
            torch.onnx.export(
                module,
                tuple(tensors),
                file,
                input_names=names,
                output_names=outputs,
                dynamic_shapes=shapes,
                dynamo=True,
                external_data=False,
            )
            return file.read_bytes()
    except Exception as error:
        if dynamic:  # a module that works for its example's size only
            return _export(module, names, tensors, outputs, dynamic=False)
        raise ModelError(
            _("The module can't be exported to ONNX: {kind}: {error}").format(
                kind=type(error).__name__, error=str(error).strip().splitlines()[0][:500] if str(error).strip() else ""
            ),
            hint=_("Its forward may use only tensors and torch's own operations, without Python branches on values."),
        ) from error
    finally:
        logger.setLevel(level)


def _session(data: bytes, threads: int) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # errors reach the caller as exceptions
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # a slice pays for its CPU time
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(inputs: Mapping[str, Array]) -> dict[str, Array]:
        return dict(zip(names, session.run(None, dict(inputs)), strict=True))

    return run


def _compare(reference: Run, run: Run, inputs: Mapping[str, Array]) -> None:
    """The exported model gives what the module gives.

    Raises:
        ModelError: it doesn't; says which output and by how much.
    """
    got = run(inputs)
    for name, expected in reference(inputs).items():
        actual = got[name]
        if expected.shape != actual.shape or not np.allclose(actual, expected, rtol=1e-3, atol=1e-4, equal_nan=True):
            raise ModelError(
                _("The exported model's '{name}' differs from the module's on the example.").format(name=name),
                hint=_("A module that draws random numbers or keeps state between calls can't be served this way."),
            )
