"""The market's settings and what its routes share."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

from fastapi import Depends, Request
from sqlalchemy import Engine

from kpaas_lab.errors import SettingsError
from kpaas_lab.i18n import _
from kpaas_lab.market.identity import Identity, Person, token_of
from kpaas_lab.market.web import UnknownPersonError

if TYPE_CHECKING:
    from kpaas_lab.market.rendering import Pages

SESSION_COOKIE = "kpaas-lab-market"
HUB_SESSION_COOKIE = "jupyterhub-session-id"


@dataclass(frozen=True, slots=True, kw_only=True)
class MarketSettings:
    """The environment of the service (ARCHITECTURE.md).

    Attributes:
        prefix: path before every route, with slashes at both ends.
        public_url: the address people open, without a trailing slash.
        api_url: the gateway's public address.
    """

    database_url: str
    learners_dir: Path
    listen: str = "127.0.0.1:8124"
    prefix: str = "/services/market/"
    public_url: str = "http://127.0.0.1:8123"
    api_url: str = "http://127.0.0.1:8123/services/api"

    @property
    def browser_api_url(self) -> str:
        """The gateway's address for a browser that has our page: a path where it is the same site under any name."""
        return self.api_url.removeprefix(self.public_url) or "/"

    @property
    def market_url(self) -> str:
        """This service's public address, without a trailing slash."""
        return self.public_url + self.prefix.rstrip("/")


def from_environment(environ: Mapping[str, str] | None = None) -> MarketSettings:
    """The service's settings.

    Raises:
        SettingsError: names the variable that is missing.
    """
    env = os.environ if environ is None else environ
    home = env.get("KPAAS_LAB_HOME", "")
    defaults = {
        "KPAAS_LAB_DATABASE_URL": f"sqlite:///{home}/market/market.sqlite",
        "KPAAS_LAB_LEARNERS_DIR": f"{home}/learners",
    }
    found = {name: env.get(name) or (default if home else "") for name, default in defaults.items()}
    missing = [name for name, value in found.items() if not value]
    if missing:
        raise SettingsError(
            _("The market needs {names}.").format(names=", ".join(missing)),
            hint=_("kpaas-lab up sets it; by hand, set KPAAS_LAB_HOME or each of these."),
        )
    public_url = (env.get("KPAAS_LAB_PUBLIC_URL") or "http://127.0.0.1:8123").rstrip("/")
    return MarketSettings(
        database_url=found["KPAAS_LAB_DATABASE_URL"],
        learners_dir=Path(found["KPAAS_LAB_LEARNERS_DIR"]),
        listen=env.get("KPAAS_LAB_LISTEN") or "127.0.0.1:8124",
        prefix="/" + f"{env.get('JUPYTERHUB_SERVICE_PREFIX') or '/services/market/'}".strip("/") + "/",
        public_url=public_url,
        api_url=(env.get("KPAAS_LAB_API_URL") or f"{public_url}/services/api").rstrip("/"),
    )


@dataclass(frozen=True, slots=True)
class Services:
    """What routes work with."""

    settings: MarketSettings
    engine: Engine
    identity: Identity
    pages: Pages


def services(request: Request) -> Services:
    """Of this application."""
    return cast(Services, request.app.state.services)


async def caller(request: Request, shared: Annotated[Services, Depends(services)]) -> Person:
    """Who calls the API, by the `Authorization` header alone: a cookie does nothing here.

    Raises:
        UnknownPersonError: no token, or one that the hub doesn't know.
    """
    token = token_of(request.headers.get("authorization", ""))
    person = await shared.identity.person(token) if token else None
    if person is None:
        raise UnknownPersonError(
            _("The market doesn't know who you are."),
            hint=_("Send 'Authorization: token <token>' with a token of the hub; in a notebook Lab() does."),
        )
    return person


Shared = Annotated[Services, Depends(services)]
Caller = Annotated[Person, Depends(caller)]
