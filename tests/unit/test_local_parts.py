"""The parts of the local engine that need no process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kpaas_lab.engines import logfile, spawn
from kpaas_lab.engines.machine import Machine, fitting
from tests.contract.engines import CATALOGUE, cpu_slice


def read(folder: Path) -> list[str]:
    return list(logfile.read_lines(folder, follow=False, ended=lambda: True, cut="({})".format))


@pytest.mark.parametrize("chunk", [1, 7, 100, 5000])
def test_a_log_within_its_limit_is_whole(tmp_path: Path, chunk: int) -> None:
    writer = logfile.LogWriter(tmp_path, 10_000)
    text = "".join(f"line {number}\n" for number in range(300)).encode()
    for start in range(0, len(text), chunk):
        writer.write(text[start : start + chunk])
    assert read(tmp_path) == text.decode().splitlines()


@pytest.mark.parametrize("chunk", [1, 7, 100, 5000])
def test_a_log_beyond_its_limit_says_exactly_what_is_missing(tmp_path: Path, chunk: int) -> None:
    writer = logfile.LogWriter(tmp_path, 1000)
    text = "".join(f"line {number}\n" for number in range(3000)).encode()
    for start in range(0, len(text), chunk):
        writer.write(text[start : start + chunk])
    lines = read(tmp_path)
    assert (lines[0], lines[-1]) == ("line 0", "line 2999")
    (place,) = [index for index, line in enumerate(lines) if line.startswith("(")]
    kept = lines[:place] + lines[place + 1 :]
    assert set(kept) - set(text.decode().splitlines()) <= {lines[place - 1]} | {lines[place + 1]}
    missing = int(lines[place][1:-1])
    assert missing + sum(len(line) + 1 for line in kept) - len(text) in {0, 1}
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 1000


def test_a_restarted_writer_goes_on(tmp_path: Path) -> None:
    for number in range(3):
        writer = logfile.LogWriter(tmp_path, 1000)
        writer.write(f"start {number}\n".encode())
        writer.close()
    assert read(tmp_path) == ["start 0", "start 1", "start 2"]


def test_output_that_is_no_text(tmp_path: Path) -> None:
    writer = logfile.LogWriter(tmp_path, 1000)
    writer.write(b"\xff\xfe\r\nno end")
    assert read(tmp_path) == ["��", "no end"]


def test_two_cpu_slices_always_fit() -> None:
    large = cpu_slice("large", 65536, 64)
    assert fitting(Machine(cores=1, memory_mib=1024), large) == 2
    assert fitting(Machine(cores=1, memory_mib=1024), large, [large, large]) == 0


def test_a_gpu_slice_needs_a_gpu() -> None:
    assert all(fitting(Machine(cores=64, memory_mib=1 << 20), one) == 0 for one in CATALOGUE if one.gpu_memory_mib)


def test_the_creators_secrets_stay_behind() -> None:
    names = "JUPYTERHUB_API_TOKEN AWS_SECRET_ACCESS_KEY KPAAS_LAB_SECRETS CONFIGPROXY_AUTH_TOKEN"
    secret = dict.fromkeys(names.split(), "x")
    assert spawn.passed_on({**secret, "PATH": "/bin", "LC_ALL": "C", "MLFLOW_TRACKING_URI": "u"}) == {
        "PATH": "/bin",
        "LC_ALL": "C",
        "MLFLOW_TRACKING_URI": "u",
    }


def test_the_shim_starts_without_site_packages() -> None:
    code = f"import sys; sys.path.append({str(spawn.ROOT)!r}); import kpaas_lab.engines.shim"
    subprocess.run([sys.executable, "-I", "-S", "-c", code], check=True, timeout=60)
