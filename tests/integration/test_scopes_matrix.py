"""Who may do what: every route of the hub's REST API that matters, with every kind of token, against a real hub."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from tests.fixtures.hub import Hub, running_hub
from tests.waiting import until

NOW = datetime.now(UTC).isoformat()
EVERYBODY = frozenset({"ann", "ann's server", "bob", "market", "api", "admin"})
NOBODY: frozenset[str] = frozenset()
ADMIN = frozenset({"admin"})
ANN, BOB = frozenset({"ann", "admin"}), frozenset({"bob", "admin"})
ANN_AND_SERVER = frozenset({"ann", "ann's server", "admin"})
# Tokens that are none: no route answers them.
INVALID = ("nobody", "forged", "expired", "revoked")
WHO = (*sorted(EVERYBODY), *INVALID)
WRONG_SLICE = {"user_options": {"slice": "none of them"}}  # reaches the spawner, which starts nothing


@dataclass(frozen=True)
class Row:
    """One request, and who gets further than the door. `passing` are statuses that mean so."""

    method: str
    path: str
    allowed: frozenset[str]
    body: Any = None
    passing: frozenset[int] = field(default=frozenset({200, 201, 202, 204}))

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


STARTS = frozenset({400})
ROWS = [
    Row("GET", "/hub/api/user", EVERYBODY),
    # People
    Row("GET", "/hub/api/users", ADMIN),
    Row("POST", "/hub/api/users", ADMIN, {"usernames": ["dora"]}, frozenset({201, 409})),
    Row("GET", "/hub/api/users/ann", ANN_AND_SERVER),
    Row("GET", "/hub/api/users/bob", BOB),
    Row("GET", "/hub/api/users/admin", ADMIN),
    Row("PATCH", "/hub/api/users/ann", ADMIN, {"admin": False}),
    Row("PATCH", "/hub/api/users/bob", ADMIN, {"admin": False}),
    Row("POST", "/hub/api/users/dora2", ADMIN, None, frozenset({201, 409})),
    Row("DELETE", "/hub/api/users/dora2", ADMIN),
    Row("POST", "/hub/api/users/ann/activity", ANN_AND_SERVER, {"last_activity": NOW}),
    Row("POST", "/hub/api/users/bob/activity", BOB, {"last_activity": NOW}),
    # Servers
    Row("GET", "/hub/api/users/ann/server", ANN),
    Row("GET", "/hub/api/users/bob/server", BOB),
    Row("POST", "/hub/api/users/ann/server", ANN, WRONG_SLICE, STARTS),
    Row("POST", "/hub/api/users/bob/server", BOB, WRONG_SLICE, STARTS),
    Row("PATCH", "/hub/api/users/bob/server", ADMIN | {"bob"}, {"user_options": {}}, frozenset({200, 400, 404})),
    Row("DELETE", "/hub/api/users/bob/server", BOB),
    Row("GET", "/hub/api/users/ann/server/progress", ANN, None, frozenset({200, 400})),
    Row("GET", "/hub/api/users/bob/server/progress", BOB, None, frozenset({200, 400})),
    Row("POST", "/hub/api/users/ann/servers/second", NOBODY),
    # Tokens: nobody makes one of another's rights, nor of their own (API keys are the market's)
    Row("GET", "/hub/api/users/ann/tokens", ADMIN),
    Row("POST", "/hub/api/users/ann/tokens", ADMIN, {"note": "matrix"}),
    Row("GET", "/hub/api/users/bob/tokens", ADMIN),
    Row("POST", "/hub/api/users/bob/tokens", ADMIN, {"note": "matrix"}),
    Row("GET", "/hub/api/users/admin/tokens", ADMIN),
    Row("POST", "/hub/api/users/admin/tokens", ADMIN, {"note": "matrix"}),
    # Groups decide about slices
    Row("GET", "/hub/api/groups", ADMIN),
    Row("POST", "/hub/api/groups/staff", ADMIN, {}, frozenset({201, 409})),
    Row("GET", "/hub/api/groups/staff", ADMIN),
    Row("POST", "/hub/api/groups/staff/users", ADMIN, {"users": ["bob"]}),
    Row("DELETE", "/hub/api/groups/staff/users", ADMIN, {"users": ["bob"]}),
    Row("DELETE", "/hub/api/groups/staff", ADMIN),
    # The platform
    Row("GET", "/hub/api/info", ADMIN),
    Row("GET", "/hub/metrics", ADMIN),
    Row("GET", "/hub/api/proxy", ADMIN),
    Row("POST", "/hub/api/proxy", ADMIN),
    Row("GET", "/hub/api/services", ADMIN),
    Row("GET", "/hub/api/services/market", ADMIN),
    Row("GET", "/hub/api/shares/ann", ADMIN),
    Row("POST", "/hub/api/shares/ann/", ADMIN, {"user": "bob"}),
    Row("GET", "/hub/api/users/ann/shared", ADMIN),
    Row("GET", "/hub/api/share-codes/ann", ADMIN),
    Row("DELETE", "/hub/api/shares/ann/", ADMIN),
    # A learner's server itself
    Row("GET", "/user/ann/api/contents", ANN_AND_SERVER),
    Row("GET", "/user/ann/api/kernels", ANN_AND_SERVER),
    Row("GET", "/user/ann/api/terminals", ANN_AND_SERVER),
    Row("GET", "/user/ann/files/.ipython/profile_default/history.sqlite", ANN_AND_SERVER, None, frozenset({200, 404})),
]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with running_hub(tmp_path_factory.mktemp("lab")) as running:
        yield running


def make_token(hub: Hub, owner: str, **options: Any) -> dict[str, Any]:
    made = hub.person("admin").api("POST", f"users/{owner}/tokens", json=options)
    assert made.status_code == 201, made.text
    token: dict[str, Any] = made.json()
    return token


@pytest.fixture(scope="module")
def tokens(hub: Hub) -> dict[str, str]:
    ann = hub.person("ann")
    hub.person("bob")
    ann.start_server()
    ann.enter()
    revoked = make_token(hub, "ann")
    admin = hub.person("admin")
    assert admin.api("DELETE", f"users/ann/tokens/{revoked['id']}").status_code == 204
    expired = make_token(hub, "ann", expires_in=1)["token"]
    until(lambda: ask(hub, "GET", "/hub/api/user", expired).status_code == 403, 20, "end of a token of one second")
    return {
        "ann": make_token(hub, "ann")["token"],
        "ann's server": ann.run_cell("import os; print(os.environ['JUPYTERHUB_API_TOKEN'])").strip(),
        "bob": make_token(hub, "bob")["token"],
        "admin": make_token(hub, "admin")["token"],
        "market": hub.secrets.market_token,
        "api": hub.secrets.api_token,
        "nobody": "",
        "forged": "0" * 32,
        "expired": expired,
        "revoked": revoked["token"],
    }


def ask(hub: Hub, method: str, path: str, token: str, body: Any = None) -> httpx.Response:
    headers = {"Authorization": f"token {token}"} if token else {}
    # A stream of progress would go on: the status is all that is asked.
    with httpx.stream(method, f"{hub.url}{path}", headers=headers, json=body, timeout=60) as answer:
        return answer


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_each_token_gets_as_far_as_it_should(hub: Hub, tokens: dict[str, str], row: Row) -> None:
    # Those who may not come first, so that nothing that one who may changes helps them.
    wrong = []
    for who in sorted(WHO, key=lambda who: who in row.allowed):
        status = ask(hub, row.method, row.path, tokens[who], row.body).status_code
        if who in row.allowed and status not in row.passing:
            wrong.append(f"{who} may, and got {status}")
        # 404: the hub does not say of what one may not see whether it is there; 302: to the log-in page
        if who not in row.allowed and status not in {302, 400, 401, 403, 404}:
            wrong.append(f"{who} may not, and got {status}")
        if who not in row.allowed and status == 400 and row.allowed:
            wrong.append(f"{who} may not, and got further than the door")
    assert not wrong


def scopes(hub: Hub, token: str) -> set[str]:
    answer = httpx.get(f"{hub.url}/hub/api/user", headers={"Authorization": f"token {token}"})
    return set(answer.json()["scopes"])


def test_a_servers_token_has_exactly_this(hub: Hub, tokens: dict[str, str]) -> None:
    assert scopes(hub, tokens["ann's server"]) == {
        "access:servers!server=ann/",
        "access:services!service=market",
        "read:users:activity!user=ann",
        "read:users:groups!user=ann",  # JupyterHub adds its owner's identity to every token
        "read:users:name!user=ann",
        "users:activity!user=ann",
    }


def test_the_services_tokens_have_nothing(hub: Hub, tokens: dict[str, str]) -> None:
    for name in ("market", "api"):
        held = scopes(hub, tokens[name])
        assert all(scope.endswith(f"service={name}") for scope in held), held
        assert not [scope for scope in held if not scope.startswith("read:services")]


def test_a_learner_cannot_lend_a_token_more_than_they_have(hub: Hub, tokens: dict[str, str]) -> None:
    for scope in ("admin:users", "tokens", "inherit", "access:servers", "access:servers!user=bob", "shutdown"):
        for who in ("ann", "ann's server"):
            answer = ask(hub, "POST", "/hub/api/users/ann/tokens", tokens[who], {"scopes": [scope]})
            assert answer.status_code in {403, 404}


def test_a_browsers_session_needs_its_xsrf_token(hub: Hub) -> None:
    bob = hub.person("bob")
    elsewhere = {"Referer": "http://evil.example/", "Origin": "http://evil.example", "Sec-Fetch-Site": "cross-site"}
    for method, path in (("POST", "users/bob/server"), ("DELETE", "users/bob/server")):
        answer = bob.client.request(method, f"/hub/api/{path}", headers=elsewhere)
        assert answer.status_code == 403
    answer = bob.client.post("/hub/spawn", data={"slice": "cpu"}, headers=elsewhere)
    assert answer.status_code == 403
    assert bob.api("GET", "users/bob").json()["servers"] == {}


def test_one_sessions_cookies_are_no_good_for_another(hub: Hub) -> None:
    ann, bob = hub.person("ann"), hub.person("bob")
    assert bob.api("GET", "users/ann").status_code == 404
    assert bob.client.get("/hub/spawn/ann").status_code in {403, 404}
    assert bob.client.get("/hub/spawn-pending/ann").status_code in {403, 404}
    assert ann.client.get("/hub/admin").status_code == 403
    assert "/hub/" in str(bob.client.get("/user/ann/lab").url)


def test_shutting_down_is_the_admins(hub: Hub, tokens: dict[str, str]) -> None:
    body = {"servers": False, "proxy": False}
    for who in WHO:
        if who != "admin":
            assert ask(hub, "POST", "/hub/api/shutdown", tokens[who], body).status_code == 403, who
    assert ask(hub, "POST", "/hub/api/shutdown", tokens["admin"], body).status_code == 202
    hub.processes["hub"].wait(30)
