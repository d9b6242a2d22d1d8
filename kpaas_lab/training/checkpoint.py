"""Checkpoints: a training's state on disk, without pickle. Tensors are safetensors, the rest is JSON."""

from __future__ import annotations

import json
import os
import shutil
import sys
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kpaas_lab.durable import sync_folder
from kpaas_lab.errors import SettingsError
from kpaas_lab.i18n import _
from kpaas_lab.training import folder

STATE, TORCH, NUMPY = "state.json", "torch.safetensors", "numpy.safetensors"
KEEP = 2


def save(state: Mapping[str, Any], *, step: int, keep: int = KEEP) -> None:
    """Keep the training's state, so that `run.resume()` can go on from here. Whole and durable when it returns.

    Only node 0 writes. Outside a run nothing is written.

    Args:
        state: what `load` shall give back: dicts, lists and tuples of tensors, arrays, numbers, texts and None, such
            as `net.state_dict()` and `optimizer.state_dict()`.
        step: of the training; the same number as in `report`.
        keep: how many checkpoints stay; the newest ones.

    Raises:
        SettingsError: something in it that can't be saved safely; the message says where.
        OSError: the disk is full.
    """
    place = folder.current()
    tree, tensors, arrays = pack(state)
    if place is None or folder.rank() != 0:
        return
    write(place / folder.CHECKPOINTS, tree, tensors, arrays, step=step, keep=keep)


def load() -> dict[str, Any] | None:
    """The newest state that was saved in this run, with its `step`; None where there is none, or outside a run.

    Tensors are on the CPU.
    """
    place = folder.current()
    return None if place is None else read_latest(place / folder.CHECKPOINTS)


def steps(place: Path) -> list[int]:
    """The steps of the checkpoints in a folder, in order."""
    names = os.listdir(place) if place.exists() else []
    return sorted(int(name[5:]) for name in names if name.startswith("step-") and name[5:].isdigit())


def write(
    place: Path, tree: Any, tensors: Mapping[str, Any], arrays: Mapping[str, Any], *, step: int, keep: int
) -> None:
    """Write a packed state; a rename makes it a checkpoint."""
    place.mkdir(exist_ok=True)
    draft = place / f".new-{uuid.uuid4().hex}"
    draft.mkdir()
    try:
        if tensors:
            from safetensors.torch import save as torch_bytes

            _write(draft / TORCH, torch_bytes(dict(tensors)))
        if arrays:
            from safetensors.numpy import save as numpy_bytes

            _write(draft / NUMPY, numpy_bytes(dict(arrays)))
        _write(draft / STATE, json.dumps({"step": step, "state": tree}).encode())
        final = place / f"step-{step:010d}"
        if final.exists():
            final.rename(place / f".old-{uuid.uuid4().hex}")
        draft.rename(final)
        sync_folder(place)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    for name in os.listdir(place):
        if name.startswith("."):
            shutil.rmtree(place / name, ignore_errors=True)
    for old in steps(place)[: -max(1, keep)]:
        shutil.rmtree(place / f"step-{old:010d}", ignore_errors=True)


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def read_latest(place: Path) -> dict[str, Any] | None:
    """The newest checkpoint that can be read."""
    for step in reversed(steps(place)):
        try:
            return _read(place / f"step-{step:010d}")
        except (OSError, ValueError, KeyError) as error:
            sys.stderr.write(_("The checkpoint of step {step} can't be read: {error}").format(step=step, error=error))
            sys.stderr.write("\n")
    return None


def _read(path: Path) -> dict[str, Any]:
    stored = json.loads((path / STATE).read_text())
    tensors: dict[str, Any] = {}
    arrays: dict[str, Any] = {}
    if (path / TORCH).exists():
        from safetensors.torch import load as from_bytes

        tensors = from_bytes((path / TORCH).read_bytes())
    if (path / NUMPY).exists():
        from safetensors.numpy import load as arrays_from_bytes

        arrays = arrays_from_bytes((path / NUMPY).read_bytes())
    state = unpack(stored["state"], tensors, arrays)
    return {"step": stored["step"], **state}


def pack(state: Mapping[str, Any]) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """A state as JSON with numbers in place of tensors; the tensors; the arrays.

    Example:
        >>> import numpy as np
        >>> tree, _tensors, arrays = pack({"epoch": 3, "w": np.ones(2), "state": {0: (1, None)}})
        >>> unpack(tree, {}, arrays)
        {'epoch': 3, 'w': array([1., 1.]), 'state': {0: (1, None)}}
    """
    if not isinstance(state, Mapping):
        raise SettingsError(
            _("checkpoint.save needs a dict, not {kind}.").format(kind=type(state).__name__),
            hint=_("For example checkpoint.save({'model': net.state_dict()}, step=epoch)."),
        )
    tensors: dict[str, Any] = {}
    arrays: dict[str, Any] = {}
    return _pack(state, "state", tensors, arrays), tensors, arrays


def _pack(value: Any, where: str, tensors: dict[str, Any], arrays: dict[str, Any]) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        pairs = [[key, _pack(item, f"{where}[{key!r}]", tensors, arrays)] for key, item in value.items()]
        if all(isinstance(key, str) and not key.startswith("$") for key, _item in pairs):
            return dict(pairs)
        if all(isinstance(key, str | int | float | bool) for key, _item in pairs):
            return {"$dict": pairs}
    if isinstance(value, list):
        return [_pack(item, f"{where}[{index}]", tensors, arrays) for index, item in enumerate(value)]
    if isinstance(value, tuple):
        return {"$tuple": _pack(list(value), where, tensors, arrays)}
    torch, numpy = sys.modules.get("torch"), sys.modules.get("numpy")
    if torch is not None and isinstance(value, torch.Tensor):
        tensors[f"t{len(tensors)}"] = value.detach().cpu().contiguous().clone()
        return {"$tensor": f"t{len(tensors) - 1}"}
    if numpy is not None and isinstance(value, numpy.generic):
        return _pack(value.item(), where, tensors, arrays)
    if numpy is not None and isinstance(value, numpy.ndarray) and value.dtype.kind in "biuf":
        arrays[f"a{len(arrays)}"] = numpy.ascontiguousarray(value).reshape(value.shape)
        return {"$array": f"a{len(arrays) - 1}"}
    raise SettingsError(
        _("{where} is a {kind}: a checkpoint can't hold it safely.").format(where=where, kind=type(value).__name__),
        hint=_("Save numbers, texts, tensors and arrays, in dicts, lists and tuples; of a module its state_dict()."),
    )


def unpack(tree: Any, tensors: Mapping[str, Any], arrays: Mapping[str, Any]) -> Any:
    """The state that `pack` took apart."""
    if isinstance(tree, list):
        return [unpack(item, tensors, arrays) for item in tree]
    if not isinstance(tree, dict):
        return tree
    if len(tree) == 1:
        ((kind, value),) = tree.items()
        if kind == "$tensor":
            return tensors[value]
        if kind == "$array":
            return arrays[value]
        if kind == "$tuple":
            return tuple(unpack(value, tensors, arrays))
        if kind == "$dict":
            return {key: unpack(item, tensors, arrays) for key, item in value}
    return {key: unpack(item, tensors, arrays) for key, item in tree.items()}
