"""How handles look in a notebook. Handles themselves know nothing of Jupyter: what shows them is registered by name."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

# Where a class lives, its name, and the function here that shows it: as HTML, or by displaying it itself.
_HTML = (
    ("kpaas_lab.observation", "SliceTable", "slices:slices_html"),
    ("kpaas_lab.observation", "SliceCheck", "slices:check_html"),
    ("kpaas_lab.training.submit", "Runs", "tables:runs_html"),
    ("kpaas_lab.serving", "Endpoint", "endpoint:endpoint_html"),
    ("kpaas_lab.serving", "Endpoints", "tables:endpoints_html"),
    ("kpaas_lab.lab", "Listings", "market:listings_html"),
    ("kpaas_lab.lab", "Subscriptions", "market:subscriptions_html"),
    ("kpaas_lab.market.client", "Listing", "market:listing_html"),
    ("kpaas_lab.market.client", "Subscription", "market:subscription_html"),
    ("kpaas_lab.market.client", "Usage", "market:usage_html"),
)
_DISPLAYS = (("kpaas_lab.training.run", "Run", "live:show"),)


def register() -> bool:
    """Show handles richly in this kernel; whether there is one. What shows them is imported when it is needed."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is None or not hasattr(shell, "kernel"):  # a terminal's IPython shows text
        return False
    for module, name, function in _HTML:
        shell.display_formatter.formatters["text/html"].for_type_by_name(module, name, _lazy(function))
    for module, name, function in _DISPLAYS:
        shell.display_formatter.ipython_display_formatter.for_type_by_name(module, name, _lazy(function))
    return True


def _lazy(reference: str) -> Callable[[Any], Any]:
    module, _colon, function = reference.partition(":")

    def show(handle: Any) -> Any:
        return getattr(importlib.import_module(f"{__name__}.{module}"), function)(handle)

    return show
