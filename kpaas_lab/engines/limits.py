"""What a slice means for a process of the local engine. Standard library only: the shim applies it.

Memory and processes are limited twice: by RLIMIT_DATA and RLIMIT_NPROC (an allocation or a fork fails, with a traceback
that says where), and by the shim's watch over all of a workload's processes together (which ends in SIGKILL; the kernel
excuses root from RLIMIT_NPROC, and a sandbox's root may be the machine's).
"""

from __future__ import annotations

import contextlib
import math
import os
import resource
import signal
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from kpaas_lab.engines.records import ID_VARIABLE

MIB = 1 << 20
PAGE = os.sysconf("SC_PAGE_SIZE")


def environment(profile: Mapping[str, Any], environ: Mapping[str, str]) -> dict[str, str]:
    """Variables that hold a process to its part of a GPU (CUDA MPS; NVIDIA's MPS guide, "Environment Variables").

    Example:
        >>> environment({"way": "cpu"}, {})
        {}
        >>> mps = {"way": "mps", "gpu_threads_percent": 25, "gpu_memory_mib": 10240}
        >>> environment(mps, {})["CUDA_MPS_PINNED_DEVICE_MEM_LIMIT"]
        '0=10240M'
    """
    if profile.get("way") != "mps":
        return {}
    return {
        "CUDA_MPS_PIPE_DIRECTORY": environ.get("CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps"),  # noqa: S108
        "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": str(profile["gpu_threads_percent"]),
        "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT": f"0={profile['gpu_memory_mib']}M",
    }


def cores(profile: Mapping[str, Any], available: set[int], seed: str) -> set[int]:
    """The processor cores of a workload: as many as its slice has, neighbours, spread by name.

    Example:
        >>> len(cores({"cpus": 2}, {0, 1, 2, 3}, "digits")), cores({"cpus": 4}, {0, 1}, "digits")
        (2, {0, 1})
    """
    count = max(1, math.ceil(profile["cpus"]))
    if count >= len(available):
        return set(available)
    ordered = sorted(available)
    start = zlib.crc32(seed.encode()) % len(ordered)
    return {ordered[(start + step) % len(ordered)] for step in range(count)}


def apply(profile: Mapping[str, Any], seed: str) -> None:
    """Limit the calling process and what it will start."""
    _lower(resource.RLIMIT_DATA, profile["memory_mib"] * MIB)
    _lower(resource.RLIMIT_NPROC, tasks_of_user() + profile["processes"])
    _lower(resource.RLIMIT_CORE, 0)
    with contextlib.suppress(OSError):
        os.sched_setaffinity(0, cores(profile, os.sched_getaffinity(0), seed))


def _lower(what: int, value: int) -> None:
    _soft, hard = resource.getrlimit(what)
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(what, (value, value))


def tasks_of_user() -> int:
    """Processes and threads that this user has now: RLIMIT_NPROC counts them all, so a limit is set above them."""
    count = 0
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                if os.stat(f"/proc/{name}").st_uid == os.getuid():
                    count += len(os.listdir(f"/proc/{name}/task"))
    return count


def descendants(pid: int) -> Iterator[int]:
    """The process and everything it started, as far as it was not disowned."""
    waiting = [pid]
    while waiting:
        current = waiting.pop()
        yield current
        waiting += children(current)


def children(pid: int) -> list[int]:
    """Processes that the process started or adopted."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children") as file:
                found += [int(child) for child in file.read().split()]
    return found


def adopted(own: Collection[int]) -> list[int]:
    """Disowned processes of the workload, which the kernel gives to the shim (prctl(2), PR_SET_CHILD_SUBREAPER).

    Args:
        own: children that the shim started itself, and waits for itself.
    """
    alive: list[int] = []
    for pid in children(os.getpid()):
        if pid not in own:
            with contextlib.suppress(ChildProcessError):
                if os.waitpid(pid, os.WNOHANG) == (0, 0):
                    alive += descendants(pid)
    return alive


def excess(profile: Mapping[str, Any], pids: Sequence[int]) -> str:
    """Why these processes are more than the slice has; "" where they aren't."""
    if len(pids) > profile["processes"]:
        return "TooManyProcesses"
    allowed = profile["memory_mib"] * MIB
    return "OutOfMemory" if memory(pids, allowed) > allowed else ""


def memory(pids: Sequence[int], enough: int) -> int:
    """Main memory of these processes in bytes, pages that they share counted once.

    Their resident sets are added first; the exact sum takes milliseconds and is made only where that passes `enough`.
    """
    resident = sum(_resident(pid) for pid in pids)
    return resident if resident <= enough else sum(_proportional(pid) for pid in pids)


def _resident(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/statm") as file:
            return int(file.read().split()[1]) * PAGE
    except (OSError, IndexError):
        return 0


def _proportional(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/smaps_rollup") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("Pss:"))
    except (OSError, StopIteration):
        return _resident(pid)


def kernel_oom_kills() -> int:
    """How many processes the kernel has killed for memory since this machine started."""
    with contextlib.suppress(OSError), open("/proc/vmstat") as file:
        return next((int(line.split()[1]) for line in file if line.startswith("oom_kill ")), 0)
    return 0


def members(workload_id: str) -> list[int]:
    """Every process of a workload, disowned ones too, told by a variable in its environment."""
    wanted = f"{ID_VARIABLE}={workload_id}".encode()
    return [int(name) for name in os.listdir("/proc") if name.isdigit() and _has(int(name), wanted)]


def _has(pid: int, variable: bytes) -> bool:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return variable in file.read().split(b"\0")
    except OSError:
        return False


def kill_members(workload_id: str) -> None:
    """SIGKILL to every process of a workload. A pid is checked again once it is held, since pids are reused."""
    wanted = f"{ID_VARIABLE}={workload_id}".encode()
    for pid in members(workload_id):
        with contextlib.suppress(OSError):
            held = os.pidfd_open(pid)
            try:
                if _has(pid, wanted):
                    signal.pidfd_send_signal(held, signal.SIGKILL)
            finally:
                os.close(held)
