"""HTTP as it arrives: uvicorn's httptools protocol, which sets no bound to a request's headers, with one."""

from __future__ import annotations

import asyncio
from typing import ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_ANSWER = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: application/json\r\ncontent-length: %d\r\n"
    b"x-content-type-options: nosniff\r\nconnection: close\r\n\r\n%s"
)
TOO_LARGE = "The request's headers are too large."
HEADER_SECONDS = 20.0


class _LimitedProtocol(HttpToolsProtocol):
    """The protocol with a bound to a request's line and headers, in bytes and in time."""

    max_header_bytes: ClassVar[int]
    answer: ClassVar[bytes]

    _head = 0  # bytes that came since the last complete head and belong to no body
    _in_body = False
    _bodiless = 0  # bytes that came within a body since the last byte of it: chunk extensions, trailers
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_wait()
        super().connection_lost(exc)

    def eof_received(self) -> None:
        if self.cycle is not None:  # the transport closes now: nothing can be sent any more
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        super().eof_received()

    def data_received(self, data: bytes) -> None:
        if not self._in_body:
            if self._deadline is None:
                self._await_head()
            # At once no more than what is left: so that a head is never parsed beyond its bound.
            allowed = self.max_header_bytes - self._head
            if len(data) > allowed:
                self._head_too_large(data, allowed)
                return
            self._head += len(data)
        self._bodiless += len(data)
        super().data_received(data)
        if self._in_body and self._bodiless > self.max_header_bytes and not self.transport.is_closing():
            self.transport.close()

    def _head_too_large(self, data: bytes, allowed: int) -> None:
        self._head += allowed
        if allowed > 0:
            super().data_received(data[:allowed])
        if self._in_body or self._head == 0:
            if not self.transport.is_closing():
                self.data_received(data[allowed:])
        elif not self.transport.is_closing():
            self.transport.write(self.answer)
            self.transport.close()

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_body:  # a trailer means nothing here
            super().on_header(name, value)

    def on_body(self, body: bytes) -> None:
        self._bodiless = 0
        super().on_body(body)

    def on_headers_complete(self) -> None:
        self._in_body, self._bodiless = True, 0
        self._end_wait()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._in_body, self._head = False, 0
        super().on_message_complete()

    def _await_head(self) -> None:
        self._deadline = self.loop.call_later(HEADER_SECONDS, self._head_too_slow)

    def _end_wait(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _head_too_slow(self) -> None:
        if not self.transport.is_closing():
            self.transport.close()


def limited_protocol(body: bytes, max_header_bytes: int = 32 << 10) -> type[asyncio.Protocol]:
    """The protocol with this bound.

    Args:
        body: JSON of the answer (status 431) to a request with more; the connection is then closed.
        max_header_bytes: of a request's line and headers, and of all that comes between and after a body's chunks.
    """
    attributes = {"max_header_bytes": max_header_bytes, "answer": _ANSWER % (len(body), body)}
    return type("LimitedProtocol", (_LimitedProtocol,), attributes)
