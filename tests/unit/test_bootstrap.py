"""Building the environment: reading the lock, choosing wheels, and what it says when it can't."""

import hashlib
import io
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

from kpaas_lab import bootstrap
from kpaas_lab.bootstrap import BootstrapError

ROOT = Path(__file__).resolve().parents[2]
LOCK = (ROOT / "requirements.lock").read_text()


def test_the_lock_pins_and_hashes_everything() -> None:
    entries = bootstrap.requirements(LOCK)
    assert len(entries) > 200
    assert not [
        entry for entry in entries if not re.match(r"^[a-z0-9._-]+==\S+", entry) or "--hash=sha256:" not in entry
    ]


def test_the_lock_has_what_the_project_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = project["dependencies"] + [name for extra in project["optional-dependencies"].values() for name in extra]
    names = {re.match(r"[A-Za-z0-9._-]+", line)[0].lower().replace("_", "-") for line in asked}
    locked = {entry.partition("==")[0] for entry in bootstrap.requirements(LOCK)}
    assert names <= locked


def test_the_cpu_build_leaves_out_what_only_cuda_needs() -> None:
    kept = {entry.partition("==")[0] for entry in bootstrap.requirements(bootstrap.without_cuda(LOCK))}
    left = {entry.partition("==")[0] for entry in bootstrap.requirements(LOCK)} - kept
    assert {"torch", "triton"} <= left
    assert all(re.match(r"torch$|triton$|nvidia-|cuda-", name) for name in left)
    assert {"onnxruntime", "torchvision"} & kept == {"onnxruntime"}


def test_a_package_that_is_not_pinned() -> None:
    with pytest.raises(BootstrapError, match="make lock"):
        bootstrap.pinned(LOCK, "no-such-package")


def test_the_wheel_is_chosen_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(bootstrap.platform, "libc_ver", lambda: ("glibc", "2.36"))
    names = ["macosx_11_0_arm64", "musllinux_1_1_x86_64", "manylinux_2_28_aarch64", "manylinux_2_17_x86_64"]
    links = [f"https://index/uv-9.9.9-py3-none-{name}.whl#sha256=00" for name in names]
    assert bootstrap._wheel_for_here(links, "9.9.9") == "https://index/uv-9.9.9-py3-none-manylinux_2_17_x86_64.whl"
    with pytest.raises(BootstrapError, match=r"no uv 9\.9\.8"):
        bootstrap._wheel_for_here(links, "9.9.8")


def wheel(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("uv-9.9.9.data/scripts/uv", content)
    return buffer.getvalue()


def serve(monkeypatch: pytest.MonkeyPatch, package: bytes) -> str:
    """An index with one wheel; and a lock that pins it."""
    name = f"uv-9.9.9-py3-none-{'musllinux' if bootstrap.platform.libc_ver()[0] != 'glibc' else 'manylinux'}_2_17_"
    page = f'<a href="{name}{bootstrap.platform.machine()}.whl">uv</a>'.encode()
    monkeypatch.setattr(bootstrap, "_read", lambda url: page if url.endswith("/") else package)
    return f"uv==9.9.9 \\\n    --hash=sha256:{hashlib.sha256(package).hexdigest()}\n"


def test_the_installer_is_checked_against_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = serve(monkeypatch, wheel(b"#!/bin/sh\n"))
    program = bootstrap.uv(tmp_path, lock)
    assert program.read_bytes() == b"#!/bin/sh\n"
    assert program.stat().st_mode & 0o100
    assert [path.name for path in tmp_path.iterdir()] == [program.name]


def test_a_changed_installer_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = serve(monkeypatch, wheel(b"good"))
    serve(monkeypatch, wheel(b"evil"))
    with pytest.raises(BootstrapError, match="does not have the hash"):
        bootstrap.uv(tmp_path, lock)
    assert list(tmp_path.iterdir()) == []


def test_a_persons_environment_does_not_steer_the_installer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VIRTUAL_ENV", "/elsewhere")
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    seen: dict[str, dict[str, str]] = {}

    def run(_command: list[str], *, env: dict[str, str], **_options: object) -> subprocess.CompletedProcess[bytes]:
        seen["env"] = env
        return subprocess.CompletedProcess([], 1)

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(BootstrapError, match="run the same command again"):
        bootstrap._run("uv")
    assert not {"VIRTUAL_ENV", "PYTHONPATH"} & set(seen["env"])


def test_an_old_python_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["bootstrap.py"])
    monkeypatch.setattr(sys, "version_info", (3, 10, 1))
    assert bootstrap.main() == 1
    assert "make run PYTHON=" in capsys.readouterr().err


def test_no_network_is_told_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def away(*_arguments: object, **_options: object) -> object:
        raise OSError("Network is unreachable")

    monkeypatch.setattr(bootstrap.urllib.request, "urlopen", away)
    monkeypatch.setattr(sys, "argv", ["bootstrap.py"])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert bootstrap.main() == 1
    said = capsys.readouterr().err
    assert "Check the network" in said
    assert "Traceback" not in said


def test_bootstrap_needs_nothing_but_python() -> None:
    """It runs before anything is installed, with the system's own Python."""
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(ROOT / "kpaas_lab" / "bootstrap.py"), "--help"],
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_conda_gets_the_same_lock_and_python() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    python = next(line for line in environment["dependencies"] if str(line).startswith("python "))
    assert python.removeprefix("python ") == project["requires-python"]
    assert {"pip": ["--requirement requirements.lock"]} in environment["dependencies"]
