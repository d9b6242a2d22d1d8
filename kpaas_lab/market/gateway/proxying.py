"""What happens to a call: its key, its plan, its endpoint, its answer, its count."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import logging
import time
from collections import Counter
from collections.abc import Iterator

from aiohttp import ClientError, ClientResponse

from kpaas_lab.errors import EngineUnavailableError
from kpaas_lab.market.gateway import refusals
from kpaas_lab.market.gateway.directory import Directory, Grant
from kpaas_lab.market.gateway.exchange import CallerGoneError, Exchange, Receive, Scope, Send
from kpaas_lab.market.gateway.limiting import Limiter
from kpaas_lab.market.gateway.metering import Tally, Who
from kpaas_lab.market.gateway.metrics import Metrics
from kpaas_lab.market.gateway.refusals import Refusal
from kpaas_lab.market.gateway.routing import Call, forwarded, key_of, methods, query_of, returned
from kpaas_lab.market.gateway.settings import Limits
from kpaas_lab.market.gateway.upstream import BrokenUpstreamError, NoReplicaError, Upstream
from kpaas_lab.market.keys import fingerprint, same, well_formed

log = logging.getLogger(__name__)

_AT_ONCE = 256 * 1024  # bytes: an answer up to here is read whole before its first byte is sent


class Proxy:
    """Answers calls.

    Args:
        limits: of the gateway.
        directory, limiter, tally, upstream, metrics: its parts.
    """

    def __init__(
        self, limits: Limits, directory: Directory, limiter: Limiter, tally: Tally, upstream: Upstream, metrics: Metrics
    ) -> None:
        self.in_flight = 0
        self._limits = limits
        self._directory = directory
        self._limiter = limiter
        self._tally = tally
        self._upstream = upstream
        self._metrics = metrics
        self._per_listing: Counter[tuple[str, str]] = Counter()

    async def __call__(self, call: Call, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one call."""
        exchange = Exchange(scope, receive, send, self._limits.max_body_bytes)
        try:
            exchange.watch()
            await self._answer(call, exchange, query_of(scope["query_string"]))
        except Refusal as refusal:
            self._metrics.refused(refusal.code)
            await exchange.refuse(refusal)
        except CallerGoneError:
            pass
        except asyncio.CancelledError:
            if not exchange.gone:
                raise
        finally:
            exchange.unwatch()
        if exchange.status:
            self._metrics.answered(exchange.status, exchange.overhead)

    async def _answer(self, call: Call, exchange: Exchange, query: str) -> None:
        grant = await self._identify(call, exchange)
        allowed = methods(call.path, grant.model)
        if not allowed:
            raise refusals.no_path(grant.model)
        if exchange.method not in allowed:
            raise refusals.no_method(", ".join(sorted(allowed)))
        now = dt.datetime.now(dt.UTC)
        who: Who = (grant.key_id, grant.subscription, grant.version, now.date())
        try:
            with self._admitted(grant, now):
                await self._relay(grant, who, exchange, f"{call.path}?{query}" if query else call.path)
        except Refusal as refusal:
            if refusal.metered:
                self._tally.rejection(who)
            raise

    async def _identify(self, call: Call, exchange: Exchange) -> Grant:
        """What the call's key opens, if it opens this."""
        key = key_of(exchange.headers)
        if not well_formed(key):
            raise refusals.no_key() if not key else refusals.unknown_key()
        sha256 = fingerprint(key)
        try:
            grant = await self._directory.grant(sha256)
            if grant is not None and not self._counted(grant):
                grant = await self._directory.grant(sha256, again=True)
        except EngineUnavailableError:
            raise refusals.no_directory() from None
        if grant is None or not same(grant.sha256, sha256):
            raise refusals.unknown_key()
        listing = f"{grant.publisher}/{grant.listing}"
        expired = grant.expires_at is not None and grant.expires_at <= time.time()
        if grant.refusal or expired:
            raise refusals.dead_key(grant.refusal or "expired", listing)
        if (call.publisher, call.listing) != (grant.publisher, grant.listing):
            raise refusals.other_listing(listing)
        return grant

    def _counted(self, grant: Grant) -> bool:
        """Whether it is known how many calls of today the database has: not so just after midnight."""
        if grant.plan.calls_per_day is None:
            return True
        return self._limiter.counted(grant.subscription, dt.datetime.now(dt.UTC).date())

    @contextlib.contextmanager
    def _admitted(self, grant: Grant, now: dt.datetime) -> Iterator[None]:
        """Within the block the call is in flight."""
        listing = grant.publisher, grant.listing
        if (
            self.in_flight >= self._limits.max_in_flight
            or self._per_listing[listing] >= self._limits.max_in_flight_per_listing
        ):
            raise refusals.busy()
        exceeded = self._limiter.admit(grant.subscription, grant.plan, now.date(), now=time.monotonic())
        if exceeded is not None:
            raise refusals.over_limit(exceeded, grant.plan, now)
        self.in_flight += 1
        self._per_listing[listing] += 1
        try:
            yield
        finally:
            self.in_flight -= 1
            self._per_listing[listing] -= 1
            if not self._per_listing[listing]:
                del self._per_listing[listing]
            self._limiter.leave(grant.subscription)

    async def _relay(self, grant: Grant, who: Who, exchange: Exchange, target: str) -> None:
        """Pass the call on and its answer back, and count it if a replica took it."""
        reached, error = True, True
        try:
            async with asyncio.timeout(self._limits.total_timeout):
                error = await self._pass_on(grant, exchange, target) >= 400
        except (NoReplicaError, CallerGoneError) as none:
            reached = False
            if isinstance(none, CallerGoneError):
                raise
            raise refusals.no_replica(f"{grant.publisher}/{grant.listing}") from None
        except Refusal as refusal:
            reached = refusal.status != 413
            raise
        except (TimeoutError, BrokenUpstreamError, ClientError) as broken:
            self._broke(grant, exchange, broken)
        except asyncio.CancelledError:
            error = not exchange.gone  # a caller who doesn't wait is no error of the endpoint's
            raise
        finally:
            if reached:
                self._tally.call(
                    who,
                    error=error,
                    bytes_in=exchange.bytes_in,
                    bytes_out=exchange.bytes_out,
                    seconds=exchange.seconds,
                )
            else:
                self._limiter.undo(grant.subscription, who[3])

    async def _pass_on(self, grant: Grant, exchange: Exchange, target: str) -> int:
        """The status that was passed back."""
        headers = forwarded(exchange.headers)
        headers["traceparent"] = exchange.traceparent
        body = await exchange.body()
        if not isinstance(body, bytes) and (length := exchange.header.get(b"content-length")):
            headers["Content-Length"] = length.decode()
        since = time.perf_counter()
        try:
            response, replica = await self._upstream.send(
                grant.publisher, grant.endpoint, exchange.method, target, headers, body
            )
        except (BrokenUpstreamError, ClientError):
            if exchange.body_refusal is not None:
                raise exchange.body_refusal from None
            if exchange.gone:
                raise CallerGoneError from None
            raise
        finally:
            exchange.waited(since)
        try:
            await self._return(response, exchange)
        except BaseException:
            response.close()
            raise
        finally:
            self._upstream.done(replica)
        return response.status

    async def _return(self, response: ClientResponse, exchange: Exchange) -> None:
        status = response.status
        if not (200 <= status < 300 or 400 <= status < 600):
            raise BrokenUpstreamError(f"status {status}")
        headers = returned(response.headers.items())
        length = response.content_length
        if length is not None and length > self._limits.max_answer_bytes:
            raise BrokenUpstreamError(f"an answer of {length} bytes")
        if length is not None and length <= _AT_ONCE:
            since = time.perf_counter()
            body = await response.read()
            exchange.waited(since)
            if status != 204:
                headers.append((b"content-length", b"%d" % len(body)))
            await exchange.start(status, headers)
            await exchange.write(body, more=False)
            return
        if length is not None:
            headers.append((b"content-length", b"%d" % length))
        await exchange.start(status, headers)
        async for chunk in response.content.iter_any():
            if exchange.bytes_out + len(chunk) > self._limits.max_answer_bytes:
                raise BrokenUpstreamError("an answer without an end")
            await exchange.write(chunk, more=True)
        await exchange.write(b"", more=False)

    def _broke(self, grant: Grant, exchange: Exchange, broken: Exception) -> None:
        """Say so, or, where the answer has begun, break it off: returning from ASGI then closes the connection."""
        listing = f"{grant.publisher}/{grant.listing}"
        cause = broken.__cause__ or broken
        # What a hostile endpoint sent may stand in it: on one line, and not for long.
        log.warning("trace %s: %r: %s %.200r", exchange.trace, listing, type(cause).__name__, str(cause))
        if exchange.status:
            return
        if isinstance(broken, TimeoutError):
            raise refusals.slow_upstream(listing, min(self._limits.read_timeout, self._limits.total_timeout)) from None
        raise refusals.bad_upstream(listing) from None
