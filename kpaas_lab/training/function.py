"""What is checked of a training function before anything starts. Pure: nothing of the learner's is run."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kpaas_lab.errors import SettingsError
from kpaas_lab.i18n import _
from kpaas_lab.source import Source, capture

OWN = ("data", "seed", "nodes")  # what `train` itself passes on to a function that has such a parameter


def source_of(function: Callable[..., Any] | str) -> Source:
    """The text of a training function.

    Args:
        function: made with `def`, or "file.py:function".

    Raises:
        SettingsError: it can't run elsewhere; the message says why and what to change.
    """
    if isinstance(function, str):
        return _from_file(function)
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise _is_async(getattr(function, "__name__", "?"))
    return capture(inspect.unwrap(function))  # the text has the decorators, and they are applied again there


def _from_file(reference: str) -> Source:
    path_text, separator, name = reference.rpartition(":")
    if not separator or not name.isidentifier():
        raise SettingsError(
            _("{reference!r} names no function.").format(reference=reference),
            hint=_('Use "file.py:function", for example "train.py:fit".'),
        )
    path = Path(path_text).expanduser()
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(
            _("{path} can't be read: {error}.").format(path=path, error=getattr(error, "strerror", None) or error),
            hint=_("Folder now: {folder}.").format(folder=Path.cwd()),
        ) from error
    functions = [
        node for node in _parse(text, str(path)).body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    if name not in {node.name for node in functions}:
        names = ", ".join(node.name for node in functions) or _("none")
        raise SettingsError(
            _("{path} has no function {name!r}.").format(path=path, name=name),
            hint=_("Functions there: {names}.").format(names=names),
        )
    return Source(text, name)


def _parse(text: str, path: str) -> ast.Module:
    try:
        return ast.parse(text, path)
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None) or 0
        raise SettingsError(
            _("{path} is not Python: line {line}: {error}.").format(path=path, line=line, error=error)
        ) from error


def _is_async(name: str) -> SettingsError:
    return SettingsError(
        _("The function '{name}' is async; a run has no event loop to wait for it.").format(name=name),
        hint=_("Write it with def, and call asyncio.run(...) inside it if you need to."),
    )


@dataclass(frozen=True, slots=True)
class Parameters:
    """The parameters of a function: those it needs, those it may get, and whether it takes any other."""

    required: tuple[str, ...]
    optional: tuple[str, ...]
    anything: bool

    @property
    def names(self) -> tuple[str, ...]:
        """All, needed ones first."""
        return self.required + self.optional


def parameters(source: Source) -> Parameters:
    """The parameters of a captured function.

    Raises:
        SettingsError: it is async, a generator, or takes positional-only parameters.

    Example:
        >>> parameters(Source("def fit(data, epochs=3, **more): ...", "fit"))
        Parameters(required=('data',), optional=('epochs',), anything=True)
    """
    function = next(
        node
        for node in reversed(_parse(source.text, source.name).body)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == source.name
    )
    if isinstance(function, ast.AsyncFunctionDef):
        raise _is_async(source.name)
    if _yields(function):
        raise SettingsError(
            _("The function '{name}' is a generator: calling it trains nothing.").format(name=source.name),
            hint=_("Use report(...) in place of yield, and return the model."),
        )
    arguments = function.args
    if arguments.posonlyargs:
        raise SettingsError(
            _("'{name}' takes {parameter!r} by position only.").format(
                name=source.name, parameter=arguments.posonlyargs[0].arg
            ),
            hint=_("Remove the '/' from its parameters: a run passes them by name."),
        )
    positional = [argument.arg for argument in arguments.args]
    needed = positional[: len(positional) - len(arguments.defaults)]
    optional = positional[len(needed) :]
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        (needed if default is None else optional).append(argument.arg)
    return Parameters(tuple(needed), tuple(optional), arguments.kwarg is not None)


def _yields(function: ast.FunctionDef) -> bool:
    waiting: list[ast.AST] = list(function.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Yield | ast.YieldFrom):
            return True
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef):
            waiting += ast.iter_child_nodes(node)
    return False


def check_call(source: Source, params: Mapping[str, Any], *, data: str | None) -> None:
    """That the function can be called with these parameters, and that they can travel.

    Raises:
        SettingsError: one is missing, unexpected, or not plain data; the message names it.

    Example:
        >>> fit = Source("def fit(epochs, lr=0.1): ...", "fit")
        >>> check_call(fit, {"epochs": 3}, data=None)
        >>> check_call(fit, {"epoch": 3}, data=None)
        Traceback (most recent call last):
        kpaas_lab.errors.SettingsError: 'fit' has no parameter 'epoch'. Its parameters: epochs, lr.
    """
    known = parameters(source)
    listed = ", ".join(known.names) or _("none")
    given = {*params, *([] if data is None else ["data"])}
    unexpected = [] if known.anything else sorted(given - set(known.names))
    if unexpected:
        raise SettingsError(
            _("'{name}' has no parameter {parameter!r}.").format(name=source.name, parameter=unexpected[0]),
            hint=_("Its parameters: {names}.").format(names=listed),
        )
    missing = [name for name in known.required if name not in given and (name == "data" or name not in OWN)]
    if missing == ["data"]:
        raise SettingsError(
            _("'{name}' needs data.").format(name=source.name),
            hint=_('Name a data set, for example data="kpaas/digits".'),
        )
    if missing:
        raise SettingsError(
            _("'{name}' needs {parameters}.").format(name=source.name, parameters=", ".join(missing)),
            hint=_("Give it by name: lab.train({function}, {parameter}=...).").format(
                function=source.name, parameter=missing[0]
            ),
        )
    for name, value in params.items():
        check_plain(name, value)


def check_plain(where: str, value: Any) -> None:
    """That a value is the same after it has travelled as JSON.

    Raises:
        SettingsError: it isn't; says where.

    Example:
        >>> check_plain("layers", [1, "two", {"three": None}])
        >>> check_plain("layers", [{1}])
        Traceback (most recent call last):
        kpaas_lab.errors.SettingsError: The parameter layers[0] is a set: it can't be sent to a run. Use numbers, ...
    """
    if value is None or isinstance(value, bool | int | float | str):
        return
    if isinstance(value, list | tuple):
        for index, item in enumerate(value):
            check_plain(f"{where}[{index}]", item)
        return
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        for key, item in value.items():
            check_plain(f"{where}[{key!r}]", item)
        return
    raise SettingsError(
        _("The parameter {where} is a {kind}: it can't be sent to a run.").format(
            where=where, kind=type(value).__name__
        ),
        hint=_("Use numbers, texts, None, lists, and dicts with texts as keys; name a data set with data=."),
    )
