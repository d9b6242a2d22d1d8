"""`kpaas-lab up`: starts, restarts what dies, stops, and leaves nothing behind."""

import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from kpaas_lab.installation.layout import Layout
from kpaas_lab.installation.supervisor import Process, processes
from tests.fixtures.platform import NAMES, Platform, processes_of
from tests.fixtures.ports import free_port
from tests.waiting import until


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kpaas_lab.cli", *arguments],
        check=False, capture_output=True, text=True, timeout=120, env={**os.environ, "KPAAS_LAB_LANG": "en"},
    )  # fmt: skip


def status_of(address: str, path: str) -> int:
    try:
        return httpx.get(address + path, timeout=10).status_code
    except httpx.HTTPError:
        return 0


def running(platform: Platform) -> dict[str, Process]:
    return {one.name: one for one in processes(Layout(platform.home))}


def end_all(platform: Platform) -> None:
    platform.stop()
    assert processes_of(platform.home) == []


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """A platform of this module's own, in a folder with an odd name; tests may break what it brings back."""
    with Platform(tmp_path_factory.mktemp("up") / "state of ann; 50% 한국어") as platform:
        yield platform
    assert processes_of(platform.home) == []


def test_says_the_address_and_the_log_ins(own: Platform) -> None:
    lines = own.said().splitlines()
    assert f"http://127.0.0.1:{own.ports['public']}" in lines
    assert own.password in own.said()
    assert own.admin[1] in own.said()
    assert all(re.search(rf"^{name} ready after", own.said(), re.MULTILINE) for name in NAMES)


def test_learners_and_the_admin_can_log_in(own: Platform) -> None:
    for name in ("ann", own.admin[0]):
        assert own.person(name).api("GET", "user").json()["name"] == name
    assert own.visitor("ann").log_in("a wrong password").status_code == 403
    assert own.visitor(own.admin[0]).log_in(own.password).status_code == 403


def test_the_services_answer_at_the_public_address(own: Platform) -> None:
    assert status_of(own.address, "/services/market/healthz") == 200
    assert status_of(own.address, "/services/api/healthz") == 200


def test_odd_names_of_files_get_through_the_proxy(own: Platform) -> None:
    # Answered by the hub (a log-in page, or 404), not refused by the proxy (400).
    for name in ("100%25.ipynb", "a%23b", "a%3Fb", "a%2Fb", "a%20b", "%ED%95%9C"):
        assert status_of(own.address, f"/hub/static/{name}") == 404


def test_the_state_is_private(own: Platform) -> None:
    open_to_others = [path for path in own.home.iterdir() if stat.S_IMODE(path.stat().st_mode) & 0o077]
    assert open_to_others == []
    assert stat.S_IMODE((own.home / "secrets.json").stat().st_mode) == 0o600


def test_no_secret_stands_in_a_command_line_or_a_log(own: Platform) -> None:
    secrets = [value for value in own.secrets.values() if len(value) > 8]
    lines = [" ".join(process.cmdline()) for process in processes_of(own.home)]
    texts = lines + [path.read_text(errors="replace") for path in (own.home / "log").iterdir()]
    assert not [secret for secret in secrets for text in texts if secret in text]


def test_status_shows_the_processes(own: Platform) -> None:
    answer = command("status", "--home", str(own.home), "--json")
    assert answer.returncode == 0, answer.stderr
    seen = json.loads(answer.stdout)
    assert seen["address"] == own.address
    assert [one["name"] for one in seen["processes"]] == list(NAMES)
    assert all(one["pid"] > 0 for one in seen["processes"])
    assert seen["disk_used"] > 0
    assert own.address in command("status", "--home", str(own.home)).stdout


def test_starting_twice_names_the_address(own: Platform) -> None:
    answer = command("up", "--home", str(own.home), "--port", "0")
    assert answer.returncode == 1
    assert "runs already" in answer.stderr
    assert own.address in answer.stderr
    assert status_of(own.address, "/hub/health") == 200


def test_a_taken_port_names_a_free_one(own: Platform, tmp_path: Path) -> None:
    answer = command("up", "--home", str(tmp_path / "lab"), "--port", str(own.ports["public"]))
    assert answer.returncode == 1
    assert "is taken" in answer.stderr
    other = int(re.search(r"--port (\d+)", answer.stderr)[1])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", other))


def test_doctor_knows_that_it_runs(own: Platform) -> None:
    answer = command("doctor", "--home", str(own.home), "--json")
    findings = {one["name"]: one for one in json.loads(answer.stdout)["findings"]}
    assert own.address in findings["port"]["found"]


@pytest.mark.parametrize("name", NAMES)
def test_a_killed_process_comes_back(own: Platform, name: str) -> None:
    before = running(own)[name]
    psutil.Process(before.pid).kill()

    def back() -> bool:
        now = running(own).get(name)
        return bool(now and now.pid and now.pid != before.pid and now.restarts == before.restarts + 1)

    until(back, 30, f"new {name}", log=own.logs)
    path = {"proxy": "/hub/health", "hub": "/hub/health"}.get(name, f"/services/{name}/healthz")
    until(lambda: status_of(own.address, path) == 200, 60, f"answer of the new {name}", log=own.logs)


def test_a_killed_supervisor_comes_back_with_everything(own: Platform) -> None:
    before = running(own)
    supervisor = int((own.home / "run" / "supervisord.pid").read_text())
    psutil.Process(supervisor).kill()
    until(lambda: "Everything answers again." in own.said(), 120, "platform after its supervisor died", log=own.logs)
    after = running(own)
    assert not {one.pid for one in before.values()} & {one.pid for one in after.values()}
    assert own.person("ann")


def test_a_learners_server_outlives_supervisor_and_hub_but_not_a_stop(own: Platform) -> None:
    ann = own.person("ann")
    ann.start_server()
    ann.enter()
    began = ann.client.get("/user/ann/api/status").json()["started"]
    assert json.loads(command("status", "--home", str(own.home), "--json").stdout)["learners"] == ["ann"]

    said = own.said().count("Everything answers again.")
    psutil.Process(int((own.home / "run" / "supervisord.pid").read_text())).kill()
    until(lambda: own.said().count("Everything answers again.") > said, 120, "platform again", log=own.logs)
    until(lambda: ann.client.get("/user/ann/api/status").is_success, 60, "server of ann, found again", log=own.logs)
    assert ann.client.get("/user/ann/api/status").json()["started"] == began

    end_all(own)
    assert "Learners' servers stopped: ann" in own.said()
    own.start()


def test_the_second_start_keeps_everything_and_is_told_less(own: Platform) -> None:
    address, ports, secrets = own.address, own.ports, own.secrets
    end_all(own)
    assert "Everything is stopped." in own.said()
    assert status_of(address, "/hub/health") == 0
    own.arguments = ("--port", str(ports["public"]))
    own.start()
    assert (own.address, own.ports, own.secrets) == (address, ports, secrets)
    assert own.password not in own.said()
    assert own.person("ann")


def test_a_power_cut_does_not_hinder_the_next_start(own: Platform) -> None:
    own.kill()
    own.start()
    assert own.person("ann")


def test_an_internal_port_that_is_taken_is_chosen_anew(own: Platform) -> None:
    end_all(own)
    ports = own.ports
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", ports["market"]))
        other.listen()
        own.start()
        assert own.ports["market"] != ports["market"]
        assert own.ports["hub"] == ports["hub"]
        assert status_of(own.address, "/services/market/healthz") == 200


def test_down_stops_it_from_outside(own: Platform) -> None:
    answer = command("down", "--home", str(own.home))
    assert answer.returncode == 0, answer.stderr
    assert "Everything is stopped." in answer.stdout
    assert own.process.wait(10) == 0
    assert processes_of(own.home) == []
    again = command("down", "--home", str(own.home))
    assert (again.returncode, again.stdout.strip()) == (0, "Nothing was running.")
    assert command("status", "--home", str(own.home)).returncode == 3


def test_down_after_a_killed_up_leaves_nothing(own: Platform) -> None:
    own.start()
    own.process.kill()
    own.process.wait(10)
    assert command("down", "--home", str(own.home)).returncode == 0
    assert processes_of(own.home) == []


def test_ctrl_c_while_it_starts(tmp_path: Path) -> None:
    platform = Platform(tmp_path / "lab")
    platform.launch()
    until(lambda: "State folder" in platform.said(), 30, "first line", log=platform.logs)
    assert platform.stop(signal.SIGINT) == 0
    assert "Everything is stopped." in platform.said()
    assert processes_of(platform.home) == []


@pytest.mark.parametrize("how", ["Ctrl-C", "closed"])
def test_a_terminal(tmp_path: Path, how: str) -> None:
    """Ctrl-C goes to every process of the terminal; a closed one can't be written to any more."""
    place = tmp_path / "lab"
    master, terminal = os.openpty()
    process = subprocess.Popen(
        ["setsid", "--ctty", sys.executable, "-m", "kpaas_lab.cli", "up", "--home", place, "--port", "0"],
        stdin=terminal, stdout=terminal, stderr=terminal,
    )  # fmt: skip
    os.close(terminal)
    said = b""
    while b"Ctrl-C" not in said:
        said += os.read(master, 1000)
    if how == "Ctrl-C":
        os.write(master, b"\x03")
        while b"Everything is stopped" not in said:
            said += os.read(master, 1000)
        assert process.wait(30) == 0
    os.close(master)
    until(lambda: not processes_of(place), 60, "end of all processes", log=place / "log" / "supervisor.log")
    process.wait(30)


# Machines with less than usual

# Bring up the loopback of a new network namespace, and become the rest of the arguments.
LOOPBACK_UP = """
import fcntl, os, socket, struct, sys
with socket.socket() as any_socket:
    fcntl.ioctl(any_socket, 0x8914, struct.pack("16sH14x", b"lo", 0x1))  # SIOCSIFFLAGS, IFF_UP
os.execvp(sys.argv[1], sys.argv[1:])
"""


def test_no_network(tmp_path: Path) -> None:
    alone = ("unshare", "--net", sys.executable, "-c", LOOPBACK_UP)
    if subprocess.run([*alone, "true"], check=False, capture_output=True).returncode:
        pytest.skip("a process can't be taken off the network here: it needs root and unshare")
    with Platform(tmp_path / "lab", within=alone) as platform:
        assert status_of(platform.address, "/hub/health") == 0  # it is on another network than this test
    assert "Everything is stopped." in platform.said()


@pytest.mark.parametrize("mounted", ["260m"], indirect=True)
def test_a_disk_that_fills_up_later(mounted: Path) -> None:
    """What dies on a full disk comes back, and all is well once there is space again."""
    with Platform(mounted / "lab") as platform:
        subprocess.run(["dd", "if=/dev/zero", f"of={mounted}/filler", "bs=1M"], check=False, capture_output=True)
        assert shutil.disk_usage(mounted).free == 0
        before = running(platform)
        for one in before.values():
            psutil.Process(one.pid).kill()

        def back() -> bool:
            now = running(platform)
            return len(now) == 4 and all(one.pid and one.pid != before[one.name].pid for one in now.values())

        until(back, 60, "new processes on a full disk", log=platform.logs)
        (mounted / "filler").unlink()
        for path in ("/hub/health", "/services/market/healthz", "/services/api/healthz"):
            until(lambda path=path: status_of(platform.address, path) == 200, 90, path, log=platform.logs)
        assert platform.person("ann")


# Starts that can't work


def test_a_database_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    url = f"postgresql+psycopg://ann:hunter2@127.0.0.1:{free_port()}/lab"
    answer = command("up", "--home", str(tmp_path / "lab"), "--port", "0", "--database-url", url)
    assert answer.returncode == 1
    assert "does not start" in answer.stderr
    assert "market.log" in answer.stderr or "api.log" in answer.stderr
    assert "hunter2" not in answer.stderr + answer.stdout
    assert processes_of(tmp_path / "lab") == []


def test_a_database_from_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    import sqlite3

    place = tmp_path / "lab"
    (place / "run").mkdir(parents=True)
    (place / "market").mkdir()
    database = place / "market" / "market.sqlite"
    with sqlite3.connect(database) as connection:
        connection.execute("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)")
        connection.execute("INSERT INTO alembic_version VALUES ('of_the_future')")
    answer = command("up", "--home", str(place), "--port", "0")
    assert answer.returncode == 1
    assert "newer" in answer.stderr
    with sqlite3.connect(database) as connection:
        assert connection.execute("SELECT version_num FROM alembic_version").fetchall() == [("of_the_future",)]


def test_damaged_secrets_stop_the_start_and_stay(tmp_path: Path) -> None:
    place = tmp_path / "lab"
    (place / "run").mkdir(parents=True)
    (place / "secrets.json").write_text('{"user_password"')
    (place / "secrets.json").chmod(0o600)
    answer = command("up", "--home", str(place), "--port", "0")
    assert answer.returncode == 1
    assert "is damaged" in answer.stderr
    assert (place / "secrets.json").read_text() == '{"user_password"'


@pytest.fixture
def mounted(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A small disk: of 1 MiB, or as the test's parameter says."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={getattr(request, 'param', '1m')}", "tmpfs", disk]
    done = subprocess.run(mount, check=False, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no small disk can be mounted here: {done.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


def test_a_full_disk(mounted: Path) -> None:
    answer = command("up", "--home", str(mounted / "lab"), "--port", "0")
    assert answer.returncode == 1
    assert "is full" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_a_read_only_home(mounted: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", mounted], check=True)
    answer = command("up", "--home", str(mounted / "lab"), "--port", "0")
    assert answer.returncode == 1
    assert "can't be written: Read-only file system" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_a_home_of_another_user(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a folder away")
    place = tmp_path / "lab"
    place.mkdir()
    os.chown(place, 65534, 65534)
    answer = command("up", "--home", str(place), "--port", "0")
    assert answer.returncode == 1
    assert "belongs to nobody" in answer.stderr
