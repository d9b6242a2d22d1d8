"""Slices -> the choices of one learner, with what is free. Pure: no hub, no sandbox, no device is asked here."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from kpaas_lab.errors import NoCapacityError, SettingsError
from kpaas_lab.i18n import _
from kpaas_lab.slices import SliceCapacity, SliceProfile, Way, find

# What one machine can cut without a cluster.
LOCAL_WAYS = frozenset({Way.CPU, Way.MPS})
OPTIONS = frozenset({"slice"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What is there to be shared.

    Attributes:
        memory_mib: main memory that learners may be promised in total, in MiB; it may be more than there is.
        gpu_memory_mib: device memory of each GPU whose MPS daemon answers, in MiB.
        real_memory_mib: what there is, which no single slice may exceed; None where that is memory_mib.
    """

    memory_mib: int
    gpu_memory_mib: tuple[int, ...] = ()
    real_memory_mib: int | None = None


@dataclass(frozen=True, slots=True)
class Holding:
    """A slice in use, and the GPU that it is cut from (its number on this machine; None without one)."""

    profile: SliceProfile
    gpu: int | None = None


def offered(catalogue: Iterable[SliceProfile], groups: Collection[str], machine: Machine) -> tuple[SliceProfile, ...]:
    """The slices of the catalogue that this machine can cut at all and that one of these groups may choose."""
    return tuple(
        profile
        for profile in catalogue
        if profile.way in LOCAL_WAYS
        and (not profile.groups or not set(profile.groups).isdisjoint(groups))
        and _how_many(profile, machine, ()) > 0
    )


def choices(
    catalogue: Iterable[SliceProfile], groups: Collection[str], machine: Machine, held: Sequence[Holding]
) -> tuple[SliceCapacity, ...]:
    """What one learner may choose, and how much of each is free.

    Args:
        catalogue: `slices.yaml`.
        groups: the learner's groups in the hub.
        machine: what is there.
        held: what all servers that run or start now have.
    """
    return tuple(
        SliceCapacity(profile=profile, total=_how_many(profile, machine, ()), free=_how_many(profile, machine, held))
        for profile in offered(catalogue, groups, machine)
    )


def chosen(options: Mapping[str, object], available: Sequence[SliceCapacity]) -> SliceCapacity:
    """The slice that these options name; without options the first CPU slice. Options come from a learner: anything.

    Raises:
        SettingsError: an option that isn't one, or a value that isn't a text.
        UnknownSliceError: no such slice, or none of this learner's.
        NoCapacityError: none of it is free; the hint says what is.
    """
    unknown = sorted(str(key)[:40] for key in set(options) - OPTIONS)
    if unknown:
        raise SettingsError(
            _("A server has no option {names}.").format(names=", ".join(repr(name) for name in unknown[:5])),
            hint=_("The only option is 'slice'."),
        )
    name = options.get("slice")
    if name is not None and not isinstance(name, str):
        raise SettingsError(_("The option 'slice' is one slice's name."), hint=_("Choose a slice on the page."))
    profile = find([entry.profile for entry in available], None if name is None else name[:60])
    entry = next(entry for entry in available if entry.profile == profile)
    if entry.free < 1:
        raise NoCapacityError(
            _("There is no room for the slice {name!r} now.").format(name=profile.name), hint=_free(available)
        )
    return entry


def _free(available: Sequence[SliceCapacity]) -> str:
    free = [entry.profile.name for entry in available if entry.free > 0]
    if not free:
        return _("Nothing is free now: try again when somebody has stopped their server.")
    return _("Free now: {names}.").format(names=", ".join(free))


def gpu_for(profile: SliceProfile, machine: Machine, held: Sequence[Holding]) -> int | None:
    """The first GPU with room for the slice; None for a slice without one, or where there is no room."""
    if profile.way is not Way.MPS:
        return None
    return next((gpu for gpu in range(len(machine.gpu_memory_mib)) if _on_gpu(gpu, profile, machine, held) > 0), None)


def _how_many(profile: SliceProfile, machine: Machine, held: Sequence[Holding]) -> int:
    """How many more of this slice fit beside those held."""
    if machine.real_memory_mib is not None and profile.memory_mib > machine.real_memory_mib:
        return 0
    room = (machine.memory_mib - sum(other.profile.memory_mib for other in held)) // profile.memory_mib
    if profile.way is Way.MPS:
        gpus = range(len(machine.gpu_memory_mib))
        room = min(room, sum(_on_gpu(gpu, profile, machine, held) for gpu in gpus))
    return max(0, room)


def _on_gpu(gpu: int, profile: SliceProfile, machine: Machine, held: Sequence[Holding]) -> int:
    here = [other.profile for other in held if other.gpu == gpu]
    memory = machine.gpu_memory_mib[gpu] - sum(other.gpu_memory_mib for other in here)
    percent = 100 - sum(other.gpu_threads_percent for other in here)
    return max(0, min(memory // max(1, profile.gpu_memory_mib), percent // max(1, profile.gpu_threads_percent)))
