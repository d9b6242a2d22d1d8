"""`python -m kpaas_lab.runtime.train <run folder>`: one node of a run.

Says its first line before anything slow is imported, seeds random numbers, calls the function, and saves what it
returned. The exit code is the function's own, 1 after an exception, 137 when memory ran out.
"""

from __future__ import annotations

import ast
import faulthandler
import importlib.util
import os
import random
import signal
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

from kpaas_lab.engines.records import read_json, write_json
from kpaas_lab.errors import LabError
from kpaas_lab.i18n import _
from kpaas_lab.runtime.environment import describe
from kpaas_lab.runtime.tracker import Tracker
from kpaas_lab.training import folder

MODULE = "kpaas_lab_run"
OUT_OF_MEMORY, TERMINATED = 137, 143
MEMORY_WORDS = ("can't allocate memory", "out of memory", "cannot allocate memory")


def main(path: Path) -> int:
    """Run this node to its end; its exit status."""
    faulthandler.enable()
    signal.signal(signal.SIGTERM, _on_sigterm)
    run = read_json(path / folder.RUN)
    params = read_json(path / folder.PARAMS)
    first = folder.rank() == 0
    if first:
        _say(_first_line(path, run, params))
        write_json(path / folder.ENVIRONMENT, describe())
    os.environ.update(torchrun_variables(os.environ))
    tracker = Tracker(path) if first else None
    code = 1
    try:
        code = _train(path, run, params, tracker)
    finally:
        if tracker:
            tracker.finish(code)
    return code


def _first_line(path: Path, run: dict[str, Any], params: dict[str, Any]) -> str:
    shown = ", ".join(f"{name}={value!r}"[:80] for name, value in params.items())
    attempt = int(os.environ.get(folder.ATTEMPT_VARIABLE, "1"))
    again = _(", attempt {attempt}").format(attempt=attempt) if attempt > 1 else ""
    slice_name = os.environ.get("KPAAS_LAB_SLICE") or run["slice"] or ""
    return _("{name}: {function}({params}) on slice {slice}, seed {seed}{again}").format(
        name=path.name, function=run["function"], params=shown, slice=slice_name, seed=run["seed"], again=again
    )


def _train(path: Path, run: dict[str, Any], params: dict[str, Any], tracker: Tracker | None) -> int:
    """Call the function and save its model; every end of it as an exit code."""
    try:
        result, example = _call(path, run, params, tracker)
        if tracker and result is not None:
            _save(path, result, example)
        elif tracker:
            _say(_("The function returned nothing: this run has no model."))
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        _say(str(end.code), sys.stderr)
        return 1
    except LabError as error:
        _print_traceback(error)
        return 1
    except BaseException as error:
        _print_traceback(error)
        return OUT_OF_MEMORY if is_out_of_memory(error) else 1
    return 0


def _call(path: Path, run: dict[str, Any], params: dict[str, Any], tracker: Tracker | None) -> tuple[Any, Any]:
    """The function's model and an example input, where there is one."""
    from kpaas_lab.source import Source
    from kpaas_lab.training.function import parameters

    text = (path / folder.SOURCE).read_text(encoding="utf-8")
    seed(run["seed"], torch="torch" in imported(text))
    if tracker:
        tracker.start()
    module = _module(path / folder.SOURCE)
    data = None
    if run["data"]:
        from kpaas_lab import datasets

        data = datasets.load(run["data"])
    passed = {"data": data} if data is not None else {}
    asked = parameters(Source(text, run["function"])).names
    passed |= {name: run[name] for name in ("seed", "nodes") if name in asked and name not in params}
    result = getattr(module, run["function"])(**passed, **params)
    if isinstance(result, tuple) and len(result) == 2:
        return result
    return result, data.example if data is not None else None


def _module(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(MODULE, file)
    assert spec is not None  # noqa: S101
    assert spec.loader is not None  # noqa: S101
    module = importlib.util.module_from_spec(spec)
    sys.modules[MODULE] = module
    keep, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    spec.loader.exec_module(module)
    sys.dont_write_bytecode = keep
    return module


def _save(path: Path, model: Any, example: Any) -> None:
    from kpaas_lab import models

    models.save(model, path / folder.MODEL, example=example)
    _say(_("The model is saved."))


def imported(text: str) -> set[str]:
    r"""The packages that a module's text imports, anywhere in it.

    Example:
        >>> sorted(imported("import torch.nn as nn\ndef f():\n    from random import choice"))
        ['random', 'torch']
    """
    names: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    return names


def seed(number: int, *, torch: bool) -> None:
    """Seed random, numpy and, where it is used, torch."""
    import numpy as np

    random.seed(number)
    np.random.seed(number % 2**32)
    if torch:
        import torch as torch_module

        torch_module.manual_seed(number)


def torchrun_variables(environ: os._Environ[str] | dict[str, str]) -> dict[str, str]:
    """What torchrun would set (its documentation, "Environment Variables"), for one process a node.

    Example:
        >>> one = {"KPAAS_LAB_NODE_RANK": "1", "KPAAS_LAB_NODES": "2", "KPAAS_LAB_MASTER": "127.0.0.1:29500"}
        >>> torchrun_variables(one)["RANK"], torchrun_variables(one)["MASTER_PORT"]
        ('1', '29500')
    """
    rank, nodes = environ.get("KPAAS_LAB_NODE_RANK", "0"), environ.get("KPAAS_LAB_NODES", "1")
    host, _colon, port = environ.get("KPAAS_LAB_MASTER", "127.0.0.1:0").rpartition(":")
    return {
        "RANK": rank,
        "WORLD_SIZE": nodes,
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "1",
        "GROUP_RANK": rank,
        "MASTER_ADDR": host,
        "MASTER_PORT": port,
    }


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed: Python's own error, or what torch says.

    Example:
        >>> is_out_of_memory(MemoryError()), is_out_of_memory(RuntimeError("CUDA out of memory."))
        (True, True)
    """
    text = str(error).lower()
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError | OSError) and any(word in text for word in MEMORY_WORDS)
    )


def _print_traceback(error: BaseException) -> None:
    """The function's own frames; an error of this library, without its inner ones, in its own words."""
    trace = error.__traceback__
    while trace and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    if isinstance(error, LabError):
        inside = trace is not None and trace.tb_frame.f_globals.get("__name__") == MODULE
        if inside:
            traceback.print_tb(trace, limit=1)
        _say(f"{type(error).__name__}: {error}", sys.stderr)
        return
    traceback.print_exception(type(error), error, trace)


def _on_sigterm(_number: int, _frame: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise SystemExit(TERMINATED)


def _say(line: str, to: Any = None) -> None:
    stream = to or sys.stdout
    stream.write(f"{line}\n")
    stream.flush()


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1])))
