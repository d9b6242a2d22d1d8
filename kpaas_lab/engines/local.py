"""The engine of one machine: processes, and files under the lab's home. No Kubernetes, no containers, no root."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from kpaas_lab import durable
from kpaas_lab.engines import limits, logfile, records
from kpaas_lab.engines.machine import fitting, this_machine
from kpaas_lab.engines.spawn import spawn
from kpaas_lab.errors import AlreadyExistsError, EngineUnavailableError, NoCapacityError, NotFoundError, SettingsError
from kpaas_lab.i18n import _
from kpaas_lab.slices import SliceCapacity, SliceProfile, find
from kpaas_lab.workloads import NAME, Phase, Service, Status, Workload

RESERVE_BYTES = 4096
JOB_GRACE = 5.0
STOP_MARGIN = 10.0  # seconds beyond its grace that a workload may take to end
LOCK_PATIENCE = 10.0


class LocalEngine:
    """Runs workloads as processes of this machine; see `kpaas_lab.engines.base.Engine`.

    Two engines with one home see the same workloads. Each workload is kept by a process of its own (`shim.py`) that
    outlives this one.

    Args:
        home: the lab's home of one learner.
        catalogue: the slices of this installation.
        log_limit: bytes of output kept of each workload, beginning and end.
    """

    def __init__(
        self, home: Path, catalogue: Sequence[SliceProfile], *, log_limit: int = logfile.DEFAULT_LIMIT
    ) -> None:
        self._folder = Path(home).absolute() / "workloads"
        self._catalogue = tuple(catalogue)
        self._log_limit = log_limit

    def slices(self) -> Sequence[SliceCapacity]:
        """The CPU slices, and the GPU slices that a GPU and its MPS daemon make possible."""
        machine, used = this_machine(), self._slices_in_use()
        return [
            SliceCapacity(profile=profile, total=total, free=min(total, fitting(machine, profile, used)))
            for profile in self._catalogue
            if (total := fitting(machine, profile))
        ]

    def create(self, workload: Workload, /) -> Status:
        """Record a workload and start it; see `Engine.create`."""
        profile = find(self._catalogue, workload.slice)
        if _copies(workload) < 1:
            raise SettingsError(_("{name} asks for no process.").format(name=workload.name), hint=_("Use 1 or more."))
        with _unavailable(self._folder), self._creating():
            if (self._folder / workload.name).exists():
                raise _taken(workload.name)
            self._check_capacity(workload, profile)
            lock = self._record(workload, profile)
            try:
                spawn(self._folder / workload.name, lock)
            except OSError:
                self._forget(self._folder / workload.name)
                raise
            finally:
                os.close(lock)
        return self.get(workload.name)

    def get(self, name: str) -> Status:
        """How it is now; see `Engine.get`."""
        status = self._read(self._path(name))
        if status is None:
            raise self._not_found(name)
        return status

    def list(self, *, labels: Mapping[str, str] | None = None) -> Sequence[Status]:
        """Those that carry these labels, oldest first."""
        found = [status for folder in self._folders() if (status := self._read(folder))]
        wanted = (labels or {}).items()
        return sorted(
            (status for status in found if wanted <= status.labels.items()),
            key=lambda status: (status.created, status.name),
        )

    def logs(self, name: str, *, follow: bool = False) -> Iterator[str]:
        """Lines of its output; one of them says how much is missing where it wrote more than is kept."""
        self.get(name)
        folder = self._path(name)
        return logfile.read_lines(
            folder, follow=follow, ended=lambda: not records.is_held(folder), cut=_("… {:,} bytes cut …").format
        )

    def cancel(self, name: str) -> Status:
        """Stop it and wait until it has stopped; see `Engine.cancel`."""
        if self.get(name).phase.ended:
            return self.get(name)
        folder = self._path(name)
        with _unavailable(self._folder):
            self._stop(folder)
        return self.get(name)

    def delete(self, name: str) -> None:
        """Stop it, wait until it has stopped, and forget it. Idempotent."""
        folder = self._path(name)
        spec = records.read_json(folder / records.SPEC)
        if not spec:
            return
        with _unavailable(self._folder):
            self._stop(folder)
            limits.kill_members(spec["id"])
            self._forget(folder)

    def restore(self) -> Sequence[str]:
        """Start again every Service that should run and has no shim, as after a restart of the machine; their names."""
        restored = []
        with _unavailable(self._folder):
            for folder in self._folders():
                if self._should_run(folder) and (lock := _take_lock(folder)) is not None:
                    try:
                        limits.kill_members(records.read_json(folder / records.SPEC)["id"])
                        spawn(folder, lock)
                    finally:
                        os.close(lock)
                    restored.append(folder.name)
            self._sweep()
        return restored

    # -- folders -----------------------------------------------------------------------------------------------

    def _path(self, name: str) -> Path:
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise self._not_found(str(name)[:60])
        return self._folder / name

    def _folders(self) -> Sequence[Path]:
        try:
            return sorted(path for path in self._folder.iterdir() if NAME.fullmatch(path.name))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def _not_found(self, name: str) -> NotFoundError:
        names = ", ".join(folder.name for folder in self._folders())
        hint = _("There are: {names}.").format(names=names) if names else _("There are none yet.")
        return NotFoundError(_("No workload {name!r}.").format(name=name), hint=hint)

    @contextlib.contextmanager
    def _creating(self) -> Iterator[None]:
        """One creator at a time: a name and a slice are each given once."""
        self._folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        deadline = time.monotonic() + LOCK_PATIENCE
        try:
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.02)
            yield
        finally:
            os.close(descriptor)

    def _record(self, workload: Workload, profile: SliceProfile) -> int:
        """Make the workload's folder, whole and durable or not at all; its lock's descriptor, held."""
        data = asdict(workload) | {"kind": type(workload).__name__, "workdir": str(workload.workdir)}
        spec = {
            "id": uuid.uuid4().hex,
            "created": records.now(),
            "log_limit": self._log_limit,
            "grace": workload.grace if isinstance(workload, Service) else JOB_GRACE,
            "slice": profile.model_dump(mode="json"),
            "workload": data,
        }
        draft = self._folder / f".new-{spec['id']}"
        draft.mkdir(mode=0o700)
        lock = None
        try:
            lock = records.take_lock(draft)
            assert lock is not None  # noqa: S101 (nobody else knows the folder)
            (draft / records.RESERVE).write_bytes(b"\0" * RESERVE_BYTES)
            (draft / logfile.HEAD).touch()
            records.write_json(draft / records.SPEC, spec)
            draft.rename(self._folder / workload.name)
            durable.sync_folder(self._folder)
        except BaseException:
            if lock is not None:
                os.close(lock)
            shutil.rmtree(draft, ignore_errors=True)
            raise
        return lock

    def _forget(self, folder: Path) -> None:
        gone = self._folder / f".gone-{uuid.uuid4().hex}"
        with contextlib.suppress(FileNotFoundError):  # somebody else deletes it too
            folder.rename(gone)
            durable.sync_folder(self._folder)
        shutil.rmtree(gone, ignore_errors=True)

    def _sweep(self) -> None:
        """Remove what a kill half-way through a create or a delete has left."""
        if any(self._folder.glob(".new-*")) or any(self._folder.glob(".gone-*")):
            with self._creating():
                for left in [*self._folder.glob(".new-*"), *self._folder.glob(".gone-*")]:
                    shutil.rmtree(left, ignore_errors=True)

    def _stop(self, folder: Path) -> None:
        grace = records.read_json(folder / records.SPEC)["grace"]
        records.write_json(folder / records.CONTROL, {"cancel": True})
        deadline = time.monotonic() + grace + STOP_MARGIN
        while records.is_held(folder):
            records.wake(folder)
            if time.monotonic() > deadline:
                raise EngineUnavailableError(
                    _("{name} doesn't stop.").format(name=folder.name), hint=_("Try again, or restart your server.")
                )
            time.sleep(0.02)

    # -- reading -----------------------------------------------------------------------------------------------

    def _read(self, folder: Path) -> Status | None:
        held = records.is_held(folder)  # first: what was recorded before the lock was released is then seen
        spec = records.read_json(folder / records.SPEC)
        if not spec:
            return None
        record = records.read_json(folder / records.STATUS)
        phase = Phase(record.get("phase", "Pending"))
        reason = record.get("reason", "")
        if not held and not phase.ended:
            cancelled = records.read_json(folder / records.CONTROL).get("cancel")
            phase, reason = (Phase.CANCELLED, "") if cancelled else (Phase.FAILED, "Lost")
        workload = spec["workload"]
        return Status(
            name=folder.name,
            kind=workload["kind"],
            phase=phase,
            reason=reason,
            message=_message(folder.name, reason, record.get("exit_code"), spec["slice"]),
            created=datetime.fromisoformat(spec["created"]),
            started=_time(record.get("started")),
            finished=_time(record.get("finished")),
            exit_code=record.get("exit_code"),
            slice=spec["slice"]["name"],
            ready=record.get("ready", 0) if held else 0,
            addresses=tuple(f"unix:{folder / str(index)}.sock" for index in range(workload.get("replicas", 0))),
            labels=workload["labels"],
        )

    def _should_run(self, folder: Path) -> bool:
        status = self._read(folder)
        return status is not None and status.kind == Service.__name__ and status.reason == "Lost"

    def _slices_in_use(self) -> Sequence[SliceProfile]:
        used: list[SliceProfile] = []
        for folder in self._folders():
            spec = records.read_json(folder / records.SPEC)
            if spec and records.is_held(folder):
                copies = spec["workload"].get("nodes") or spec["workload"].get("replicas", 1)
                used += [SliceProfile.model_validate(spec["slice"])] * copies
        return used

    def _check_capacity(self, workload: Workload, profile: SliceProfile) -> None:
        machine, copies = this_machine(), _copies(workload)
        total = fitting(machine, profile)
        if copies > total:
            names = ", ".join(one.profile.name for one in self.slices() if one.total >= copies)
            raise NoCapacityError(
                _("{slice} × {copies} is more than this machine has: {total}.").format(
                    slice=profile.name, copies=copies, total=total
                ),
                hint=_("Slices: {names}.").format(names=names) if names else "",
            )
        free = fitting(machine, profile, self._slices_in_use())
        if copies > free:
            running = ", ".join(status.name for status in self.list() if not status.phase.ended)
            raise NoCapacityError(
                _("{slice} × {copies} isn't free now: {free} of {total}.").format(
                    slice=profile.name, copies=copies, free=free, total=total
                ),
                hint=_("Cancel or delete one of those that run: {names}.").format(names=running),
            )


def _copies(workload: Workload) -> int:
    return workload.replicas if isinstance(workload, Service) else workload.nodes


def _time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None


def _take_lock(folder: Path) -> int | None:
    """The lock of a folder without a shim; a reader's look at it lasts microseconds, so it is tried again."""
    for _attempt in range(25):
        descriptor = records.take_lock(folder)
        if descriptor is not None:
            return descriptor
        time.sleep(0.02)
    return None


def _message(name: str, reason: str, exit_code: int | None, profile: Mapping[str, Any]) -> str:
    if reason == "OutOfMemory":
        text = _("{name} used more memory than its slice {slice} has, {memory:,} MiB.")
    elif reason == "TooManyProcesses":
        text = _("{name} started more processes than its slice {slice} allows, {processes}.")
    elif reason == "Killed":
        text = _("{name} was killed by signal {signal}.") if exit_code else _("{name} was told to stop from outside.")
    elif reason == "Lost":
        text = _("{name} was lost: its processes are gone, as after a restart of the machine or the server.")
    elif reason == "Error":
        text = _("{name} ended with exit code {code}.")
    else:
        return ""
    return text.format(
        name=name,
        slice=profile["name"],
        memory=profile["memory_mib"],
        processes=profile["processes"],
        signal=-(exit_code or 0),
        code=exit_code,
    )


def _taken(name: str) -> AlreadyExistsError:
    return AlreadyExistsError(
        _("There is a workload {name!r} already.").format(name=name),
        hint=_("Choose another name, or delete that one first."),
    )


@contextlib.contextmanager
def _unavailable(folder: Path) -> Iterator[None]:
    """An error of the file system, as the engine's own."""
    hints = {
        errno.ENOSPC: _("The disk is full: delete runs and files that you no longer need."),
        errno.EDQUOT: _("Your disk quota is used up: delete runs and files that you no longer need."),
        errno.EROFS: _("The disk is read-only: ask your operator."),
        errno.EACCES: _("This user may not write there: check KPAAS_LAB_USER_HOME."),
    }
    try:
        yield
    except OSError as error:
        raise EngineUnavailableError(
            _("The lab's home can't be used ({folder}): {error}.").format(folder=folder, error=error.strerror or error),
            hint=hints.get(error.errno or 0, _("Check that the disk is there and try again.")),
        ) from error
