"""What a notebook calls, from publish to usage, with hub, market, gateway and an endpoint that all run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kpaas_lab.errors import (
    AlreadyExistsError,
    EngineUnavailableError,
    LabError,
    ModelError,
    NotAuthorizedError,
    NotConformantError,
    NotFoundError,
    NotSubscribedError,
    QuotaExceededError,
    SettingsError,
)
from kpaas_lab.market.client import Market, Plan
from tests.fixtures.market import Site
from tests.waiting import until


def market(site: Site, person: str, home: Path) -> Market:
    return Market(site.url, site.token(person), site.gateway, home=home / person)


def test_the_whole_path(market_site: Site, tmp_path: Path) -> None:
    market_site.serve("ann", "path")
    market_site.start_gateway()
    ann, bob = market(market_site, "ann", tmp_path), market(market_site, "bob", tmp_path)
    listing = ann.publish("path", title="Path", endpoint="path", plans=[Plan("free", calls_per_day=3), Plan("pro")])
    assert listing.full_name == "ann/path"
    assert [plan.name for plan in bob.listing("ann/path").plans] == ["free", "pro"]
    assert "ann/path" in [each.full_name for each in bob.listings("path")]

    api = bob.subscribe("ann/path", plan="free")
    assert (tmp_path / "bob" / "keys.json").stat().st_mode & 0o777 == 0o600
    np.testing.assert_allclose(api.predict([[1, 2, 3, 4]]), [10.0])
    np.testing.assert_allclose(api.predict({"x": np.ones((2, 4))}), [4.0, 4.0])
    assert api.predict([1, 2, 3, 4.5]) == 10.5, "one row is answered by one row"
    with pytest.raises(ModelError, match="wrong"):
        api.predict({"wrong": [[1]]})
    with pytest.raises(ModelError, match="x"):
        api.predict([[1, 2, 3]])
    with pytest.raises(QuotaExceededError, match="free") as over:
        api.predict([[1, 2, 3, 4]])
    assert over.value.retry_after > 0

    def counted() -> bool:
        total = ann.usage(listing="ann/path").total
        return (total.calls, total.rejected) == (3, 1)

    until(counted, 30, "usage of 3 calls and a refusal", log=market_site.log("gateway"))
    assert api.usage().total.calls == 3
    assert api.usage().keys[0].of == api.key_prefix


def test_a_call_raises_what_the_gateway_says(market_site: Site, tmp_path: Path) -> None:
    market_site.serve("ann", "says")
    market_site.start_gateway()
    ann, bob = market(market_site, "ann", tmp_path), market(market_site, "bob", tmp_path)
    ann.publish("says", title="Says", endpoint="says", plans=[Plan("free")])
    api = bob.subscribe("ann/says", plan="free")
    assert api.predict([1, 2, 3, 4]) == 10.0

    def raised(kind: type[LabError], words: str) -> None:
        """A change is known to the gateway within seconds."""

        def as_expected() -> bool:
            try:
                api.predict([1, 2, 3, 4])
            except LabError as error:
                return type(error) is kind and words in str(error)
            return False

        until(as_expected, 30, f"{kind.__name__}: {words}", log=market_site.log("gateway"))

    (key,) = bob.subscription(api.id).raw["keys"]
    bob.request("DELETE", f"/subscriptions/{api.id}/keys/{key['id']}")
    raised(NotAuthorizedError, "revoked")
    bob.new_key(api)
    assert api.predict([1, 2, 3, 4]) == 10.0
    bob.request("DELETE", f"/subscriptions/{api.id}")
    raised(NotSubscribedError, "ann/says")
    ann.listing("ann/says").withdraw()
    raised(NotFoundError, "withdrawn")


def test_running_a_notebook_again_keeps_its_key(market_site: Site, tmp_path: Path) -> None:
    market_site.publish("ann", "again")
    bob = market(market_site, "bob", tmp_path)
    first = bob.subscribe("ann/again", plan="free")
    prefix = first.key_prefix
    assert bob.subscribe("ann/again", plan="free").key_prefix == prefix
    assert len(bob.subscription(first.id).raw["keys"]) == 1
    market_site.publish("ann", "again", plans=[{"name": "free"}, {"name": "pro"}])
    with pytest.raises(AlreadyExistsError):
        bob.subscribe("ann/again", plan="pro")


def test_rotate_cancel_and_a_key_revoked_elsewhere(market_site: Site, tmp_path: Path) -> None:
    market_site.publish("ann", "rotate")
    bob = market(market_site, "bob", tmp_path)
    api = bob.subscribe("ann/rotate", plan="free")
    old = api.key_prefix
    api = api.rotate()
    states = {key["prefix"]: key["revoked_at"] is None for key in api.raw["keys"]}
    assert states == {old: False, api.key_prefix: True}
    for key in api.raw["keys"]:
        bob.request("DELETE", f"/subscriptions/{api.id}/keys/{key['id']}")
    again = bob.subscribe("ann/rotate", plan="free")
    assert again.key_prefix not in states
    again.cancel()
    assert bob.keys.get(again.id) is None
    with pytest.raises(SettingsError):
        bob.subscription(again.id)


def test_errors_are_the_libraries_own(market_site: Site, tmp_path: Path) -> None:
    bob = market(market_site, "bob", tmp_path)
    with pytest.raises(NotFoundError, match="ann/nothing"):
        bob.subscribe("ann/nothing", plan="free")
    with pytest.raises(SettingsError, match="publisher/name"):
        bob.subscribe("digits", plan="free")
    with pytest.raises(NotConformantError) as caught:
        bob.publish("mine", title="Mine", endpoint="not-running", plans=[Plan("free")])
    assert "lab.serve" in caught.value.failures[0]
    with pytest.raises(SettingsError, match="name"):
        bob.publish("../ann", title="Mine", endpoint="x", plans=[Plan("free")])
    stranger = Market(market_site.url, "f" * 32, market_site.gateway, home=tmp_path)
    with pytest.raises(NotAuthorizedError):
        stranger.listings()
    nobody = Market("http://127.0.0.1:9/services/market", "secret-token", market_site.gateway, home=tmp_path)
    with pytest.raises(EngineUnavailableError) as gone:
        nobody.listings()
    assert "secret-token" not in str(gone.value)
    with pytest.raises(SettingsError, match="no market"):
        Market("", "", "", home=tmp_path)


def test_no_subscription_is_made_where_its_key_could_not_be_kept(market_site: Site, tmp_path: Path) -> None:
    market_site.publish("ann", "unkept")
    (tmp_path / "gus").write_text("a file where the home should be")
    gus = market(market_site, "gus", tmp_path)
    with pytest.raises(SettingsError, match=r"keys\.json"):
        gus.subscribe("ann/unkept", plan="free")
    assert gus.subscriptions() == []


def test_a_full_disk_keeps_the_keys_that_are_there(market_site: Site, small_disk: Path) -> None:
    market_site.publish("ann", "full")
    market_site.publish("ann", "full-too")
    bob = market(market_site, "bob", small_disk)
    kept = bob.subscribe("ann/full", plan="free")
    prefix = kept.key_prefix
    with pytest.raises(OSError, match="space"):
        (small_disk / "filler").write_bytes(b"x" * (2 << 20))
    with pytest.raises(SettingsError, match="No space left"):
        bob.subscribe("ann/full-too", plan="free")
    listings = [each.listing for each in bob.subscriptions()]
    assert "ann/full" in listings
    assert "ann/full-too" not in listings
    assert bob.subscription(kept.id).key_prefix == prefix
