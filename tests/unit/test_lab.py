"""`Lab` without a hub: what works, and what each error says."""

from pathlib import Path

import pytest

import kpaas_lab
from kpaas_lab.errors import LabError, NotSubscribedError, SettingsError
from kpaas_lab.lab import Lab, Listings, Subscriptions
from kpaas_lab.market.client import Plan
from kpaas_lab.settings import from_environment


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(settings=from_environment({"HOME": str(tmp_path)}))


def test_the_package_offers_lab_and_plan() -> None:
    assert kpaas_lab.Lab is Lab
    assert kpaas_lab.Plan is Plan
    with pytest.raises(AttributeError, match="no attribute 'Flow'"):
        _ = kpaas_lab.Flow


def test_it_says_who_and_where(lab: Lab, tmp_path: Path) -> None:
    assert repr(lab) == f"Lab(outside a hub, engine='local', home='{tmp_path}/.kpaas-lab')"


def test_nothing_is_there_yet(lab: Lab) -> None:
    assert not lab.runs
    assert not lab.endpoints
    with pytest.raises(LabError, match=r"No run 'x'.*There are none yet"):
        lab.runs["x"]
    with pytest.raises(LabError, match=r"No endpoint 'x'.*There are none yet"):
        lab.endpoints["x"]


def test_slices_print_as_a_table(lab: Lab) -> None:
    first, *rest = repr(lab.slices()).splitlines()
    assert first.split() == [
        "slice",
        "cores",
        "memory",
        "GPU",
        "memory",
        "isolation",
        "free",
        "now",
        "/",
        "total",
        "price",
    ]
    assert any(line.startswith("cpu ") for line in rest)


@pytest.mark.parametrize(
    "ask",
    [
        lambda lab: lab.listings(),
        lambda lab: lab.subscriptions,
        lambda lab: lab.subscribe("ann/digits", plan="free"),
        lambda lab: lab.publish("digits", title="Digits", plans=[Plan("free")]),
    ],
    ids=["listings", "subscriptions", "subscribe", "publish"],
)
def test_outside_a_hub_the_market_says_what_to_do(lab: Lab, ask) -> None:
    with pytest.raises(SettingsError, match=r"There is no market here\. .*kpaas-lab up"):
        ask(lab)


def test_an_engine_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="KPAAS_LAB_ENGINE=local"):
        Lab(settings=from_environment({"HOME": str(tmp_path), "KPAAS_LAB_ENGINE": "kubernetes"}))


def test_a_slice_that_is_not_there(tmp_path: Path) -> None:
    lab = Lab(settings=from_environment({"HOME": str(tmp_path), "KPAAS_LAB_SLICE": "9g.999gb"}))
    with pytest.raises(LabError, match=r"No slice '9g.999gb' here\. Slices: cpu"):
        lab.slice()


def hub_settings(tmp_path: Path) -> dict[str, str]:
    return {
        "HOME": str(tmp_path),
        "KPAAS_LAB_MARKET_URL": "http://127.0.0.1:1/services/market",
        "JUPYTERHUB_API_TOKEN": "secret-token",
    }


@pytest.mark.parametrize("plans", [[], ["free"], None, Plan])
def test_publishing_needs_plans(tmp_path: Path, plans) -> None:
    lab = Lab(settings=from_environment(hub_settings(tmp_path)))
    with pytest.raises(SettingsError, match=r"Publishing needs a list of plans\. .*Plan\("):
        lab.publish("digits", title="Digits", plans=plans)


def test_no_token_in_any_text(tmp_path: Path) -> None:
    lab = Lab(settings=from_environment(hub_settings(tmp_path)))
    assert "secret-token" not in f"{lab!r} {lab.settings!r} {lab.market!r} {vars(lab)}"
    with pytest.raises(LabError) as caught:
        lab.listings()
    assert "secret-token" not in str(caught.value)


def test_no_subscription_of_that_name() -> None:
    with pytest.raises(NotSubscribedError, match=r"No subscription of 'a/b'\. There are none yet"):
        Subscriptions()["a/b"]
    with pytest.raises(KeyError):
        Subscriptions()["a/b"]


def test_empty_tables_say_so() -> None:
    assert repr(Listings()) == "No listing was found."
    assert repr(Subscriptions()) == "No subscriptions yet."
