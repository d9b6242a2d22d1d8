"""Every example in a docstring of the hub's configuration runs."""

import doctest
import importlib
import pkgutil

import pytest

import hub_config


@pytest.mark.parametrize(
    "name",
    # Wiring that only JupyterHub can load is none of these.
    [info.name for info in pkgutil.iter_modules(hub_config.__path__, "hub_config.") if "jupyterhub_" not in info.name],
)
def test_examples(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS).failed == 0
