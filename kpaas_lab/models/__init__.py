"""Models in a folder: saved and loaded without pickle, described by their tensors.

`save` takes a torch module (becomes ONNX), a scikit-learn estimator (skops) or a function (its source). `load` gives
something that predicts, and imports only what its format needs. A model of a format that can run code when it is read
is refused.

Example:
    >>> import tempfile, numpy as np
    >>> from pathlib import Path
    >>> from kpaas_lab import models
    >>> def double(x):
    ...     return 2 * x
    >>> folder = Path(tempfile.mkdtemp()) / "model"
    >>> models.save(double, folder, example=np.array([1.0, 2.0])).inputs
    (TensorSpec(name='x', datatype='FP64', shape=(-1,), text=False),)
    >>> models.load(folder).predict({"x": np.array([3.0])})
    {'output': array([6.])}
"""

from __future__ import annotations

from kpaas_lab.models.manifest import Manifest
from kpaas_lab.models.store import Predictor, install, load, read_manifest, save

__all__ = ["Manifest", "Predictor", "install", "load", "read_manifest", "save"]
