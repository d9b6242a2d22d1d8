"""Saving and loading models: what is saved predicts the same elsewhere, and nothing that runs foreign code is read."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kpaas_lab import models
from kpaas_lab.errors import ModelError
from kpaas_lab.oip import ProtocolError, TensorSpec

FACTOR = 3


def double(x: np.ndarray) -> np.ndarray:
    return 2 * x


def centre(x: np.ndarray) -> np.ndarray:
    return x - x.mean()


def total(x: np.ndarray) -> float:
    return float(x.sum())


def shout(texts: np.ndarray) -> dict[str, Any]:
    return {"loud": np.array([text.upper() for text in texts]), "length": np.array([len(text) for text in texts])}


def add(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return a + b, a - b


def by_name(inputs: dict[str, np.ndarray]) -> np.ndarray:
    return inputs["left"] + inputs["right"]


def fails(x: np.ndarray) -> np.ndarray:
    raise RuntimeError("no")


def gives_nothing(x: np.ndarray) -> dict[str, Any]:
    return {}


def gives_objects(x: np.ndarray) -> Any:
    return [object()]


def uses_factor(x: np.ndarray) -> np.ndarray:
    return FACTOR * x


async def coroutine(x: np.ndarray) -> np.ndarray:
    return x


X = np.array([[1.0, 2.0], [3.0, 4.0]], dtype=np.float32)


def test_a_function_predicts_the_same_after_loading(tmp_path: Path) -> None:
    manifest = models.save(double, tmp_path / "model", example=X)
    assert manifest.inputs == (TensorSpec("x", "FP32", (-1, 2)),)
    assert manifest.outputs == (TensorSpec("output", "FP32", (-1, 2)),)
    assert manifest.batched
    assert manifest.example == {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1.0, 2.0]}]}
    predictor = models.load(tmp_path / "model")
    assert predictor.manifest == manifest
    assert predictor.predict({"x": X})["output"].tolist() == (2 * X).tolist()
    with pytest.raises(ProtocolError, match="expected shape"):
        predictor.predict({"x": X[0]})


def test_rows_that_depend_on_one_another_are_not_batched(tmp_path: Path) -> None:
    example = np.array([[1.0], [2.0], [9.0]])
    manifest = models.save(centre, tmp_path / "centre", example=example)
    assert not manifest.batched
    assert not models.save(centre, tmp_path / "zero", example=np.zeros((1, 3))).batched
    assert models.save(double, tmp_path / "one", example=np.zeros((1, 3))).batched
    manifest = models.save(total, tmp_path / "total", example=example)
    assert not manifest.batched
    assert manifest.outputs == (TensorSpec("output", "FP64", ()),)


def test_texts_several_inputs_and_a_mapping(tmp_path: Path) -> None:
    models.save(shout, tmp_path / "shout", example=["안녕", "hi"])
    out = models.load(tmp_path / "shout").predict({"texts": np.array([b"a", "\ud55c".encode()], dtype=object)})
    assert out["loud"].tolist() == ["A", "한"]
    assert out["length"].tolist() == [1, 1]
    with pytest.raises(UnicodeDecodeError):
        models.load(tmp_path / "shout").predict({"texts": np.array([b"\xff"], dtype=object)})

    manifest = models.save(add, tmp_path / "add", example=(X, X))
    assert [spec.name for spec in manifest.inputs] == ["a", "b"]
    out = models.load(tmp_path / "add").predict({"a": X, "b": X})
    assert out["output_1"].tolist() == [[0, 0], [0, 0]]

    models.save(by_name, tmp_path / "by_name", example={"left": X, "right": X})
    assert models.load(tmp_path / "by_name").predict({"left": X, "right": X})["output"].tolist() == (2 * X).tolist()


@pytest.mark.parametrize(
    ("model", "example", "says"),
    [
        (double, None, "saved with an example"),
        (double, (X, X), "has 2 inputs; 'double' takes 1"),
        (add, {"a": X}, "'add' takes a, b"),
        (fails, X, "fails on its example: RuntimeError: no"),
        (gives_nothing, X, "no outputs"),
        (gives_objects, X, "objects of type object"),
        (uses_factor, X, "'FACTOR'"),
        (coroutine, X, "coroutine"),
        (lambda x: x, X, "lambda"),
        (double, np.array([1j]), "complex128"),
        (double, [[1, 2], [3]], "'x' is no array"),
        (42, None, "type int can't be saved"),
        (np.mean, X, "not a function"),
    ],
)
def test_what_cant_be_saved_says_why_and_leaves_nothing(tmp_path: Path, model: Any, example: Any, says: str) -> None:
    with pytest.raises(ModelError) as caught:
        models.save(model, tmp_path / "model", example=example)
    assert says in str(caught.value)
    assert list(tmp_path.iterdir()) == []


class Bomb:
    """Creates a file where it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return Path.touch, (self.target,)


@pytest.mark.parametrize("name", ["model.pkl", "model.joblib", "model.pt", "pytorch_model.bin", "x.PTH", "a.ckpt"])
def test_pickle_is_never_read(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / name).write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")))
    for path in (folder, folder / name):
        with pytest.raises(ModelError, match="can run any code") as caught:
            models.load(path)
        assert "kpaas_lab.models.save" in caught.value.hint
    with pytest.raises(ModelError):
        models.save(folder / name, tmp_path / "other")
    assert not (tmp_path / "exploded").exists()


def test_a_manifest_that_points_at_a_pickle_is_refused(tmp_path: Path) -> None:
    models.save(double, tmp_path / "model", example=X)
    (tmp_path / "model" / "model.pkl").write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")))
    manifest = json.loads((tmp_path / "model" / "model.json").read_text())
    for files in (
        {"model.pkl": "0" * 64},
        {"../model.py": "0" * 64},
        {"/etc/passwd": "0" * 64},
        {},
        {"a.py": "0" * 64, "b.py": "0" * 64},
        {"a.onnx": "0" * 64},
    ):
        (tmp_path / "model" / "model.json").write_text(json.dumps({**manifest, "files": files}))
        with pytest.raises(ModelError):
            models.load(tmp_path / "model")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"format": "pickle"}', '{"layout": 2}', "\x00", '{"a":' * 100_000]
)
def test_a_broken_manifest_is_said(tmp_path: Path, text: str) -> None:
    models.save(double, tmp_path / "model", example=X)
    (tmp_path / "model" / "model.json").write_text(text)
    with pytest.raises(ModelError, match=r"model\.json"):
        models.load(tmp_path / "model")


def test_a_changed_or_missing_file_or_a_link_is_refused(tmp_path: Path) -> None:
    (name,) = models.save(double, tmp_path / "model", example=X).files
    file = tmp_path / "model" / name
    original = file.read_text()
    file.write_text(original.replace("2 * x", "3 * x"))
    with pytest.raises(ModelError, match="changed after it was saved"):
        models.load(tmp_path / "model")
    file.unlink()
    with pytest.raises(ModelError, match="can't be read"):
        models.load(tmp_path / "model")
    (tmp_path / "elsewhere.py").write_text(original)
    file.symlink_to(tmp_path / "elsewhere.py")
    with pytest.raises(ModelError, match="can't be read"):
        models.load(tmp_path / "model")


def test_nothing_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no model at"):
        models.load(tmp_path / "none")
    with pytest.raises(ModelError, match=r"no model\.json"):
        models.load(tmp_path)


def test_other_files_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "work.txt").write_text("mine")
    with pytest.raises(ModelError, match="holds other files"):
        models.save(double, tmp_path, example=X)
    assert (tmp_path / "work.txt").read_text() == "mine"


def test_saving_again_replaces_the_model_whole(tmp_path: Path) -> None:
    models.save(double, tmp_path / "model", example=X)
    models.save(centre, tmp_path / "model", example=X)
    assert not models.load(tmp_path / "model").manifest.batched
    installed = models.install(tmp_path / "model", tmp_path / "served", version="2")
    assert installed.version == "2"
    assert models.load(tmp_path / "served").manifest == installed
    for _round in range(3):
        models.save(double, tmp_path / "model", example=X)
    assert len(list((tmp_path / "model").iterdir())) <= 3


def test_a_kill_at_any_step_leaves_a_whole_model(tmp_path: Path) -> None:
    """Every step of replacing a model is a rename; a real SIGKILL before each of them leaves old or new."""
    models.save(double, tmp_path / "old", example=X)
    models.save(centre, tmp_path / "new", example=X)
    for step in range(6):
        target = tmp_path / f"served-{step}"
        models.install(tmp_path / "old", target)
        code = (
            "import os, signal, sys, pathlib\n"
            "from kpaas_lab.models import store\n"
            "left = [int(sys.argv[3])]\n"
            "def counted(real):\n"
            "    def call(*args, **kwargs):\n"
            "        if left[0] == 0: os.kill(os.getpid(), signal.SIGKILL)\n"
            "        left[0] -= 1\n"
            "        return real(*args, **kwargs)\n"
            "    return call\n"
            "os.fsync = counted(os.fsync)\n"
            "pathlib.Path.replace = counted(pathlib.Path.replace)\n"
            "store.install(sys.argv[1], sys.argv[2], version='2')\n"
        )
        done = subprocess.run([sys.executable, "-c", code, tmp_path / "new", target, str(step)], check=False)
        version = models.load(target).manifest.version
        assert (done.returncode, version) in {(-9, "1"), (-9, "2"), (0, "2")}


@pytest.mark.skipif(os.geteuid() == 0 and not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kpaas_lab.models import store

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store.os, "fsync", full)
    with pytest.raises(ModelError, match="No space left on device"):
        models.save(double, tmp_path / "model", example=X)
    assert list(tmp_path.iterdir()) == []


def test_importing_models_loads_no_framework() -> None:
    heavy = ("torch", "sklearn", "onnx", "onnxruntime", "skops", "pandas")
    code = f"import sys, kpaas_lab.models; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
