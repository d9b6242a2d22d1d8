"""The handle of a run. It holds nothing but a name: any kernel's handle of that name is as good."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
import uuid
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from kpaas_lab.engines.base import Engine
from kpaas_lab.engines.records import read_json, write_json
from kpaas_lab.errors import AlreadyExistsError, EngineUnavailableError, NotFoundError, RunFailedError, WaitTimeoutError
from kpaas_lab.i18n import _
from kpaas_lab.training import folder
from kpaas_lab.training.checkpoint import steps
from kpaas_lab.workloads import Job, Phase, Status

PREFIX = "run-"  # of the workload's name: a run and an endpoint may be called alike
LAST_LINES = 20
POLL = 0.1


@dataclass(frozen=True, slots=True)
class RunModel:
    """The model that a run made.

    Attributes:
        path: its folder; `kpaas_lab.models.load` reads it.
        run: name of the run.
    """

    path: Path
    run: str

    def __fspath__(self) -> str:
        return str(self.path)


class Run:
    """A training run.

    Attributes:
        name: among this learner's runs.
        path: its folder.
    """

    def __init__(self, engine: Engine, path: Path) -> None:
        self._engine = engine
        self.path = path
        self.name = path.name
        self._workload = f"{PREFIX}{self.name}"

    def __repr__(self) -> str:
        try:
            status = self.status
        except NotFoundError:
            return f"Run({self.name!r}, deleted)"
        done = self.progress
        more = f", step {done[0]} of {done[1]}" if done else ""
        return f"Run({self.name!r}, {status.phase}{more}{', ' + status.message if status.message else ''})"

    @property
    def status(self) -> Status:
        """How it is now.

        Raises:
            NotFoundError: it was deleted.
        """
        record = self._record()
        try:
            status = self._engine.get(self._workload)
        except NotFoundError:  # a kill between two steps of train or resume
            return Status(
                name=self.name,
                kind="Job",
                phase=Phase.FAILED,
                reason="Lost",
                message=_("{name} was interrupted before it started.").format(name=self.name),
                created=datetime.fromisoformat(record["created"]),
                slice=record["slice"],
            )
        return replace(status, name=self.name, message=status.message.replace(self._workload, self.name))

    @property
    def params(self) -> Mapping[str, Any]:
        """What the function is called with, besides data and seed."""
        return read_json(self.path / folder.PARAMS)

    @property
    def seed(self) -> int:
        """Of all random numbers."""
        return int(self._record()["seed"])

    @property
    def environment(self) -> Mapping[str, Any]:
        """What it ran in: digest, Python, and the installed distributions; empty before it has started."""
        return read_json(self.path / folder.ENVIRONMENT)

    @property
    def progress(self) -> tuple[int, int] | None:
        """Steps done and steps in all, where the function has reported a total."""
        for record in reversed(self.metrics()):
            if "total" in record:
                return record["step"], record["total"]
        return None

    @property
    def model(self) -> RunModel:
        """The model that the function returned.

        Raises:
            NotFoundError: there is none, or not yet; the hint says which.
        """
        path = self.path / folder.MODEL
        if (path / "model.json").exists():
            return RunModel(path, self.name)
        status = self.status
        hint = {
            Phase.SUCCEEDED: _("Its function returned none: return the model, or (model, example)."),
            Phase.FAILED: _("It failed: see run.logs(); run.resume() goes on from its last checkpoint."),
            Phase.CANCELLED: _("It was cancelled: run.resume() goes on from its last checkpoint."),
        }.get(status.phase, _("It still runs: run.wait() first."))
        raise NotFoundError(_("The run {name!r} has no model.").format(name=self.name), hint=hint)

    def metrics(self) -> list[dict[str, Any]]:
        """What the function reported: one dict for each report, with `step` and the values."""
        try:
            text = (self.path / folder.METRICS).read_text(encoding="utf-8")
        except FileNotFoundError:
            return []
        return list(folder.merge(folder.read_lines(text)))

    def logs(self, *, follow: bool = False) -> Iterator[str]:
        """Lines of its output, those of earlier attempts first; with `follow`, until it has ended."""
        self._record()
        for path in sorted((self.path / folder.LOGS).glob("*.log")):
            with contextlib.suppress(FileNotFoundError):
                yield from path.read_text(encoding="utf-8", errors="replace").splitlines()
        with contextlib.suppress(NotFoundError):
            yield from self._engine.logs(self._workload, follow=follow)

    def wait(self, timeout: float | None = None) -> Run:
        """Wait until it has ended well; the run itself, so that `train(...).wait().model` reads well.

        Args:
            timeout: seconds; None waits for ever.

        Raises:
            RunFailedError: it failed or was cancelled; with exit code and last lines.
            WaitTimeoutError: it still runs; nothing is stopped.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        line = _TerminalLine()
        while not (status := self.status).phase.ended:
            line.show(self)
            if deadline is not None and time.monotonic() >= deadline:
                raise WaitTimeoutError(
                    _("{name} hasn't ended after {seconds:g} s.").format(name=self.name, seconds=timeout),
                    hint=_("It goes on; wait again, or run.cancel()."),
                )
            time.sleep(POLL if deadline is None else max(0.0, min(POLL, deadline - time.monotonic())))
        line.clear()
        if status.phase is Phase.SUCCEEDED:
            return self
        cancelled = status.phase is Phase.CANCELLED
        raise RunFailedError(
            _("{name} was cancelled.").format(name=self.name) if cancelled else status.message,
            hint=_("run.resume() goes on from its last checkpoint.") if self._checkpoints() else "",
            exit_code=status.exit_code,
            last_lines=deque(self.logs(), maxlen=LAST_LINES),
        )

    def cancel(self) -> Run:
        """Stop it; its record, log and checkpoints stay."""
        self._record()
        with contextlib.suppress(NotFoundError):
            self._engine.cancel(self._workload)
        return self

    def resume(self) -> Run:
        """Go on from the last checkpoint after a failure, a kill or a cancel; from the start where there is none.

        Raises:
            AlreadyExistsError: it still runs, or has succeeded.
        """
        status = self.status
        if not status.phase.ended or status.phase is Phase.SUCCEEDED:
            raise AlreadyExistsError(
                _("{name} is {phase}; there is nothing to resume.").format(name=self.name, phase=_(status.phase.value)),
                hint=_("Train again under another name to repeat it."),
            )
        with storage(self.path):
            self._keep_log()
            self._engine.delete(self._workload)
        self.start()
        return self

    def delete(self) -> None:
        """Stop it and remove everything it wrote, its model and checkpoints too. Idempotent."""
        self._engine.delete(self._workload)
        gone = self.path.with_name(f".gone-{uuid.uuid4().hex}")
        with storage(self.path), contextlib.suppress(FileNotFoundError):
            self.path.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)

    def start(self) -> Status:
        """Create the Job of the next attempt. For `train` and `resume`."""
        record = self._record()
        attempt = len(list((self.path / folder.LOGS).glob("*.log"))) + 1
        return self._engine.create(
            Job(
                name=self._workload,
                command=(record["python"], "-P", "-m", "kpaas_lab.runtime.train", str(self.path)),
                workdir=self.path,
                env={
                    folder.DIR_VARIABLE: str(self.path),
                    folder.ATTEMPT_VARIABLE: str(attempt),
                    "PYTHONHASHSEED": str(record["seed"] % 2**32),
                    "KPAAS_LAB_USER_HOME": str(self.path.parent.parent),
                },
                slice=record["slice"],
                nodes=record["nodes"],
                labels={"run": self.name},
            )
        )

    def _record(self) -> dict[str, Any]:
        record = read_json(self.path / folder.RUN)
        if not record:
            raise NotFoundError(_("There is no run {name!r} any more.").format(name=self.name))
        return record

    def _checkpoints(self) -> Sequence[int]:
        return steps(self.path / folder.CHECKPOINTS)

    def _keep_log(self) -> None:
        """Move the ended attempt's log here: the engine forgets it with the workload."""
        logs = self.path / folder.LOGS
        logs.mkdir(exist_ok=True)
        try:
            lines = list(self._engine.logs(self._workload))
        except NotFoundError:
            return
        number = len(list(logs.glob("*.log"))) + 1
        draft = logs / f".{number}"
        draft.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        draft.rename(logs / f"{number:04d}.log")


class _TerminalLine:
    """One line at a terminal that follows a run; nothing where nobody would see it change."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._due = time.monotonic() + 1.0

    def show(self, run: Run) -> None:
        """Once a second."""
        if self._live and time.monotonic() >= self._due:
            self._due += 1.0
            sys.stderr.write(f"\r\x1b[K{run!r}")
            sys.stderr.flush()

    def clear(self) -> None:
        """Leave the terminal as it was."""
        if self._live:
            sys.stderr.write("\r\x1b[K")


def make(path: Path, record: Mapping[str, Any], params: Mapping[str, Any], source: str) -> None:
    """Make a run's folder, whole and durable or not at all.

    Raises:
        AlreadyExistsError: the name is taken.
    """
    draft = path.with_name(f".new-{uuid.uuid4().hex}")
    with storage(path.parent):
        draft.mkdir(parents=True)
        try:
            (draft / folder.SOURCE).write_text(source, encoding="utf-8")
            write_json(draft / folder.PARAMS, dict(params))
            write_json(draft / folder.RUN, dict(record))
            os.rename(draft, path)
        except OSError as error:
            shutil.rmtree(draft, ignore_errors=True)
            if not path.exists():
                raise
            raise AlreadyExistsError(
                _("There is a run {name!r} already.").format(name=path.name),
                hint=_("Choose another name, or lab.runs[{name!r}].delete() first.").format(name=path.name),
            ) from error


@contextlib.contextmanager
def storage(path: Path) -> Iterator[None]:
    """An error of the file system, as the library's own."""
    try:
        yield
    except OSError as error:
        raise EngineUnavailableError(
            _("{path} can't be written: {error}.").format(path=path, error=error.strerror or error),
            hint=_("Check that the disk isn't full or read-only; delete runs that you no longer need."),
        ) from error
