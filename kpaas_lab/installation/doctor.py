"""What this machine can and can't do, and how to change that. Each check tries the thing itself."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import psutil

from kpaas_lab.errors import LabError
from kpaas_lab.i18n import _
from kpaas_lab.installation import lock, ports, proxy
from kpaas_lab.installation.layout import NEEDED_FREE_MIB, Layout


class Verdict(StrEnum):
    """How a check came out."""

    OK = "ok"
    LIMITED = "limited"  # it runs; something is not to be had, or will be short
    MISSING = "missing"  # needed


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One check.

    Attributes:
        name: one word a program can read.
        found: what was found, in a sentence.
        fix: what to do; "" where nothing is to do.
    """

    name: str
    verdict: Verdict
    found: str
    fix: str = ""


def _run(*command: str | Path) -> tuple[int, str]:
    """Exit code and output; 127 where there is no such program, 124 where it hangs."""
    try:
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=20, check=False)
    except FileNotFoundError:
        return 127, ""
    except subprocess.TimeoutExpired:
        return 124, ""
    except OSError as error:
        return 126, str(error.strerror)
    return done.returncode, (done.stdout + done.stderr).strip()


def python() -> Finding:
    """The version that runs now."""
    version = platform.python_version_tuple()
    fits = (3, 11) <= (int(version[0]), int(version[1])) <= (3, 14)
    return Finding(
        name="python", verdict=Verdict.OK if fits else Verdict.MISSING,
        found=_("Python {version}").format(version=platform.python_version()),
        fix="" if fits else _("Python 3.11 to 3.14 is needed: make run PYTHON=python3.12"),
    )  # fmt: skip


def system() -> Finding:
    """The operating system and processor: wheels with programs are made for few."""
    kernel, machine = platform.system(), platform.machine()
    fits = kernel == "Linux" and machine in {"x86_64", "aarch64"}
    return Finding(
        name="system", verdict=Verdict.OK if fits else Verdict.MISSING,
        found=_("{kernel} {release} on {machine}, {cores} cores").format(
            kernel=kernel, release=platform.release(), machine=machine, cores=os.cpu_count()
        ),
        fix="" if fits else _("Linux on x86_64 or aarch64 is needed."),
    )  # fmt: skip


def traefik() -> Finding:
    """The proxy of the environment runs."""
    try:
        code, said = _run(proxy.program(), "version")
    except (LabError, importlib.metadata.PackageNotFoundError):
        code, said = 127, ""
    version = next((line.split()[-1] for line in said.splitlines() if line.startswith("Version:")), "")
    if code == 0:
        return Finding(name="proxy", verdict=Verdict.OK, found=_("Traefik {version} runs").format(version=version))
    return Finding(
        name="proxy", verdict=Verdict.MISSING, found=_("Traefik does not run here"),
        fix=_("Build the environment again: make clean env"),
    )  # fmt: skip


def sandbox() -> Finding:
    """A learner's sandbox can be made: bubblewrap is really run."""
    from hub_config.bubblewrap import Mode, mode

    words = {
        Mode.OWN_UID: _("Sandboxes work (bubblewrap, as root): each learner is a user of their own"),
        Mode.USER_NAMESPACE: _("Sandboxes work (bubblewrap, in user namespaces)"),
    }
    try:
        return Finding(name="sandbox", verdict=Verdict.OK, found=words[mode()])
    except LabError as error:
        return Finding(name="sandbox", verdict=Verdict.MISSING, found=error.message, fix=error.hint)


def memory() -> Finding:
    """Main memory: the platform takes about 1 GiB, a learner's server and training 1 to 2."""
    total = psutil.virtual_memory().total / 2**30
    free = psutil.virtual_memory().available / 2**30
    verdict = Verdict.MISSING if total < 1.5 else Verdict.LIMITED if free < 4 else Verdict.OK
    return Finding(
        name="memory", verdict=verdict,
        found=_("{free:.1f} GiB of {total:.1f} GiB memory are available").format(free=free, total=total),
        fix="" if verdict is Verdict.OK else _("Two learners who train need 4 GiB: end other programs, or add memory."),
    )  # fmt: skip


def disk(home: Path) -> Finding:
    """Space where the state is kept."""
    place = next(folder for folder in (home, *home.parents) if os.path.isdir(folder))
    free = shutil.disk_usage(place).free / 2**20
    verdict = Verdict.MISSING if free < NEEDED_FREE_MIB else Verdict.LIMITED if free < 2048 else Verdict.OK
    return Finding(
        name="disk", verdict=verdict,
        found=_("{free:.1f} GiB are free for {home}").format(free=free / 1024, home=home),
        fix="" if verdict is Verdict.OK else _("Free 2 GiB, or choose a folder on another disk with --home."),
    )  # fmt: skip


def folder(home: Path) -> Finding:
    """The state folder can be written."""
    # os.path, for it takes what may not be looked into as absent
    place = next(folder for folder in (home, *home.parents) if os.path.exists(folder))
    foreign = place == home and home.stat().st_uid != os.geteuid()
    if place.is_dir() and os.access(place, os.W_OK | os.X_OK) and not foreign:
        return Finding(name="home", verdict=Verdict.OK, found=_("{home} can hold the state").format(home=home))
    return Finding(
        name="home", verdict=Verdict.MISSING, found=_("{home} can't be written by you").format(home=home),
        fix=_("Choose a folder that you may write to with --home."),
    )  # fmt: skip


def port(home: Path, bind: str, number: int) -> Finding:
    """The public port is free, or this platform's own."""
    layout = Layout(home)
    if os.access(layout.lock, os.R_OK | os.W_OK) and lock.is_held(layout):
        running = lock.read(layout)
        return Finding(
            name="port", verdict=Verdict.OK,
            found=_("K-PaaS Lab runs at {address}").format(address=running.address if running else "?"),
        )  # fmt: skip
    try:
        ports.check_public(bind, number)
    except LabError as error:
        return Finding(name="port", verdict=Verdict.MISSING, found=error.message, fix=error.hint)
    return Finding(
        name="port", verdict=Verdict.OK, found=_("Port {port} of {bind} is free").format(port=number, bind=bind)
    )


def _gpu_names() -> list[str]:
    code, said = _run("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader")
    return said.splitlines() if code == 0 else []


def gpu() -> Finding:
    """NVIDIA GPUs, and whether the environment's torch can use them."""
    names = _gpu_names()
    if not names:
        if list(Path("/proc/driver/nvidia/gpus").glob("*")):
            return Finding(
                name="gpu", verdict=Verdict.LIMITED, found=_("The NVIDIA driver has a GPU, but nvidia-smi gives none"),
                fix=_("Install the driver's tools (Debian: nvidia-smi), or restart after a driver update."),
            )  # fmt: skip
        return Finding(
            name="gpu", verdict=Verdict.LIMITED, found=_("No NVIDIA GPU: CPU slices only"),
            fix=_("Nothing to do where CPU slices are enough; a GPU needs NVIDIA's driver."),
        )  # fmt: skip
    listed = "; ".join(names)
    if importlib.metadata.version("torch").endswith("+cpu"):
        return Finding(
            name="gpu", verdict=Verdict.LIMITED, found=_("{gpus}, but torch is the CPU build").format(gpus=listed),
            fix=_("Build the environment with CUDA: make run TORCH=default"),
        )  # fmt: skip
    return Finding(name="gpu", verdict=Verdict.OK, found=listed)


def mps() -> Finding:
    """NVIDIA's MPS daemon, by which one GPU is cut into slices."""
    from hub_config.machine import mps_gpus

    if not _gpu_names():
        return Finding(name="mps", verdict=Verdict.LIMITED, found=_("No GPU to cut into slices"))
    if mps_gpus():
        return Finding(name="mps", verdict=Verdict.OK, found=_("The MPS daemon answers: GPU slices are offered"))
    return Finding(
        name="mps", verdict=Verdict.LIMITED, found=_("The MPS daemon does not run: no GPU slices"),
        fix=_("Start it as the user who runs K-PaaS Lab: nvidia-cuda-mps-control -d"),
    )  # fmt: skip


def findings(home: Path, bind: str, number: int) -> Iterator[Finding]:
    """All checks, one by one."""
    checks: list[Callable[[], Finding]] = [
        system, python, traefik, sandbox, lambda: folder(home), lambda: disk(home), memory,
        lambda: port(home, bind, number), gpu, mps,
    ]  # fmt: skip
    for check in checks:
        yield check()
