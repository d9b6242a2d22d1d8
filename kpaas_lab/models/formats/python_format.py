"""A function, as source. It runs with its publisher's rights, so only its publisher's own sandbox loads it."""

from __future__ import annotations

import inspect
import linecache
from collections.abc import Mapping
from typing import Any

from kpaas_lab.errors import ModelError, SettingsError
from kpaas_lab.i18n import _
from kpaas_lab.models.examples import Dumped, Run, as_array, as_outputs, learn
from kpaas_lab.models.manifest import Manifest
from kpaas_lab.oip.tensors import Array
from kpaas_lab.source import capture

LIBRARIES = ("numpy",)


def dump(model: Any, example: Any) -> Dumped:
    """The function's source; see `kpaas_lab.models.save`. It is run from there, on the example, before it is kept."""
    if inspect.iscoroutinefunction(model) or inspect.isgeneratorfunction(model):
        raise ModelError(
            _("'{name}' is a coroutine or a generator.").format(name=model.__name__),
            hint=_("A served function returns an array, or a dict of arrays."),
        )
    try:
        source = capture(model)
    except SettingsError as error:
        raise ModelError(error.message, hint=error.hint) from error
    inputs, mapping = _example(model, example)
    details = {"function": source.name, "mapping": mapping}
    data = source.text.encode()
    return Dumped(data, learn(_runner(data, details), inputs), details)


def load(data: bytes, manifest: Manifest, threads: int) -> Run:
    """What calls the function."""
    return _runner(data, manifest.details)


def _example(function: Any, example: Any) -> tuple[dict[str, Array], bool]:
    """Arrays by input name, and whether the function takes them as one mapping."""
    parameters = [
        parameter.name
        for parameter in inspect.signature(function).parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind not in {parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD}
    ]
    if example is None:
        raise ModelError(
            _("A function is saved with an example of its input."),
            hint=_("For example: example=np.zeros((2, 3))."),
        )
    if isinstance(example, Mapping):
        inputs = {str(name): as_array(str(name), value) for name, value in example.items()}
        if len(parameters) == 1 and set(inputs) != set(parameters):
            return inputs, True
    else:
        values = example if isinstance(example, tuple) else (example,)
        if len(values) != len(parameters):
            raise ModelError(
                _("The example has {got} inputs; '{name}' takes {want}.").format(
                    got=len(values), name=function.__name__, want=len(parameters)
                )
            )
        inputs = {name: as_array(name, value) for name, value in zip(parameters, values, strict=True)}
    if set(inputs) != set(parameters):
        raise ModelError(
            _("The example's inputs are {got}; '{name}' takes {want}.").format(
                got=", ".join(inputs), name=function.__name__, want=", ".join(parameters) or _("none")
            )
        )
    return inputs, False


def _runner(data: bytes, details: Mapping[str, Any]) -> Run:
    text = data.decode()
    # So that a traceback in the endpoint's log shows the function's lines.
    linecache.cache["model.py"] = (len(text), None, text.splitlines(keepends=True), "model.py")
    namespace: dict[str, Any] = {"__name__": "kpaas_lab_model"}
    exec(compile(text, "model.py", "exec"), namespace)  # noqa: S102 - the publisher's own code, in their own sandbox
    function, mapping = namespace[details["function"]], details["mapping"]

    def run(inputs: Mapping[str, Array]) -> dict[str, Array]:
        return as_outputs(function(dict(inputs)) if mapping else function(**inputs))

    return run
