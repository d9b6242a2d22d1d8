"""Every example in a docstring runs."""

import doctest
import importlib
import pkgutil

import pytest

import kpaas_lab


def modules() -> list[str]:
    return [
        info.name for info in pkgutil.walk_packages(kpaas_lab.__path__, "kpaas_lab.") if "migrations" not in info.name
    ]


@pytest.mark.parametrize("name", modules())
def test_examples(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert result.failed == 0
