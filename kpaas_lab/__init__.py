"""K-PaaS Lab: learn, train, serve and sell AI from a browser notebook.

Example:
    >>> import kpaas_lab
    >>> kpaas_lab.__version__
    '0.1.0'
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kpaas_lab.lab import Lab
    from kpaas_lab.market.client import Plan

__version__ = "0.1.0"
__all__ = ["Lab", "Plan", "__version__"]

_HOME = {"Lab": "kpaas_lab.lab", "Plan": "kpaas_lab.market.client"}


def __getattr__(name: str) -> object:
    """Imported when it is used: `import kpaas_lab` stays light."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOME[name]), name)
