"""The hub's settings: what is missing or wrong is named."""

import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from hub_config import idle_culler_config, names, settings
from kpaas_lab.errors import SettingsError
from kpaas_lab.installation import credentials


@pytest.fixture
def told(tmp_path: Path) -> dict[str, str]:
    credentials.load_or_make(tmp_path / "secrets.json")
    return {
        "KPAAS_LAB_HOME": str(tmp_path),
        "KPAAS_LAB_SECRETS": str(tmp_path / "secrets.json"),
        "KPAAS_LAB_PUBLIC_URL": "http://127.0.0.1:8123/",
        "KPAAS_LAB_PORTS": json.dumps({"hub": 1, "market": 2, "api": 3, "traefik_api": 4}),
    }


def test_all_is_read(told: dict[str, str]) -> None:
    lab = settings.from_environment({**told, "KPAAS_LAB_OVERCOMMIT": "1.5", "KPAAS_LAB_STARTS_AT_ONCE": "7"})
    assert lab.public_url == "http://127.0.0.1:8123"
    assert (lab.ports["traefik_api"], lab.overcommit, lab.starts_at_once) == (4, 1.5, 7)
    assert lab.secrets.user_password not in repr(lab)
    assert settings.from_environment(told).overcommit == settings.OVERCOMMIT


Change = Callable[[dict[str, str]], dict[str, str]]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda env: {**env, "KPAAS_LAB_HOME": ""}, "KPAAS_LAB_HOME is not set"),
        (lambda env: {**env, "KPAAS_LAB_PORTS": '{"hub": 1}'}, "no port for 'market'"),
        (lambda env: {**env, "KPAAS_LAB_PORTS": "[]"}, "KPAAS_LAB_PORTS"),
        (lambda env: {**env, "KPAAS_LAB_OVERCOMMIT": "much"}, "KPAAS_LAB_OVERCOMMIT is 'much'"),
        (lambda env: {**env, "KPAAS_LAB_OVERCOMMIT": "nan"}, "0.1 or more"),
        (lambda env: {**env, "KPAAS_LAB_IDLE_SECONDS": "0"}, "KPAAS_LAB_IDLE_SECONDS is '0'"),
    ],
)
def test_what_is_wrong_is_named(told: dict[str, str], change: Change, says: str) -> None:
    with pytest.raises(SettingsError) as caught:
        settings.from_environment(change(told))
    assert says in str(caught.value)


@pytest.mark.parametrize("name", ["ann", "bob.lee", "a", "2nd_ann-x", "a" * 32])
def test_names_that_can_be(name: str) -> None:
    assert names.is_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        ".ssh",
        "../bob",
        "a/b",
        "a b",
        "Ann",
        "김",
        "a" * 33,
        "-rf",
        "ann\n",
        "a\x00b",
        "`x`",
        "root",
        "nobody",
    ],
)
def test_names_that_cannot_be(name: str) -> None:
    assert not names.is_name(name)


def test_a_gpu_is_given_back_sooner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idle_culler_config, "GPU_SLICES", frozenset({"mps-25"}))

    def stopped(minutes: float, slice_name: str | None) -> bool:
        options = {"slice": slice_name} if slice_name else None
        inactive = timedelta(minutes=minutes)
        return idle_culler_config.too_long(inactive=inactive, inactive_limit=3600, server={"user_options": options})

    assert not stopped(14, "mps-25")
    assert stopped(15, "mps-25")
    assert not stopped(59, "cpu")
    assert stopped(60, "cpu")
    assert stopped(60, None)
