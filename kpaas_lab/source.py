"""A function as source text that runs on its own, in another process or on another machine.

What a notebook shares with the function travels with it where that is safe and exact: imported modules, and the
functions and classes that the notebook itself defines. A value doesn't: it would be frozen at a moment nobody chose.
"""

from __future__ import annotations

import ast
import builtins
import inspect
import linecache
import symtable
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from kpaas_lab.errors import SettingsError
from kpaas_lab.i18n import _

_INSTALLED = {"site-packages", "dist-packages"}


@dataclass(frozen=True, slots=True)
class Source:
    """A module's text, and the name of the function in it."""

    text: str
    name: str


def capture(function: Callable[..., Any]) -> Source:
    """The source of a function with all it needs, as one module.

    Args:
        function: made with `def`, in a notebook or a file.

    Raises:
        SettingsError: it uses a variable of the notebook; the message names it. Or it has no source.

    Example:
        >>> import math
        >>> def area(radius):
        ...     return math.pi * radius**2
        >>> print(capture(area).text)
        from __future__ import annotations
        import math
        <BLANKLINE>
        <BLANKLINE>
        def area(radius):
            return math.pi * radius**2
        <BLANKLINE>
    """
    if not isinstance(function, FunctionType):
        raise SettingsError(
            _("{what} is not a function.").format(what=_shown(function)),
            hint=_("Give a function made with def."),
        )
    if function.__name__ == "<lambda>":
        raise SettingsError(_("A lambda can't be sent elsewhere."), hint=_("Write it as a function, with def."))
    collected = _Collected(root=function.__name__)
    collected.add(function)
    imports = sorted(collected.imports, key=lambda line: (line.startswith("from "), line))
    head = "\n".join(["from __future__ import annotations", *imports])
    return Source("\n\n\n".join([head, *collected.definitions.values()]) + "\n", function.__name__)


@dataclass
class _Collected:
    root: str
    imports: set[str] = field(default_factory=set)
    definitions: dict[str, str] = field(default_factory=dict)
    _visiting: set[str] = field(default_factory=set)

    def add(self, thing: FunctionType | type) -> None:
        """Add a definition after those it needs."""
        name = thing.__name__
        if name in self.definitions or name in self._visiting:
            return
        self._visiting.add(name)
        if isinstance(thing, FunctionType) and thing.__code__.co_freevars:
            raise self._outside(thing.__code__.co_freevars[0], _("a variable of the function around it"))
        text = _source_of(thing)
        scope = _globals_of(thing)
        for used in _free_names(text, name):
            if used in scope:
                self._need(used, scope[used], thing.__module__)
            elif not hasattr(builtins, used):
                raise self._outside(used, _("defined nowhere"))
        self.definitions[name] = text

    def _need(self, used: str, value: Any, home: str) -> None:
        if isinstance(value, ModuleType):
            if not _is_installed(value.__name__):
                raise self._outside(used, _("a module that is not installed"))
            plain = value.__name__ == used
            self.imports.add(f"import {used}" if plain else f"import {value.__name__} as {used}")
            return
        origin, qualified = getattr(value, "__module__", None), getattr(value, "__qualname__", "")
        if isinstance(value, FunctionType | type) and value.__name__ == used and origin in {home, "__main__"}:
            self.add(value)
            return
        there = sys.modules.get(origin) if isinstance(origin, str) and _is_installed(origin) else None
        if there is not None and qualified.isidentifier() and getattr(there, qualified, None) is value:
            alias = "" if qualified == used else f" as {used}"
            self.imports.add(f"from {origin} import {qualified}{alias}")
            return
        raise self._outside(used, _("a variable of the notebook ({kind})").format(kind=type(value).__name__))

    def _outside(self, name: str, what: str) -> SettingsError:
        return SettingsError(
            _("The function '{function}' uses '{name}', {what}; it runs elsewhere and can't see that.").format(
                function=self.root, name=name, what=what
            ),
            hint=_("Make it a parameter, or define or import it inside the function."),
        )


def _source_of(thing: FunctionType | type) -> str:
    try:
        if isinstance(thing, FunctionType):
            return textwrap.dedent(inspect.getsource(thing)).rstrip()
        return _class_source(thing)
    except (OSError, TypeError, SyntaxError) as error:
        raise SettingsError(
            _("The source of '{name}' can't be found.").format(name=thing.__name__),
            hint=_("Define it in a notebook cell or a file, not with exec or at a terminal."),
        ) from error


def _class_source(thing: type) -> str:
    """The text of a class: by one of its methods, since a notebook's classes know no file before Python 3.13."""
    methods = [value for value in vars(thing).values() if isinstance(value, FunctionType)]
    for method in methods:
        lines = linecache.getlines(method.__code__.co_filename)
        for node in ast.walk(ast.parse("".join(lines) or "\n")):
            if (
                isinstance(node, ast.ClassDef)
                and node.name == thing.__name__
                and node.lineno <= method.__code__.co_firstlineno <= (node.end_lineno or 0)
            ):
                first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
                return textwrap.dedent("".join(lines[first - 1 : node.end_lineno])).rstrip()
    return textwrap.dedent(inspect.getsource(thing)).rstrip()


def _globals_of(thing: FunctionType | type) -> dict[str, Any]:
    if isinstance(thing, FunctionType):
        return thing.__globals__
    return vars(sys.modules[thing.__module__]) if thing.__module__ in sys.modules else {}


def _free_names(text: str, own: str) -> list[str]:
    """Names that the text takes from outside, but for those in annotations, which aren't evaluated."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            node.returns = None
        elif isinstance(node, ast.arg):
            node.annotation = None
    for node in ast.walk(tree):
        for name, value in ast.iter_fields(node):
            if isinstance(value, list):
                setattr(node, name, [_without_annotation(item) for item in value])
    names = set(_walk(symtable.symtable(ast.unparse(ast.fix_missing_locations(tree)), "<function>", "exec")))
    return sorted(names - {own})


def _without_annotation(node: Any) -> Any:
    """`x: Type = value` as `x = value`, for the analysis only."""
    if isinstance(node, ast.AnnAssign) and node.value is not None:
        return ast.Assign(targets=[node.target], value=node.value, lineno=node.lineno)
    if isinstance(node, ast.AnnAssign):
        return ast.Assign(targets=[node.target], value=ast.Constant(None), lineno=node.lineno)
    return node


def _walk(table: symtable.SymbolTable) -> Iterator[str]:
    top = table.get_type() == "module"
    for symbol in table.get_symbols():
        if symbol.is_global() or (top and symbol.is_referenced() and not symbol.is_assigned()):
            yield symbol.get_name()
    for child in table.get_children():
        yield from _walk(child)


def _is_installed(module: str) -> bool:
    """Whether another process of this environment can import it: the standard library, or an installed package."""
    top = module.partition(".")[0]
    if top in sys.stdlib_module_names or top == "kpaas_lab":
        return True
    found = sys.modules.get(top)
    places = [getattr(found, "__file__", None) or "", *map(str, getattr(found, "__path__", []))]
    return any(_INSTALLED & set(Path(place).parts) for place in places)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"
