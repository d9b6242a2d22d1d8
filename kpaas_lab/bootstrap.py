"""Build the environment that this clone runs in: `python3 kpaas_lab/bootstrap.py`. Standard library only.

Two layers. The packages of `requirements.lock` go, hashes checked, into a folder of the user's cache that is named by
the lock's hash, so every clone with the same lock shares one. The clone's own `.venv` holds nothing but this project
(editable) and a link to that folder.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import html.parser
import io
import os
import platform
import re
import shutil
import ssl
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements.lock"
OLDEST, NEWEST = (3, 11), (3, 14)
# What the CUDA build of torch brings and the CPU build does without.
CUDA_ONLY = re.compile(r"^(torch|triton|nvidia-[a-z0-9-]+|cuda-[a-z0-9-]+)==")


class BootstrapError(Exception):
    """What stopped the set-up, with the next step in it."""


def requirements(lock: str) -> list[str]:
    r"""The lock's entries, each with its continuation lines.

    Example:
        >>> requirements("a==1\n    --hash=sha256:00\n# note\nb==2\n")
        ['a==1\n    --hash=sha256:00', 'b==2']
    """
    joined = re.split(r"\n(?=\S)", "\n".join(line for line in lock.splitlines() if not line.lstrip().startswith("#")))
    return [entry.strip() for entry in joined if entry.strip()]


def without_cuda(lock: str) -> str:
    """The lock less torch's CUDA build and what only that needs."""
    return "\n".join(entry for entry in requirements(lock) if not CUDA_ONLY.match(entry)) + "\n"


def pinned(lock: str, name: str) -> tuple[str, set[str]]:
    """Version and SHA-256 hashes of one package in the lock."""
    for entry in requirements(lock):
        match = re.match(rf"{re.escape(name)}==([^ ;\\]+)", entry)
        if match:
            return match[1], set(re.findall(r"--hash=sha256:([0-9a-f]{64})", entry))
    raise BootstrapError(f"{LOCK.name} does not pin {name}. Run `make lock`.")


class _Links(html.parser.HTMLParser):
    """Addresses on a package index's page (PEP 503)."""

    def __init__(self, base: str) -> None:
        super().__init__()
        self.base = base
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect every link, made absolute."""
        self.found += [urllib.parse.urljoin(self.base, value) for key, value in attrs if key == "href" and value]


def _read(url: str) -> bytes:
    cafile = os.environ.get("SSL_CERT_FILE") or os.environ.get("PIP_CERT")
    try:
        with urllib.request.urlopen(url, timeout=60, context=ssl.create_default_context(cafile=cafile)) as answer:  # noqa: S310
            return bytes(answer.read())
    except (OSError, urllib.error.URLError) as error:
        raise BootstrapError(
            f"No answer from the package index ({error}). Check the network, or set UV_DEFAULT_INDEX to your own."
        ) from error


def _wheel_for_here(links: list[str], version: str) -> str:
    libc = "musllinux" if platform.libc_ver()[0] != "glibc" else "manylinux"
    for link in links:
        name = urllib.parse.unquote(link.split("#")[0].rsplit("/", 1)[-1])
        if name.startswith(f"uv-{version}-") and libc in name and name.endswith(f"{platform.machine()}.whl"):
            return link.split("#")[0]
    raise BootstrapError(f"The package index has no uv {version} for {libc} {platform.machine()}.")


def uv(cache: Path, lock: str) -> Path:
    """The pinned uv (an installer in one file), fetched once and checked against the lock's hash."""
    version, hashes = pinned(lock, "uv")
    program = cache / f"uv-{version}"
    if program.exists():
        return program
    index = os.environ.get("UV_DEFAULT_INDEX") or os.environ.get("PIP_INDEX_URL") or "https://pypi.org/simple"
    page = f"{index.rstrip('/')}/uv/"
    links = _Links(page)
    links.feed(_read(page).decode())
    wheel = _read(_wheel_for_here(links.found, version))
    if hashlib.sha256(wheel).hexdigest() not in hashes:
        raise BootstrapError(f"The index's uv {version} does not have the hash that {LOCK.name} pins: not installed.")
    with zipfile.ZipFile(io.BytesIO(wheel)) as archive:
        member = next(name for name in archive.namelist() if name.endswith(".data/scripts/uv"))
        partial = program.with_suffix(f".{os.getpid()}")
        partial.write_bytes(archive.read(member))
    partial.chmod(0o755)
    partial.replace(program)
    return program


@contextlib.contextmanager
def only_one(path: Path) -> Iterator[None]:
    """Let one process at a time build here; a second waits and says so."""
    with path.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("Another set-up of the same environment is running; waiting for it.", flush=True)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _run(*command: str | Path) -> None:
    # The user's own virtual environment must not steer ours.
    environment = {
        key: value for key, value in os.environ.items() if key not in {"VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME"}
    }
    environment.setdefault("UV_HTTP_TIMEOUT", "300")
    environment.setdefault("UV_LINK_MODE", "hardlink")
    if subprocess.run([str(part) for part in command], env=environment, check=False, cwd=ROOT).returncode:
        raise BootstrapError(
            "The set-up stopped at the step above. What is downloaded is kept: run the same command again."
        )


def shared_environment(cache: Path, torch: str) -> Path:
    """The folder with the lock's packages, made if it is not there yet."""
    lock = LOCK.read_text()
    key = hashlib.sha256(f"{torch}\n{lock}".encode()).hexdigest()[:12]
    home = cache / f"env-{key}-py{sys.version_info.major}{sys.version_info.minor}"
    done = home / ".complete"
    if done.exists():
        return home
    cache.mkdir(parents=True, exist_ok=True)
    with only_one(cache / f"{home.name}.lock"):
        if done.exists():
            return home
        print(f"Building the environment in {home} (once for every clone with this lock).", flush=True)
        installer = uv(cache, lock)
        _run(installer, "venv", "--quiet", "--allow-existing", "--python", sys.executable, home)
        # Compiled now: sandboxes see these packages read-only and would compile them at every start.
        install: list[str | Path] = [installer, "pip", "install", "--compile-bytecode", "--python", home]
        if torch == "cpu":
            rest = home / "requirements-without-cuda.txt"
            rest.write_text(without_cuda(lock))
            _run(*install, "--require-hashes", "--no-deps", "-r", rest)
            index = os.environ.get("TORCH_INDEX", "https://download.pytorch.org/whl/cpu")
            _run(*install, "--no-deps", "--index-url", index, f"torch=={pinned(lock, 'torch')[0]}+cpu")
        else:
            _run(*install, "--require-hashes", "-r", LOCK)
        done.touch()
    return home


def clone_environment(shared: Path, installer: Path) -> Path:
    """The clone's `.venv`: this project, editable, over the shared packages."""
    here = ROOT / ".venv"
    done = here / ".complete"
    facts = f"{shared}\n{hashlib.sha256((ROOT / 'pyproject.toml').read_bytes()).hexdigest()}\n{ROOT}\n"
    if done.exists() and done.read_text() == facts:
        return here
    with only_one(ROOT / ".venv.lock"):
        shutil.rmtree(here, ignore_errors=True)
        _run(installer, "venv", "--quiet", "--python", sys.executable, here)
        packages = f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
        (here / packages / "_shared.pth").write_text(f"{shared / packages}\n")
        for data in ("share", "etc"):  # Jupyter looks for its extensions under sys.prefix
            (here / data).symlink_to(shared / data)
        _run(installer, "pip", "install", "--quiet", "--python", here, "--no-deps", "--no-build-isolation", "-e", ROOT)
        done.write_text(facts)
    return here


def main() -> int:
    """Make both layers and compile the translations."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--torch", choices=("default", "cpu"), default="default", help="which build of torch to install"
    )
    torch = parser.parse_args().torch
    if not OLDEST <= sys.version_info[:2] <= NEWEST:
        found = platform.python_version()
        print(
            f"Python 3.11 to 3.14 is needed, this is {found}. Name another: `make run PYTHON=python3.12`.",
            file=sys.stderr,
        )
        return 1
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kpaas-lab"
    try:
        shared = shared_environment(cache, torch)
        clone_environment(shared, uv(cache, LOCK.read_text()))
    except BootstrapError as error:
        print(f"kpaas-lab set-up: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(
            f"kpaas-lab set-up: {error}. Free disk space or choose another folder in XDG_CACHE_HOME.", file=sys.stderr
        )
        return 1
    except KeyboardInterrupt:
        print("\nStopped. What is downloaded is kept: run the same command again.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
