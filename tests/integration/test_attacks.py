"""The attack list, against the assembled platform: mallory in his own notebook, carol and the platform the victims.

What each part withstands in detail is in test_attacks_sandbox.py, test_attacks_market.py and test_attacks_gateway.py.
"""

from __future__ import annotations

import http.client
import secrets
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import psutil
import pytest

from hub_config import bubblewrap
from kpaas_lab.errors import SettingsError
from tests.fixtures.hub import Person
from tests.fixtures.platform import Platform
from tests.waiting import until

PROCESS = f"CAROLS-{secrets.token_hex(4)}"
SCRIPT = "<script>window.stolen=1</script>"
MODEL = "import numpy as np\ndef total(x): return x.sum(axis=1)\nexample = np.ones((2, 4), dtype='float32')"
TRY = """
import os, signal, subprocess, sys
def attempt(what, do):
    try:
        print(what, "->", repr(do()))
    except OSError as error:
        print(what, "-> refused", error.errno)
"""


def cell(person: Person, code: str) -> str:
    """What the code prints in a notebook of that person; its kernel ends."""
    try:
        return person.run_cell(textwrap.dedent(code), timeout=120)
    finally:
        base = f"/user/{person.name}/"
        headers = {"X-XSRFToken": person.xsrf(base), "Referer": f"{person.hub.url}{base}lab"}
        for kernel in person.client.get(f"{base}api/kernels").json():
            person.client.delete(f"{base}api/kernels/{kernel['id']}", headers=headers)


def carols_processes() -> list[int]:
    return [
        one.pid for one in psutil.process_iter(["cmdline"]) if f": {PROCESS}" in " ".join(one.info["cmdline"] or ())
    ]


@dataclass
class Victim:
    """Carol at work: a file, a process, an endpoint that is published, and a key of her own subscription."""

    person: Person
    platform: Platform
    work: str
    key: str

    @property
    def home(self) -> str:
        return str(self.platform.home / "learners" / "carol")

    def is_well(self) -> bool:
        """Her server, her process and her API are there, and her API answers."""
        return bool(carols_processes()) and "[4.0]" in cell(self.person, "print(open('work').read())") + str(
            call(self, self.key).json()
        )


def call(victim: Victim, key: str, path: str = "carol/total/v2/models/total/infer") -> httpx.Response:
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 1, 1, 1]}]}
    address = f"{victim.platform.address}/services/api/{path}"
    return httpx.post(address, json=body, headers={"Authorization": f"Bearer {key}"}, timeout=30)


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """A platform of this module's own: nothing an attack leaves behind is met by another test."""
    try:
        bubblewrap.mode()
    except SettingsError as error:
        pytest.skip(str(error))
    with Platform(tmp_path_factory.mktemp("attacks") / "state") as platform:
        yield platform


@pytest.fixture(scope="module")
def people(attacked: Platform) -> tuple[Victim, Person]:
    carol, mallory = attacked.person("carol"), attacked.person("mallory")
    carol.start_server()
    mallory.start_server()
    for person in (carol, mallory):
        person.enter()
    work = secrets.token_hex(16)
    printed = cell(
        carol,
        f"""
        import json, os, subprocess
        from kpaas_lab import Lab, Plan
        {textwrap.indent(MODEL, " " * 8).strip()}
        open("work", "w").write("{work}")
        subprocess.Popen(["/bin/sh", "-c", "sleep 600; : {PROCESS}"], start_new_session=True)
        lab = Lab()
        lab.publish(lab.serve(total, name="total", example=example), title="Total", plans=[Plan("free")])
        api = lab.subscribe("carol/total", plan="free")
        print("key", lab.market.key_of(api).text)
        """,
    )
    return Victim(carol, attacked, work, printed.split("key ")[1].strip()), mallory


@pytest.fixture
def carol(people: tuple[Victim, Person]) -> Iterator[Victim]:
    """She is well before the attack, and after it."""
    assert people[0].is_well()
    yield people[0]
    assert people[0].is_well()


@pytest.fixture
def mallory(people: tuple[Victim, Person]) -> Person:
    return people[1]


def test_reading_anothers_home(carol: Victim, mallory: Person) -> None:
    printed = cell(
        mallory,
        TRY
        + f"""
for path in ("/home/carol/work", "{carol.home}/work", "../carol/work", "/proc/1/root{carol.home}/work"):
    attempt(path, lambda: open(path).read())
print(subprocess.run(["grep", "-rs", "{carol.work[:16]}", "/home", "/tmp", "/run", "/dev/shm"], capture_output=True))
""",
    )
    assert printed.count("refused") == 4
    assert carol.work not in printed
    for path in ("files/work", "api/contents/work"):
        assert mallory.client.get(f"/user/carol/{path}").status_code in {403, 404}


def test_killing_anothers_process(carol: Victim, mallory: Person) -> None:
    pids = carols_processes()
    printed = cell(
        mallory,
        TRY
        + f"""
seen = [open(f"/proc/{{pid}}/cmdline").read() for pid in os.listdir("/proc") if pid.isdigit()]
print("sees", [line for line in seen if "CAROLS-" in line or "supervisor" in line])
mine = {{int(pid) for pid in os.listdir("/proc") if pid.isdigit()}}
for pid in [*{pids!r}, 1]:
    if pid == 1 or pid not in mine:
        attempt(f"kill {{pid}}", lambda: os.kill(pid, signal.SIGKILL))
""",
    )
    assert "sees []" in printed
    assert (
        "kill 1 -> refused" in printed or "kill 1 -> None" in printed
    )  # init of a pid namespace can't be killed within
    assert "refused" in printed
    assert mallory.api("DELETE", "users/carol/server").status_code in {403, 404}


def test_reading_the_markets_database(carol: Victim, mallory: Person) -> None:
    state = carol.platform.home
    assert (state / "market" / "market.sqlite").stat().st_size > 0
    printed = cell(
        mallory,
        TRY
        + f"""
for root in ("", "/proc/1/root", "/proc/self/cwd/../.."):
    for name in ("market/market.sqlite", "hub/jupyterhub.sqlite", "secrets.json", "api/spool"):
        attempt(name, lambda: os.stat(f"{{root}}{state}/{{name}}"))
print("variables", [name for name in os.environ if "DATABASE" in name or "SECRETS" in name])
""",
    )
    assert printed.count("refused") == 12
    assert "variables []" in printed


def test_using_anothers_key(carol: Victim, mallory: Person) -> None:
    printed = cell(
        mallory,
        f"""
        from kpaas_lab import Lab, Plan
        {textwrap.indent(MODEL, " " * 8).strip()}
        lab = Lab()
        lab.publish(lab.serve(total, name="mine", example=example), title="Mine", plans=[Plan("free")])
        print("key", lab.market.key_of(lab.subscribe("mallory/mine", plan="free")).text)
        try: print(open("/home/carol/.kpaas-lab/keys.json").read())
        except OSError: print("refused")
        for method, path in (("GET", "/usage?listing=carol/total"), ("DELETE", "/listings/carol/total")):
            try: print(lab.market.request(method, path))
            except Exception as error: print(type(error).__name__)
        """,
    )
    key = printed.split("key ")[1].split()[0]
    assert "refused" in printed
    assert "total" not in printed.partition("refused")[2]
    assert (call(carol, key).status_code, call(carol, key).headers["x-kpaas-error"]) == (403, "not_subscribed")
    for forged in (carol.key[:12] + "A" * 35, carol.key[:-1], carol.key.swapcase(), "x", "kpl_' OR 1=1 --"):
        assert call(carol, forged).status_code == 401, forged


def test_forging_a_hub_token(carol: Victim, mallory: Person) -> None:
    own = cell(mallory, "import os; print(os.environ['JUPYTERHUB_API_TOKEN'])").strip()
    address = carol.platform.address
    forged = [secrets.token_hex(16), own[:-1] + ("0" if own[-1] != "0" else "1"), own.upper(), "x", "null"]
    for token in forged:
        headers = {"Authorization": f"token {token}"}
        for path in ("/hub/api/user", "/services/market/api/v1/subscriptions", "/user/carol/api/contents"):
            assert httpx.get(address + path, headers=headers).status_code in {401, 403}, (path, len(token))
    headers = {"Authorization": f"token {own}"}
    for method, path in (
        ("GET", "users/carol"),
        ("POST", "users/carol/tokens"),
        ("POST", "users/mallory/tokens"),
        ("PATCH", "users/mallory"),
        ("GET", "services"),
        ("GET", "proxy"),
        ("POST", "shutdown"),
    ):
        body = {"scopes": ["admin:users"], "admin": True} if method != "GET" else None
        answer = httpx.request(method, f"{address}/hub/api/{path}", headers=headers, json=body)
        assert answer.status_code in {400, 403, 404}, (method, path, answer.text)
    assert httpx.get(f"{address}/user/carol/api/contents", headers=headers).status_code in {403, 404}


def test_exceeding_memory(carol: Victim, mallory: Person) -> None:
    printed = cell(
        mallory,
        TRY
        + """
code = "kept = []\\nwhile True: kept.append(bytearray(b'x') * (64 << 20))"
print("ended with", subprocess.run([sys.executable, "-c", code], stderr=subprocess.DEVNULL).returncode)
print("the notebook is here")
""",
    )
    assert "ended with -9" in printed or "ended with 1" in printed  # killed, or told so by MemoryError
    assert "the notebook is here" in printed


def test_a_fork_bomb(carol: Victim, mallory: Person) -> None:
    printed = cell(
        mallory,
        TRY
        + '''
code = """
import os, time
made = 0
while made < 20_000:
    try:
        if os.fork() == 0:
            time.sleep(600); os._exit(0)
        made += 1
    except OSError as error:
        print("refused", error.errno, "after", made, flush=True)
        break
os.killpg(0, 9)
"""
print(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, start_new_session=True).stdout)
''',
    )
    assert "refused 11" in printed  # EAGAIN
    assert int(printed.split("after ")[1]) < 1024
    until(lambda: "here" in cell(mallory, "print('here')"), 30, "mallory's notebook", log=carol.platform.logs)


PATHS = [
    "/services/market/static/../../../../secrets.json",
    "/services/market/static/..%2f..%2f..%2fsecrets.json",
    "/services/market/web/%2e%2e/%2e%2e/errors.py",
    "/services/api/carol/total/v2/../../../../hub/api/users",
    "/services/api/carol/total/v2/models/total/..%2f..%2f..%2fmetrics",
    "/services/api/carol/..%2fmallory/v2",
    "/hub/static/../../jupyterhub.sqlite",
    "/hub/static/..%2f..%2f..%2fetc/passwd",
    "/user/mallory/files/..%2f..%2fcarol/work",
    "/user/mallory/../carol/files/work",
    "/user/mallory/api/contents/..%2f..%2fcarol%2fwork",
]


def test_path_traversal(carol: Victim, mallory: Person) -> None:
    """As it is on the wire: no client tidies the path up."""
    url = httpx.URL(carol.platform.address)
    headers = {
        "Cookie": "; ".join(f"{one.name}={one.value}" for one in mallory.client.cookies.jar),
        "Authorization": f"Bearer {carol.key}",
    }
    for path in PATHS:
        connection = http.client.HTTPConnection(url.host, url.port, timeout=30)
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        text = answer.read().decode(errors="replace")
        connection.close()
        if answer.status in {301, 302, 308}:  # tidied up by the proxy, or sent to log in
            text = mallory.client.get(str(answer.getheader("Location"))).text
        else:
            assert answer.status in {400, 401, 403, 404}, (path, text[:300])
        for secret in (carol.work, carol.platform.password, "root:x:0", "class LabError", "SQLite format"):
            assert secret not in text, path


def test_stored_html_in_a_listing(carol: Victim, mallory: Person) -> None:
    printed = cell(
        mallory,
        f"""
        from kpaas_lab import Lab, Plan
        {textwrap.indent(MODEL, " " * 8).strip()}
        lab = Lab()
        endpoint = lab.serve(total, name="mine", example=example, replace=True)
        words = {SCRIPT!r} + "<img src=x onerror=stolen> [x](javascript:stolen) \\"><svg/onload=stolen>"
        lab.publish(endpoint, name="stored", title=words, description=words, plans=[Plan("free")])
        for name in ("../carol/total", "a/b", {SCRIPT!r}, "\\u202etotal", "t" * 2000):
            try: lab.publish(endpoint, name=name, title="T", plans=[Plan("free")]); print("published", name)
            except Exception as error: print(type(error).__name__)
        """,
    )
    assert "published" not in printed
    for path in ("", "listings/mallory/stored", "?q=script"):
        page = carol.person.client.get(f"/services/market/{path}")
        assert page.status_code == 200
        assert "window.stolen" in page.text, "shown, as text"
        for element in (SCRIPT, "<img src=x", "<svg/onload", 'href="javascript:'):
            assert element not in page.text
        assert "script-src 'self'" in page.headers["content-security-policy"]


def test_request_forgery_through_an_endpoints_address(carol: Victim, mallory: Person) -> None:
    """Neither an address nor a link in mallory's own home makes the platform call anything but mallory's endpoint."""
    ports = carol.platform.ports
    printed = cell(
        mallory,
        TRY
        + f"""
from pathlib import Path
from kpaas_lab import Lab, Plan
lab = Lab()
workloads = Path.home() / ".kpaas-lab" / "workloads"
targets = {{
    "link": "{carol.home}/.kpaas-lab/workloads/total/0.sock",
    "supervisor": "{carol.platform.home}/run/supervisor.sock",
}}
for name, target in targets.items():
    (workloads / name).mkdir(parents=True)
    (workloads / name / "0.sock").symlink_to(target)
addresses = ["http://127.0.0.1:{ports["hub"]}/hub/api", "127.0.0.1:{ports["market"]}", "http://169.254.169.254/",
    "unix:{carol.home}/x.sock", "../../carol/total", "carol/total", *targets]
for address in addresses:
    try:
        lab.market.publish("forged", title="F", endpoint=address, plans=[Plan("free")]); print("published", address)
    except Exception as error:
        print("refused", type(error).__name__)
import shutil
for name in targets: shutil.rmtree(workloads / name)
""",
    )
    assert "published" not in printed
    assert printed.count("refused SettingsError") == 6
    assert printed.count("refused NotConformantError") == 2
