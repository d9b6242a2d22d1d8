"""What is refused before anything starts, and with which words."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kpaas_lab.errors import NotFoundError, SettingsError
from kpaas_lab.training import train
from kpaas_lab.training.function import check_call, parameters, source_of

RATE = 0.1


class NoEngine:
    """Nothing may reach an engine here."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"engine.{name} was used")


class Home:
    def __init__(self, home: Path) -> None:
        self.home = home


def over_a_global(epochs: int) -> float:
    return epochs * RATE


def global_in_default(rate: float = RATE) -> float:
    return rate


def global_in_inner_function() -> Any:
    def inner() -> float:
        return RATE

    return inner()


def make_closure() -> Callable[[], int]:
    hidden = 3

    def closure() -> int:
        return hidden

    return closure


def repeated(count: float) -> Callable[[Any], Any]:
    def decorator(function: Any) -> Any:
        @functools.wraps(function)
        def repeat(*args: Any, **kwargs: Any) -> Any:
            return [function(*args, **kwargs) for _ in range(int(count))]

        return repeat

    return decorator


@repeated(RATE)
def global_in_decorator() -> None:
    pass


async def waits() -> None:
    pass


def yields(epochs: int) -> Any:
    yield epochs


def by_position(epochs: int, /) -> None:
    pass


def fit(epochs: int, lr: float = 0.1, *, deep: bool = False) -> None:
    pass


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (over_a_global, ["RATE", "parameter"]),
        (global_in_default, ["RATE"]),
        (global_in_decorator, ["RATE"]),
        (global_in_inner_function, ["RATE"]),
        (make_closure(), ["hidden"]),
        (lambda: 1, ["lambda", "def"]),
        (waits, ["async", "asyncio.run"]),
        (yields, ["generator", "report"]),
        (by_position, ["epochs", "position"]),
        (42, ["42"]),
        (print, ["function"]),
        (functools.partial(fit, 3), ["function"]),
        ("fit", ["file.py:function"]),
        ("no/such.py:fit", ["no/such.py"]),
    ],
)
def test_refused_before_anything_starts(function: Any, words: list[str], tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as refused:
        train(NoEngine(), Home(tmp_path), function)
    for word in words:
        assert word in str(refused.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({}, ["epochs", "needs"]),
        ({"epochs": 1, "depth": 2}, ["depth", "epochs, lr, deep"]),
        ({"epochs": {1, 2}}, ["epochs", "set"]),
        ({"epochs": [1, [object()]]}, ["epochs[1][0]", "object"]),
        ({"epochs": {1: "a"}}, ["epochs", "dict"]),
        ({"epochs": 1, "data": "kpaas/digits"}, ["data"]),
        ({"epochs": 1, "seed": -1}, ["seed=-1"]),
        ({"epochs": 1, "nodes": 0}, ["nodes=0"]),
        ({"epochs": 1, "name": "../up"}, ["../up"]),
        ({"epochs": 1, "name": "n" * 53}, ["49"]),
    ],
)
def test_parameters_that_do_not_fit(params: dict[str, Any], words: list[str], tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as refused:
        train(NoEngine(), Home(tmp_path), fit, **params)
    for word in words:
        assert word in str(refused.value)
    assert not list(tmp_path.rglob("*.py"))


def needs_data(data: Any) -> None:
    pass


@pytest.mark.parametrize(
    ("data", "kind", "word"),
    [
        (None, SettingsError, "kpaas/digits"),
        ("kpaas/letters", NotFoundError, "kpaas/digits"),
        ([1, 2], SettingsError, "list"),
    ],
)
def test_data_by_name(data: Any, kind: type[Exception], word: str, tmp_path: Path) -> None:
    with pytest.raises(kind, match=word):
        train(NoEngine(), Home(tmp_path), needs_data, data=data)


def test_a_function_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("SIZE = 3\ndef fit(epochs, seed): return SIZE\nasync def later(): pass\n")
    source = source_of(f"{file}:fit")
    assert parameters(source).required == ("epochs", "seed")
    check_call(source, {"epochs": 3}, data=None)  # the seed is passed by `train` itself
    with pytest.raises(SettingsError, match="fit, later"):
        source_of(f"{file}:nothing")
    with pytest.raises(SettingsError, match="async"):
        parameters(source_of(f"{file}:later"))
    file.write_text("def fit(:\n")
    with pytest.raises(SettingsError, match="line 1"):
        source_of(f"{file}:fit")
