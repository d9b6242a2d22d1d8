"""The market's application: `python -m kpaas_lab.market.app`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import APIRouter, FastAPI
from fastapi.responses import Response
from fastapi.staticfiles import StaticFiles

from kpaas_lab import __version__
from kpaas_lab.errors import LabError
from kpaas_lab.market import api, login, pages
from kpaas_lab.market.database import open_database
from kpaas_lab.market.identity import HubIdentity, Identity
from kpaas_lab.market.rendering import Pages
from kpaas_lab.market.services import MarketSettings, Services, from_environment
from kpaas_lab.market.web import Gate, install_errors
from kpaas_lab.market.wire import TOO_LARGE, limited_protocol

HERE = Path(__file__).parent
DESCRIPTION = """\
Publish an AI API, find others', subscribe, and see what was called.

Every call carries `Authorization: token <token>` with a token of the hub that may `access:services!service=market`.
Errors have one shape, `{"error": {"code", "message", "hint"}}`, in the language of `Accept-Language` (English, Korean).
"""
HEADERS_TOO_LARGE = {"code": "headers_too_large", "message": TOO_LARGE, "hint": "Send fewer or shorter headers."}


def create_app(settings: MarketSettings, *, identity: Identity | None = None) -> FastAPI:
    """The application, its database opened and brought up to date.

    Args:
        settings: of the service.
        identity: who calls; None for the hub of the environment.

    Raises:
        SettingsError: a database that can't be used by this version.
        EngineUnavailableError: a database that doesn't answer.
    """
    prefix = settings.prefix.rstrip("/")
    app = FastAPI(
        title="K-PaaS Lab market",
        version=__version__,
        description=DESCRIPTION,
        openapi_url=f"{prefix}/api/v1/openapi.json",
        docs_url=None,
        redoc_url=None,
        separate_input_output_schemas=False,
    )
    rendered = Pages(settings)
    engine = open_database(settings.database_url, migrate=True)
    app.state.services = Services(settings, engine, identity or HubIdentity(), rendered)
    app.add_middleware(Gate, api_url=settings.api_url)
    install_errors(app, rendered.error)
    login.install_login(app)
    for router in (api.router, login.router, pages.router, _aliases(app)):
        app.include_router(router, prefix=prefix)
    app.mount(f"{prefix}/static", CachedFiles(directory=HERE / "static"))
    app.mount(f"{prefix}/web", CachedFiles(directory=HERE.parent / "web"))
    return app


class CachedFiles(StaticFiles):
    """Our stylesheets and scripts: kept by browsers, asked about again (ETag)."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        """A file, or 304."""
        response = super().file_response(*args, **kwargs)
        response.headers["cache-control"] = "no-cache"
        return response


def _aliases(app: FastAPI) -> APIRouter:
    """The documents that are also looked for at the service's root."""
    router = APIRouter(include_in_schema=False)
    router.add_api_route("/healthz", api.healthz)
    router.add_api_route("/openapi.json", app.openapi)
    return router


def main() -> None:
    """Serve until SIGTERM."""
    try:
        settings = from_environment()
        app = create_app(settings)
    except LabError as error:
        sys.exit(str(error))
    kind, _colon, path = settings.listen.partition(":")
    host, _colon, port = settings.listen.rpartition(":")
    where: dict[str, Any] = {"uds": path} if kind == "unix" else {"host": host.strip("[]"), "port": int(port)}
    uvicorn.run(
        app,
        **where,
        http=limited_protocol(json.dumps({"error": HEADERS_TOO_LARGE}).encode()),
        ws="none",
        log_level="info",
        access_log=False,
        server_header=False,
        date_header=True,
        timeout_graceful_shutdown=10,
    )


if __name__ == "__main__":
    main()
