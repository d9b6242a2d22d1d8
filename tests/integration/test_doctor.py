"""`kpaas-lab doctor`: what it finds is really tried."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

DOCTOR = [sys.executable, "-m", "kpaas_lab.cli", "doctor", "--port", "0"]


def examine(*command: str, home: Path) -> tuple[int, dict[str, dict[str, str]]]:
    done = subprocess.run(
        [*command, "--home", str(home), "--json"], check=False, capture_output=True, text=True, timeout=60,
        env={**os.environ, "KPAAS_LAB_LANG": "en"},
    )  # fmt: skip
    answer = json.loads(done.stdout)
    assert answer["ok"] is (done.returncode == 0), done.stdout + done.stderr
    return done.returncode, {one["name"]: one for one in answer["findings"]}


def test_finds_every_thing_once(tmp_path: Path) -> None:
    _code, found = examine(*DOCTOR, home=tmp_path / "lab")
    assert set(found) == {"system", "python", "proxy", "sandbox", "home", "disk", "memory", "port", "gpu", "mps"}
    assert found["proxy"]["verdict"] == "ok"
    assert "Traefik 3" in found["proxy"]["found"]
    assert not (tmp_path / "lab").exists()  # it only looks


def test_every_fault_has_a_fix(tmp_path: Path) -> None:
    _code, found = examine(*DOCTOR, home=tmp_path / "lab")
    assert all(one["fix"] for one in found.values() if one["verdict"] == "missing")


def test_a_taken_port(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        code, found = examine(*DOCTOR[:-1], str(other.getsockname()[1]), home=tmp_path / "lab")
    assert code == 1
    assert found["port"]["verdict"] == "missing"
    assert "--port" in found["port"]["fix"]


def test_a_machine_that_forbids_namespaces(tmp_path: Path) -> None:
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("only root can take namespaces away from a process (unshare)")
    without = ["unshare", "-U", "-r", "sh", "-c", 'echo 0 > /proc/sys/user/max_pid_namespaces && exec "$@"', "sh"]
    code, found = examine(*without, *DOCTOR, home=tmp_path / "lab")
    assert code == 1
    assert found["sandbox"]["verdict"] == "missing"
    assert found["sandbox"]["fix"]


def test_a_home_of_another_user(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a folder away")
    os.chown(tmp_path, 65534, 65534)
    code, found = examine(*DOCTOR, home=tmp_path)
    assert code == 1
    assert found["home"]["verdict"] == "missing"


@pytest.mark.parametrize(("lang", "words"), [("en", "is missing"), ("ko", "")])
def test_for_people(lang: str, words: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [*DOCTOR, "--home", str(tmp_path / "lab"), "--lang", lang],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert words in done.stdout
    assert "✓ Python" in done.stdout
    assert "Traceback" not in done.stderr
