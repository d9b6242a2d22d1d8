"""aiohttp's way to endpoints: its connection pool, over sockets that `endpoints` found to be what they claim."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiohttp import BaseConnector, ClientConnectorError, ClientTimeout
from aiohttp.client_proto import ResponseHandler

from kpaas_lab.market.endpoints import Replica, connect

if TYPE_CHECKING:
    from aiohttp import ClientRequest


class ReplicaConnector(BaseConnector):
    """Connects to replicas by their `host`, and to nothing else: no name is resolved, no address is reached.

    Use it as `aiohttp.ClientSession(connector=ReplicaConnector(learners_dir))` and call
    `http://{replica.host}/v2/...`.

    Args:
        learners_dir: where the learners' homes are.
        limit: connections at once, to all replicas; 0 is no limit.
        limit_per_host: the same, to one replica.
        keepalive_timeout: seconds an unused connection is kept.
    """

    def __init__(
        self, learners_dir: Path, *, limit: int = 0, limit_per_host: int = 0, keepalive_timeout: float = 30.0
    ) -> None:
        super().__init__(limit=limit, limit_per_host=limit_per_host, keepalive_timeout=keepalive_timeout)
        self._learners_dir = learners_dir

    async def _create_connection(
        self,
        req: ClientRequest,
        traces: list[Any],
        timeout: ClientTimeout,  # noqa: ASYNC109 (aiohttp's own signature)
    ) -> ResponseHandler:
        try:
            replica = Replica.from_host(req.url.raw_host or "")
        except ValueError as error:
            raise ClientConnectorError(req.connection_key, OSError(f"{req.url.raw_host} is no replica")) from error
        try:
            async with asyncio.timeout(timeout.sock_connect):
                connection = await connect(self._learners_dir, replica)
            _transport, protocol = await self._loop.create_unix_connection(self._factory, sock=connection)
        except OSError as error:  # TimeoutError is one
            raise ClientConnectorError(req.connection_key, error) from error
        return protocol
