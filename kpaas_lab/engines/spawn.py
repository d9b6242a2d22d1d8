"""Start a shim so that it belongs to nobody: it outlives its creator, and takes none of the creator's secrets along."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Without site-packages Python starts in 20 ms; what the shim imports is in the standard library, or beside this file.
BOOT = (
    "import os, sys\n"
    "if os.fork(): os._exit(0)\n"
    "sys.path.append(sys.argv[1])\n"
    "from pathlib import Path\n"
    "from kpaas_lab.engines.shim import main\n"
    "main(Path(sys.argv[2]), int(sys.argv[3]))\n"
)
# What a workload sees of its creator's environment, besides its own `env`: tokens and keys have no place in it.
PASSED = re.compile(
    r"PATH|HOME|USER|LOGNAME|SHELL|LANG|LANGUAGE|LC_\w+|TZ|TMPDIR|TERM|PYTHON(PATH|HASHSEED|UTF8|WARNINGS)|LD_LIBRARY_PATH"
    r"|(OMP|MKL|OPENBLAS|NUMEXPR)_\w+|(CUDA|NVIDIA|NCCL|GLOO|TORCH)_\w+|HF_HOME|SSL_CERT_(FILE|DIR)|XDG_\w+"
    r"|KPAAS_LAB_(USER_HOME|SLICES|ENGINE|LANG|MARKET_URL|API_URL|TRACKING)|JUPYTERHUB_USER|MLFLOW_TRACKING_URI",
)


def passed_on(environ: Mapping[str, str]) -> dict[str, str]:
    """The part of an environment that a workload may see.

    Example:
        >>> passed_on({"PATH": "/bin", "JUPYTERHUB_API_TOKEN": "x"})
        {'PATH': '/bin'}
    """
    return {name: value for name, value in environ.items() if PASSED.fullmatch(name)}


def spawn(folder: Path, lock: int) -> None:
    """Start the shim of a workload's folder and hand it the folder's lock.

    Raises:
        OSError: no process can be started.
    """
    with (folder / "shim.err").open("ab") as errors:
        starter = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", BOOT, str(ROOT), str(folder), str(lock)],
            cwd="/",
            env=passed_on(os.environ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            pass_fds=(lock,),
            start_new_session=True,
        )
    if starter.wait():
        raise OSError(f"the shim ended with {starter.returncode}")
