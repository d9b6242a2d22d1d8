"""Plans at a real gateway: a day, a second, at once; over restarts, over several keys and several gateways."""

import datetime as dt
import threading
from collections import Counter

import pytest

from kpaas_lab.market.database import writing
from kpaas_lab.market.models import Usage
from tests.fixtures.gateway import REQUEST, Gateway, Lab, Subscribed, utc
from tests.waiting import until


def statuses(gateway: Gateway, api: Subscribed, calls: int, *, at_once: int = 1, key: str = "") -> Counter[int]:
    found: list[int] = []

    def call() -> None:
        with gateway.client(headers={"X-API-Key": key or api.key}) as client:
            for _ in range(calls // at_once):
                found.append(client.post(f"{api.path}/models/m/infer", json=REQUEST).status_code)

    threads = [threading.Thread(target=call) for _ in range(at_once)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return Counter(found)


@pytest.fixture(autouse=True)
def not_at_midnight() -> None:
    """A day's quota that renews during the test would be right, and not what is tested."""
    left = 86_400 - (utc() - utc().replace(hour=0, minute=0, second=0)).total_seconds()
    if left < 60:
        pytest.skip("a minute before 00:00 UTC, quotas renew")


def test_a_days_calls(gateway: Gateway, shared_lab: Lab) -> None:
    api = shared_lab.listing(subscriber="day", plan="small", calls_per_day=5)
    assert statuses(gateway, api, 40, at_once=4) == {200: 5, 429: 35}
    answer = gateway.call(api, headers={**api.headers, "Accept-Language": "en"})
    assert answer.status_code == 429
    assert "'small' allows 5 calls a day" in answer.json()["error"]
    assert "00:00 UTC" in answer.json()["error"]
    midnight = dt.datetime.combine(utc().date() + dt.timedelta(days=1), dt.time(), dt.UTC)
    assert abs(int(answer.headers["retry-after"]) - (midnight - utc()).total_seconds()) < 30
    second, _id = api.new_key()
    assert statuses(gateway, api, 3, key=second) == {429: 3}  # another key is no other quota
    usage = shared_lab.settled(lambda usage: usage["rejected"] == 36, api.key_id)
    assert (usage["calls"], usage["errors"]) == (5, 0)


def test_calls_a_second(gateway: Gateway, shared_lab: Lab) -> None:
    api = shared_lab.listing(subscriber="second", plan="slow", calls_per_second=3)
    first = statuses(gateway, api, 12, at_once=12)
    assert first[200] >= 3
    assert first[429] >= 1
    until(lambda: gateway.call(api).status_code == 200, 3, "a call in the next second")
    for _ in range(20):
        answer = gateway.call(api, headers={**api.headers, "Accept-Language": "en"})
        if answer.status_code == 429:
            break
    assert "'slow' allows 3 calls a second" in answer.json()["error"]
    assert answer.headers["retry-after"] == "1"


def test_calls_at_once(gateway: Gateway, shared_lab: Lab) -> None:
    api = shared_lab.listing(subscriber="once", plan="narrow", concurrency=2)
    body = {"parameters": {"trick": "slow", "seconds": 1.0}}
    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.append(gateway.call(api, body).status_code)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Counter(found) == {200: 2, 429: 4}
    assert gateway.call(api).status_code == 200


def test_a_days_calls_over_a_kill(lab: Lab) -> None:
    api = lab.listing(calls_per_day=10)
    lab.endpoint()
    gateway = lab.gateway()
    assert statuses(gateway, api, 6) == {200: 6}
    lab.settled(lambda usage: usage["calls"] == 6)
    gateway.process.kill()
    gateway.start()
    assert statuses(gateway, api, 10) == {200: 4, 429: 6}
    assert gateway.process.kill(15) in {0, -15}
    assert lab.usage()["calls"] == 10


def test_calls_of_another_gateway_count(lab: Lab) -> None:
    api = lab.listing(calls_per_day=10)
    lab.endpoint()
    one, two = lab.gateway(), lab.gateway()
    assert statuses(one, api, 6) == {200: 6}
    lab.settled(lambda usage: usage["calls"] == 6)
    until(lambda: statuses(two, api, 1) == {200: 1}, 5, "an answer of the other")
    lab.settled(lambda usage: usage["calls"] >= 7)
    assert statuses(two, api, 10) == {200: 3, 429: 7}
    until(lambda: statuses(one, api, 1) == {429: 1}, 5, "the end of the quota at the first")
    assert lab.settled(lambda usage: usage["calls"] >= 10)["calls"] <= 10 + 2  # what the two didn't know of one another


def test_yesterdays_calls_do_not_count(gateway: Gateway, shared_lab: Lab) -> None:
    api = shared_lab.listing(subscriber="yesterday", plan="yesterday", calls_per_day=3)
    with writing(shared_lab.engine) as session:
        session.add(
            Usage(
                key_id=api.key_id, version_id=1, day=utc().date() - dt.timedelta(days=1), calls=1000, errors=0,
                rejected=0, bytes_in=0, bytes_out=0,
            )
        )  # fmt: skip
    assert statuses(gateway, api, 5) == {200: 3, 429: 2}


def test_more_than_the_gateway_takes_is_turned_away(sqlite_lab: Lab) -> None:
    api = sqlite_lab.listing()
    other = sqlite_lab.listing("dora", "free", endpoint="free")
    sqlite_lab.endpoint()
    sqlite_lab.endpoint("dora", "free")
    gateway = sqlite_lab.gateway(KPAAS_LAB_GATEWAY_MAX_IN_FLIGHT="4", KPAAS_LAB_GATEWAY_MAX_IN_FLIGHT_PER_LISTING="2")
    answers = []
    body = {"parameters": {"trick": "slow", "seconds": 2.0}}
    threads = [threading.Thread(target=lambda: answers.append(gateway.call(api, body))) for _ in range(5)]
    for thread in threads:
        thread.start()
    with gateway.client() as client:
        until(lambda: "in_flight 2.0" in client.get("/services/api/metrics").text, 5, "two calls in flight")
    assert gateway.call(other).status_code == 200  # one listing's calls don't take all places
    for thread in threads:
        thread.join()
    assert Counter(answer.status_code for answer in answers) == {200: 2, 503: 3}
    assert {answer.headers["retry-after"] for answer in answers if answer.status_code == 503} == {"1"}
