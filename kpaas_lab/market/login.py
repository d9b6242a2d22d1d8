"""A browser's log-in: OAuth at the hub, then a cookie of ours with the hub's token, which is asked about again."""

from __future__ import annotations

from typing import Annotated, cast

from fastapi import APIRouter, Depends, FastAPI, Form, Query, Request
from fastapi.responses import RedirectResponse, Response

from kpaas_lab.errors import NotAuthorizedError
from kpaas_lab.i18n import COOKIE, LANGUAGES, _
from kpaas_lab.market.identity import Person
from kpaas_lab.market.services import HUB_SESSION_COOKIE, SESSION_COOKIE, MarketSettings, Shared
from kpaas_lab.market.web import UnknownPersonError, check_xsrf, xsrf_token

STATE_COOKIE = f"{SESSION_COOKIE}-login"
YEAR = 365 * 86400

router = APIRouter(include_in_schema=False)


class LoginNeeded(Exception):
    """The browser has no session here."""


async def visitor(request: Request, shared: Shared) -> Person:
    """Who looks at a page.

    Raises:
        LoginNeeded: nobody whom the hub knows.
    """
    token = request.cookies.get(SESSION_COOKIE, "")
    session = request.cookies.get(HUB_SESSION_COOKIE, "")
    person = await shared.identity.person(token, session) if token else None
    if person is None:
        raise LoginNeeded
    request.state.person = person
    request.state.xsrf = xsrf_token(shared.identity.secret("xsrf"), token)
    return person


Visitor = Annotated[Person, Depends(visitor)]


async def form_sender(
    request: Request, shared: Shared, person: Visitor, given: Annotated[str, Form(alias="_xsrf", max_length=128)] = ""
) -> Person:
    """Who sends a form, from our own page."""
    check_xsrf(request, shared.identity.secret("xsrf"), request.cookies.get(SESSION_COOKIE, ""), given)
    return person


Sender = Annotated[Person, Depends(form_sender)]


def install_login(app: FastAPI) -> None:
    """Send a browser without a session to the hub."""

    async def to_hub(request: Request, _error: Exception) -> Response:
        shared = app.state.services
        if request.method != "GET":
            error = UnknownPersonError(_("You are logged out."), hint=_("Log in again; nothing was changed."))
            return cast(Response, shared.pages.error(request, error, 401))
        path = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        login = shared.identity.login(path)
        response = RedirectResponse(login.url, 302)
        _set_cookie(response, shared.settings, STATE_COOKIE, login.state, max_age=600)
        return response

    app.add_exception_handler(LoginNeeded, to_hub)


@router.get("/oauth_callback")
async def oauth_callback(
    request: Request,
    shared: Shared,
    code: Annotated[str, Query(max_length=1024)] = "",
    state: Annotated[str, Query(max_length=1024)] = "",
) -> Response:
    """The hub sends the browser here, with a code for its token."""
    if not code:
        raise NotAuthorizedError(_("The hub refused the log-in."), hint=_("Open the market again."))
    token, next_path = await shared.identity.finish_login(code, state, request.cookies.get(STATE_COOKIE, ""))
    response = RedirectResponse(own_path(next_path, shared.settings.prefix), 302)
    _set_cookie(response, shared.settings, SESSION_COOKIE, token)
    response.delete_cookie(STATE_COOKIE, path=shared.settings.prefix)
    return response


@router.get("/language/{chosen}")
def choose_language(shared: Shared, chosen: str, next: Annotated[str, Query(max_length=2000)] = "") -> Response:
    """Remember a language for all pages of the lab."""
    response = RedirectResponse(own_path(next, shared.settings.prefix), 303)
    if chosen in LANGUAGES:
        secure = shared.settings.public_url.startswith("https:")
        response.set_cookie(COOKIE, chosen, max_age=YEAR, path="/", samesite="lax", secure=secure)
    return response


def own_path(path: str, prefix: str) -> str:
    """A path to go on to, if it is one of ours; the catalogue otherwise.

    Example:
        >>> own_path("/services/market/usage", "/services/market/"), own_path("//evil.example", "/services/market/")
        ('/services/market/usage', '/services/market/')
    """
    ok = path.startswith(prefix) and path.isprintable() and "\\" not in path and "/../" not in f"{path}/"
    return path if ok else prefix


def _set_cookie(
    response: Response, settings: MarketSettings, name: str, value: str, *, max_age: int | None = None
) -> None:
    secure = settings.public_url.startswith("https:")
    response.set_cookie(
        name, value, max_age=max_age, path=settings.prefix, httponly=True, samesite="lax", secure=secure
    )
