"""Passing a call on to one of an endpoint's replicas. The endpoint is its publisher's, and may be hostile."""

from __future__ import annotations

import functools
import itertools
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

from aiohttp import (
    ClientConnectionError,
    ClientConnectorError,
    ClientError,
    ClientResponse,
    ClientSession,
    ClientTimeout,
    DummyCookieJar,
    ServerDisconnectedError,
)
from yarl import URL

from kpaas_lab.market.connector import ReplicaConnector
from kpaas_lab.market.endpoints import Replica, replicas
from kpaas_lab.market.gateway.settings import Limits

_LOOK_AGAIN = 1.0  # seconds between looks at which replicas there are
_REST = 3.0  # seconds that a replica which refused is asked last
_REMEMBERED = 10_000


class NoReplicaError(Exception):
    """Nobody took the call; nothing was sent."""


class BrokenUpstreamError(Exception):
    """The replica took the call and gave no valid answer."""


class Upstream:
    """All endpoints of all publishers, over one pool of connections.

    Args:
        learners_dir: where their homes are.
        limits: timeouts and sizes.
    """

    def __init__(self, learners_dir: Path, limits: Limits) -> None:
        self._learners_dir = learners_dir
        self._session = ClientSession(
            connector=ReplicaConnector(learners_dir),
            cookie_jar=DummyCookieJar(),
            auto_decompress=False,
            timeout=ClientTimeout(total=None, sock_connect=limits.connect_timeout, sock_read=limits.read_timeout),
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
            headers={"Host": "endpoint"},
        )
        self._found: dict[tuple[str, str], tuple[float, list[Replica]]] = {}
        self._busy: Counter[Replica] = Counter()
        self._resting: dict[Replica, float] = {}
        self._turn = itertools.count()

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()

    async def send(
        self,
        publisher: str,
        endpoint: str,
        method: str,
        target: str,
        headers: dict[str, str],
        body: bytes | AsyncIterator[bytes],
    ) -> tuple[ClientResponse, Replica]:
        """The first replica's answer, its body still to be read; then call `done` with the replica.

        A call goes to another replica when one can't be connected to. It also does when a connection ends before the
        first byte of an answer, if the body is at hand: inference changes nothing, so asking twice is safe.

        Raises:
            NoReplicaError: no replica could be connected to.
            BrokenUpstreamError: the answer isn't valid HTTP, or there was none.
            TimeoutError: no answer in time.
        """
        at_hand = isinstance(body, bytes)
        broken: ClientError | None = None
        for replica in self._candidates(publisher, endpoint):
            self._busy[replica] += 1
            try:
                response = await self._session.request(
                    method,
                    _url(replica.host, target),
                    headers=headers,
                    data=body if body or not at_hand else None,
                    allow_redirects=False,
                )
            except BaseException as error:
                self.done(replica)
                if isinstance(error, ClientConnectorError):
                    self._rest(replica)
                elif isinstance(error, ServerDisconnectedError) and not _answered(error):
                    broken = error
                    if not at_hand:
                        break
                elif isinstance(error, ClientError) and not isinstance(error, TimeoutError):
                    # Reset by the peer before an answer, or an answer that is no HTTP.
                    broken = error
                    if not (at_hand and isinstance(error, ClientConnectionError)):
                        break
                else:
                    raise
            else:
                return response, replica
        if broken is not None:
            raise BrokenUpstreamError from broken
        raise NoReplicaError

    def done(self, replica: Replica) -> None:
        """A call that a replica took has ended."""
        self._busy[replica] -= 1
        if self._busy[replica] <= 0:
            del self._busy[replica]

    def _candidates(self, publisher: str, endpoint: str) -> list[Replica]:
        """The replicas in the order to try them: rested before resting, idle before busy, then by turns.

        A single one is tried twice: an idle connection that it has just closed tells nothing.
        """
        now = time.monotonic()
        looked, found = self._found.get((publisher, endpoint), (-_LOOK_AGAIN, []))
        if now - looked >= _LOOK_AGAIN:
            found = replicas(self._learners_dir, publisher, endpoint)
            self._found.pop((publisher, endpoint), None)
            self._found[publisher, endpoint] = now, found
            if len(self._found) > _REMEMBERED:
                del self._found[next(iter(self._found))]
        if len(found) == 1:
            return found * 2
        turn = next(self._turn)
        order = [found[(turn + place) % len(found)] for place in range(len(found))]
        return sorted(order, key=lambda replica: (self._resting.get(replica, 0.0) > now, self._busy[replica]))

    def _rest(self, replica: Replica) -> None:
        now = time.monotonic()
        self._resting = {one: until for one, until in self._resting.items() if until > now}
        self._resting[replica] = now + _REST
        self._found.pop((replica.publisher, replica.endpoint), None)


def _answered(error: ServerDisconnectedError) -> bool:
    """Whether the connection ended within an answer's head (aiohttp then hands over what it has)."""
    return not isinstance(error.message, str) and error.message is not None


@functools.lru_cache(4096)
def _url(host: str, target: str) -> URL:
    return URL(f"http://{host}{target}", encoded=True)
