"""What this machine can share: memory, and GPUs whose MPS daemon answers."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import psutil

from hub_config.profiles import Machine

MIB = 1024 * 1024


def this_machine(overcommit: float) -> Machine:
    """Ask the machine. Takes up to some seconds where there is a GPU."""
    total = psutil.virtual_memory().total
    limit = _cgroup_limit(Path("/sys/fs/cgroup/memory.max"))
    real = min(total, limit or total) // MIB
    return Machine(memory_mib=int(real * overcommit), gpu_memory_mib=mps_gpus(), real_memory_mib=real)


def _cgroup_limit(path: Path) -> int | None:
    """A container's own limit, in bytes."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # no cgroup of version 2, or "max"
        return None


def mps_gpus() -> tuple[int, ...]:
    """Device memory of each GPU in MiB, where the MPS control daemon runs; else nothing can be cut."""
    if not _answer("nvidia-cuda-mps-control", stdin="get_server_list\n"):
        return ()
    listed = _answer("nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits") or ""
    return tuple(int(line) for line in listed.split() if line.isdigit())


def _answer(program: str, *arguments: str, stdin: str = "") -> str | None:
    """What a program prints; None where it is missing, fails or hangs."""
    path = shutil.which(program)
    if path is None:
        return None
    try:
        done = subprocess.run([path, *arguments], input=stdin, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout or " "
