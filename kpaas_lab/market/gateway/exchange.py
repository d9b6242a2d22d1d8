"""One request and its answer, over ASGI."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any

from kpaas_lab.i18n import COOKIE
from kpaas_lab.market.gateway.refusals import Refusal, too_large
from kpaas_lab.market.gateway.routing import SAFE, trace_of

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

WATCH_AFTER = 1.0  # seconds: a call that takes longer is given up when its caller is gone


class CallerGoneError(Exception):
    """The caller closed the connection before the request was complete."""


class Exchange:
    """A request being answered, with its trace and the gateway's own time so far.

    Args:
        scope, receive, send: ASGI's.
        max_body: bytes of a request's body.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send, max_body: int) -> None:
        self.started = time.perf_counter()
        self.headers: list[tuple[bytes, bytes]] = scope["headers"]
        self.header = dict(self.headers)
        self.method: str = scope["method"]
        self.trace, self.traceparent = trace_of(self.header.get(b"traceparent"))
        self.bytes_in = self.bytes_out = 0
        self.status = 0
        self.gone = False
        self.body_refusal: Refusal | None = None
        self._receive = receive
        self._send = send
        self._max_body = max_body
        self._elsewhere = 0.0  # seconds spent waiting for the caller or for the endpoint
        self._read_whole = False
        self._watcher: asyncio.Task[None] | None = None
        self._watch: asyncio.TimerHandle | None = None

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.perf_counter() - self.started

    @property
    def overhead(self) -> float:
        """The gateway's own part of it, in seconds."""
        return max(0.0, self.seconds - self._elsewhere)

    def waited(self, since: float) -> None:
        """The time since then (`time.perf_counter`) was somebody else's."""
        self._elsewhere += time.perf_counter() - since

    async def body(self) -> bytes | AsyncIterator[bytes]:
        """The request's body: bytes where it came at once, else a stream of it.

        Raises:
            Refusal: it is larger than allowed. In a stream that is found later, and told by `body_refusal`.
            CallerGoneError: the caller is gone.
        """
        length = self.header.get(b"content-length")
        if length is not None and int(length) > self._max_body:
            raise too_large(self._max_body)
        since = time.perf_counter()
        first, more = await self._next()
        self.waited(since)
        if not more:
            self._read_whole = True
            return first
        return self._rest(first)

    async def _rest(self, first: bytes) -> AsyncIterator[bytes]:
        yield first
        more = True
        while more:
            chunk, more = await self._next()
            if chunk:
                yield chunk
        self._read_whole = True

    async def _next(self) -> tuple[bytes, bool]:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self.gone = True
            raise CallerGoneError
        chunk: bytes = message.get("body", b"")
        self.bytes_in += len(chunk)
        if self.bytes_in > self._max_body:
            self.body_refusal = too_large(self._max_body)
            raise self.body_refusal
        return chunk, message.get("more_body", False)

    async def start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        """Send status and headers, with the trace and the overhead."""
        self.status = status
        headers.append((b"x-trace-id", self.trace.encode()))
        headers.append((b"x-kpaas-overhead-us", b"%d" % (self.overhead * 1e6)))
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def write(self, body: bytes, *, more: bool) -> None:
        """Send a part of the body."""
        self.bytes_out += len(body)
        await self._send({"type": "http.response.body", "body": body, "more_body": more})

    async def refuse(self, refusal: Refusal) -> None:
        """Answer with the gateway's own words."""
        cookie = _cookie(self.header.get(b"cookie", b"").decode("latin-1"), COOKIE)
        accept = self.header.get(b"accept-language", b"").decode("latin-1")
        status, more, body = refusal.answer(accept, cookie, oip=True)
        headers = [*SAFE, (b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        headers += [(name.encode(), value.encode()) for name, value in more.items()]
        await self.start(status, headers)
        await self.write(body, more=False)

    def watch(self) -> None:
        """From a while on, cancel the running task when the caller is gone; `gone` then says so."""
        loop, task = asyncio.get_running_loop(), asyncio.current_task()

        def look() -> None:
            if self._read_whole:
                self._watcher = loop.create_task(self._until_gone(task))
            else:  # until then whoever reads the body finds out
                self._watch = loop.call_later(WATCH_AFTER, look)

        self._watch = loop.call_later(WATCH_AFTER, look)

    def unwatch(self) -> None:
        """The answer is complete, or never will be."""
        if self._watch is not None:
            self._watch.cancel()
        if self._watcher is not None:
            self._watcher.cancel()

    async def _until_gone(self, task: asyncio.Task[Any] | None) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.gone = True
        if task is not None:
            task.cancel()


def _cookie(header: str, name: str) -> str:
    """One cookie's value (RFC 6265, 5.4), "" for none."""
    for part in header.split(";"):
        found, _equals, value = part.strip().partition("=")
        if found == name:
            return value
    return ""
