"""Catalogue, subscriptions and usage on a real SQLite and a real PostgreSQL."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine, select, text

from kpaas_lab.errors import (
    AlreadyExistsError,
    EngineUnavailableError,
    NotFoundError,
    QuotaExceededError,
    SettingsError,
)
from kpaas_lab.market import store, subscriptions, usage
from kpaas_lab.market.database import open_database, reading, writing
from kpaas_lab.market.keys import fingerprint
from kpaas_lab.market.models import ApiKey, Base, Plan, Usage, UsageLatency
from kpaas_lab.market.store import Draft, PlanTerms


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgresql":
        return str(request.getfixturevalue("postgres"))
    return f"sqlite:///{tmp_path}/market/market.sqlite"


@pytest.fixture
def engine(url: str) -> Iterator[Engine]:
    engine = open_database(url, migrate=True)
    yield engine
    engine.dispose()


def draft(title: str = "Digits", *, plans: tuple[PlanTerms, ...] = (PlanTerms(name="free"),), **more: Any) -> Draft:
    values = {
        "description": "", "endpoint": "digits", "protocol": "oip-v2", "model": "digits", "schema": {"inputs": []},
        "example": {"inputs": []}, "conformance": {"passed": []},
    }  # fmt: skip
    return Draft(title=title, plans=plans, **{**values, **more})


def publish(engine: Engine, name: str, publisher: str = "ann", **more: Any) -> None:
    with writing(engine) as session:
        store.publish(session, publisher, name, draft(**more))


def found(engine: Engine, query: str, **more: Any) -> list[str]:
    with reading(engine) as session:
        return [listing.name for listing in store.search(session, query, **more).listings]


def test_migrations_make_the_tables_of_the_models(engine: Engine) -> None:
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []


def test_a_newer_database_is_refused(engine: Engine, url: str) -> None:
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    for migrate in (True, False):
        with pytest.raises(SettingsError, match=r"9999.*Upgrade"):
            open_database(url, migrate=migrate)


def test_without_migrating_an_empty_database_is_refused(url: str) -> None:
    with pytest.raises(SettingsError, match="older version"):
        open_database(url, migrate=False)


def test_many_open_an_empty_database_at_once(url: str) -> None:
    code = "import sys; from kpaas_lab.market.database import open_database; open_database(sys.argv[1], migrate=True)"
    started = [
        subprocess.Popen([sys.executable, "-c", code, url], stderr=subprocess.PIPE, env=dict(os.environ))
        for _ in range(4)
    ]
    for process in started:
        _out, problem = process.communicate(timeout=60)
        assert process.returncode == 0, problem.decode()


def test_a_database_that_another_program_holds_is_said_to_be_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kpaas_lab.market.database.BUSY_TIMEOUT", 0.1)
    path = tmp_path / "market.sqlite"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(EngineUnavailableError, match="locked"):
            open_database(f"sqlite:///{path}", migrate=True)
        other.execute("ROLLBACK")
    open_database(f"sqlite:///{path}", migrate=True).dispose()


def test_search_knows_case_korean_and_wildcards(engine: Engine) -> None:
    publish(engine, "digits", title="손글씨 숫자 인식", description="Reads ÉTÉ digits")
    publish(engine, "percent", title="100% sure_thing")
    assert found(engine, "손글씨") == ["digits"]
    assert found(engine, "손글씨") == ["digits"], "as macOS types it, decomposed"
    assert found(engine, "été DIGITS") == ["digits"]
    assert found(engine, "ann") == ["percent", "digits"]
    assert found(engine, "%") == ["percent"]
    assert found(engine, "sure_") == ["percent"]
    assert found(engine, "sure%") == []
    assert found(engine, "'; DROP TABLE listings; --") == []
    assert found(engine, "\\") == []


def test_pages_of_the_catalogue(engine: Engine) -> None:
    for number in range(store.PAGE_SIZE + 3):
        publish(engine, f"l-{number}")
    with reading(engine) as session:
        first, last = store.search(session), store.search(session, page=99)
    assert (len(first.listings), first.pages, first.total) == (store.PAGE_SIZE, 2, store.PAGE_SIZE + 3)
    assert (len(last.listings), last.number) == (3, 2)


def test_a_changed_plan_leaves_its_subscribers_their_terms(engine: Engine) -> None:
    publish(engine, "digits", plans=(PlanTerms(name="free", calls_per_day=10), PlanTerms(name="pro")))
    with writing(engine) as session:
        old, key = subscriptions.subscribe(session, "bob", "ann", "digits", "free")
    assert key is not None
    publish(engine, "digits", plans=(PlanTerms(name="free", calls_per_day=5), PlanTerms(name="pro")))
    with reading(engine) as session:
        listing = store.get(session, "ann", "digits")
        assert [(plan.name, plan.calls_per_day) for plan in store.offered_plans(listing)] == [
            ("free", 5),
            ("pro", None),
        ]
        assert subscriptions.find(session, "bob", old.id).plan.calls_per_day == 10
        assert len(session.scalars(select(Plan)).all()) == 3, "the plan that didn't change is the same row"
    publish(engine, "digits", plans=(PlanTerms(name="free", calls_per_day=5, price_per_1000_calls=Decimal("0.1")),))
    with reading(engine) as session:
        offered = store.offered_plans(store.get(session, "ann", "digits"))
        assert [plan.price_per_1000_calls for plan in offered] == [Decimal("0.1")]


def test_one_subscription_a_person_and_listing(engine: Engine) -> None:
    publish(engine, "digits", plans=(PlanTerms(name="free"), PlanTerms(name="pro")))
    with writing(engine) as session:
        first, key = subscriptions.subscribe(session, "bob", "ann", "digits", "free")
        assert subscriptions.subscribe(session, "bob", "ann", "digits", "free") == (first, None)
        with pytest.raises(AlreadyExistsError, match="free"):
            subscriptions.subscribe(session, "bob", "ann", "digits", "pro")
    with writing(engine) as session:
        subscriptions.cancel(session, "bob", first.id)
        assert subscriptions.find(session, "bob", first.id).keys[0].revoked_at is not None
    with writing(engine) as session:
        again, new = subscriptions.subscribe(session, "bob", "ann", "digits", "pro")
        assert again.id == first.id, "the day's quota goes on"
        assert again.plan.name == "pro"
    assert key is not None
    assert new is not None
    assert new.text != key.text


def test_many_subscribe_at_once_and_one_subscription_is_made(engine: Engine) -> None:
    publish(engine, "digits")
    made: list[str] = []
    refused: list[Exception] = []

    def subscribe() -> None:
        try:
            with writing(engine) as session:
                subscription, _key = subscriptions.subscribe(session, "bob", "ann", "digits", "free")
                made.append(subscription.id)
        except AlreadyExistsError as error:
            refused.append(error)

    threads = [threading.Thread(target=subscribe) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(set(made)) == 1
    assert len(made) + len(refused) == 6


def test_many_publish_at_once_and_no_version_is_lost(engine: Engine) -> None:
    publish(engine, "digits")
    threads = [threading.Thread(target=publish, args=(engine, "digits")) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    with reading(engine) as session:
        assert [version.number for version in store.get(session, "ann", "digits").versions] == [1, 2, 3, 4, 5, 6]


def test_keys_are_stored_as_fingerprints_only(engine: Engine) -> None:
    publish(engine, "digits")
    with writing(engine) as session:
        subscription, key = subscriptions.subscribe(session, "bob", "ann", "digits", "free")
        assert key is not None
        rotated = subscriptions.rotate_key(session, "bob", subscription.id, key.record.id)
    with reading(engine) as session:
        stored = {row.sha256: row for row in session.scalars(select(ApiKey))}
    assert stored[fingerprint(key.text)].revoked_at is not None
    assert stored[fingerprint(rotated.text)].revoked_at is None
    assert key.text not in repr(key)
    with writing(engine) as session:
        subscription = subscriptions.find_active(session, "bob", subscription.id)
        for _ in range(subscriptions.MAX_ACTIVE_KEYS - 1):
            subscriptions.add_key(session, subscription, label="more")
        with pytest.raises(QuotaExceededError):
            subscriptions.add_key(session, subscription, label="one too many")


def test_a_form_that_makes_keys_does_not_use_them_up(engine: Engine) -> None:
    publish(engine, "digits")
    with writing(engine) as session:
        subscription, first = subscriptions.subscribe(session, "bob", "ann", "digits", "free")
        assert first is not None
        made = []
        for _ in range(subscriptions.MAX_ACTIVE_KEYS + 5):
            subscriptions.retire_labelled(subscription, "try-it", keep=3)
            made.append(subscriptions.add_key(session, subscription, label="try-it", expires_in=600).record)
        assert [key.revoked_at is None for key in made[-5:]] == [False, True, True, True, True]
        assert first.record.revoked_at is None


def test_anothers_things_are_not_found(engine: Engine) -> None:
    publish(engine, "digits")
    with writing(engine) as session:
        subscription, key = subscriptions.subscribe(session, "bob", "ann", "digits", "free")
        assert key is not None
        for call in (
            lambda: subscriptions.find(session, "eve", subscription.id),
            lambda: subscriptions.cancel(session, "eve", subscription.id),
            lambda: subscriptions.revoke_key(session, "eve", subscription.id, key.record.id),
            lambda: subscriptions.revoke_key(session, "bob", subscription.id, "no-such-key"),
            lambda: usage.visible(
                session, "eve", usage.period(None, None), listing=("ann", "digits"), subscription_id=None
            ),
            lambda: usage.visible(
                session, "eve", usage.period(None, None), listing=None, subscription_id=subscription.id
            ),
        ):
            with pytest.raises(NotFoundError):
                call()


def test_usage_of_publisher_and_subscriber(engine: Engine) -> None:
    publish(engine, "digits")
    publish(engine, "other")
    today = dt.datetime.now(dt.UTC).date()
    with writing(engine) as session:
        for person, calls in (("bob", 10), ("eve", 30)):
            subscription, key = subscriptions.subscribe(session, person, "ann", "digits", "free")
            assert key is not None
            version = store.current(subscription.listing).id
            for day in (today, today - dt.timedelta(days=1), today - dt.timedelta(days=200)):
                session.add(
                    Usage(key_id=key.record.id, version_id=version, day=day, calls=calls, errors=1, rejected=2,
                          bytes_in=100, bytes_out=50)
                )  # fmt: skip
                session.add(UsageLatency(key_id=key.record.id, version_id=version, day=day, bucket=46, calls=calls))
    with reading(engine) as session:
        when = usage.period(None, None)
        all_of_it = usage.visible(session, "ann", when, listing=("ann", "digits"), subscription_id=None)
        mine = usage.visible(session, "bob", when, listing=("ann", "digits"), subscription_id=None)
        assert (all_of_it.total.calls, all_of_it.total.errors, all_of_it.total.rejected) == (80, 4, 8)
        assert (mine.total.calls, len(mine.keys)) == (20, 1)
        assert {info.label for info in all_of_it.keys} == {""}, "a publisher sees prefixes, not labels"
        assert all_of_it.days[today].calls == 40
        assert 8.0 <= (all_of_it.total.p95 or 0) <= 8.82
        nothing = usage.visible(session, "ann", when, listing=("ann", "other"), subscription_id=None)
        assert (nothing.total.calls, nothing.total.p50) == (0, None)


@pytest.mark.parametrize(
    "address", ["postgresql://kpaas:s3cret-word@127.0.0.1:1/none", "sqlite:////proc/no/such/place.sqlite"]
)
def test_an_unreachable_database_says_so_without_its_password(address: str) -> None:
    with pytest.raises(EngineUnavailableError) as caught:
        open_database(address, migrate=True)
    assert "s3cret-word" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("address", ["nonsense", "mysql://a:b@c/d", "sqlite://", "sqlite:///:memory:"])
def test_addresses_that_are_none(address: str) -> None:
    with pytest.raises(SettingsError, match="sqlite:///"):
        open_database(address, migrate=True)


def test_the_file_is_its_owners_only(tmp_path: Path) -> None:
    open_database(f"sqlite:///{tmp_path}/market/market.sqlite", migrate=True).dispose()
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "market").iterdir()}
    assert set(modes.values()) == {0o600}, modes
    assert (tmp_path / "market").stat().st_mode & 0o777 == 0o700
