"""GPU slices: what an installation offers, as data. Read by the hub and by the engines (design, section 6)."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kpaas_lab.errors import SettingsError, UnknownSliceError
from kpaas_lab.i18n import _, language


class Way(StrEnum):
    """How a slice is cut; each is one row of the compiler's table."""

    CPU = "cpu"
    MIG = "mig"
    MPS = "mps"
    TIMESLICE = "timeslice"
    HAMI = "hami"
    KAI = "kai"
    DRA = "dra"
    REBELLIONS = "rebellions"
    FURIOSA = "furiosa"


class Isolation(StrEnum):
    """What keeps one slice from another: shown to the learner, never overstated."""

    HARDWARE = "hardware"  # memory, compute and faults
    DEVICE = "device"  # the whole device
    MEMORY = "memory"  # memory and threads, not faults
    COOPERATIVE = "cooperative"  # a library that the tenant's own process can turn off
    NONE = "none"
    PROCESS = "process"  # a CPU slice: limits of the operating system

    def in_words(self) -> str:
        """What keeps this slice from others, in the reader's language; no more than it does.

        Example:
            >>> Isolation.NONE.in_words()
            'No isolation: others can slow it down or use up its memory'
        """
        return {
            Isolation.HARDWARE: _("Isolated by the GPU's hardware: memory, computation and faults"),
            Isolation.DEVICE: _("A device of your own"),
            Isolation.MEMORY: _(
                "Memory and threads are limited; a fault of one program can stop the others on that GPU"
            ),
            Isolation.COOPERATIVE: _("A library keeps the limits; a program can turn it off"),
            Isolation.NONE: _("No isolation: others can slow it down or use up its memory"),
            Isolation.PROCESS: _("Limits of the operating system; processors are shared"),
        }[self]


class Text(BaseModel):
    """One text in both languages."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    en: str
    ko: str

    def __str__(self) -> str:
        return self.ko if language() == "ko" else self.en


class SliceProfile(BaseModel):
    """One slice of `slices.yaml`.

    Attributes:
        name: NVIDIA's profile name for a GPU slice (`1g.10gb`), else a short word (`cpu`).
        cpus: processor cores at most.
        memory_mib: main memory at most, in MiB.
        processes: processes and threads at most.
        gpu_memory_mib: device memory promised, in MiB; 0 is no GPU.
        gpu_threads_percent: share of the multiprocessors promised, 0 to 100.
        groups: who may choose it; empty is everybody.
        graded: whether graded work may run on it (a slice without isolation may not).
        price_per_hour: in the installation's currency; 0 is free.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9.-]{0,40}[a-z0-9])?$")]
    way: Way
    isolation: Isolation
    title: Text
    purpose: Text
    cpus: Annotated[float, Field(gt=0)]
    memory_mib: Annotated[int, Field(ge=256)]
    processes: Annotated[int, Field(ge=16)] = 512
    gpu_memory_mib: Annotated[int, Field(ge=0)] = 0
    gpu_threads_percent: Annotated[int, Field(ge=0, le=100)] = 0
    groups: tuple[str, ...] = ()
    graded: bool = True
    price_per_hour: Annotated[float, Field(ge=0)] = 0.0


class SliceCapacity(BaseModel):
    """A slice, and how much of it there is now."""

    model_config = ConfigDict(frozen=True)

    profile: SliceProfile
    total: int
    free: int


def load_catalogue(path: Path) -> tuple[SliceProfile, ...]:
    """Read `slices.yaml`.

    Raises:
        SettingsError: unreadable, not of the schema, or two slices of one name; the message names the field.
    """
    import yaml

    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
        entries = raw["slices"] if isinstance(raw, dict) else None
        if not isinstance(entries, list) or not entries:
            raise SettingsError(
                _("{path} has no slices.").format(path=path), hint=_("It needs a list under the key 'slices'.")
            )
        profiles = tuple(SliceProfile.model_validate(entry) for entry in entries)
    except OSError as error:
        raise SettingsError(_("{path} can't be read: {error}.").format(path=path, error=error.strerror)) from error
    except yaml.YAMLError as error:
        raise SettingsError(_("{path} is not YAML: {error}").format(path=path, error=error)) from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise SettingsError(_("{path}: {where}: {what}.").format(path=path, where=where, what=first["msg"])) from error
    names = [profile.name for profile in profiles]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise SettingsError(_("{path} names the slice {name!r} twice.").format(path=path, name=twice))
    return profiles


def find(catalogue: Sequence[SliceProfile], name: str | None) -> SliceProfile:
    """The slice of that name; None is the first CPU slice.

    Raises:
        UnknownSliceError: with the names there are.
    """
    for profile in catalogue:
        if profile.name == name or (name is None and profile.way is Way.CPU):
            return profile
    raise UnknownSliceError(
        _("No slice {name!r} here.").format(name=name),
        hint=_("Slices: {names}.").format(names=", ".join(profile.name for profile in catalogue)),
    )
