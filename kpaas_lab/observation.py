"""What a slice promises and what this process really has: read from inside, never taken on trust."""

from __future__ import annotations

import math
import os
import re
import resource
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from kpaas_lab.i18n import N_, _
from kpaas_lab.slices import SliceCapacity, SliceProfile
from kpaas_lab.texttable import plain_table

MIB = 2**20
_NVIDIA_SMI = ("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits")


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """What this process can use.

    Attributes:
        cpus: processor cores it may run on, or its share of them.
        memory_mib: main memory: the lowest of its limits and of the machine's size, in MiB.
        processes: processes and threads at most; infinite where nothing limits them.
        gpus: the names of the GPUs it sees.
        gpu_memory_mib: device memory of the first GPU, in MiB; 0 is no GPU.
    """

    cpus: float
    memory_mib: float
    processes: float
    gpus: tuple[str, ...] = ()
    gpu_memory_mib: float = 0.0


class Verdict(StrEnum):
    """How the observed stands to the promised."""

    AS_PROMISED = N_("as promised")
    LESS = N_("less than promised")
    UNLIMITED = N_("not limited")
    WATCHED = N_("kept by the sandbox")


@dataclass(frozen=True, slots=True)
class Comparison:
    """One resource: promised against observed."""

    resource: str
    promised: float
    observed: float
    watched: bool = False

    @property
    def verdict(self) -> Verdict:
        """Within 2 % is as promised: kernels round.

        Example:
            >>> Comparison("cpus", 2, 2).verdict.value, Comparison("cpus", 4, 2).verdict.value
            ('as promised', 'less than promised')
        """
        if self.observed < self.promised * 0.98:
            return Verdict.LESS
        if self.observed <= self.promised * 1.02:
            return Verdict.AS_PROMISED
        return Verdict.WATCHED if self.watched else Verdict.UNLIMITED


@dataclass(frozen=True, slots=True, repr=False)
class SliceCheck:
    """A slice seen from inside it.

    Attributes:
        sandboxed: whether the hub's sandbox watches the memory of all processes together. No limit of one process
            shows that: the sandbox ends the largest one when their sum passes the slice's.
    """

    profile: SliceProfile
    observed: Observed
    sandboxed: bool = False

    @property
    def comparisons(self) -> Sequence[Comparison]:
        """One for each resource that the slice promises."""
        promised, observed = self.profile, self.observed
        every = (
            Comparison(N_("CPU cores"), promised.cpus, observed.cpus),
            Comparison(N_("memory, MiB"), promised.memory_mib, observed.memory_mib, self.sandboxed),
            Comparison(N_("processes"), promised.processes, observed.processes),
            Comparison(N_("GPU memory, MiB"), promised.gpu_memory_mib, observed.gpu_memory_mib),
        )
        return [comparison for comparison in every if comparison.promised]

    def rows(self) -> list[list[str]]:
        """What a table shows: resource, promised, observed, verdict."""
        return [
            [_(item.resource), _number(item.promised), _number(item.observed), _(item.verdict.value)]
            for item in self.comparisons
        ]

    def __repr__(self) -> str:
        return f"{self.profile.name}: {self.profile.title}\n{plain_table(self.header(), self.rows())}"

    @staticmethod
    def header() -> list[str]:
        """The table's first line."""
        return [_("resource"), _("promised"), _("observed"), _("verdict")]


class SliceTable(tuple[SliceCapacity, ...]):
    """The slices of this installation: a sequence of `SliceCapacity` that prints as a table."""

    __slots__ = ()

    def rows(self) -> list[list[str]]:
        """What a table shows, a line for each slice."""
        return [
            [
                profile.name,
                _("{cpus:g} CPU").format(cpus=profile.cpus),
                _mib(profile.memory_mib),
                _mib(profile.gpu_memory_mib) if profile.gpu_memory_mib else "-",
                profile.isolation.in_words(),
                f"{entry.free} / {entry.total}",
                _("{price:g} an hour").format(price=profile.price_per_hour)
                if profile.price_per_hour
                else _("free of charge"),
            ]
            for entry in self
            for profile in [entry.profile]
        ]

    @staticmethod
    def header() -> list[str]:
        """The table's first line."""
        return [
            _("slice"),
            _("cores"),
            _("memory"),
            _("GPU memory"),
            _("isolation"),
            _("free now / total"),
            _("price"),
        ]

    def __repr__(self) -> str:
        return plain_table(self.header(), self.rows())


def observe() -> Observed:
    """Look at this process's own limits, and at nvidia-smi where there is one."""
    gpus = _gpus()
    mps = _mps_limit(os.environ.get("CUDA_MPS_PINNED_DEVICE_MEM_LIMIT", ""))
    return Observed(
        cpus=min(float(len(os.sched_getaffinity(0))), _cgroup("cpu.max", _cpu_share)),
        memory_mib=min(
            os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / MIB,
            _cgroup("memory.max", lambda text: _limit(text) / MIB),
            _rlimit(resource.RLIMIT_AS) / MIB,
            _rlimit(resource.RLIMIT_DATA) / MIB,
        ),
        processes=min(_rlimit(resource.RLIMIT_NPROC), _cgroup("pids.max", _limit)),
        gpus=tuple(name for name, _memory in gpus),
        gpu_memory_mib=min(gpus[0][1], mps) if gpus else 0.0,
    )


def _number(value: float) -> str:
    return "∞" if math.isinf(value) else f"{value:g}" if value < 1000 else f"{value:,.0f}"


def _mib(amount: float) -> str:
    return f"{amount / 1024:g} GiB" if amount % 256 == 0 else f"{amount:,.0f} MiB"


def _limit(text: str) -> float:
    return math.inf if text.strip() == "max" else float(text)


def _cpu_share(text: str) -> float:
    quota, period = text.split()
    return math.inf if quota == "max" else float(quota) / float(period)


def _rlimit(kind: int) -> float:
    soft, _hard = resource.getrlimit(kind)
    return math.inf if soft == resource.RLIM_INFINITY else float(soft)


def _cgroup(name: str, parse: Callable[[str], float]) -> float:
    """The lowest limit of this process's control group (version 2) and of those above it."""
    try:
        own = Path("/proc/self/cgroup").read_text().rpartition("::")[2].strip().lstrip("/")
    except OSError:
        return math.inf
    top = Path("/sys/fs/cgroup")
    limits = [math.inf]
    for folder in (top / own, *(top / own).parents):
        if not folder.is_relative_to(top):
            break
        try:
            limits.append(parse((folder / name).read_text()))
        except (OSError, ValueError):  # the root group has no limits; a hybrid hierarchy has none here
            continue
    return min(limits)


def _mps_limit(setting: str) -> float:
    """MiB that CUDA lets a client of MPS allocate on its first device, from `0=10240M` (CUDA MPS guide, 4.2.5).

    Example:
        >>> _mps_limit("0=10G"), _mps_limit("0=512M"), _mps_limit("")
        (10240.0, 512.0, inf)
    """
    found = re.fullmatch(r"\w+=(\d+)([MG])B?", setting.partition(",")[0].strip())
    return float(found[1]) * (1024 if found[2] == "G" else 1) if found else math.inf


def _gpus() -> list[tuple[str, float]]:
    try:
        answer = subprocess.run(_NVIDIA_SMI, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    lines = (line.rpartition(",") for line in answer.stdout.splitlines() if "," in line)
    return [(name.strip(), float(memory)) for name, _comma, memory in lines if memory.strip().isdigit()]
