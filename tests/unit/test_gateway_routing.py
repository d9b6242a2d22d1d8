"""What passes the gateway, in both directions; and what it says when nothing does."""

import datetime as dt

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kpaas_lab.errors import SettingsError
from kpaas_lab.market.gateway import refusals
from kpaas_lab.market.gateway.limiting import Exceeded, PlanLimits
from kpaas_lab.market.gateway.routing import call_of, forwarded, key_of, methods, query_of, returned, trace_of
from kpaas_lab.market.gateway.settings import from_environment

GIVEN = {
    "KPAAS_LAB_LISTEN": "127.0.0.1:8001",
    "KPAAS_LAB_DATABASE_URL": "postgresql://kpaas:hunter2@db/market",
    "KPAAS_LAB_LEARNERS_DIR": "/srv/learners",
    "KPAAS_LAB_SPOOL_DIR": "/srv/spool",
}


@pytest.mark.parametrize(
    "path",
    [
        "/v2/../admin",
        "/v2/models/..",
        "/v2/models/../infer",
        "/v2/models/m/../../x/infer",
        "/v2/models/%2e%2e/infer",
        "/v2/models/m%2finfer",
        "/v2//models/m/infer",
        "/v2/models//infer",
        "/v2/models/m/infer/",
        "/v2/models/m/infer/..",
        "/v2/models/m/infer\\",
        "/v2/models/m/infer\n",
        "/v2/models/m/infer;x",
        "/v2/models/./infer",
        "/v2/repository/index",
        "/v2/models/m/load",
        "/v2/models/m/versions/../infer",
        "/v2/health/",
        "/v2/health/x",
        "/v2x",
        "/v2/models/",
        "/v2/models/" + "m" * 5000,
        "/v2/models/other/infer",
        "/v2/models/m/versions//infer",
        "/v2/models/모델/infer",
    ],
)
def test_paths_that_are_none_of_the_protocols(path: str) -> None:
    assert methods(path, "m") == set()


@pytest.mark.parametrize(
    ("path", "method"),
    [
        ("/v2", "GET"),
        ("/v2/", "GET"),
        ("/v2/health/live", "GET"),
        ("/v2/health/ready", "GET"),
        ("/v2/models/m", "GET"),
        ("/v2/models/m/ready", "GET"),
        ("/v2/models/m/versions/1", "GET"),
        ("/v2/models/m/versions/1/ready", "GET"),
        ("/v2/models/m/infer", "POST"),
        ("/v2/models/m/versions/1/infer", "POST"),
        ("/v2/models/m/generate_stream", "POST"),
    ],
)
def test_paths_of_the_protocol(path: str, method: str) -> None:
    assert methods(path, "m") == {method}


def test_names_are_decoded_once() -> None:
    call = call_of("/%EB%AF%BC%EC%88%98/digits/v2")
    assert call is not None
    assert call.publisher == "민수"
    twice = call_of("/%252e%252e/digits/v2")
    assert twice is not None
    assert twice.publisher == "%2e%2e"
    for path in ("/v2/models/m/infer", "//digits/v2", "/ann//v2", "/ann/digits/v3", "/ann/digits/openapi.json", ""):
        assert call_of(path) is None, path


@given(st.text(alphabet="/.%2eEfF5cC\\vmodelsinfer;?#", max_size=60))
def test_whatever_passes_has_no_step_up_and_no_escape(text: str) -> None:
    path = f"/v2/models/{text}"
    if methods(path, "m"):
        assert "%" not in path
        assert "//" not in path
        assert "\\" not in path
        assert not {".", ".."} & set(path.split("/"))


def test_the_endpoint_gets_no_key_cookie_or_address() -> None:
    sent = [
        (b"authorization", b"Bearer kpl_x"),
        (b"x-api-key", b"kpl_x"),
        (b"cookie", b"jupyterhub-session-id=1"),
        (b"x-forwarded-for", b"10.0.0.1"),
        (b"host", b"lab"),
        (b"connection", b"x-api-key"),
        (b"te", b"trailers"),
        (b"transfer-encoding", b"chunked"),
        (b"proxy-authorization", b"x"),
        (b"upgrade", b"websocket"),
        (b"content-type", b"application/json"),
        (b"accept", b"*/*"),
        (b"keep-alive", b"1"),
        (b"user-agent", b"x"),
    ]
    assert forwarded(sent) == {"content-type": "application/json", "accept": "*/*"}


def test_the_caller_gets_no_header_with_a_meaning_for_the_origin() -> None:
    evil = [
        ("Set-Cookie", "a=b"),
        ("Location", "https://x"),
        ("Refresh", "0"),
        ("Clear-Site-Data", "*"),
        ("Link", "</x>"),
        ("Access-Control-Allow-Origin", "*"),
        ("Content-Security-Policy", "default-src *"),
        ("Service-Worker-Allowed", "/"),
        ("X-Frame-Options", "ALLOWALL"),
        ("Transfer-Encoding", "chunked"),
        ("Connection", "close"),
        ("X-Trace-Id", "0"),
        ("Retry-After", "1\r\nSet-Cookie: a=b"),
        ("Content-Encoding", "gzip\r\nX: y"),
        ("Server-Timing", "é" * 10),
        ("Content-Type", "text/html"),
        ("WWW-Authenticate", "Basic"),
        ("X-KPaaS-Overhead-Us", "0"),
    ]
    names = {name for name, _value in returned(evil)}
    assert names == {
        b"x-content-type-options",
        b"content-security-policy",
        b"cross-origin-resource-policy",
        b"referrer-policy",
        b"cache-control",
        b"content-type",
        b"content-disposition",
    }
    found = dict(returned([("Content-Type", "application/json; charset=utf-8"), ("Retry-After", "7")]))
    assert found[b"content-type"] == b"application/json"
    assert found[b"retry-after"] == b"7"


@pytest.mark.parametrize(
    "kind", ["text/html", "image/svg+xml", "application/xhtml+xml", "text/xml", "", "text/javascript"]
)
def test_a_type_that_a_browser_renders_becomes_bytes(kind: str) -> None:
    assert dict(returned([("Content-Type", kind)]))[b"content-type"] == b"application/octet-stream"


def test_keys_in_either_header_but_not_two() -> None:
    assert key_of([(b"authorization", b"bearer  abc ")]) == "abc"
    assert key_of([(b"authorization", b"Basic abc")]) == ""
    assert key_of([(b"authorization", b"Bearer abc"), (b"x-api-key", b"abc")]) == "abc"
    assert key_of([(b"authorization", b"Bearer abc"), (b"authorization", b"Bearer def")]) == ""


def test_a_query_is_passed_on_as_it_is_or_not_at_all() -> None:
    assert query_of(b"a=1&b=%20") == "a=1&b=%20"
    for bad in (b"a=\r\nX: y", b"a b", b"\xff", b"a" * 5000, b"#x", b""):
        assert query_of(bad) == ""


def test_trace_context() -> None:
    trace, parent = trace_of(b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00")
    assert trace == "4bf92f3577b34da6a3ce929d0e0e4736"
    assert parent.startswith(f"00-{trace}-")
    assert parent.endswith("-00")
    assert "00f067aa0ba902b7" not in parent
    for bad in (
        None,
        b"",
        b"00-" + b"0" * 32 + b"-00f067aa0ba902b7-00",
        b"ff-x",
        b"00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-00\n",
    ):
        fresh, _parent = trace_of(bad)
        assert len(fresh) == 32
        assert fresh != trace


def test_the_day_limit_names_the_plan_and_when_it_renews() -> None:
    plan = PlanLimits("free", calls_per_day=1000)
    refusal = refusals.over_limit(Exceeded.DAY, plan, dt.datetime(2026, 11, 23, 18, 30, tzinfo=dt.UTC))
    status, headers, body = refusal.answer("en", "", oip=True)
    assert status == 429
    assert headers["retry-after"] == str(5 * 3600 + 1800)
    text = orjson.loads(body)["error"]
    assert "'free' allows 1000 calls a day" in text
    assert "in 5 h 30 min" in text
    assert headers["x-kpaas-error"] == "quota_exceeded"
    assert refusal.metered


def test_every_refusal_formats_in_both_shapes() -> None:
    plan, now = PlanLimits("p", 1, 1, 1), dt.datetime.now(dt.UTC)
    every = [
        refusals.no_key(),
        refusals.unknown_key(),
        refusals.other_listing("a/{b}"),
        refusals.no_path("m"),
        refusals.no_path(),
        refusals.no_method("GET"),
        refusals.too_large(5),
        refusals.busy(),
        refusals.no_replica("a/b"),
        refusals.no_directory(),
        refusals.bad_upstream("a/b"),
        refusals.slow_upstream("a/b", 2.0),
        *(refusals.dead_key(why, "a/b") for why in ("revoked", "expired", "cancelled", "withdrawn")),
        *(refusals.over_limit(what, plan, now) for what in Exceeded),
    ]
    for refusal in every:
        status, _headers, body = refusal.answer("ko", "", oip=True)
        assert 400 <= status < 600
        assert isinstance(orjson.loads(body)["error"], str)
        detail = orjson.loads(refusal.answer("", "en", oip=False)[2])["error"]
        assert set(detail) == {"code", "message", "hint"}
        assert all(detail.values())


@pytest.mark.parametrize(
    "change",
    [
        {"KPAAS_LAB_LISTEN": ""},
        {"KPAAS_LAB_LISTEN": "8001"},
        {"KPAAS_LAB_LISTEN": "host:99999"},
        {"KPAAS_LAB_LISTEN": "unix:rel"},
        {"KPAAS_LAB_DATABASE_URL": ""},
        {"KPAAS_LAB_GATEWAY_MAX_BODY_BYTES": "0"},
        {"KPAAS_LAB_GATEWAY_MAX_BODY_BYTES": "big"},
        {"KPAAS_LAB_GATEWAY_READ_TIMEOUT": "-1"},
        {"KPAAS_LAB_GATEWAY_MAX_IN_FLIGHT": "1.5"},
    ],
)
def test_settings_that_cannot_be_used(change: dict[str, str]) -> None:
    with pytest.raises(SettingsError) as caught:
        from_environment({**GIVEN, **change})
    assert next(iter(change)) in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_settings() -> None:
    settings = from_environment(
        {**GIVEN, "JUPYTERHUB_SERVICE_PREFIX": "/x/services/api/", "KPAAS_LAB_GATEWAY_READ_TIMEOUT": "2.5"}
    )
    assert settings.prefix == "/x/services/api"
    assert settings.limits.read_timeout == 2.5
    assert "hunter2" not in repr(settings)
