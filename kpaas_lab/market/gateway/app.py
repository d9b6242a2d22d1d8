"""Routes, and the parts put together."""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import sys
from collections.abc import AsyncIterator
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from kpaas_lab.errors import EngineUnavailableError, LabError, SettingsError
from kpaas_lab.i18n import N_, _
from kpaas_lab.market.database import open_database
from kpaas_lab.market.gateway import openapi, refusals
from kpaas_lab.market.gateway.directory import Directory
from kpaas_lab.market.gateway.exchange import Receive, Scope, Send
from kpaas_lab.market.gateway.limiting import Limiter
from kpaas_lab.market.gateway.meter import Database, Meter
from kpaas_lab.market.gateway.metrics import Metrics
from kpaas_lab.market.gateway.proxying import Proxy
from kpaas_lab.market.gateway.refusals import Refusal
from kpaas_lab.market.gateway.routing import SAFE, call_of
from kpaas_lab.market.gateway.settings import GatewaySettings, from_environment
from kpaas_lab.market.gateway.spool import Spool
from kpaas_lab.market.gateway.upstream import Upstream
from kpaas_lab.market.wire import TOO_LARGE, limited_protocol

_SAFE = {name.decode(): value.decode() for name, value in SAFE}


class Gateway:
    """The ASGI application. Calls go straight to the proxy; a router in between would cost more than the proxy does.

    Args:
        settings: from the environment.
        spool: of this process; closed at the end.
    """

    def __init__(self, settings: GatewaySettings, spool: Spool) -> None:
        self._settings = settings
        self._spool = spool
        self._prefix = settings.prefix
        self._server = settings.api_url or settings.prefix
        self._proxy: Proxy | None = None
        self._pages = Starlette(
            routes=[
                Route(f"{self._prefix}/healthz", self._health),
                Route(f"{self._prefix}/metrics", self._metrics_page),
                Route(f"{self._prefix}/openapi.json", self._document),
                Route(f"{self._prefix}/{{publisher}}/{{listing}}/openapi.json", self._listing_document),
            ],
            lifespan=self._lifespan,
            exception_handlers={404: _nothing_here, 405: _wrong_method, Refusal: _refused},  # type: ignore[dict-item]
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] == "http" and self._proxy is not None:
            raw: str = scope["raw_path"].decode("latin-1")
            call = call_of(raw[len(self._prefix) :]) if raw.startswith(f"{self._prefix}/") else None
            if call is not None:
                await self._proxy(call, scope, receive, send)
                return
        await self._pages(scope, receive, send)

    @contextlib.asynccontextmanager
    async def _lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        settings = self._settings
        self._database = Database(settings.database_url)
        self._meter = meter = Meter(self._database, self._spool)
        limiter = Limiter()
        self._directory = Directory(self._database, meter, limiter)
        upstream = Upstream(settings.learners_dir, settings.limits)
        self._metrics = Metrics(
            {
                "in_flight": ("Calls in flight.", lambda: proxy.in_flight),
                "spool_bytes": ("Counts that the database doesn't have yet.", lambda: meter.spool.pending_bytes),
                "spool_damaged_records": ("Records a crash tore.", lambda: meter.spool.damaged),
                "spool_writable": ("Whether counts survive a crash.", lambda: not meter.spool_error),
                "database_up": ("Whether counts reach the database.", lambda: not meter.database_error),
            }
        )
        self._proxy = proxy = Proxy(settings.limits, self._directory, limiter, meter.tally, upstream, self._metrics)
        meter.start()
        gc.collect()
        gc.freeze()  # what was imported stays: a full collection then takes no 20 ms out of some call
        try:
            yield
        finally:
            await upstream.close()
            self._directory.close()
            await meter.stop()
            self._database.close()

    async def _health(self, _request: Request) -> Response:
        """200 as long as calls are answered; what waits is told."""
        meter = self._meter
        body = {
            "status": "degraded" if meter.spool_error or meter.database_error else "ok",
            "database": "away" if meter.database_error else "ok" if meter.replayed else "starting",
            "spool": {
                "writable": not meter.spool_error,
                "pending_bytes": meter.spool.pending_bytes,
                "damaged_records": meter.spool.damaged,
            },
        }
        return JSONResponse(body, headers=_SAFE)

    async def _metrics_page(self, _request: Request) -> Response:
        return Response(self._metrics.text(), media_type="text/plain; version=0.0.4", headers=_SAFE)

    async def _document(self, _request: Request) -> Response:
        return JSONResponse(openapi.gateway_document(self._server), headers=_SAFE)

    async def _listing_document(self, request: Request) -> Response:
        publisher, name = request.path_params["publisher"], request.path_params["listing"]
        try:
            version = await self._directory.version(publisher, name)
        except EngineUnavailableError:
            raise refusals.no_directory() from None
        if version is None:
            raise Refusal(404, "not_found", N_("No such listing."), N_("Look for it in the marketplace."))
        return JSONResponse(openapi.listing_document(publisher, name, version, self._server), headers=_SAFE)


async def _refused(request: Request, refusal: Refusal) -> Response:
    status, headers, body = refusal.answer(
        request.headers.get("accept-language", ""), request.cookies.get("kpaas_lab_lang", ""), oip=False
    )
    return Response(body, status, {**_SAFE, **headers}, "application/json")


async def _nothing_here(request: Request, _error: Exception) -> Response:
    hint = N_("Calls go to <publisher>/<listing>/v2/models/<model>/infer; /openapi.json lists all paths.")
    return await _refused(request, Refusal(404, "not_found", N_("There is nothing at this path."), hint))


async def _wrong_method(request: Request, _error: Exception) -> Response:
    return await _refused(request, refusals.no_method("GET"))


def configuration(settings: GatewaySettings, spool: Spool) -> uvicorn.Config:
    """How uvicorn serves it."""
    host, _colon, port = settings.listen.rpartition(":")
    place: dict[str, Any] = (
        {"uds": settings.listen.removeprefix("unix:")}
        if settings.listen.startswith("unix:")
        else {"host": host.strip("[]"), "port": int(port)}
    )
    return uvicorn.Config(
        Gateway(settings, spool),
        **place,
        loop="uvloop",
        http=limited_protocol(json.dumps({"error": TOO_LARGE}).encode(), settings.limits.max_header_bytes),
        ws="none",
        lifespan="on",
        access_log=False,  # nothing of a request is written down
        log_config=None,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=10,
    )


def main() -> int:
    """Run until told to stop."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    try:
        settings = from_environment()
        with contextlib.suppress(EngineUnavailableError):  # a database that is away may come back; a wrong one not
            open_database(settings.database_url, migrate=True).dispose()
        server = uvicorn.Server(configuration(settings, _open_spool(settings)))
        server.run()
    except LabError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0 if server.started else 3


def _open_spool(settings: GatewaySettings) -> Spool:
    try:
        return Spool(settings.spool_dir)
    except OSError as error:
        raise SettingsError(
            _("The folder of KPAAS_LAB_SPOOL_DIR can't be used: {reason}").format(reason=error),
            hint=_("Calls are counted there first: make it writable, and free some space on its disk."),
        ) from None
