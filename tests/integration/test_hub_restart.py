"""The hub is killed: learners go on. Their own servers die: nothing is lost and it is said."""

import os
import re
import signal
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from hub_config import confine, ports, records
from tests.fixtures.hub import Hub, Person, running_hub
from tests.waiting import until


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with running_hub(tmp_path_factory.mktemp("lab"), KPAAS_LAB_OVERCOMMIT="9") as running:
        yield running


def test_servers_outlive_a_hub_that_is_killed(hub: Hub) -> None:
    ann, bob = hub.person("ann"), hub.person("bob")
    for person in (ann, bob):
        person.start_server()
        person.enter()
    before = {name: records.load(hub.home / "run" / "sandboxes" / f"{name}.json") for name in ("ann", "bob")}
    cullers = [
        child
        for child in psutil.Process(hub.processes["hub"].pid).children(recursive=False)
        if any("idle_culler" in word for word in child.cmdline())
    ]
    assert cullers
    hub.kill("hub")
    # While the hub is away: the proxy still leads to the notebooks, by the same cookies.
    assert ann.client.get("/user/ann/api/kernels").status_code == 200
    psutil.wait_procs(cullers, timeout=10)
    assert not [process for process in cullers if process.is_running()], "the culler ends with its hub"
    hub.start("hub")
    hub.wait()
    for person in (ann, bob):
        assert person.client.get("/hub/home").status_code == 200
        assert person.api("GET", f"users/{person.name}").json()["servers"][""]["ready"]
        assert person.client.get(f"/user/{person.name}/api/kernels").status_code == 200
        found = records.load(hub.home / "run" / "sandboxes" / f"{person.name}.json")
        assert found == before[person.name]
    assert ann.run_cell("print(1)") == "1\n"
    # And hears of an end at once, long before it polls.
    assert before["bob"]
    os.kill(before["bob"].pid, signal.SIGKILL)
    bob.wait_stopped()
    bob.start_server()
    # What they hold is held: the new hub counts them.
    page = hub.person("carl").client.get("/hub/spawn").text
    free, total = map(int, re.search(r"(\d+) of (\d+) free", page).groups())  # type: ignore[union-attr]
    assert total - free >= 2
    # And it can stop them.
    assert ann.api("DELETE", "users/ann/server").status_code in {202, 204}
    record = before["ann"]
    assert record
    until(lambda: records.poll(record) is not None, 20, "end of ann's sandbox", log=hub.layout.log("hub"))


def test_a_hub_killed_while_a_server_starts_leaves_no_second_one(hub: Hub) -> None:
    dora = hub.person("dora")
    dora.choose()
    path = hub.home / "run" / "sandboxes" / "dora.json"
    until(path.exists, 30, "record of the sandbox", log=hub.layout.log("hub"))
    first = records.load(path)
    hub.kill("hub")
    hub.start("hub")
    hub.wait()
    if not dora.api("GET", "users/dora").json()["servers"]:  # else it was up before the kill, and the hub has found it
        dora.choose()
    dora.wait_ready()
    dora.enter()
    second = records.load(path)
    assert first
    assert second
    assert records.poll(second) is None
    if first != second:
        assert records.poll(first) is not None


def until_said_to_be_stopped(person: Person) -> None:
    """The proxy reads its new routes a moment after the hub wrote them."""
    page = f"/user/{person.name}/lab"
    until(lambda: "Your server is not running" in person.client.get(page).text, 20, f"the hub's answer at {page}")


def test_a_server_that_dies_is_noticed_and_can_be_started_again(hub: Hub) -> None:
    emil = hub.person("emil")
    emil.start_server()
    emil.enter()
    record = records.load(hub.home / "run" / "sandboxes" / "emil.json")
    assert record
    os.kill(record.pid, signal.SIGKILL)
    emil.wait_stopped()
    until_said_to_be_stopped(emil)
    emil.start_server()
    emil.enter()


@pytest.mark.skipif(confine.landlock_version() < 4, reason="Linux before 6.7 has no rules for ports")
def test_a_dead_servers_port_is_nobody_elses(hub: Hub) -> None:
    """Whoever listened there until the hub notices would be sent the browser of the server's owner, cookies and all."""
    gina, mallory = hub.person("gina"), hub.person("mallory")
    for person in (gina, mallory):
        person.start_server()
        person.enter()
    port = gina.run_cell("import os; print(os.environ['JUPYTERHUB_SERVICE_URL'].split(':')[2].split('/')[0])").strip()
    record = records.load(hub.home / "run" / "sandboxes" / "gina.json")
    assert record
    kernel = mallory.kernel()
    with ThreadPoolExecutor(1) as beside:
        begun = threading.Event()
        told = beside.submit(kernel.run, STEAL.replace("PORT", port), 60, begun.set)
        assert begun.wait(30)
        os.kill(record.pid, signal.SIGKILL)
        gina.wait_stopped()
        until_said_to_be_stopped(gina)
        (hub.home / "learners" / "mallory" / "enough").touch()
    assert told.result() == "trying\nrefused\n"
    for place in (hub.ports["hub"], hub.ports["public"]):
        assert mallory.run_cell(STEAL.replace("PORT", str(place))) == "trying\nrefused\n"


# Ends with the file `enough`, or at once where it has got the port.
STEAL = """
import errno, os, socket, time
print("trying", flush=True)
deadline = time.monotonic() + 50
said = set()
while "listens" not in said and time.monotonic() < deadline:
    with socket.socket() as thief:
        thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            thief.bind(("127.0.0.1", PORT)); thief.listen(); said.add("listens")
        except PermissionError:
            said.add("refused")
        except OSError as error:
            said.add(str(error))
    if os.path.exists(os.path.expanduser("~/enough")):
        break
print(*sorted(said))
"""


def test_an_endpoint_comes_back_with_its_learners_server(hub: Hub) -> None:
    frida = hub.person("frida")
    frida.start_server()
    frida.enter()
    assert frida.run_cell(ENGINE + "print(engine.create(service).name)") == "echo\n"
    ready = ENGINE + "print(engine.get('echo').ready)"
    until(lambda: frida.run_cell(ready) == "1\n", 60, "ready endpoint")
    frida.stop_server()
    frida.start_server()
    frida.enter()
    until(lambda: frida.run_cell(ready) == "1\n", 60, "endpoint that came back")
    frida.stop_server()


def test_a_port_taken_by_another_learner_shows_them_nothing() -> None:
    """Another's program listens where a server should: the hub does not send this learner there."""
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        assert not ports.belongs(stranger.getsockname()[1], 1)
        assert ports.belongs(stranger.getsockname()[1], os.getpid())


def test_an_idle_server_is_culled_and_a_working_one_is_not(tmp_path_factory: pytest.TempPathFactory) -> None:
    settings = {"KPAAS_LAB_IDLE_SECONDS": "8"}
    with running_hub(tmp_path_factory.mktemp("lab"), **settings) as quick:
        ann, bob = quick.person("ann"), quick.person("bob")
        ann.start_server()
        bob.start_server()
        bob.enter()
        bob.run_cell(HOLD)
        log = quick.layout.log("hub")

        def servers(name: str) -> object:
            admin = quick.person("admin")
            return admin.api("GET", f"users/{name}").json()["servers"]

        until(lambda: not servers("ann"), 60, "end of ann's idle server", log=log)
        assert servers("bob"), "bob has a run that works"


# A workload, as the local engine keeps one: a process that holds the lock of its folder.
HOLD = """
import os, subprocess, sys
code = '''
import time, pathlib
from kpaas_lab.engines import records
folder = pathlib.Path.home() / ".kpaas-lab/workloads/run"
folder.mkdir(parents=True)
assert records.take_lock(folder)
print("held", flush=True)
time.sleep(600)
'''
print(subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True).stdout.readline())
"""

ENGINE = """
import pathlib, sys
from kpaas_lab.engines.local import LocalEngine
from kpaas_lab.settings import from_environment
from kpaas_lab.slices import load_catalogue
from kpaas_lab.workloads import Service
mine = from_environment()
engine = LocalEngine(mine.home, load_catalogue(mine.slices_file))
code = '''
import http.server, os, socketserver
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def address_string(self):
        return "unix"
socketserver.UnixStreamServer(os.environ["KPAAS_LAB_LISTEN"].removeprefix("unix:"), Answer).serve_forever()
'''
service = Service(name="echo", command=(sys.executable, "-c", code), workdir=pathlib.Path.home())
"""
