"""Who may do what with the hub: roles and scopes, as data. Least of privilege.

`tests/integration/test_scopes_matrix.py` holds every row against a real hub.
Scopes are JupyterHub's: https://jupyterhub.readthedocs.io/en/stable/rbac/scopes.html
"""

from __future__ import annotations

from typing import TypedDict


class Role(TypedDict, total=False):
    """One entry of `JupyterHub.load_roles`."""

    name: str
    description: str
    scopes: list[str]
    services: list[str]


# A person, logged in: their own server and the market. No tokens of their own making (API keys are the market's).
LEARNER = [
    "read:users!user",
    "users:activity!user",
    "servers!user",
    "access:servers!user",
    "access:services!service=market",
]

# JUPYTERHUB_API_TOKEN inside the sandbox, so also what any code that a learner runs may do.
SERVER = [
    "users:activity!user",
    "access:servers!server",
    "access:services!service=market",
    "read:users:name!user",
]

ROLES: list[Role] = [
    {"name": "user", "description": "A learner: one's own server, and the market", "scopes": LEARNER},
    {"name": "server", "description": "A learner's server: activity, and the market", "scopes": SERVER},
    {
        "name": "idle-culler",
        "description": "Stops idle servers",
        "scopes": ["list:users", "read:users:activity", "read:servers", "delete:servers"],
        "services": ["idle-culler"],
    },
]
# The services market and api hold no scope: the market asks the hub who a person is with that person's own token.
