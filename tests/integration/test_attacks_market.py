"""What somebody would try against the market. Each attempt fails, and says no more than it must."""

from __future__ import annotations

import json
import os
import re
import socket
from html.parser import HTMLParser
from pathlib import Path

import httpx
import pytest

from tests.fixtures.market import SCOPE, Site

SCRIPT = "<script>window.stolen=1</script><img src=x onerror=window.stolen=1>"
LINK = "[click](javascript:window.stolen=1) ![x](http://evil.example/x.png) <http://ok.example>"


class Tags(HTMLParser):
    """All elements and attributes of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def assert_harmless(page: httpx.Response) -> None:
    assert page.status_code == 200, page.text[:500]
    for tag, attributes in Tags(page.text).found:
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        assert not (tag == "script" and not str(attributes.get("src")).startswith("/services/market/static/"))
        assert not (tag == "img" and not str(attributes.get("src")).startswith("/services/market/"))
        assert not str(attributes.get("href", "")).lower().startswith(("javascript:", "data:", "vbscript:"))
        assert "style" not in attributes, "our own policy would refuse it"
    policy = page.headers["content-security-policy"]
    assert "unsafe" not in policy
    assert "script-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy


def test_html_in_a_listing_is_text(market_site: Site) -> None:
    market_site.publish(
        "ann", "html", title=f"T {SCRIPT}", description=f"{SCRIPT}\n\n{LINK}", plans=[{"name": f"free{SCRIPT[:40]}"}]
    )
    ann = market_site.browser("ann")
    for path in ("/", "/?q=script", "/listings/ann/html", "/mine", "/usage?listing=ann/html", f"/?q={SCRIPT}"):
        assert_harmless(ann.get(path))
    with market_site.person("bob") as bob:
        answer = bob.get("/listings/ann/html")
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["x-content-type-options"] == "nosniff"
        key = bob.post("/listings/ann/html/subscriptions", json={"plan": f"free{SCRIPT[:40]}"}).json()
        bob.post(f"/subscriptions/{key['subscription']['id']}/keys", json={"label": SCRIPT})
    bob_browser = market_site.browser("bob")
    assert_harmless(bob_browser.get("/subscriptions"))
    assert_harmless(bob_browser.get("/listings/ann/html"))


@pytest.mark.parametrize(
    "name",
    [
        "../bob/digits",
        "/etc/passwd",
        "a/b",
        "..",
        "",
        "a" * 2000,
        "손글씨",
        "<b>x</b>",
        "A",
        "-a",
        "a\x00",
        "a b",
        "%2e%2e",
    ],
)
def test_names_that_are_none(market_site: Site, name: str) -> None:
    with market_site.person("ann") as ann:
        body = {"name": name, "title": "T", "endpoint": "digits", "plans": [{"name": "free"}]}
        for field in ("name", "endpoint"):
            answer = ann.post("/listings", json={**body, "name": "ok", field: name})
            assert answer.status_code == 422, answer.text
            assert field in answer.json()["error"]["message"]
            assert len(answer.text) < 2000


@pytest.mark.parametrize(
    "body",
    [
        {"title": "a" * 201},
        {"title": "\x00"},
        {"title": " "},
        {"title": "\ud800"},
        {"plans": []},
        {"plans": [{"name": "free"}] * 2},
        {"plans": [{"name": "free", "calls_per_day": 0}]},
        {"plans": [{"name": "free", "calls_per_day": 10**30}]},
        {"plans": [{"name": "free", "price_per_1000_calls": -1}]},
        {"plans": [{"name": "free", "price_per_1000_calls": "NaN"}]},
        {"description": "x" * 20_001},
        {"address": "http://169.254.169.254/"},
        {"model": "../../etc"},
        {"protocol": "gopher"},
    ],
)
def test_fields_that_do_not_fit(market_site: Site, body: dict[str, object]) -> None:
    good = {"name": "ok", "title": "T", "endpoint": "digits", "plans": [{"name": "free"}]}
    with market_site.person("ann") as ann:
        content = json.dumps({**good, **body})
        answer = ann.post("/listings", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422, answer.text
    assert set(answer.json()["error"]) == {"code", "message", "hint"}


@pytest.mark.parametrize(
    "endpoint", ["http://169.254.169.254/", "unix:/run/x.sock", "127.0.0.1:8081", "../../bob/digits", "bob/digits"]
)
def test_an_endpoint_is_a_name_never_an_address(market_site: Site, endpoint: str) -> None:
    with market_site.person("ann") as ann:
        body = {"name": "ssrf", "title": "T", "endpoint": endpoint, "plans": [{"name": "free"}]}
        assert ann.post("/listings", json=body).status_code == 422


def test_anothers_endpoint_cannot_be_published_through_a_link(market_site: Site) -> None:
    market_site.serve("victim", "secret")
    victim = market_site.socket("victim", "secret")
    for name, plant in {
        "linked": lambda path: path.symlink_to(victim),
        "hard": lambda path: os.link(victim, path),
        "folder": lambda path: (path.parent.rmdir(), path.parent.symlink_to(victim.parent)),
        "pipe": os.mkfifo,
    }.items():
        plant(market_site.socket("mallory", name))
        with market_site.person("mallory") as mallory:
            body = {"name": name, "title": "T", "endpoint": name, "model": "secret", "plans": [{"name": "free"}]}
            answer = mallory.post("/listings", json=body)
        assert answer.status_code == 422, (name, answer.text)
        assert answer.json()["error"]["code"] == "not_conformant"


def test_the_hubs_own_socket_is_no_endpoint(market_site: Site) -> None:
    """A socket that a learner makes leads to nothing but themselves: a redirect is not followed."""
    place = market_site.socket("mallory", "redirect")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(place))
        server.listen()
        server.settimeout(20)
        import threading

        def redirect() -> None:
            for _ in range(20):
                try:
                    connection, _address = server.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(65536)
                    connection.sendall(
                        f"HTTP/1.1 302 X\r\nLocation: {market_site.hub}/hub/api/led-astray\r\nContent-Length: 0\r\n"
                        "Connection: close\r\n\r\n".encode()
                    )

        thread = threading.Thread(target=redirect, daemon=True)
        thread.start()
        with market_site.person("mallory") as mallory:
            body = {"name": "redirect", "title": "T", "endpoint": "redirect", "plans": [{"name": "free"}]}
            answer = mallory.post("/listings", json=body)
    assert answer.status_code == 422
    assert "302" in answer.text
    assert "led-astray" not in market_site.log("hub").read_text()


def test_anothers_subscription_keys_and_usage_are_not_found(market_site: Site) -> None:
    market_site.publish("ann", "private")
    with market_site.person("bob") as bob:
        id = bob.post("/listings/ann/private/subscriptions", json={"plan": "free"}).json()["subscription"]["id"]
        key = bob.get("/subscriptions").json()["items"][0]["keys"][0]["id"]
    with market_site.person("eve") as eve:
        answers = [
            eve.delete(f"/subscriptions/{id}"),
            eve.post(f"/subscriptions/{id}/keys", json={}),
            eve.delete(f"/subscriptions/{id}/keys/{key}"),
            eve.get("/usage", params={"subscription": id}),
            eve.get("/usage", params={"listing": "ann/private"}),
            eve.get("/usage", params={"subscription": id, "format": "csv"}),
        ]
        assert [answer.status_code for answer in answers] == [404] * 6
        assert eve.get("/subscriptions").json()["items"] == []
        nothing = eve.delete("/subscriptions/no-such-id")
        assert nothing.json() == answers[0].json(), "an id that is another's looks like one that isn't"
    with market_site.person("ann") as ann:
        assert ann.delete(f"/subscriptions/{id}").status_code == 404, "nor the publisher"
        assert ann.get("/usage", params={"subscription": id}).status_code == 404
    eve_browser = market_site.browser("eve")
    assert eve_browser.get(f"/usage?subscription={id}").status_code == 404
    with market_site.person("bob") as bob:
        assert bob.get("/subscriptions").json()["items"][0]["cancelled_at"] is None


@pytest.mark.parametrize(
    "header",
    [
        "",
        "token",
        "token " + "0" * 32,
        "Bearer x",
        "Basic YW5uOmFubg==",
        "token é",
        "token \x7f",
        "token " + "a" * 5000,
    ],
)
def test_forged_tokens(market_site: Site, header: str) -> None:
    headers = [(b"authorization", header.encode("latin-1"))] if header else []
    for path in ("/listings", "/subscriptions", "/usage", "/listings/ann/digits"):
        answer = httpx.get(f"{market_site.api}{path}", headers=headers)
        if "\x7f" in header:
            assert answer.status_code == 400, "no HTTP header at all"
            continue
        assert answer.status_code == 401, (path, answer.text)
        assert answer.json()["error"]["code"] == "not_authorized"
        assert "0" * 32 not in answer.text


def test_tokens_that_the_hub_knows_but_not_for_this(market_site: Site) -> None:
    few = market_site.token("bob", ("read:users:name!user",))
    for token in (few, market_site.admin_token, market_site.market_token):
        answer = httpx.get(f"{market_site.api}/listings", headers={"Authorization": f"token {token}"})
        assert answer.status_code in {401, 403}, answer.text
        assert token not in answer.text
        assert token not in market_site.log("market").read_text()


def test_a_cookie_does_nothing_in_the_api(market_site: Site) -> None:
    ann = market_site.browser("ann")
    assert ann.get("/").status_code == 200
    assert ann.get("/api/v1/listings").status_code == 401


def test_forms_from_elsewhere_are_refused(market_site: Site) -> None:
    market_site.publish("ann", "csrf")
    bob, eve = market_site.browser("bob"), market_site.browser("eve")
    path = "/listings/ann/csrf/subscribe"
    own = re.findall(r'name="_xsrf" value="(\w+)"', bob.get("/listings/ann/csrf").text)[0]
    anothers = re.findall(r'name="_xsrf" value="(\w+)"', eve.get("/listings/ann/csrf").text)[0]
    for data in ({}, {"_xsrf": ""}, {"_xsrf": anothers}, {"_xsrf": "é"}):
        assert bob.post(path, data={"plan": "free", **data}).status_code == 403
    crossed = bob.post(path, data={"plan": "free", "_xsrf": own}, headers={"Sec-Fetch-Site": "cross-site"})
    assert crossed.status_code == 403
    for name in ("withdraw", "try-key"):
        assert bob.post(f"/listings/ann/csrf/{name}", data={}).status_code == 403
    with market_site.person("bob") as api:
        assert "csrf" not in {item["listing"]["name"] for item in api.get("/subscriptions").json()["items"]}
    assert bob.post(path, data={"plan": "free", "_xsrf": own}).status_code == 200
    cookies = {cookie.name: cookie for cookie in bob.cookies.jar if cookie.path == "/services/market/"}
    cookie = cookies["kpaas-lab-market"]
    assert cookie.has_nonstandard_attr("HttpOnly")
    assert str(cookie.get_nonstandard_attr("SameSite")).lower() == "lax"


def test_a_log_in_begun_elsewhere_is_refused(market_site: Site) -> None:
    with httpx.Client() as eve, httpx.Client() as bob:
        started = eve.get(f"{market_site.url}/")
        state = httpx.URL(started.headers["location"]).params["state"]
        forged = bob.get(f"{market_site.url}/oauth_callback", params={"code": "x" * 30, "state": state})
        assert forged.status_code == 403
        stale = eve.get(f"{market_site.url}/oauth_callback", params={"code": "x" * 30, "state": state})
        assert stale.status_code == 403
        assert "set-cookie" not in forged.headers


@pytest.mark.parametrize(
    "where",
    [
        "https://evil.example/",
        "//evil.example/",
        "/\\evil.example",
        "/hub/logout",
        "javascript:alert(1)",
        "/services/market/../../hub/logout",
    ],
)
def test_no_redirect_leads_away(market_site: Site, where: str) -> None:
    answer = httpx.get(f"{market_site.url}/language/ko", params={"next": where})
    assert answer.status_code == 303
    assert answer.headers["location"] == "/services/market/"


def test_who_logs_out_of_the_hub_is_out_of_the_market(market_site: Site) -> None:
    bob = market_site.browser("leaver")
    assert "leaver" in bob.get("/").text
    kept = dict(bob.cookies.items())
    bob.get(f"{market_site.hub}/hub/logout")
    token = {"kpaas-lab-market": kept["kpaas-lab-market"]}
    answer = httpx.get(f"{market_site.url}/", cookies=token)
    assert answer.status_code == 302, "the token in the cookie was revoked with the session"


@pytest.mark.parametrize(
    "query", ["' OR 1=1 --", '"; DROP TABLE listings; --', "%' UNION SELECT sha256 FROM api_keys --", "\\"]
)
def test_sql_in_a_search_is_words(market_site: Site, query: str) -> None:
    with market_site.person("bob") as bob:
        assert bob.get("/listings", params={"q": query}).json()["total"] == 0
        assert bob.get(f"/listings/ann/{query.replace('/', '')}").status_code == 404
        assert bob.get("/listings").status_code == 200


def test_large_requests_are_refused_early(market_site: Site) -> None:
    with market_site.person("ann") as ann:
        stated = ann.post("/listings", content=b"x" * (3 * 1024 * 1024), headers={"Content-Type": "application/json"})
        assert (stated.status_code, stated.json()["error"]["code"]) == (413, "too_large")

        def chunks():  # type: ignore[no-untyped-def]
            for _ in range(3 * 64):
                yield b"x" * 16384

        streamed = ann.post("/listings", content=chunks(), headers={"Content-Type": "application/json"})
        assert streamed.status_code == 413
        deep = ann.post("/listings", content=b"[" * 100_000, headers={"Content-Type": "application/json"})
        assert deep.status_code in {400, 422}
        assert ann.get("/listings").status_code == 200


@pytest.mark.parametrize(
    "path", ["static/../app.py", "static/..%2fapp.py", "static/%2e%2e/app.py", "web/../../../etc/passwd", "static/"]
)
def test_static_files_only(market_site: Site, path: str) -> None:
    with socket.create_connection(("127.0.0.1", market_site.market_port), 5) as connection:
        connection.sendall(f"GET /services/market/{path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        answer = connection.makefile("rb").read().decode(errors="replace")
    assert answer.startswith(("HTTP/1.1 404", "HTTP/1.1 302", "HTTP/1.1 400")), answer[:200]
    assert "def create_app" not in answer
    assert "root:" not in answer


def test_no_secret_is_logged(market_site: Site, tmp_path: Path) -> None:
    market_site.publish("ann", "logged")
    with market_site.person("bob") as bob:
        key = bob.post("/listings/ann/logged/subscriptions", json={"plan": "free"}).json()["key"]
        token = bob.headers["Authorization"].partition(" ")[2]
    logs = "".join(path.read_text(errors="replace") for path in market_site.home.glob("*.log"))
    assert SCOPE not in key
    for secret in (key, token, market_site.market_token, market_site.admin_token):
        assert secret not in logs
    database = b"".join(path.read_bytes() for path in (market_site.home / "market").glob("market.sqlite*"))
    assert key.encode() not in database


def answered(site: Site, request: bytes) -> tuple[int, bytes]:
    """Status and body of the answer, which may come before all of the request is sent; (0, b"") for none."""
    with socket.create_connection(("127.0.0.1", site.market_port), timeout=20) as connection:
        answer = b""
        try:
            connection.sendall(request)
            while part := connection.recv(1 << 16):
                answer += part
        except ConnectionError:
            pass
    head, _blank, body = answer.partition(b"\r\n\r\n")
    return (int(head.split()[1]) if head else 0), body


def test_giant_and_endless_headers_are_refused(market_site: Site) -> None:
    start = "GET /services/market/healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    assert answered(market_site, f"{start}Cookie: {'a' * 20_000}\r\n\r\n".encode())[0] == 200
    for request in (
        f"{start}X: {'a' * 33_000}\r\n\r\n",
        start + "".join(f"X-{n}: {'a' * 100}\r\n" for n in range(320)) + "\r\n",
        f"GET /services/market/?q={'a' * 33_000} HTTP/1.1\r\nHost: x\r\n\r\n",
        f"{start}{'a' * 33_000}",
    ):
        status, body = answered(market_site, request.encode())
        assert status == 431
        assert json.loads(body)["error"]["code"] == "headers_too_large"


def test_endless_trailers_are_not_kept(market_site: Site) -> None:
    start = b"POST /services/market/api/v1/listings HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    endless = b"T: %s\r\n" % (b"t" * 100) * 100_000
    connection = socket.create_connection(("127.0.0.1", market_site.market_port), timeout=20)
    with connection, pytest.raises(ConnectionError):
        connection.sendall(start + b"2\r\n{}\r\n0\r\n" + endless)
    with market_site.person("ann") as ann:
        assert ann.get("/healthz").status_code == 200
