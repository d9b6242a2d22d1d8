"""From a function to a run, and back to all runs there are."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from kpaas_lab.engines.base import Engine
from kpaas_lab.engines.records import now, read_json
from kpaas_lab.errors import AlreadyExistsError, NotFoundError, SettingsError
from kpaas_lab.i18n import _
from kpaas_lab.training import folder
from kpaas_lab.training.function import check_call, source_of
from kpaas_lab.training.run import PREFIX, Run, make
from kpaas_lab.workloads import check_name

LONGEST_NAME = 53 - len(PREFIX)


class Home(Protocol):
    """What training needs of `kpaas_lab.settings.Settings`."""

    @property
    def home(self) -> Path:
        """The lab's home of this learner."""
        ...


class NoRunError(NotFoundError, KeyError):
    """No run of that name; a KeyError too, as of any mapping."""


def train(
    engine: Engine,
    settings: Home,
    function: Callable[..., Any] | str,
    /,
    *,
    name: str | None = None,
    data: str | None = None,
    slice: str | None = None,
    nodes: int = 1,
    seed: int = 0,
    **params: Any,
) -> Run:
    """Run a function elsewhere: as a Job on a slice. It is recorded and started when this returns.

    Args:
        engine: where it runs.
        settings: whose home holds it.
        function: made with `def`, or "file.py:function". What it returns is the model: a torch module, a scikit-learn
            estimator, a function of arrays, or `(model, example input)`.
        name: of the run; None is the function's name and a number.
        data: name of a data set, passed as the parameter `data`.
        slice: name of a slice; None is the CPU slice.
        nodes: processes that train together, as torchrun starts them.
        seed: of random, numpy and torch; passed as `seed` to a function that has such a parameter.
        **params: plain data, passed to the function.

    Raises:
        SettingsError: the function can't run elsewhere, or its parameters don't fit; nothing was started.
        AlreadyExistsError: there is a run of this name.
        UnknownSliceError, NoCapacityError, EngineUnavailableError: of the engine.
    """
    source = source_of(function)
    check_call(source, params, data=data)
    if data is not None:
        from kpaas_lab.datasets import check

        check(data)
    for what, value in (("nodes", nodes), ("seed", seed)):
        if isinstance(value, bool) or not isinstance(value, int) or value < (what == "nodes"):
            raise SettingsError(
                _("{what}={value!r} can't be.").format(what=what, value=value), hint=_("Give a number.")
            )
    record = {
        "function": source.name,
        "created": now(),
        "data": data,
        "slice": slice,
        "nodes": nodes,
        "seed": seed,
        "python": sys.executable,
    }
    run = Run(engine, _make(settings.home / "runs", name, source.name, record, params, source.text))
    try:
        run.start()
    except BaseException:
        run.delete()
        raise
    return run


def _make(runs_folder: Path, name: str | None, function: str, *content: Any) -> Path:
    record, params, text = content
    if name is not None:
        if len(check_name(name)) > LONGEST_NAME:
            raise SettingsError(
                _("{name!r} is too long for a run.").format(name=name),
                hint=_("Use {count} characters at most.").format(count=LONGEST_NAME),
            )
        make(runs_folder / name, record, params, text)
        return runs_folder / name
    stem = slug(function)
    while True:
        path = runs_folder / f"{stem}-{_next_number(runs_folder, stem)}"
        try:
            make(path, record, params, text)
        except AlreadyExistsError:  # another kernel took this number
            continue
        return path


def slug(function: str) -> str:
    """A function's name as the beginning of a run's name.

    Example:
        >>> slug("train_Net"), slug("학습")
        ('train-net', 'run')
    """
    return re.sub(r"[^a-z0-9]+", "-", function.lower()).strip("-")[: LONGEST_NAME - 6].strip("-") or "run"


def _next_number(runs_folder: Path, stem: str) -> int:
    names = [path.name for path in runs_folder.glob(f"{stem}-*")]
    numbers = [int(rest) for name in names if (rest := name.removeprefix(f"{stem}-")).isdigit()]
    return max(numbers, default=0) + 1


def runs(engine: Engine, settings: Home) -> Runs:
    """All runs of this learner by name, oldest first; those of other kernels too."""
    return Runs(engine, settings.home / "runs")


class Runs(Mapping[str, Run]):
    """Runs by name, read from disk at each use."""

    def __init__(self, engine: Engine, path: Path) -> None:
        self._engine, self._path = engine, path

    def __getitem__(self, name: str) -> Run:
        names = list(self)
        if name not in names:
            hint = _("Runs: {names}.").format(names=", ".join(names)) if names else _("There are none yet.")
            raise NoRunError(_("No run {name!r}.").format(name=name), hint=hint)
        return Run(self._engine, self._path / name)

    def __iter__(self) -> Iterator[str]:
        found = [path for path in self._path.glob("*") if not path.name.startswith(".")]
        created = {path.name: str(read_json(path / folder.RUN).get("created", "")) for path in found}
        return iter(sorted((name for name in created if created[name]), key=lambda name: (created[name], name)))

    def __len__(self) -> int:
        return sum(1 for _name in self)

    def __repr__(self) -> str:
        return "\n".join(repr(run) for run in self.values()) or _("No runs yet.")
