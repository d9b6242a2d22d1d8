"""What this machine has, and how many slices that makes."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kpaas_lab.slices import SliceProfile, Way

# A CPU slice says how much a workload may take at most, not what is kept for it; so more are lent than would fit at
# once, and always two: one to serve with while the other trains.
MEMORY_LENT, CORES_LENT, AT_LEAST = 2, 4, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Cores, main memory and device memory in MiB; no device memory where MPS can't cut it."""

    cores: int
    memory_mib: int
    gpu_memory_mib: int = 0


def fitting(machine: Machine, profile: SliceProfile, used: Sequence[SliceProfile] = ()) -> int:
    """How many more slices of this profile can be lent beside those in use.

    Example:
        >>> from kpaas_lab.settings import from_environment
        >>> from kpaas_lab.slices import load_catalogue
        >>> cpu = load_catalogue(from_environment({"HOME": "/"}).slices_file)[0]
        >>> fitting(Machine(cores=2, memory_mib=24000), cpu)
        4
        >>> fitting(Machine(cores=2, memory_mib=24000), cpu, used=[cpu])
        3
    """
    if profile.way is Way.CPU:
        beside = [other for other in used if other.way is Way.CPU]
        memory = max(machine.memory_mib * MEMORY_LENT, profile.memory_mib * AT_LEAST)
        cores = max(machine.cores * CORES_LENT, profile.cpus * AT_LEAST)
        memory -= sum(other.memory_mib for other in beside)
        cores -= sum(other.cpus for other in beside)
        return max(0, int(min(memory // profile.memory_mib, cores // profile.cpus)))
    if profile.way is Way.MPS and profile.gpu_memory_mib and profile.gpu_threads_percent:
        beside = [other for other in used if other.way is Way.MPS]
        memory = machine.gpu_memory_mib - sum(other.gpu_memory_mib for other in beside)
        threads = (100 if machine.gpu_memory_mib else 0) - sum(other.gpu_threads_percent for other in beside)
        return max(0, min(memory // profile.gpu_memory_mib, threads // profile.gpu_threads_percent))
    return 0  # every other way of cutting needs a cluster


def this_machine() -> Machine:
    """What a workload of this process could use."""
    return Machine(
        cores=len(os.sched_getaffinity(0)), memory_mib=_memory_mib(), gpu_memory_mib=_mps_memory_mib(_minute())
    )


def _memory_mib() -> int:
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):
            total = min(total, int(Path(limit).read_text()))
    return total >> 20


def _minute() -> int:
    return int(time.monotonic() // 60)


@functools.lru_cache(maxsize=1)
def _mps_memory_mib(_minute: int) -> int:
    """Memory of the GPU that the MPS daemon serves; 0 where there is no GPU or no daemon. Asked once a minute."""
    if not (shutil.which("nvidia-smi") and shutil.which("nvidia-cuda-mps-control")):
        return 0
    with contextlib.suppress(OSError, subprocess.SubprocessError, ValueError):
        subprocess.run(
            ["nvidia-cuda-mps-control"], input=b"get_server_list\n", capture_output=True, timeout=5, check=True
        )
        answer = subprocess.run(
            ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"],
            capture_output=True,
            timeout=10,
            check=True,
        )
        return int(answer.stdout.split()[0])
    return 0
