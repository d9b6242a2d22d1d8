"""scikit-learn estimators, by skops: every type in the file is on a list of those that are safe to build."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from kpaas_lab.errors import ModelError
from kpaas_lab.i18n import _
from kpaas_lab.models.examples import Dumped, Run, as_array, learn
from kpaas_lab.models.formats.sklearn_types import TRUSTED, check_trees
from kpaas_lab.models.manifest import Manifest
from kpaas_lab.oip.tensors import Array

LIBRARIES = ("scikit-learn", "skops", "numpy")
_INPUT = "x"


def dump(model: Any, example: Any) -> Dumped:
    """The estimator as a skops file; see `kpaas_lab.models.save`."""
    import skops.io

    _check_fitted(model)
    inputs, columns = _example(model, example)
    try:
        data = skops.io.dumps(model)
    except Exception as error:
        raise ModelError(
            _("{kind} can't be saved: {error}").format(kind=type(model).__name__, error=str(error)[:500])
        ) from error
    estimator = _checked(data)
    methods = ["predict", *(["predict_proba"] if hasattr(estimator, "predict_proba") else [])]
    if not hasattr(estimator, "predict"):
        if not hasattr(estimator, "transform"):
            raise ModelError(
                _("{kind} has neither predict nor transform.").format(kind=type(model).__name__),
                hint=_("Save an estimator, or a pipeline that ends in one."),
            )
        methods = ["transform"]
    details = {"methods": methods, "columns": columns, "frame": _INPUT not in inputs}
    learned = learn(_runner(estimator, details), inputs)
    return Dumped(data, learned, details)


def load(data: bytes, manifest: Manifest, threads: int) -> Run:
    """What runs the estimator."""
    import threadpoolctl  # type: ignore[import-untyped]

    threadpoolctl.threadpool_limits(limits=threads)
    return _runner(_checked(data), manifest.details)


def _checked(data: bytes) -> Any:
    import skops.io

    asked = skops.io.get_untrusted_types(data=data)
    names = sorted(set(asked) - TRUSTED)
    if names:
        raise ModelError(
            _("The estimator holds types that aren't known to be safe: {names}.").format(names=", ".join(names[:10])),
            hint=_("Use scikit-learn's own parts, or serve a function that calls yours."),
        )
    estimator = skops.io.loads(data, trusted=asked)
    check_trees(estimator)
    return estimator


def _check_fitted(model: Any) -> None:
    from sklearn.exceptions import NotFittedError
    from sklearn.utils.validation import check_is_fitted

    try:
        check_is_fitted(model)
    except NotFittedError as error:
        raise ModelError(
            _("{kind} isn't trained yet.").format(kind=type(model).__name__), hint=_("Call its fit first.")
        ) from error


def _example(model: Any, example: Any) -> tuple[dict[str, Array], list[str]]:
    """Arrays by input name, and the columns of the frame that the estimator was trained on."""
    columns = [str(name) for name in getattr(model, "feature_names_in_", ())]
    if example is None:
        features = getattr(model, "n_features_in_", None)
        if features is None:
            raise ModelError(
                _("{kind} doesn't say how many features it takes.").format(kind=type(model).__name__),
                hint=_("For example: example=X[:2]."),
            )
        return {_INPUT: np.zeros((2, features), dtype=np.float64)}, columns
    if hasattr(example, "iloc") and hasattr(example, "columns"):  # a data frame: one input for each column
        return {str(name): as_array(str(name), example[name].to_numpy()) for name in example.columns}, columns
    if hasattr(example, "iloc"):  # one column of it: texts
        example = example.to_numpy()
    if isinstance(example, Mapping):
        raise ModelError(
            _("An estimator takes one array or a data frame, not a dict."), hint=_("For example: example=X[:2].")
        )
    array = as_array(_INPUT, example)
    if array.dtype.kind in "iub":
        array = array.astype(np.float64)  # a client's numbers are rarely all whole
    return {_INPUT: array}, columns


def _runner(estimator: Any, details: Mapping[str, Any]) -> Run:
    methods, columns, frame = details["methods"], details["columns"], details["frame"]

    def run(inputs: Mapping[str, Array]) -> dict[str, Array]:
        x: Any = inputs if frame else inputs[_INPUT]
        if columns:
            import pandas as pd  # type: ignore[import-untyped]

            x = pd.DataFrame(dict(x)) if frame else pd.DataFrame(x, columns=columns)
        outputs: dict[str, Array] = {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for method in methods:
                value = getattr(estimator, method)(x)
                value = value.toarray() if hasattr(value, "toarray") else value
                outputs[method] = as_array(method, value)
        return outputs

    return run
