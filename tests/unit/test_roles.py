"""Roles and scopes are data; `tests/integration/test_scopes_matrix.py` holds them against a hub."""

from jupyterhub.scopes import scope_definitions

from hub_config import roles


def test_every_scope_is_one_of_jupyterhubs() -> None:
    for role in roles.ROLES:
        for scope in role["scopes"]:
            assert scope.split("!")[0] in scope_definitions, scope


def test_a_learner_and_a_server_reach_nobody_else() -> None:
    for scope in (*roles.LEARNER, *roles.SERVER):
        name, _sep, whose = scope.partition("!")
        assert whose in {"user", "server", "service=market"}, scope
        assert not name.startswith(("admin", "tokens", "shares", "proxy", "shutdown", "inherit", "self"))


def test_a_server_has_nothing_its_learner_has_not() -> None:
    """Its scopes are cut down to the learner's; one that the learner lacks would be lost without a word."""
    assert "access:servers!user" in roles.LEARNER
    assert "users:activity!user" in roles.LEARNER
    assert "read:users!user" in roles.LEARNER
    assert "access:services!service=market" in roles.LEARNER


def test_the_culler_can_stop_servers_and_change_nothing_else() -> None:
    culler = next(role for role in roles.ROLES if role["name"] == "idle-culler")
    assert [scope for scope in culler["scopes"] if not scope.startswith(("read:", "list:"))] == ["delete:servers"]
