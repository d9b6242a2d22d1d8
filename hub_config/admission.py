"""Who may start now: a queue for starting, and what of the machine is promised. Asyncio, one event loop, no I/O."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from hub_config.profiles import Holding


class Turns:
    """Lets so many in at once; the others wait in the order they came, and know their place.

    Example:
        >>> async def example():
        ...     turns = Turns(1)
        ...     async with turns.turn("ann"):
        ...         waiting = asyncio.ensure_future(anext(aiter_turn(turns, "bob")))
        ...         await asyncio.sleep(0)
        ...         places = turns.place("ann"), turns.place("bob")
        ...     await waiting
        ...     return places
        >>> async def aiter_turn(turns, name):
        ...     async with turns.turn(name):
        ...         yield name
        >>> asyncio.run(example())
        (0, 1)
    """

    def __init__(self, at_once: int) -> None:
        self.at_once = at_once
        self._inside: set[str] = set()
        self._waiting: dict[str, asyncio.Future[None]] = {}

    def place(self, name: str) -> int:
        """0: inside, or not waiting; 1: the next one; and so on."""
        return next((place for place, other in enumerate(self._waiting, 1) if other == name), 0)

    @contextlib.asynccontextmanager
    async def turn(self, name: str) -> AsyncIterator[None]:
        """Wait until it is this one's turn; cancelled or failed, the next one comes in."""
        if len(self._inside) < self.at_once and not self._waiting:
            self._inside.add(name)
        else:
            future = self._waiting[name] = asyncio.get_running_loop().create_future()
            try:
                await future
            except asyncio.CancelledError:
                self._waiting.pop(name, None)
                self._leave(name)
                raise
        try:
            yield
        finally:
            self._leave(name)

    def _leave(self, name: str) -> None:
        self._inside.discard(name)
        while self._waiting and len(self._inside) < self.at_once:
            following = next(iter(self._waiting))
            future = self._waiting.pop(following)
            if not future.done():
                self._inside.add(following)
                future.set_result(None)


class Promised:
    """What the servers that run or start have, by server."""

    def __init__(self) -> None:
        self._held: dict[str, Holding] = {}

    def hold(self, server: str, holding: Holding) -> None:
        """This server has this from now on."""
        self._held[server] = holding

    def release(self, server: str) -> None:
        """This server has ended. Idempotent."""
        self._held.pop(server, None)

    def others(self, server: str = "") -> list[Holding]:
        """What all servers but this one hold."""
        return [holding for name, holding in self._held.items() if name != server]
