"""The market's JSON API, with a real hub, a real endpoint and a real process."""

from __future__ import annotations

import httpx

from tests.fixtures.market import Site, running_site


def test_publish_find_subscribe_cancel(market_site: Site) -> None:
    plans = [{"name": "free", "calls_per_day": 1000}, {"name": "pro", "price_per_1000_calls": 1200.5}]
    published = market_site.publish(
        "ann", "digits", title="손글씨 숫자 인식", description="Reads *digits*.", plans=plans
    )
    assert published["version"] == 1
    assert published["schema"]["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]
    assert published["url"] == f"{market_site.origin}/services/api/ann/digits"
    assert published["plans"][1]["price_per_1000_calls"] == 1200.5
    assert "example" in published["versions"][0]["checks"]
    with market_site.person("bob") as bob:
        for words in ("손글씨", "DIGITS", "ann reads", "숫자 손글씨"):
            found = bob.get("/listings", params={"q": words}).json()
            assert [item["name"] for item in found["items"]] == ["digits"], words
        assert bob.get("/listings", params={"q": "nothing-like-it"}).json()["total"] == 0
        first = bob.post("/listings/ann/digits/subscriptions", json={"plan": "free"})
        assert first.status_code == 201
        assert len(first.json()["key"]) == 47
        again = bob.post("/listings/ann/digits/subscriptions", json={"plan": "free"})
        assert (again.status_code, again.json()["key"]) == (200, None)
        other = bob.post("/listings/ann/digits/subscriptions", json={"plan": "pro"})
        assert (other.status_code, other.json()["error"]["code"]) == (409, "already_exists")
        wrong = bob.post("/listings/ann/digits/subscriptions", json={"plan": "gold"})
        assert wrong.status_code == 400
        assert "free, pro" in wrong.json()["error"]["hint"]
        mine = bob.get("/subscriptions").json()["items"]
        assert [item["listing"]["title"] for item in mine] == ["손글씨 숫자 인식"]
        assert first.json()["key"] not in bob.get("/subscriptions").text
        id = mine[0]["id"]
        key = bob.post(f"/subscriptions/{id}/keys", json={"label": "shop", "expires_in": 3600})
        assert key.status_code == 201
        assert bob.delete(f"/subscriptions/{id}/keys/{key.json()['id']}").status_code == 204
        assert bob.delete(f"/subscriptions/{id}").status_code == 204
        assert bob.delete(f"/subscriptions/{id}").status_code == 204
        assert bob.post(f"/subscriptions/{id}/keys", json={}).status_code == 400
        back = bob.post("/listings/ann/digits/subscriptions", json={"plan": "pro"})
        assert (back.status_code, back.json()["subscription"]["id"]) == (201, id)


def test_versions_and_withdrawal(market_site: Site) -> None:
    market_site.publish("ann", "versions", title="One")
    second = market_site.publish("ann", "versions", title="Two", plans=[{"name": "free", "calls_per_day": 5}])
    assert [version["number"] for version in second["versions"]] == [2, 1]
    assert second["plans"] == [
        {"name": "free", "calls_per_day": 5, "calls_per_second": None, "concurrency": None, "price_per_1000_calls": 0.0}
    ]
    with market_site.person("bob") as bob, market_site.person("ann") as ann:
        assert bob.delete("/listings/ann/versions").status_code == 403
        assert ann.delete("/listings/ann/versions").status_code == 204
        assert bob.get("/listings/ann/versions").status_code == 404
        assert bob.post("/listings/ann/versions/subscriptions", json={"plan": "free"}).status_code == 404
        assert ann.get("/listings/ann/versions").json()["withdrawn"] is True
        assert "versions" in {item["name"] for item in ann.get("/listings?mine=true").json()["items"]}
        assert market_site.publish("ann", "versions")["withdrawn"] is False


def test_errors_speak_the_callers_language(market_site: Site) -> None:
    with market_site.person("bob", language="ko-KR,ko;q=0.9") as bob:
        answer = bob.get("/listings/ann/no-such-listing")
    assert answer.status_code == 404
    assert answer.headers["content-language"] == "ko"
    assert set(answer.json()["error"]) == {"code", "message", "hint"}


def test_documents_and_health_need_no_token(market_site: Site) -> None:
    assert httpx.get(f"{market_site.url}/healthz").json()["status"] == "ok"
    document = httpx.get(f"{market_site.url}/openapi.json").json()
    assert "/services/market/api/v1/listings" in document["paths"]


def test_what_was_acknowledged_survives_kill_9(market_site: Site) -> None:
    market_site.publish("ann", "durable")
    with market_site.person("carol") as carol:
        answer = carol.post("/listings/ann/durable/subscriptions", json={"plan": "free"})
        market_site.kill("market")
        assert answer.status_code == 201
        market_site.start_market()
        kept = carol.get("/subscriptions").json()["items"]
    assert [item["id"] for item in kept] == [answer.json()["subscription"]["id"]]
    assert answer.json()["key"].startswith(kept[0]["keys"][0]["prefix"])


def test_the_same_on_postgresql(postgres: str) -> None:
    with running_site(KPAAS_LAB_DATABASE_URL=postgres) as site:
        test_publish_find_subscribe_cancel(site)
        test_versions_and_withdrawal(site)
        test_what_was_acknowledged_survives_kill_9(site)
        assert not (site.home / "market").exists()
        with site.person("bob") as bob:
            for path in ("/listings/ann/%00", "/listings?q=%00", "/usage?subscription=%00", "/usage?listing=a/%00"):
                assert bob.get(path).status_code in {400, 404}, path
            assert bob.delete("/subscriptions/%00").status_code in {400, 404}
        site.kill("hub")
        answer = httpx.get(f"{site.api}/listings", headers={"Authorization": "token not-asked-about-before"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_unavailable")
        assert httpx.get(f"{site.url}/healthz").status_code == 200
