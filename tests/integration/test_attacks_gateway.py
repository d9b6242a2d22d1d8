"""Attacks on the gateway: by callers, by people on its network path, and by publishers. Each of them fails."""

import base64
import concurrent.futures
import contextlib
import re
import secrets
import socket
import threading
import time

import httpx
import pytest

from kpaas_lab.market.keys import fingerprint, new_key
from tests.fixtures.gateway import REQUEST, Gateway, Lab, Subscribed
from tests.waiting import until


@pytest.fixture(scope="module")
def api(shared_lab: Lab) -> Subscribed:
    return shared_lab.listing()


def raw(gateway: Gateway, data: bytes, *, answers: int = 0, patience: float = 10.0) -> bytes:
    """What comes back on a connection until that many answers came, it was closed, or nothing came for half a second.

    With a number of answers the patience is longer, and nothing is read that would come after them.
    """
    found = b""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(patience if answers else 0.5)
        connection.connect(str(gateway.place))
        with contextlib.suppress(TimeoutError, ConnectionError):
            connection.sendall(data)
            while chunk := connection.recv(65536):
                found += chunk
                if answers and len(statuses(found)) >= answers and found.endswith((b"}", b"\r\n")):
                    break
    return found


def statuses(answer: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", answer)]


def upstream_calls(gateway: Gateway, api: Subscribed) -> int:
    with gateway.client(headers=api.headers) as client:
        return int(client.get(f"{api.path}/health/live").json()["calls"])


# --- keys


def wrong_keys(key: str) -> list[str]:
    flipped = key[:-1] + ("A" if key[-1] != "A" else "B")
    return [
        "",
        new_key().text,
        flipped,
        key[:-1],
        key + "A",
        key.upper(),
        key.lower() if key != key.lower() else key.swapcase(),
        fingerprint(key),
        key[:12],
        "kpl_" + "A" * 43,
        "kpl_" + "%" * 43,
        "kpl_' OR '1'='1' --" + "A" * 28,
        f"{key},{key}",
        f"{key} {key}",
        f'"{key}"',
        base64.b64encode(f"bob:{key}".encode()).decode(),
        "a" * 20_000,
        "null",
    ]


def test_forged_and_malformed_keys(gateway: Gateway, api: Subscribed) -> None:
    before = upstream_calls(gateway, api)
    with gateway.client() as client:
        for key in wrong_keys(api.key):
            for headers in ({"Authorization": f"Bearer {key}".strip()}, {"X-API-Key": key}):
                answer = client.post(f"{api.path}/models/m/infer", json=REQUEST, headers=headers)
                assert answer.status_code == 401, key
                assert set(answer.json()) == {"error"}
                assert api.key not in answer.text
        for headers in (
            {"Authorization": f"Basic {api.key}"},
            {"Authorization": api.key},
            {"Proxy-Authorization": f"Bearer {api.key}"},
            {"Cookie": f"key={api.key}; Authorization=Bearer {api.key}"},
            {"X-API-Key": api.key, "Authorization": f"Bearer {new_key().text}"},
            {"X-API-Key": api.key, "Authorization": "Basic Ym9iOng="},
        ):
            assert client.post(f"{api.path}/models/m/infer", json=REQUEST, headers=headers).status_code == 401
        in_query = client.post(f"{api.path}/models/m/infer", json=REQUEST, params={"key": api.key, "api_key": api.key})
        assert in_query.status_code == 401
        in_bytes = client.post(f"{api.path}/models/m/infer", json=REQUEST, headers={b"X-API-Key": b"kpl_\xff\xfe" * 10})
        assert in_bytes.status_code == 401
    assert upstream_calls(gateway, api) == before + 1


def test_another_listings_key(gateway: Gateway, shared_lab: Lab, api: Subscribed) -> None:
    other = shared_lab.listing("dora", "faces", "bob", endpoint="faces")
    answer = gateway.call(api, headers=other.headers)
    assert (answer.status_code, answer.headers["x-kpaas-error"]) == (403, "not_subscribed")
    with gateway.client(headers=api.headers) as client:
        for path in (
            "/dora/faces",
            "/Ann/digits",
            "/ann/digits2",
            "/ann%2Fdigits/x",
            "/ann/%64igits%00",
            "/nobody/nothing",
        ):
            answer = client.post(f"/services/api{path}/v2/models/m/infer", json=REQUEST)
            assert answer.status_code in {403, 404}, path


def test_guessing_keys_does_not_get_in_the_way_of_others(gateway: Gateway, api: Subscribed) -> None:
    def guess(_number: int) -> set[int]:
        with gateway.client() as client:
            url = f"{api.path}/models/m/infer"
            return {
                client.post(url, json=REQUEST, headers={"X-API-Key": new_key().text}).status_code for _ in range(60)
            }

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        guesses = [pool.submit(guess, number) for number in range(8)]
        for _ in range(10):
            assert gateway.call(api).status_code == 200
        assert set.union(*(guess.result() for guess in guesses)) == {401}


# --- paths


@pytest.mark.parametrize(
    "target",
    [
        "/services/api/ann/digits/v2/../../../../etc/passwd",
        "/services/api/ann/digits/v2/models/../../v2/models/m/infer",
        "/services/api/ann/digits/v2/models/%2e%2e/%2e%2e/metrics",
        "/services/api/ann/digits/v2/%2e%2e/metrics",
        "/services/api/ann/digits/v2//models/m/infer",
        "/services/api/ann/digits//v2/models/m/infer",
        "//services/api/ann/digits/v2/models/m/infer",
        "/services/api/../api/ann/digits/v2/models/m/infer",
        "/services/api/ann/../ann/digits/v2/models/m/infer",
        "/services/api/ann/digits/v2/models/m/infer%00",
        "/services/api/ann/digits/v2/models/m/infer/../metrics",
        "/services/api/ann/digits/v2/models/m%2Finfer",
        "/services/api/ann/digits/v2/models/m/infer\\..\\x",
        "/services/api/ann/digits/v2/metrics",
        "/services/api/ann/digits/v2/repository/models/m/unload",
        "/services/api/ann/digits/v2/models/m/unload",
        "/services/api/ann/digits/metrics",
        "http://127.0.0.1:1/services/api/ann/digits/v2/admin",
        "http://evil/",
        "*",
    ],
)
def test_paths_that_lead_elsewhere(gateway: Gateway, api: Subscribed, target: str) -> None:
    before = upstream_calls(gateway, api)
    request = f"POST {target} HTTP/1.1\r\nHost: x\r\nX-API-Key: {api.key}\r\nContent-Length: 2\r\n\r\n{{}}"
    answer = raw(gateway, request.encode(), answers=1)
    assert statuses(answer)[0] in {400, 403, 404}, answer[:300]
    assert upstream_calls(gateway, api) == before + 1


def test_an_absolute_url_is_a_path_here_and_leads_nowhere_else(gateway: Gateway, api: Subscribed) -> None:
    with socket.create_server(("127.0.0.1", 0)) as trap:
        trap.settimeout(0.3)
        port = trap.getsockname()[1]
        target = f"http://127.0.0.1:{port}{api.path}/health/live"
        answer = raw(
            gateway, f"GET {target} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nX-API-Key: {api.key}\r\n\r\n".encode()
        )
        assert statuses(answer) == [200]
        assert b'"host": "endpoint"' in answer
        with pytest.raises(TimeoutError):
            trap.accept()


def test_connect_and_other_methods(gateway: Gateway, api: Subscribed) -> None:
    for method in ("CONNECT", "TRACE", "DELETE", "PUT", "PATCH", "OPTIONS", "HEAD"):
        head = f"{method} {api.path}/models/m/infer HTTP/1.1\r\nHost: x\r\nX-API-Key: {api.key}\r\n"
        assert statuses(raw(gateway, f"{head}Content-Length: 0\r\n\r\n".encode(), answers=1))[0] in {400, 404, 405}, (
            method
        )


# --- smuggling


def post(api: Subscribed, *headers: str, key: str | None = None) -> bytes:
    """A request's head."""
    first = [f"POST {api.path}/models/m/infer HTTP/1.1", "Host: x", f"X-API-Key: {api.key if key is None else key}"]
    return "\r\n".join([*first, *headers, "", ""]).encode("latin-1")


def smuggled(api: Subscribed) -> bytes:
    return f"GET {api.path}/health/live HTTP/1.1\r\nHost: x\r\nX-API-Key: {api.key}\r\n\r\n".encode()


@pytest.mark.parametrize(
    "framing",
    [
        "Content-Length: 6\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 6",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\nContent-Length: 6",
        "Transfer-Encoding: xchunked\r\nContent-Length: 6",
        "Transfer-Encoding : chunked\r\nContent-Length: 6",
        "Transfer-Encoding:\x0bchunked\r\nContent-Length: 6",
        "X: y\nTransfer-Encoding: chunked\r\nContent-Length: 6",
        "Content-Length: 6\r\nContent-Length: 5",
        "Content-Length: 6, 5",
        "Content-Length: +6",
        "Content-Length: 0x6",
        "Content-Length: -6",
        "Content-Length: 6 6",
    ],
)
def test_two_ways_to_read_a_requests_length(gateway: Gateway, api: Subscribed, framing: str) -> None:
    """At most one request is ever seen in it: what one reader takes for a body is never a request to the next."""
    before = upstream_calls(gateway, api)
    answer = raw(gateway, post(api, framing, key=new_key().text) + b"0\r\n\r\nX" + smuggled(api))
    assert all(status in {400, 401} for status in statuses(answer)), answer[:500]
    assert upstream_calls(gateway, api) == before + 1


def test_what_follows_a_request_never_reaches_the_endpoint_as_part_of_it(gateway: Gateway, api: Subscribed) -> None:
    body = b"{}"
    no_key = f"GET {api.path}/health/live HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    assert statuses(raw(gateway, post(api, f"Content-Length: {len(body)}") + body + no_key, answers=2)) == [200, 401]


def test_headers_for_this_hop_stay_here(gateway: Gateway, api: Subscribed) -> None:
    answer = gateway.call(
        api,
        headers={
            **api.headers, "Connection": "keep-alive, X-Request-Id", "TE": "trailers", "X-Forwarded-For": "1.2.3.4",
            "Cookie": "jupyterhub-session-id=1", "X-Forwarded-Host": "evil", "Forwarded": "for=1", "Host": "evil",
            "X-Original-URL": "/admin", "Upgrade": "h2c", "HTTP2-Settings": "AAMAAABkAAQAAP__",
        },
    )  # fmt: skip
    assert answer.status_code == 200
    seen = {name for name in answer.json()["headers"] if name}
    assert seen <= {
        "host",
        "accept",
        "accept-encoding",
        "content-type",
        "content-length",
        "traceparent",
        "x-request-id",
    }
    assert answer.json()["headers"]["host"] == "endpoint"


# --- sizes and time


def test_giant_and_endless_headers(gateway: Gateway, api: Subscribed) -> None:
    start = f"GET {api.path}/health/live HTTP/1.1\r\nHost: x\r\nX-API-Key: {api.key}\r\n"
    assert statuses(raw(gateway, f"{start}X: {'a' * 20_000}\r\n\r\n".encode(), answers=1)) == [200]
    for request in (
        f"{start}X: {'a' * 200_000}\r\n\r\n",
        start + "".join(f"X-{n}: {'a' * 100}\r\n" for n in range(2000)) + "\r\n",
        f"GET {api.path}/health/live?{'a' * 200_000} HTTP/1.1\r\nHost: x\r\n\r\n",
        f"{start}{'a' * 200_000}",
    ):
        assert statuses(raw(gateway, request.encode(), answers=1)) == [431]


def test_endless_chunk_extensions_and_trailers(gateway: Gateway, api: Subscribed) -> None:
    extensions = b"2;" + b"e" * 500_000
    trailers = b"2\r\n{}\r\n0\r\n" + b"".join(b"T%d: %s\r\n" % (n, b"t" * 100) for n in range(5000))
    for ending in (extensions, trailers):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(5)
            connection.connect(str(gateway.place))
            endless = post(api, "Transfer-Encoding: chunked") + ending + b"e" * (4 << 20)
            with pytest.raises(ConnectionError):
                connection.sendall(endless)
    assert gateway.call(api).status_code == 200


def test_trailers_are_no_headers(gateway: Gateway, api: Subscribed) -> None:
    start = post(api, "Transfer-Encoding: chunked", key="")
    answer = raw(gateway, start + f"2\r\n{{}}\r\n0\r\nX-API-Key: {api.key}\r\n\r\n".encode(), answers=1)
    assert statuses(answer) == [401]


def test_many_slow_callers_keep_nobody_out(gateway: Gateway, api: Subscribed) -> None:
    slow = []
    for _ in range(150):
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(str(gateway.place))
        connection.sendall(b"POST /services/api/ann/digits/v2/models/m/infer HTTP/1.1\r\nHost: x\r\n")
        slow.append(connection)
    try:
        started = time.monotonic()
        assert [gateway.call(api).status_code for _ in range(10)] == [200] * 10
        assert time.monotonic() - started < 20
    finally:
        for connection in slow:
            connection.close()


def test_a_caller_who_never_reads_holds_a_place_for_a_while_only(gateway: Gateway, shared_lab: Lab) -> None:
    api = shared_lab.listing(subscriber="deaf", plan="deaf", concurrency=1)
    body = b'{"parameters": {"trick": "big", "size": 8000000}}'
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(gateway.place))
        connection.sendall(post(api, f"Content-Length: {len(body)}") + body)
        until(lambda: gateway.call(api).status_code == 429, 5, "the place taken")
        until(lambda: gateway.call(api).status_code == 200, 15, "the place free again")  # the total timeout is 6 s here


# --- the publisher


def test_the_publishers_answer_is_only_ever_data(gateway: Gateway, api: Subscribed) -> None:
    answer = gateway.trick(api, "html")
    headers = {name.lower(): value for name, value in answer.headers.multi_items()}
    assert headers["content-type"] == "application/octet-stream"
    assert headers["content-disposition"] == "attachment"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["content-security-policy"].startswith("sandbox;")
    assert headers["x-trace-id"] != "forged"
    for name in (
        "set-cookie", "location", "refresh", "clear-site-data", "access-control-allow-origin", "link",
        "service-worker-allowed", "www-authenticate",
    ):  # fmt: skip
        assert name not in headers
    assert gateway.trick(api, "split_header").headers.get("set-cookie") is None


def test_the_callers_secrets_do_not_reach_the_publisher(gateway: Gateway, api: Subscribed) -> None:
    cookie = secrets.token_hex(8)
    answer = gateway.call(api, headers={**api.headers, "Cookie": f"jupyterhub-session-id={cookie}"})
    assert answer.status_code == 200
    assert cookie not in answer.text
    assert api.key not in answer.text
    assert fingerprint(api.key) not in answer.text
    assert "bob" not in answer.text


def test_an_endpoint_that_hangs_leaves_room_for_others(sqlite_lab: Lab) -> None:
    hanging, well = sqlite_lab.listing("eve", "hang", endpoint="hang"), sqlite_lab.listing()
    sqlite_lab.endpoint("eve", "hang")
    sqlite_lab.endpoint()
    gateway = sqlite_lab.gateway(
        KPAAS_LAB_GATEWAY_READ_TIMEOUT="3",
        KPAAS_LAB_GATEWAY_MAX_IN_FLIGHT="20",
        KPAAS_LAB_GATEWAY_MAX_IN_FLIGHT_PER_LISTING="8",
    )
    found: list[int] = []
    threads = [
        threading.Thread(target=lambda: found.append(gateway.trick(hanging, "hang").status_code)) for _ in range(16)
    ]
    for thread in threads:
        thread.start()
    assert [gateway.call(well).status_code for _ in range(10)] == [200] * 10
    for thread in threads:
        thread.join()
    assert set(found) == {503, 504}


def test_an_endless_answer_does_not_fill_the_memory(gateway: Gateway, api: Subscribed) -> None:
    assert gateway.process.child is not None

    def resident() -> int:
        with open(f"/proc/{gateway.process.child.pid}/statm") as file:
            return int(file.read().split()[1]) * 4096

    before = resident()
    for _ in range(3):
        with pytest.raises(httpx.RemoteProtocolError):
            gateway.trick(api, "endless")
    assert resident() - before < 60 << 20


# --- and afterwards


def test_no_key_ever_stood_in_the_log(gateway: Gateway, shared_lab: Lab, api: Subscribed) -> None:
    for trick in ("garbage", "close", "half_stream"):
        try:
            gateway.trick(api, trick)
        except httpx.TransportError:
            continue
    raw(gateway, f"GARBAGE {api.key}\r\nX-API-Key: {api.key}\r\n\r\n".encode())
    log = shared_lab.log()
    assert "Traceback" not in log, log[-4000:]
    assert "kpl_" not in log
    assert fingerprint(api.key) not in log
    assert "postgresql://" not in log
    assert shared_lab.url not in log
