"""Peers to measure against, each in an environment of its own: theirs pull our pinned versions down."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import filelock
import platformdirs

KSERVE = (
    "kserve==0.15.2",
    "setuptools<81",
)  # kserve imports pkg_resources' successor lazily but still needs setuptools
LITSERVE = ("litserve==0.2.17", "numpy==2.4.6")


class PeerUnavailableError(Exception):
    """The peer can't be installed here; the message ends with the installer's last lines."""


def python(requirements: Sequence[str], *, timeout: float = 570.0) -> Path:
    """The interpreter of an environment that holds these requirements; made once a machine.

    Args:
        requirements: pinned, as `uv pip install` takes them.
        timeout: seconds for the installation.

    Returns:
        Path of its `python`.

    Raises:
        PeerUnavailableError: no network, no such version, or too slow.
    """
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    digest = hashlib.sha256("\n".join([version, *sorted(requirements)]).encode()).hexdigest()[:12]
    cache = Path(platformdirs.user_cache_dir("kpaas-lab")) / "peers"
    folder = cache / f"{requirements[0].split('=')[0].split('[')[0]}-{digest}"
    interpreter = folder / "bin" / "python"
    cache.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(f"{folder}.lock"):
        if (folder / ".complete").exists():
            return interpreter
        shutil.rmtree(folder, ignore_errors=True)
        print(f"Installing {', '.join(requirements)} into {folder} (once).", file=sys.stderr, flush=True)
        uv = [sys.executable, "-m", "uv"]
        _run([*uv, "venv", "--quiet", "--python", sys.executable, str(folder)], timeout)
        _run([*uv, "pip", "install", "--quiet", "--python", str(interpreter), *requirements], timeout)
        (folder / ".complete").touch()
    return interpreter


def _run(command: list[str], timeout: float) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired as error:
        raise PeerUnavailableError(f"{command[3]} took more than {timeout:.0f} s") from error
    if done.returncode:
        raise PeerUnavailableError(done.stderr.strip()[-1000:])
