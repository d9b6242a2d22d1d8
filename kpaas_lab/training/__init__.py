"""Training: a function becomes a Job, and a `Run` is its handle.

Inside the function:

    from kpaas_lab.training import checkpoint, report

    def fit(data, epochs=3):
        state = checkpoint.load()
        ...
        report(step=epoch, total=epochs, loss=loss)
        checkpoint.save({"model": net.state_dict()}, step=epoch)
        return net, data.example
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kpaas_lab.training import checkpoint
from kpaas_lab.training.progress import report

if TYPE_CHECKING:
    from kpaas_lab.training.run import Run, RunModel
    from kpaas_lab.training.submit import Runs, runs, train

__all__ = ["Run", "RunModel", "Runs", "checkpoint", "report", "runs", "train"]

_HOME = {"Run": "run", "RunModel": "run", "Runs": "submit", "runs": "submit", "train": "submit"}


def __getattr__(name: str) -> object:
    """The notebook's side is imported when it is used: a run, which needs `report` only, starts sooner without it."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
