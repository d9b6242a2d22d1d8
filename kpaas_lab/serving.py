"""Serving: a model becomes a Service that speaks the Open Inference Protocol v2, and an `Endpoint` is its handle."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import filelock

from kpaas_lab import models
from kpaas_lab.endpoint_client import EndpointClient
from kpaas_lab.engines.base import Engine
from kpaas_lab.errors import (
    AlreadyExistsError,
    EngineUnavailableError,
    NotFoundError,
    RunFailedError,
    SettingsError,
    WaitTimeoutError,
)
from kpaas_lab.i18n import _
from kpaas_lab.slices import find, load_catalogue
from kpaas_lab.workloads import NAME, Service, Status, check_name

LABELS = {"kind": "endpoint"}
READY_SECONDS = 120.0
_LAST_LINES = 20


class Home(Protocol):
    """What serving needs of `kpaas_lab.settings.Settings`."""

    @property
    def home(self) -> Path:
        """The lab's home of this learner."""
        ...

    @property
    def slices_file(self) -> Path:
        """The catalogue of slices."""
        ...


class NoEndpointError(NotFoundError, KeyError):
    """No endpoint of that name; a KeyError too, as of any mapping."""


def serve(
    engine: Engine,
    settings: Home,
    model: Any,
    /,
    *,
    name: str,
    slice: str | None = None,
    replicas: int = 1,
    max_batch: int = 32,
    max_delay: float = 0.002,
    max_bytes: int = 10 << 20,
    example: Any = None,
    wait: bool = True,
) -> Endpoint:
    """Serve a model: as a Service on a slice. It keeps answering after this kernel has ended.

    The model is copied, so that the run it came from may be deleted.

    Args:
        engine: where it runs.
        settings: whose home holds it.
        model: a run's model, the folder of a saved model, a torch module, a scikit-learn estimator, or a function of
            arrays.
        name: of the endpoint, and of the model in the protocol's paths.
        slice: name of a slice; None is the CPU slice.
        replicas: processes that answer.
        max_batch: rows of several requests that run as one, at most; 1 turns batching off.
        max_delay: seconds a request waits for others, at most.
        max_bytes: of one request; a larger one is answered 413.
        example: an input the model takes; needed for modules and functions, see `kpaas_lab.models.save`.
        wait: until it answers.

    Raises:
        ModelError: the model can't be saved safely, or isn't a saved model.
        AlreadyExistsError: there is an endpoint of this name.
        SettingsError: an argument that can't be used.
        UnknownSliceError, NoCapacityError, EngineUnavailableError: of the engine.
        RunFailedError: it doesn't start; with the last lines of its log. Nothing of it is left.
        WaitTimeoutError: it isn't ready after two minutes, and goes on starting.
    """
    check_name(name)
    _check(max_delay, replicas=(replicas, 32), max_batch=(max_batch, 4096), max_bytes=(max_bytes, 1 << 30))
    threads = max(1, round(find(load_catalogue(settings.slices_file), slice).cpus))
    folder = settings.home / "endpoints" / name
    with _exclusive(folder):
        if _status(engine, name) is not None:
            raise _taken(name)
        shutil.rmtree(folder, ignore_errors=True)  # of an endpoint whose creation was killed before it was recorded
        try:
            _say(_("Saving the model …"))
            _put(model, folder / "model", example=example, version="1")
            options = {"max-batch": max_batch, "max-delay": max_delay, "max-bytes": max_bytes, "threads": threads}
            engine.create(_service(name, folder, slice, replicas, options))
        except AlreadyExistsError as error:
            raise _taken(name) from error
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
    endpoint = Endpoint(engine, settings, name)
    if wait:
        _say(_("Starting endpoint {name!r} …").format(name=name))
        try:
            endpoint.wait_ready()
        except RunFailedError:
            endpoint.delete()
            raise
    return endpoint


def endpoints(engine: Engine, settings: Home, /) -> Endpoints:
    """All endpoints of this learner by name, oldest first; those of other kernels too."""
    return Endpoints(engine, settings)


class Endpoints(Mapping[str, "Endpoint"]):
    """Endpoints by name, asked of the engine at each use."""

    def __init__(self, engine: Engine, settings: Home) -> None:
        self._engine, self._settings = engine, settings

    def __getitem__(self, name: str) -> Endpoint:
        status = _status(self._engine, name)
        if status is None or not LABELS.items() <= status.labels.items():
            names = ", ".join(self)
            hint = _("Endpoints: {names}.").format(names=names) if names else _("There are none yet.")
            raise NoEndpointError(_("No endpoint {name!r}.").format(name=name), hint=hint)
        return Endpoint(self._engine, self._settings, name)

    def __iter__(self) -> Iterator[str]:
        return iter([status.name for status in self._engine.list(labels=LABELS)])

    def __len__(self) -> int:
        return len(self._engine.list(labels=LABELS))

    def __repr__(self) -> str:
        lines = [f"{name}: {self[name].status.phase}" for name in self]
        return "\n".join(lines) or _("There are no endpoints yet.")


class Endpoint:
    """A served model. Any kernel of its owner can hold one: `lab.endpoints["name"]`.

    Attributes:
        name: of the endpoint.
    """

    def __init__(self, engine: Engine, settings: Home, name: str) -> None:
        self.name = name
        self._engine = engine
        self._settings = settings
        self._client = EndpointClient(name, self._addresses)

    def __repr__(self) -> str:
        status = _status(self._engine, self.name)
        if status is None:
            return _("Endpoint {name!r}: deleted").format(name=self.name)
        state = (
            _("ready ({count})").format(count=status.ready) if status.ready else status.message or _(status.phase.value)
        )
        return _("Endpoint {name!r}: {state}").format(name=self.name, state=state)

    @property
    def status(self) -> Status:
        """How it is now."""
        return self._engine.get(self.name)

    def predict(self, data: Any, *, output: str | None = None, timeout: float = 60.0) -> Any:
        """What the model says.

        Args:
            data: an array (or tensor, or list) of rows for a model with one input, or a dict by input name, or a data
                frame. One row without its batch dimension is answered by one row.
            output: of several outputs only this one.
            timeout: seconds.

        Returns:
            An array where there is one output (or `output` is given), else a dict of arrays by name.

        Raises:
            ModelError: the input isn't what the model takes (which, what is expected, what came), or the model failed.
            EngineUnavailableError: no replica answers.
            WaitTimeoutError: no answer in time.
        """
        return self._client.predict(data, output=output, timeout=timeout)

    def metadata(self) -> dict[str, Any]:
        """The model's metadata in the protocol: name, versions, platform, inputs, outputs."""
        return self._client.get(f"/v2/models/{self.name}")

    def example(self) -> dict[str, Any]:
        """An inference request that works, as the protocol writes it."""
        return self._client.get(f"/v2/models/{self.name}/example")

    def metrics(self) -> dict[str, float]:
        """What its replicas count, added up: requests, errors, seconds, runs, rows, in_flight, queued."""
        return self._client.metrics()

    def logs(self, *, follow: bool = False) -> Iterator[str]:
        """Lines of its output, oldest first."""
        return self._engine.logs(self.name, follow=follow)

    def wait_ready(self, timeout: float = READY_SECONDS) -> Endpoint:
        """Wait until it answers.

        Raises:
            RunFailedError: it doesn't start; with the last lines of its log.
            WaitTimeoutError: not in time; it goes on starting.
        """
        deadline = time.monotonic() + timeout
        while not (status := self.status).ready:
            code = status.exit_code or 0
            if status.phase.ended or code > 0 or status.reason == "OutOfMemory":
                raise RunFailedError(
                    _("Endpoint {name!r} doesn't start.").format(name=self.name),
                    hint=status.message,
                    exit_code=status.exit_code,
                    last_lines=list(self.logs())[-_LAST_LINES:],
                )
            if time.monotonic() > deadline:
                raise WaitTimeoutError(
                    _("Endpoint {name!r} isn't ready after {seconds:.0f} s.").format(name=self.name, seconds=timeout),
                    hint=_("It goes on starting: wait_ready() again, or read its logs()."),
                )
            time.sleep(0.05)
        return self

    def update(self, model: Any, *, example: Any = None, timeout: float = READY_SECONDS) -> Endpoint:
        """Serve another model under the same name, without a gap: each replica loads it, then changes over.

        Args:
            model: as in `serve`.
            example: as in `serve`.
            timeout: seconds until every replica serves it.

        Raises:
            ModelError: the model can't be saved safely; the old one is served on.
            WaitTimeoutError: a replica doesn't serve it in time; its log says why.
        """
        folder = self._settings.home / "endpoints" / self.name
        with _exclusive(folder):
            self._engine.get(self.name)  # NotFoundError where it was deleted
            version = str(int(models.read_manifest(folder / "model").version) + 1)
            _put(model, folder / "model", example=example, version=version)
        deadline = time.monotonic() + timeout
        while set(self._client.versions()) != {version}:
            if time.monotonic() > deadline:
                raise WaitTimeoutError(
                    _("Endpoint {name!r} doesn't serve version {version} after {seconds:.0f} s.").format(
                        name=self.name, version=version, seconds=timeout
                    ),
                    hint="\n".join(list(self.logs())[-_LAST_LINES:]),
                )
            time.sleep(0.1)
        return self

    def delete(self) -> None:
        """Stop it and forget it, its copy of the model too. Idempotent."""
        self._engine.delete(self.name)
        self._client.close()
        shutil.rmtree(self._settings.home / "endpoints" / self.name, ignore_errors=True)

    def _addresses(self) -> tuple[str, ...]:
        return self.status.addresses


def _say(text: str) -> None:
    """A step that may take seconds (torch's export does), to a person who waits."""
    if "ipykernel" in sys.modules or sys.stdout.isatty():
        sys.stdout.write(text + "\n")


def _check(max_delay: float, **whole: tuple[int, int]) -> None:
    for what, (value, most) in whole.items():
        least = 1024 if what == "max_bytes" else 1
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise SettingsError(
                _("{what}={value!r} can't be.").format(what=what, value=value),
                hint=_("Give a whole number from {least} to {most}.").format(least=least, most=most),
            )
    if isinstance(max_delay, bool) or not isinstance(max_delay, int | float) or not 0 <= max_delay <= 1:
        raise SettingsError(
            _("{what}={value!r} can't be.").format(what="max_delay", value=max_delay),
            hint=_("Give seconds from 0 to 1, for example 0.002."),
        )


def _status(engine: Engine, name: str) -> Status | None:
    if not isinstance(name, str) or not NAME.fullmatch(name):
        return None
    try:
        return engine.get(name)
    except NotFoundError:
        return None


def _taken(name: str) -> AlreadyExistsError:
    return AlreadyExistsError(
        _("There is an endpoint {name!r} already.").format(name=name),
        hint=_("Give it another model with lab.endpoints[{name!r}].update(model), or delete() it first.").format(
            name=name
        ),
    )


@contextlib.contextmanager
def _exclusive(folder: Path) -> Iterator[None]:
    """One writer of an endpoint's folder at a time, among all kernels."""
    lock = filelock.FileLock(folder.with_name(f".{folder.name}.lock"), timeout=600)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        raise EngineUnavailableError(
            _("{path} can't be written: {error}.").format(path=folder.parent, error=error.strerror or error),
            hint=_("Free some disk space, or ask whoever runs this installation."),
        ) from error
    try:
        yield
    finally:
        lock.release()


def _put(model: Any, folder: Path, *, example: Any, version: str) -> None:
    """A copy of a saved model, or a live one saved there."""
    place = model if isinstance(model, str | os.PathLike) else getattr(model, "path", None)
    if isinstance(place, str | os.PathLike):
        models.install(Path(place), folder, version=version)
    else:
        models.save(model, folder, example=example, version=version)


def _service(name: str, folder: Path, slice: str | None, replicas: int, options: Mapping[str, float]) -> Service:
    return Service(
        name=name,
        command=(
            *(sys.executable, "-m", "kpaas_lab.runtime.serve", "--model", str(folder / "model"), "--name", name),
            *(text for option, value in options.items() for text in (f"--{option}", str(value))),
        ),
        workdir=folder,
        env={"OMP_NUM_THREADS": str(options["threads"])},
        slice=slice,
        replicas=replicas,
        labels=LABELS,
    )


__all__ = ["Endpoint", "Endpoints", "NoEndpointError", "endpoints", "serve"]
