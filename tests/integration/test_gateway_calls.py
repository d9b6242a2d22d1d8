"""Calls through a real gateway process to a real endpoint that misbehaves when asked to."""

import datetime as dt
import json
import os
import re
import subprocess
import sys
import threading
import time

import httpx
import pytest
from sqlalchemy import text

from kpaas_lab.market.database import writing
from kpaas_lab.market.models import ApiKey, Listing, Subscription
from tests.fixtures.gateway import REQUEST, Gateway, Lab, Subscribed, utc, version
from tests.waiting import until


@pytest.fixture(scope="module")
def api(shared_lab: Lab) -> Subscribed:
    return shared_lab.listing()


def test_a_call_is_passed_on_and_its_answer_back(gateway: Gateway, api: Subscribed) -> None:
    answer = gateway.call(api)
    assert answer.status_code == 200, answer.text
    assert answer.json()["outputs"] == REQUEST["inputs"]
    assert re.fullmatch("[0-9a-f]{32}", answer.headers["x-trace-id"])
    assert 0 < int(answer.headers["x-kpaas-overhead-us"]) < 5_000_000
    seen = answer.json()["headers"]
    assert seen["traceparent"].split("-")[1] == answer.headers["x-trace-id"]
    assert "authorization" not in seen
    assert gateway.call(api, headers={"X-API-Key": api.key}).status_code == 200


def test_a_trace_goes_on(gateway: Gateway, api: Subscribed) -> None:
    parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    answer = gateway.call(api, headers={**api.headers, "traceparent": parent, "tracestate": "a=b"})
    assert answer.headers["x-trace-id"] == parent.split("-")[1]
    seen = answer.json()["headers"]
    assert seen["traceparent"].startswith(parent[:36])
    assert seen["tracestate"] == "a=b"


def test_reads_of_the_protocol(gateway: Gateway, api: Subscribed) -> None:
    with gateway.client(headers=api.headers) as client:
        for path in ("", "/health/live", "/health/ready", "/models/m", "/models/m/ready"):
            answer = client.get(f"{api.path}{path}", params={"a": "1"})
            assert (answer.status_code, answer.json()["path"]) == (200, f"/v2{path}"), answer.text
            assert answer.json()["query"] == "a=1"
        wrong = client.post(f"{api.path}/models/m")
        assert (wrong.status_code, wrong.headers["allow"]) == (405, "GET")
        assert client.get(f"{api.path}/models/other").status_code == 404
        assert client.get(f"{api.path}/repository/index").status_code == 404


def test_connections_are_kept(gateway: Gateway, api: Subscribed) -> None:
    with gateway.client(headers=api.headers) as client:
        for _ in range(20):
            assert client.get(f"{api.path}/health/live").status_code == 200
    assert gateway.process.child is not None
    descriptors = len(os.listdir(f"/proc/{gateway.process.child.pid}/fd"))
    assert descriptors < 60


@pytest.mark.parametrize("size", [10, 70_000, 900_000])
def test_bodies_are_streamed_up(gateway: Gateway, api: Subscribed, size: int) -> None:
    headers = {**api.headers, "Content-Type": "application/octet-stream"}
    with gateway.client(headers=headers) as client:
        url = f"{api.path}/models/m/infer"
        assert client.post(url, content=b"x" * size).json()["bytes"] == size
        pieces = (b"x" * 1000 for _ in range(size // 1000))
        assert client.post(url, content=pieces).json()["bytes"] == size // 1000 * 1000


def test_a_body_that_is_too_large(gateway: Gateway, api: Subscribed) -> None:
    headers = {**api.headers, "Content-Type": "application/octet-stream"}
    before = api.lab.settled(lambda _usage: True, api.key_id)["calls"]
    with gateway.client(headers=headers) as client:
        for content in (b"x" * (1 << 21), (b"x" * 65536 for _ in range(64))):
            answer = client.post(f"{api.path}/models/m/infer", content=content)
            assert answer.status_code == 413, answer.text
            assert "1048576 bytes" in answer.json()["error"]
    assert gateway.call(api).status_code == 200
    api.lab.settled(lambda usage: usage["calls"] > before, api.key_id)


def test_answers_are_streamed_down(gateway: Gateway, api: Subscribed) -> None:
    answer = gateway.trick(api, "big", size=5_000_000)
    assert (len(answer.content), answer.headers["content-length"]) == (5_000_000, "5000000")
    arrivals = []
    with gateway.client() as client:
        body = {"parameters": {"trick": "events", "count": 4, "pause": 0.2}}
        with client.stream("POST", f"{api.path}/models/m/generate_stream", json=body, headers=api.headers) as stream:
            assert stream.headers["content-type"] == "text/event-stream"
            for chunk in stream.iter_raw():
                arrivals.append((time.monotonic(), chunk))
    assert b"".join(chunk for _time, chunk in arrivals) == b"data: 0\n\ndata: 1\n\ndata: 2\n\ndata: 3\n\n"
    assert arrivals[-1][0] - arrivals[0][0] > 0.3  # they didn't come all at once, at the end


@pytest.mark.parametrize(
    ("trick", "status"),
    [
        ("half_body", 502),
        ("half_head", 502),
        ("close", 502),
        ("garbage", 502),
        ("two_lengths", 502),
        ("giant_header", 502),
        ("many_headers", 502),
        ("redirect", 502),
        ("switch", 502),
        ("hang", 504),
    ],
)
def test_an_upstream_that_misbehaves(gateway: Gateway, shared_lab: Lab, trick: str, status: int) -> None:
    api = shared_lab.listing(subscriber=f"bob-{trick}")
    answer = gateway.trick(api, trick)
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"error"}
    assert "'ann/digits'" in answer.json()["error"]
    assert answer.headers["x-trace-id"]
    usage = shared_lab.settled(lambda usage: usage["calls"] == 1, api.key_id)
    assert usage["errors"] == 1
    assert gateway.call(api).status_code == 200


@pytest.mark.parametrize(
    ("trick", "error"), [("half_stream", "incomplete chunked read"), ("endless", "incomplete chunked read")]
)
def test_an_answer_that_breaks_off_is_broken_off(gateway: Gateway, shared_lab: Lab, trick: str, error: str) -> None:
    api = shared_lab.listing(subscriber=f"bob-{trick}")
    with pytest.raises(httpx.RemoteProtocolError, match=error):
        gateway.trick(api, trick)
    assert shared_lab.settled(lambda usage: usage["calls"] == 1, api.key_id)["errors"] == 1


def test_a_giant_answer_is_refused_before_it_comes(gateway: Gateway, api: Subscribed) -> None:
    assert gateway.trick(api, "big", size=50 << 20).status_code == 502


def test_the_endpoints_own_errors_pass(gateway: Gateway, api: Subscribed) -> None:
    for status in (400, 422, 500, 503):
        answer = gateway.trick(api, "error", status=status)
        assert (answer.status_code, answer.json()) == (status, {"error": "no"})
    assert gateway.trick(api, "empty").status_code == 204


def test_an_endpoint_that_does_not_run(gateway: Gateway, shared_lab: Lab) -> None:
    api = shared_lab.listing("carl", "nothing", endpoint="nothing", calls_per_day=1)
    for _ in range(3):
        answer = gateway.call(api)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    usage = shared_lab.settled(lambda usage: usage["rejected"] == 3, api.key_id)
    assert usage["calls"] == 0
    shared_lab.endpoint("carl", "nothing")
    until(lambda: gateway.call(api).status_code == 200, 5, "an answer")  # none of the day's one call was used up


def test_another_replica_answers_when_one_dies(gateway: Gateway, shared_lab: Lab) -> None:
    api = shared_lab.listing("dora", "pair", endpoint="pair")
    first, second = (shared_lab.endpoint("dora", "pair", number) for number in (0, 1))
    assert [gateway.call(api).status_code for _ in range(4)] == [200] * 4
    first.kill()  # its socket file stays
    assert [gateway.call(api).status_code for _ in range(10)] == [200] * 10
    statuses = []
    body = {"parameters": {"trick": "slow", "seconds": 1.0}}
    threads = [threading.Thread(target=lambda: statuses.append(gateway.call(api, body).status_code)) for _ in range(4)]
    first.start()
    until(lambda: first.log.read_text().count("listening") == 2, 10, "the first replica again", log=first.log)
    for thread in threads:
        thread.start()
    with gateway.client() as client:
        until(lambda: "in_flight 4.0" in client.get("/services/api/metrics").text, 5, "four calls in flight")
    second.kill()  # with calls in it that have no byte of an answer yet
    for thread in threads:
        thread.join()
    assert statuses == [200] * 4
    first.kill()
    assert gateway.call(api).status_code == 503


def test_a_caller_who_leaves_frees_the_endpoint(gateway: Gateway, shared_lab: Lab) -> None:
    api = shared_lab.listing(subscriber="leaver", plan="leaver", concurrency=1)
    with pytest.raises(httpx.ReadTimeout):
        gateway.trick_with_timeout(api, "events", 0.3, count=100_000, pause=0.01)
    until(lambda: gateway.call(api).status_code == 200, 4, "a free place")
    usage = shared_lab.settled(lambda usage: usage["calls"] == 2, api.key_id)
    assert usage["errors"] == 0


# --- keys and listings


def refused(gateway: Gateway, api: Subscribed, key: str) -> tuple[int, str]:
    answer = gateway.call(api, headers={"Authorization": f"Bearer {key}"})
    return answer.status_code, answer.headers.get("x-kpaas-error", "")


def test_revocation_rotation_and_withdrawal_take_effect_within_a_second_or_so(lab: Lab) -> None:
    api = lab.listing()
    lab.endpoint()
    gateway = lab.gateway()
    assert gateway.call(api).status_code == 200
    new, _id = api.new_key()
    assert refused(gateway, api, new) == (200, "")  # at once
    api.change(ApiKey, api.key_id, revoked_at=utc())
    until(lambda: refused(gateway, api, api.key) == (401, "not_authorized"), 2.5, "the end of a revoked key")
    assert refused(gateway, api, new) == (200, "")
    expired, _id = api.new_key(expires_at=utc() - dt.timedelta(seconds=1))
    assert refused(gateway, api, expired) == (401, "not_authorized")
    soon, _id = api.new_key(expires_at=utc() + dt.timedelta(seconds=1.5))
    assert refused(gateway, api, soon) == (200, "")
    until(lambda: refused(gateway, api, soon)[0] == 401, 2.5, "the end of a key that expires")
    with writing(lab.engine) as session:
        listing = session.get(Listing, api.listing_id)
        assert listing is not None
        listing.versions.append(version(2, "second"))
    lab.endpoint("ann", "second")
    until(lambda: gateway.call(api, headers={"X-API-Key": new}).json()["outputs"] is not None, 2, "an answer")
    api.change(Listing, api.listing_id, withdrawn_at=utc())
    until(lambda: refused(gateway, api, new) == (404, "not_found"), 2.5, "the end of a withdrawn listing")
    api.change(Listing, api.listing_id, withdrawn_at=None)
    until(lambda: refused(gateway, api, new) == (200, ""), 2.5, "the listing again")
    api.change(Subscription, api.subscription, cancelled_at=utc())
    until(lambda: refused(gateway, api, new) == (403, "not_subscribed"), 2.5, "the end of a cancelled subscription")


def test_a_new_version_is_called_at_its_own_endpoint(gateway: Gateway, shared_lab: Lab) -> None:
    api = shared_lab.listing("eve", "moving", endpoint="one")
    one = shared_lab.endpoint("eve", "one")
    shared_lab.endpoint("eve", "two")
    assert gateway.call(api).status_code == 200
    with writing(shared_lab.engine) as session:
        listing = session.get(Listing, api.listing_id)
        assert listing is not None
        listing.versions.append(version(2, "two"))
    one.kill()
    until(lambda: gateway.call(api).status_code == 200, 3, "an answer of the new version")


def test_errors_speak_the_callers_language_and_the_protocols_shape(gateway: Gateway, api: Subscribed) -> None:
    answer = gateway.call(api, headers={"Accept-Language": "ko-KR,ko;q=0.9"})
    assert (answer.status_code, answer.headers["content-language"]) == (401, "ko")
    assert answer.headers["www-authenticate"] == "Bearer"
    assert isinstance(answer.json()["error"], str)
    cookie = gateway.call(api, headers={"Accept-Language": "en", "Cookie": "a=b; kpaas_lab_lang=ko"})
    assert cookie.headers["content-language"] == "ko"


# --- the gateway's own pages


def test_health_metrics_and_documents(gateway: Gateway, api: Subscribed) -> None:
    gateway.call(api)
    with gateway.client() as client:
        assert client.get("/services/api/healthz").json() == {
            "status": "ok", "database": "ok", "spool": {"writable": True, "pending_bytes": 0, "damaged_records": 0},
        }  # fmt: skip
        metrics = client.get("/services/api/metrics")
        assert metrics.headers["content-type"].startswith("text/plain")
        assert 'kpaas_gateway_answers_total{status="2xx"}' in metrics.text
        assert "kpaas_gateway_in_flight 0.0" in metrics.text
        for secret in (api.key, api.key[:12], api.key_id, "ann", "digits", "bob"):
            assert secret not in metrics.text
        nothing = client.get("/services/api/nothing", headers={"Accept-Language": "en"})
        assert (nothing.status_code, set(nothing.json()["error"])) == (404, {"code", "message", "hint"})
        assert client.get("/elsewhere").status_code == 404
        assert client.post("/services/api/healthz").status_code == 405
        document = client.get("/services/api/ann/digits/openapi.json").json()
        assert document["info"]["title"] == "손글씨 <b>"
        assert document["paths"]["/v2/models/m/infer"]["post"]["requestBody"]["content"]["application/json"]["example"]
        assert client.get("/services/api/ann/none/openapi.json").status_code == 404


def ended(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "kpaas_lab.market.gateway"]
    given = {"PATH": os.environ["PATH"], **environment}
    return subprocess.run(command, env=given, capture_output=True, text=True, timeout=60, check=False)


def test_it_says_what_is_wrong_and_ends(sqlite_lab: Lab) -> None:
    environment = {
        "KPAAS_LAB_LISTEN": f"unix:{sqlite_lab.home}/g.sock",
        "KPAAS_LAB_DATABASE_URL": sqlite_lab.url,
        "KPAAS_LAB_LEARNERS_DIR": str(sqlite_lab.learners),
        "KPAAS_LAB_SPOOL_DIR": str(sqlite_lab.home / "market" / "market.sqlite" / "spool"),
    }
    with writing(sqlite_lab.engine) as session:
        session.execute(text("UPDATE alembic_version SET version_num = 'f00f'"))
    cases = [
        (environment | {"KPAAS_LAB_DATABASE_URL": ""}, "KPAAS_LAB_DATABASE_URL"),
        (environment | {"KPAAS_LAB_LISTEN": "here"}, "KPAAS_LAB_LISTEN"),
        (environment, "newer version"),
        (environment | {"KPAAS_LAB_DATABASE_URL": f"sqlite:///{sqlite_lab.home}/new.sqlite"}, "KPAAS_LAB_SPOOL_DIR"),
    ]
    for given, says in cases:
        done = ended(given)
        assert (done.returncode, says in done.stderr) == (2, True), done.stderr
        assert "Traceback" not in done.stderr


def test_json_answers_are_json(gateway: Gateway, api: Subscribed) -> None:
    assert json.loads(gateway.call(api, headers={}).content)["error"]
