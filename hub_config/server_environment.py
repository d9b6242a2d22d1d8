"""What a learner's server is told: all of its environment but what JupyterHub itself adds."""

from __future__ import annotations

import os
import sys
from importlib.metadata import entry_points
from pathlib import Path

import jupyterhub  # type: ignore[import-untyped]

from hub_config.course_folder import first_page
from hub_config.profiles import Holding
from hub_config.warm import SLEEPING_THREADS
from kpaas_lab.slices import Way

JUPYTER_CONFIG = Path(__file__).parent / "jupyter"
PROVISIONER = "kpaas-lab-warm"
# Where the MPS daemon listens unless it is told otherwise (docs.nvidia.com, Multi-Process Service).
MPS_PIPE = "/tmp/nvidia-mps"  # noqa: S108


def environment(name: str, holding: Holding, language: str) -> dict[str, str]:
    """Variables of one learner's server.

    Args:
        name: the learner's; their home is /home/<name> inside.
        holding: their slice, and its GPU.
        language: "en" or "ko", JupyterLab's at first; a learner's later choice in JupyterLab's settings wins.
    """
    home = f"/home/{name}"
    config = (JUPYTER_CONFIG / language, JUPYTER_CONFIG / "all")
    return {
        "HOME": home,
        "USER": name,
        "LOGNAME": name,
        "SHELL": "/bin/bash",
        "LANG": "C.UTF-8",
        "PATH": os.pathsep.join(map(str, programs())),
        "JUPYTER_CONFIG_PATH": os.pathsep.join(map(str, config)),
        "JUPYTERHUB_ROOT_DIR": home,
        "JUPYTERHUB_DEFAULT_URL": first_page(),
        **SLEEPING_THREADS,
        "KPAAS_LAB_ENGINE": "local",
        "KPAAS_LAB_USER_HOME": f"{home}/.kpaas-lab",
        "KPAAS_LAB_SLICE": holding.profile.name,
        "KPAAS_LAB_LANG": language,
        **({"JUPYTER_DEFAULT_PROVISIONER_NAME": PROVISIONER} if forks_kernels() else {}),
        **_device(holding),
    }


def forks_kernels() -> bool:
    """Whether this environment has the provisioner that forks kernels (`kpaas_lab/kernels`) among its entry points."""
    return bool(entry_points(group="jupyter_client.kernel_provisioners", name=PROVISIONER))


def programs() -> list[Path]:
    """Where programs are looked for: this environment, that of the packages (which may be another), the system."""
    packages = Path(jupyterhub.__file__).parents[4] / "bin"
    return list(dict.fromkeys([Path(sys.prefix, "bin"), packages, *map(Path, ("/usr/local/bin", "/usr/bin", "/bin"))]))


def _device(holding: Holding) -> dict[str, str]:
    """The slice's share of its GPU, which MPS holds it to; without a GPU, none is seen."""
    if holding.profile.way is not Way.MPS or holding.gpu is None:
        return {"CUDA_VISIBLE_DEVICES": ""}
    return {
        "CUDA_VISIBLE_DEVICES": str(holding.gpu),
        "CUDA_MPS_PIPE_DIRECTORY": os.environ.get("CUDA_MPS_PIPE_DIRECTORY", MPS_PIPE),
        "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": str(holding.profile.gpu_threads_percent),
        # Devices are numbered among those visible.
        "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT": f"0={holding.profile.gpu_memory_mib}M",
    }
