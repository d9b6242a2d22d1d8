"""Saving, loading and installing a model folder. `model.json` is written last: it is the commit."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import os
import secrets
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, cast

from pydantic import ValidationError

from kpaas_lab import durable, oip
from kpaas_lab.errors import ModelError
from kpaas_lab.i18n import _
from kpaas_lab.models import manifest as manifests
from kpaas_lab.models.examples import Dumped, Run
from kpaas_lab.models.manifest import Manifest
from kpaas_lab.oip.schema import decode_text
from kpaas_lab.oip.tensors import Array

# Reading one of these can run any code that whoever wrote it has put into it.
_RUNS_CODE = frozenset(
    {".pkl", ".pickle", ".joblib", ".dill", ".cloudpickle", ".pt", ".pth", ".ckpt", ".bin", ".mar", ".h5", ".keras"}
)


class Format(Protocol):
    """One module of `kpaas_lab.models.formats`."""

    LIBRARIES: tuple[str, ...]

    def dump(self, model: Any, example: Any) -> Dumped:
        """The model's file and what it takes and gives."""
        ...

    def load(self, data: bytes, manifest: Manifest, threads: int) -> Run:
        """What runs the model."""
        ...


_SUFFIX = {"onnx": ".onnx", "skops": ".skops", "python": ".py"}


class Predictor:
    """A loaded model.

    Attributes:
        manifest: what it is: `.inputs`, `.outputs`, `.version`.
    """

    def __init__(self, manifest: Manifest, run: Run) -> None:
        self.manifest = manifest
        self._run = run
        self._texts = [spec.name for spec in manifest.inputs if spec.text]

    def predict(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """All outputs for these inputs.

        Args:
            inputs: arrays by name, of the manifest's datatypes and shapes.

        Raises:
            ProtocolError: an input that isn't the model's; names it, what is expected and what came.
            Exception: whatever the model itself raises.
        """
        oip.check_inputs(inputs, self.manifest.inputs)
        return self.run(inputs)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """As `predict`, for inputs that are checked already."""
        if self._texts:
            inputs = {**inputs, **{name: decode_text(inputs[name]) for name in self._texts}}
        return self._run(inputs)


def save(model: Any, directory: Path | str, *, example: Any = None, version: str = "1") -> Manifest:
    """Save a model so that it can be loaded and served without running foreign code.

    Args:
        model: a `torch.nn.Module`, a scikit-learn estimator, or a function of numpy arrays.
        directory: the folder to make, or a saved model's to replace.
        example: an input that the model takes: an array or tensor, a tuple of them, or a dict by name. Needed for
            modules and functions; an estimator that knows its number of features needs none.
        version: of the model.

    Returns:
        What was saved. Nothing is left behind, and an older model stays whole, where this raises.

    Raises:
        ModelError: the model can't be saved safely, the example is missing or doesn't fit, or the disk is full.
    """
    directory = Path(directory)
    if isinstance(model, str | os.PathLike):
        raise _refused(Path(model))
    kind = _format_of(model)
    module = _module(kind)
    data, learned, details = module.dump(model, example)
    digest = hashlib.sha256(data).hexdigest()
    made = Manifest(
        format=cast(Any, kind),
        version=version,
        inputs=learned.inputs,
        outputs=learned.outputs,
        batched=learned.batched,
        # Named by its digest, a new model never overwrites the file that a server may be reading.
        files={f"model-{digest[:12]}{_SUFFIX[kind]}": digest},
        libraries=_versions(module.LIBRARIES),
        example=learned.example,
        details=details,
    )
    _write(made, data, directory)
    return made


def load(directory: Path | str, *, threads: int | None = None) -> Predictor:
    """Load a saved model. Imports only what its format needs; never torch.

    Args:
        directory: a folder that `save` made.
        threads: processor threads it may use; None is what this process may use.

    Raises:
        ModelError: not a saved model, changed since it was saved, or of a kind that runs code when it is read.
    """
    directory = Path(directory)
    manifest = read_manifest(directory)
    name, data = _read_file(directory, manifest)
    try:
        run = _module(manifest.format).load(data, manifest, threads or available_threads())
    except ModelError:
        raise
    except ImportError as error:
        raise ModelError(
            _("The model in {path} needs a library that isn't here: {error}.").format(path=directory, error=error)
        ) from error
    except Exception as error:
        raise ModelError(
            _("{path} can't be loaded: {kind}: {error}").format(
                path=directory / name, kind=type(error).__name__, error=str(error)[:500]
            ),
            hint=_("It was saved with {versions}.").format(
                versions=", ".join(f"{library} {version}" for library, version in manifest.libraries.items())
            ),
        ) from error
    return Predictor(manifest, run)


def read_manifest(directory: Path | str) -> Manifest:
    """What a saved model says it is; the model itself isn't read.

    Raises:
        ModelError: not a folder that `save` made.
    """
    directory = Path(directory)
    file = directory / manifests.FILE
    try:
        text = _read_plain(file)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise _refused(directory) from error
    except OSError as error:
        raise ModelError(_("{path} can't be read: {error}.").format(path=file, error=error.strerror)) from error
    try:
        manifest = Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "model.json"
        raise ModelError(
            _("{path} doesn't describe a model: {where}: {what}.").format(path=file, where=where, what=first["msg"]),
            hint=_("Save the model again."),
        ) from error
    if len(manifest.files) != 1 or not next(iter(manifest.files)).endswith(_SUFFIX[manifest.format]):
        raise ModelError(_("{path} doesn't name one {format} file.").format(path=file, format=manifest.format))
    return manifest


def install(source: Path | str, directory: Path | str, *, version: str = "1") -> Manifest:
    """Copy a saved model to another folder, replacing what is there in one step.

    A server that watches the folder sees either the old model or the new one, whole.

    Raises:
        ModelError: the source isn't a whole saved model, or the folder can't be written.
    """
    manifest = read_manifest(source)
    _name, data = _read_file(Path(source), manifest)
    installed = manifest.model_copy(update={"version": version})
    _write(installed, data, Path(directory))
    return installed


def available_threads() -> int:
    """Processor threads this process may use: OMP_NUM_THREADS, else the cores it may run on."""
    with contextlib.suppress(KeyError, ValueError):
        return max(1, int(os.environ["OMP_NUM_THREADS"]))
    return len(os.sched_getaffinity(0))


def _format_of(model: Any) -> str:
    """By the libraries that are loaded already: a model's own library always is."""
    torch, base = sys.modules.get("torch"), sys.modules.get("sklearn.base")
    if torch is not None and isinstance(model, torch.nn.Module):
        return "onnx"
    if base is not None and isinstance(model, base.BaseEstimator):
        return "skops"
    if callable(model):
        return "python"
    raise ModelError(
        _("A model of type {kind} can't be saved.").format(kind=type(model).__name__),
        hint=_("Give a torch module, a scikit-learn estimator, or a function of numpy arrays."),
    )


def _module(kind: str) -> Format:
    return cast(Format, importlib.import_module(f"kpaas_lab.models.formats.{kind}_format"))


def _versions(names: tuple[str, ...]) -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in names}


def _refused(path: Path) -> ModelError:
    """Why something isn't a saved model, with what to do."""
    if not path.exists():
        return ModelError(_("There is no model at {path}.").format(path=path))
    files = [path] if path.is_file() else sorted(path.iterdir())[:1000]
    runs_code = next((file for file in files if file.suffix.lower() in _RUNS_CODE), None)
    if runs_code:
        return ModelError(
            _("{path} is not read: files of this kind can run any code when they are opened.").format(path=runs_code),
            hint=_(
                "Open it where you trust it, and save the model itself: kpaas_lab.models.save(model, folder, "
                "example=...). That writes ONNX, skops or source."
            ),
        )
    return ModelError(
        _("{path} is not a saved model: it has no model.json.").format(path=path),
        hint=_("Save one with kpaas_lab.models.save(model, folder, example=...)."),
    )


def _read_plain(file: Path) -> bytes:
    """A file's bytes; a link in its place is an error, so that a folder can't point out of itself."""
    with open(os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as handle:
        return handle.read()


def _read_file(directory: Path, manifest: Manifest) -> tuple[str, bytes]:
    ((name, digest),) = manifest.files.items()
    try:
        data = _read_plain(directory / name)
    except OSError as error:
        raise ModelError(
            _("{path} can't be read: {error}.").format(path=directory / name, error=error.strerror)
        ) from error
    if hashlib.sha256(data).hexdigest() != digest:
        raise ModelError(
            _("{path} was changed after it was saved; it is not loaded.").format(path=directory / name),
            hint=_("Save the model again."),
        )
    return name, data


def _write(manifest: Manifest, data: bytes, directory: Path) -> None:
    """Write a model folder; an existing model is replaced by the last step, the rename of model.json."""
    fresh = not directory.exists()
    if not fresh and not (directory / manifests.FILE).exists() and any(directory.iterdir()):
        raise ModelError(
            _("{path} holds other files; a model isn't saved over them.").format(path=directory),
            hint=_("Choose a folder that doesn't exist."),
        )
    target = directory.with_name(f".{directory.name}.{secrets.token_hex(4)}") if fresh else directory
    try:
        target.mkdir(parents=True, exist_ok=True)
        _write_files(manifest, data, target)
        if fresh:
            target.rename(directory)
            durable.sync_folder(directory.parent)
    except OSError as error:
        raise ModelError(
            _("The model can't be written to {path}: {error}.").format(path=directory, error=error.strerror)
        ) from error
    finally:
        if fresh:
            shutil.rmtree(target, ignore_errors=True)


def _write_files(manifest: Manifest, data: bytes, folder: Path) -> None:
    previous: set[str] = set()
    with contextlib.suppress(ModelError):
        previous = set(read_manifest(folder).files)
    (name,) = manifest.files
    durable.write(folder / name, data, mode=0o644)
    durable.write(folder / manifests.FILE, manifest.model_dump_json(indent=1), mode=0o644)
    for file in folder.glob("model-*"):
        if file.name not in previous | {name}:
            file.unlink(missing_ok=True)
