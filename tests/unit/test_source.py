"""A function as source: what it takes along, and what it is refused for."""

from __future__ import annotations

import linecache
import math
import os.path as ospath
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from kpaas_lab.errors import SettingsError
from kpaas_lab.source import capture

rate = 0.1
data = np.zeros(3)
counter = 0


def helper(x: float) -> float:
    return other(x) + 1


def other(x: float) -> float:
    return math.sqrt(x)


class Base:
    def hello(self) -> str:
        return "hello"


class Net(Base):
    scale: float = 2.0

    def forward(self, x: Unknown) -> float:  # noqa: F821
        return self.scale * helper(x)


def uses_all(values: list[float], *, first: Callable[..., Any] = max) -> Counter[Any]:
    """A docstring that names `rate`."""
    total: int = sum(values)
    rows = [Net().forward(value) for value in values]
    return Counter([np.float64(total), first(rows), ospath.basename("a/b"), helper(4)])


def closes_over_rate(x: float) -> float:
    return x * rate


def nested_use() -> float:
    def inner() -> float:
        return max(value + 1 for value in data)

    return inner()


def counts() -> None:
    global counter
    counter += 1


def uses_nothing() -> object:
    return not_defined_anywhere  # noqa: F821


def run(source: Any) -> Any:
    namespace: dict[str, Any] = {}
    exec(compile(source.text, "<captured>", "exec"), namespace)
    return namespace[source.name]


def test_a_function_takes_modules_helpers_and_classes_along() -> None:
    source = capture(uses_all)
    assert run(source)([4.0]) == uses_all([4.0])
    assert "import numpy as np" in source.text
    assert "from collections import Counter" in source.text
    assert source.text.index("class Base") < source.text.index("class Net")
    assert source.name == "uses_all"


@pytest.mark.parametrize(
    ("function", "name"),
    [(closes_over_rate, "rate"), (nested_use, "data"), (counts, "counter"), (uses_nothing, "not_defined_anywhere")],
)
def test_a_variable_of_the_notebook_is_named(function: Callable[..., Any], name: str) -> None:
    with pytest.raises(SettingsError) as caught:
        capture(function)
    assert f"'{name}'" in str(caught.value)
    assert f"'{function.__name__}'" in str(caught.value)
    assert "parameter" in caught.value.hint


def test_a_variable_of_the_function_around_it_is_named() -> None:
    epochs = 3

    def fit() -> int:
        return epochs

    with pytest.raises(SettingsError, match="'epochs', a variable of the function around it"):
        capture(fit)


def test_a_function_inside_another_works_when_it_needs_nothing() -> None:
    def fit(x: int) -> int:
        import math

        return math.floor(x) + 1

    assert run(capture(fit))(2) == 3


@pytest.mark.parametrize("thing", [lambda x: x, len, 3, "fit", Net(), Net().forward])
def test_what_is_no_plain_function_is_refused(thing: Any) -> None:
    with pytest.raises(SettingsError):
        capture(thing)


def test_no_source_is_said() -> None:
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec("def ghost():\n    return 1", namespace)
    with pytest.raises(SettingsError, match="source of 'ghost'"):
        capture(namespace["ghost"])


def test_classes_of_a_notebook_cell_are_found() -> None:
    """As IPython does it: a cell is compiled under a name that linecache knows."""
    cell = "class Tiny:\n    def go(self):\n        return 7\n\ndef fit():\n    return Tiny().go()\n"
    name = "/tmp/ipykernel_1/123.py"
    linecache.cache[name] = (len(cell), None, cell.splitlines(True), name)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(cell, name, "exec"), namespace)
    assert run(capture(namespace["fit"]))() == 7


def test_an_installed_package_is_imported_and_a_file_beside_the_notebook_isnt(tmp_path: Any, monkeypatch: Any) -> None:
    (tmp_path / "mine_beside.py").write_text("def double(x):\n    return 2 * x\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import mine_beside

    name = "/tmp/ipykernel_1/124.py"
    cell = "def fit():\n    return mine_beside.double(2)\n"
    linecache.cache[name] = (len(cell), None, cell.splitlines(True), name)
    namespace: dict[str, Any] = {"__name__": "__main__", "mine_beside": mine_beside}
    exec(compile(cell, name, "exec"), namespace)
    with pytest.raises(SettingsError, match="'mine_beside', a module that is not installed"):
        capture(namespace["fit"])
