"""Who calls: the hub says so, by a token in a header (programs) or in a cookie of ours (browsers, after OAuth)."""

from __future__ import annotations

import hashlib
import hmac
import re
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlencode

from jupyterhub.services.auth import HubOAuth  # type: ignore[import-untyped, unused-ignore]
from tornado.web import HTTPError

from kpaas_lab.errors import EngineUnavailableError, NotAuthorizedError
from kpaas_lab.i18n import _

CACHE_SECONDS = 20  # a revoked token works this much longer
_HEADER = re.compile(r"(?:token|bearer)\s+(\S+)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Person:
    """A user of the hub who may use the market."""

    name: str
    admin: bool = False


@dataclass(frozen=True, slots=True)
class Login:
    """Where to send a browser, and what it must bring back (in a cookie, so that no one logs it in as another)."""

    url: str
    state: str


class Identity(Protocol):
    """Tells who a token stands for."""

    async def person(self, token: str, session: str = "") -> Person | None:
        """The token's owner; None for a token that the hub doesn't know.

        Args:
            token: from a header or from our cookie.
            session: the hub's session of the browser: who logs out of the hub is out of here.

        Raises:
            NotAuthorizedError: known, and not allowed here.
            EngineUnavailableError: the hub doesn't answer.
        """
        ...

    def login(self, next_path: str) -> Login:
        """How a browser logs in and comes back to a path."""
        ...

    async def finish_login(self, code: str, state: str, expected_state: str) -> tuple[str, str]:
        """The token for a code that the hub gave, and the path to go on to."""
        ...

    def secret(self, purpose: str) -> bytes:
        """A secret of this service for one purpose, the same after a restart."""
        ...


class HubIdentity:
    """JupyterHub's own client for services, which reads `JUPYTERHUB_*`.

    Args:
        hub: None for one from the environment.
    """

    def __init__(self, hub: HubOAuth | None = None) -> None:
        self._hub: Any = hub or HubOAuth(cache_max_age=CACHE_SECONDS)
        self._scopes = self._hub.access_scopes or {"access:services!service=market"}

    async def person(self, token: str, session: str = "") -> Person | None:
        """See Identity."""
        if not token.isascii() or not token.isprintable() or len(token) > 1024:
            return None
        try:
            model = await self._hub.user_for_token(token, session_id=session, sync=False)
        except HTTPError as error:
            raise _hub_unavailable() from error
        if model is None:
            return None
        if model.get("kind") != "user" or not self._hub.check_scopes(self._scopes, model):
            raise NotAuthorizedError(
                _("This token may not use the market."),
                hint=_("It needs the scope {scope} and a user as its owner.").format(scope=min(self._scopes)),
            )
        return Person(str(model["name"]), bool(model.get("admin")))

    def login(self, next_path: str) -> Login:
        """How a browser logs in at the hub and comes back to `next_path` (OAuth 2, PKCE)."""
        verifier, challenge, method = self._hub.generate_pkce_code_challenge()
        state = self._hub.generate_state(next_path, code_verifier=verifier)
        query = {
            "client_id": self._hub.oauth_client_id,
            "redirect_uri": self._hub.oauth_redirect_uri,
            "response_type": "code",
            "state": state,
            "code_challenge": challenge,
            "code_challenge_method": method,
        }
        return Login(f"{self._hub.oauth_authorization_url}?{urlencode(query)}", state)

    async def finish_login(self, code: str, state: str, expected_state: str) -> tuple[str, str]:
        """The token that the hub gives for a code, and the path to go on to.

        Raises:
            NotAuthorizedError: the state isn't the one given to this browser, or the hub refuses the code.
        """
        known = bool(state) and hmac.compare_digest(state.encode(), expected_state.encode())
        verifier = self._hub.get_code_verifier(state) if known else None
        if not verifier:
            raise _login_again()
        next_path = str(self._hub.get_next_url(state))
        self._hub.clear_oauth_state(state)
        try:
            token = await self._hub.token_for_code(code, code_verifier=verifier, sync=False)
        except HTTPError as error:
            raise _login_again() from error
        return str(token), next_path

    def secret(self, purpose: str) -> bytes:
        """A secret of this service for one purpose, the same after a restart."""
        return hmac.new(self._hub.api_token.encode(), purpose.encode(), hashlib.sha256).digest()


def token_of(authorization: str) -> str:
    """The token in an `Authorization` header, "" where there is none.

    Example:
        >>> token_of("token abc"), token_of("Basic abc")
        ('abc', '')
    """
    match = _HEADER.fullmatch(authorization.strip())
    return match[1] if match else ""


def _hub_unavailable() -> EngineUnavailableError:
    return EngineUnavailableError(
        _("The hub, which knows who you are, doesn't answer."), hint=_("Try again in a minute.")
    )


def _login_again() -> NotAuthorizedError:
    return NotAuthorizedError(
        _("This log-in is too old or was begun in another browser."), hint=_("Open the market again.")
    )
