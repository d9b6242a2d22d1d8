"""What a learner reads where a start fails, or is asked for twice: in both languages, no internals."""

from collections.abc import Iterator

import pytest

from hub_config import bubblewrap
from kpaas_lab.errors import SettingsError
from tests.fixtures.hub import Hub, Person, running_hub

STEP = "Try again, or choose another slice. If it stays so, tell your operator: the reason is in hub.log."


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    try:
        bubblewrap.mode()
    except SettingsError as error:
        pytest.skip(str(error))
    with running_hub(tmp_path_factory.mktemp("lab"), KPAAS_LAB_OVERCOMMIT="9") as running:
        yield running


def submit(person: Person) -> str:
    return person.client.post(f"/hub/spawn?_xsrf={person.xsrf()}", data={"slice": "cpu"}).text


def test_a_failed_start_says_what_and_what_next(hub: Hub) -> None:
    (hub.home / "learners").mkdir(exist_ok=True)
    (hub.home / "learners" / "zed").write_text("not a folder")
    zed = hub.person("zed", language="ko")
    for text in (submit(zed), zed.client.get("/hub/spawn-pending/zed").text):
        assert "Your home could not be prepared." in text
        assert STEP in text
        for internal in ("Unhandled", "HTTP 500", "Errno", str(hub.home), "Traceback"):
            assert internal not in text
    assert str(hub.home / "learners" / "zed") in hub.log(), "the operator finds the reason"


def test_a_second_submit_leads_on_to_the_first(hub: Hub) -> None:
    ann = hub.person("ann")
    submit(ann)
    for when in ("starting", "running"):
        text = submit(ann)
        assert "Your server is starting or running already" in text, when
        assert "ann is" not in text
        assert 'location.replace("/hub/spawn")' in text
        ann.wait_ready()
    leads = ann.client.get("/hub/spawn", follow_redirects=False)
    assert (leads.status_code, leads.headers["Location"]) == (302, "/user/ann/")
