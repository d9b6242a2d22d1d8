"""A real hub, traefik and sandboxes: log in, choose, start, work, stop."""

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hub_config import records
from tests.fixtures.hub import Hub, Person, running_hub
from tests.waiting import until


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with running_hub(tmp_path_factory.mktemp("lab"), KPAAS_LAB_STARTS_AT_ONCE="1", KPAAS_LAB_OVERCOMMIT="9") as running:
        yield running


@pytest.fixture(scope="module")
def ann(hub: Hub) -> Person:
    person = hub.person("ann")
    person.start_server()
    person.enter()
    return person


def spans(text: str, language: str) -> str:
    return " ".join(re.findall(rf'<span class="t" lang="{language}">(.*?)</span>', text, re.DOTALL))


def test_a_wrong_password_or_name_is_refused_in_words(hub: Hub) -> None:
    stranger = Person("stranger", hub.person("ann").client, hub)
    stranger.client.cookies.clear()
    for name, password, says in (
        ("ann", "wrong", "The name or the password is wrong"),
        ("ann", "비밀번호", "The name or the password is wrong"),
        ("ann", "", "The name or the password is wrong"),
        ("", hub.secrets.user_password, "The name or the password is wrong"),
        ("admin", hub.secrets.user_password, "The name or the password is wrong"),
        ("../bob", hub.secrets.user_password, "The name ../bob can"),
        ("root", hub.secrets.user_password, "The name root can"),
        ("a" * 40, hub.secrets.user_password, "can&#39;t be used"),
        ("<b>x</b>", hub.secrets.user_password, "The name &lt;b&gt;x&lt;/b&gt; can"),
    ):
        answer = stranger.log_in(password, name)
        assert answer.status_code == 403
        assert says in answer.text
    assert stranger.client.get("/hub/api/user").status_code == 403


def test_the_spawn_page_offers_the_slices_of_this_machine(hub: Hub) -> None:
    page = hub.person("reader").client.get("/hub/spawn")
    assert 'name="slice"' in page.text
    assert 'value="cpu"' in page.text
    assert re.search(r"\d+ of \d+ free", page.text)
    assert "작은 모델" in page.text  # both languages stand in the page
    assert "small models" in page.text


@pytest.mark.parametrize(
    "form",
    [{"slice": "2g.20gb"}, {"slice": ["cpu", "cpu-large"]}, {"slice": "cpu", "env": "PATH=/"}, {"slice": "../x"}],
)
def test_bad_options_are_refused_in_words_and_start_nothing(hub: Hub, form: dict[str, str]) -> None:
    carl = hub.person("carl")
    answer = carl.client.post(f"/hub/spawn?_xsrf={carl.xsrf()}", data=form)
    assert answer.status_code == 400
    assert re.search("No slice|no option|one slice&#39;s name", answer.text)
    assert "SpawnException" not in answer.text
    assert 'value="cpu"' in answer.text, "the choice is offered again"
    answer = carl.api("POST", "users/carl/server", json={"user_options": form})
    assert answer.status_code == 400
    assert re.search("No slice|no option|one slice's name", answer.json()["message"])
    assert carl.api("GET", "users/carl").json()["servers"] == {}
    assert not (hub.home / "run" / "sandboxes" / "carl.json").exists()


def test_a_refusal_speaks_the_browsers_language_to_programs(hub: Hub) -> None:
    carl = hub.person("carl", language="ko")
    page = carl.client.post(f"/hub/spawn?_xsrf={carl.xsrf()}", data={"slice": "nope"})
    assert "nope" in page.text
    assert carl.api("POST", "users/carl/server", json={"slice": "nope"}).status_code == 400


def test_a_kernel_runs_a_cell_in_the_learners_home_and_slice(hub: Hub, ann: Person) -> None:
    code = "import os, json; print(json.dumps({'cwd': os.getcwd(), 'env': dict(os.environ), 'files': os.listdir('.')}))"
    seen = json.loads(ann.run_cell(code))
    assert seen["cwd"].startswith("/home/ann")
    env = seen["env"]
    assert env["KPAAS_LAB_SLICE"] == "cpu"
    assert env["KPAAS_LAB_ENGINE"] == "local"
    assert env["KPAAS_LAB_LANG"] == "en"
    assert env["KPAAS_LAB_MARKET_URL"] == f"{hub.url}/services/market"
    assert env["JUPYTERHUB_USER"] == "ann"
    assert "courses" in seen["files"]


def test_nothing_of_the_hubs_own_environment_is_seen_inside(hub: Hub, ann: Person) -> None:
    seen = ann.run_cell("import os; print(sorted(os.environ)); print(open(f'/proc/{os.getppid()}/environ').read())")
    for name in (
        "KPAAS_LAB_SECRETS",
        "KPAAS_LAB_HOME",
        "KPAAS_LAB_PORTS",
        "JUPYTERHUB_CRYPT_KEY",
        "KPAAS_LAB_DATABASE",
    ):
        assert name not in seen
    for secret in (hub.secrets.market_token, hub.secrets.cookie_secret, hub.secrets.user_password):
        assert secret not in seen


def test_the_servers_log_holds_no_token(hub: Hub, ann: Person) -> None:
    token = ann.run_cell("import os; print(os.environ['JUPYTERHUB_API_TOKEN'])").strip()
    assert len(token) > 20
    for log in [*(hub.home / "log").rglob("*.log")]:
        assert token not in log.read_text(errors="replace"), log


def test_korean_learners_get_a_korean_jupyterlab_that_they_can_change(hub: Hub) -> None:
    kim = hub.person("kim", language="ko-KR,ko;q=0.9,en;q=0.1")
    kim.start_server()
    kim.enter()
    settings = "/user/kim/lab/api/settings/@jupyterlab/translation-extension:plugin"
    given = kim.client.get(settings).json()
    assert given["schema"]["properties"]["locale"]["default"] == "ko_KR"
    assert given["raw"] == "{}", "only the default is set"
    assert kim.run_cell("import os; print(os.environ['KPAAS_LAB_LANG'])").strip() == "ko"
    kim.stop_server()


def test_learners_install_no_extensions_into_jupyterlab(ann: Person) -> None:
    """They are everybody's; the list is there to read."""
    page = ann.client.get("/user/ann/lab").text
    config = json.loads(page.split('id="jupyter-config-data" type="application/json">')[1].split("</script>")[0])
    assert config["extensionManager"]["can_install"] is False
    xsrf = {"X-XSRFToken": ann.xsrf("/user/ann/"), "Referer": f"{ann.hub.url}/user/ann/lab"}
    order = {"cmd": "install", "extension_name": "jupyterlab-git"}
    answer = ann.client.post("/user/ann/lab/api/extensions", json=order, headers=xsrf)
    assert answer.status_code >= 400 or answer.json()["status"] == "error", answer.text


def test_jupyterlab_keeps_its_layout_and_settings_in_the_learners_home(hub: Hub) -> None:
    """A server forked from a process that has imported all this before anybody's home was known."""
    home = hub.home / "learners" / "lea"
    lea = hub.person("lea")
    lea.start_server()
    lea.enter()
    headers = {"X-XSRFToken": lea.xsrf("/user/lea/"), "Referer": f"{hub.url}/user/lea/lab"}
    layout = {"data": {"x": 1}, "metadata": {"id": "default"}}
    answer = lea.client.put("/user/lea/lab/api/workspaces/default", json=layout, headers=headers)
    assert answer.status_code == 204, answer.text
    assert list(home.glob(".jupyter/lab/workspaces/*"))
    settings = "/user/lea/lab/api/settings/@jupyterlab/notebook-extension:tracker"
    assert lea.client.put(settings, json={"raw": "{}"}, headers=headers).status_code == 204
    assert list(home.glob(".jupyter/lab/user-settings/**/*.jupyterlab-settings"))
    lea.stop_server()


def test_two_at_once_each_in_their_own_and_neither_in_the_others(hub: Hub, ann: Person) -> None:
    bob = hub.person("bob")
    bob.start_server()
    bob.enter()
    with ThreadPoolExecutor(2) as both:
        told = list(both.map(lambda one: one.run_cell("import os; print(os.path.expanduser('~'))").strip(), [ann, bob]))
    assert told == ["/home/ann", "/home/bob"]
    assert bob.client.get("/user/ann/api/contents").status_code in {403, 404}
    assert ann.client.get("/user/bob/api/contents").status_code in {403, 404}


def test_starts_queue_and_nobody_is_turned_away(hub: Hub) -> None:
    """One start at a time here: of six that come at once the last ones see their place, and all come in."""
    people = [hub.person(f"q{number}") for number in range(6)]
    with ThreadPoolExecutor(len(people)) as all_at_once:
        list(all_at_once.map(Person.choose, people))
        told = list(all_at_once.map(Person.progress, people))
    assert any("Place in the queue: " in said for said in told)
    for person, said in zip(people, told, strict=True):
        assert '"ready": true' in said
        person.stop_server()


def test_a_waiting_start_can_be_cancelled(hub: Hub) -> None:
    first, second = hub.person("r1"), hub.person("r2")
    first.choose()
    second.choose()
    second.stop_server()
    first.wait_ready()
    assert not (hub.home / "run" / "sandboxes" / "r2.json").exists()
    first.stop_server()


def test_a_start_can_be_cancelled_while_the_server_comes_up(hub: Hub) -> None:
    person, record = hub.person("r3"), hub.home / "run" / "sandboxes" / "r3.json"
    person.choose()
    until(record.exists, 30, "record of the sandbox", log=hub.layout.log("hub"))
    found = records.load(record)
    person.stop_server()
    assert found
    assert records.poll(found) is not None
    person.start_server()
    person.stop_server()


def test_memory_is_promised_once(tmp_path: Path) -> None:
    """A machine for one server: the second is refused with what is free; after the first one's stop it may come in."""
    import psutil

    share = 6000 * 2**20 / psutil.virtual_memory().total
    with running_hub(tmp_path / "lab", KPAAS_LAB_OVERCOMMIT=str(share)) as small:
        ann, bob = small.person("ann"), small.person("bob")
        ann.start_server()
        answer = bob.client.post(f"/hub/spawn?_xsrf={bob.xsrf()}", data={"slice": "cpu"})
        assert answer.status_code == 503
        assert "no room for the slice" in answer.text
        assert "Nothing is free now" in answer.text
        assert "Everything is in use now" in answer.text
        ann.stop_server()
        bob.start_server()


def test_what_a_learner_changed_stays(hub: Hub, ann: Person) -> None:
    home = hub.home / "learners" / "ann"
    before = {path: path.read_bytes() for path in home.glob("courses/**/*") if path.is_file()}
    changed = home / "courses" / "kpaas-ai" / "mine.txt"
    ann.run_cell("open('/home/ann/courses/kpaas-ai/mine.txt', 'w').write('mine')")
    lesson = next((path for path in before if path.suffix == ".ipynb"), None)
    if lesson:
        ann.run_cell(f"open('/home/ann/{lesson.relative_to(home)}', 'w').write('mine too')")
    ann.stop_server()
    ann.start_server()
    ann.enter()
    assert changed.read_text() == "mine"
    if lesson:
        assert lesson.read_text() == "mine too"


def test_no_page_of_the_hub_holds_a_secret(hub: Hub, ann: Person) -> None:
    for path in ("home", "spawn", "login", "nothing", "admin"):
        text = ann.client.get(f"/hub/{path}").text
        for secret in (hub.secrets.user_password, hub.secrets.admin_password, hub.secrets.market_token):
            assert secret not in text
