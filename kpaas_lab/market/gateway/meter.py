"""The gateway's meter at work: every second to the spool, from there to the database, and again after a crash."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import logging
import secrets
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from kpaas_lab.errors import LabError
from kpaas_lab.market.database import open_database
from kpaas_lab.market.gateway.metering import Batch, Tally, apply, forget
from kpaas_lab.market.gateway.spool import Spool

log = logging.getLogger(__name__)

FLUSH_SECONDS = 1.0
_RETRY_SECONDS = (1.0, 2.0, 5.0)
_DAYS_KEPT = dt.timedelta(days=3)


class Database:
    """The market's database, opened when it is first needed: a gateway starts, and keeps its counts, without it."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._engine: Engine | None = None
        self._guard = threading.Lock()

    def engine(self) -> Engine:
        """The engine.

        Raises:
            LabError: it can't be opened now.
        """
        with self._guard:
            if self._engine is None:
                self._engine = open_database(self._url, migrate=True)
            return self._engine

    def close(self) -> None:
        """Close its connections."""
        with self._guard:
            if self._engine is not None:
                self._engine.dispose()


class Meter:
    """Counts calls, durably.

    `tally` is for the event loop. `flush` and `drain` block: each is run by a thread of its own, so that a database
    that hangs doesn't keep counts from the spool.

    Args:
        database: where the counts go.
        spool: where they wait.
    """

    def __init__(self, database: Database, spool: Spool) -> None:
        self.tally = Tally()
        self.spool = spool
        self.replayed = False
        self.spool_error = ""
        self.database_error = ""
        self._database = database
        self._life = secrets.token_hex(12)
        self._flushes = 0
        self._unkept: Batch | None = None
        self._unadded: list[Batch] = []
        self._commit = threading.Lock()
        self._added: Counter[tuple[str, dt.date]] = Counter()
        self._stopping = asyncio.Event()
        self._spool_thread = ThreadPoolExecutor(1, "spool")
        self._database_thread = ThreadPoolExecutor(1, "meter")
        self._tasks: list[asyncio.Task[None]] = []

    @contextlib.contextmanager
    def steady(self) -> Iterator[Counter[tuple[str, dt.date]]]:
        """Within the block no counts of this process become visible in the database.

        Yields:
            how many calls, by subscription and day, this process has added to it so far.
        """
        with self._commit:
            yield self._added

    def start(self) -> None:
        """Begin to flush and to add."""
        self._tasks = [asyncio.create_task(self._flush_often()), asyncio.create_task(self._drain_often())]

    async def stop(self, patience: float = 5.0) -> None:
        """Keep what was counted; add it to the database where that can be done in time."""
        self._stopping.set()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._spool_thread, self.flush)
        await loop.run_in_executor(self._spool_thread, self.spool.end_segment)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience):
                await loop.run_in_executor(self._database_thread, self.drain)
        self._spool_thread.shutdown(wait=False)
        self._database_thread.shutdown(wait=False, cancel_futures=True)
        self.spool.close()

    def flush(self) -> bool:
        """Keep what was counted since the last flush; whether it is kept now.

        What couldn't be kept is tried again, with the same id: should it be in the file after all, it counts once.
        """
        if self._unkept is None:
            rows = self.tally.swap()
            if not rows:
                return True
            self._flushes += 1
            self._unkept = Batch(f"{self._life}-{self._flushes}", rows)
        try:
            self.spool.append(self._unkept.encode())
        except OSError as error:
            if not self.spool_error:
                log.error("the spool can't be written, counts stay in memory: %s", error)
            self.spool_error = str(error)
            return False
        if self.spool_error:
            log.warning("the spool can be written again")
        self._unkept, self.spool_error = None, ""
        return True

    def drain(self) -> bool:
        """Add what the spool has to the database; whether all of it is there now."""
        try:
            engine = self._database.engine()
            while self._unadded or (payloads := self.spool.take()):
                if not self._unadded:
                    self._unadded = [Batch.decode(payload) for payload in payloads]
                apply(engine, self._unadded, self._committing)
                self._unadded = []
            self.replayed = True
            if dropped := self.spool.drop():
                forget(engine, [Batch.decode(payload).id for payload in dropped])
        except Exception as error:  # whatever it is, counts wait, and are tried again
            # A SQLAlchemy error's text holds the statement's parameters; its cause is what tells.
            reason = (str(getattr(error, "orig", None) or error).splitlines() or [type(error).__name__])[0]
            if not self.database_error:
                known = isinstance(error, SQLAlchemyError | LabError)
                log.error("the database can't be written, counts wait in the spool: %s", reason, exc_info=not known)
            self.database_error = reason
            return False
        if self.database_error:
            log.warning("the database can be written again")
        self.database_error = ""
        return True

    @contextlib.contextmanager
    def _committing(self, batches: Sequence[Batch]) -> Iterator[None]:
        with self._commit:
            yield
            for batch in batches:
                if batch.life == self._life:
                    for (_key, subscription, _version, day), row in batch.rows.items():
                        self._added[subscription, day] += row.calls
            if len(self._added) > 10_000:
                oldest = dt.datetime.now(dt.UTC).date() - _DAYS_KEPT
                for who in [who for who in self._added if who[1] < oldest]:
                    del self._added[who]

    async def _flush_often(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            started = time.monotonic()
            await loop.run_in_executor(self._spool_thread, self.flush)
            await asyncio.sleep(max(0.0, FLUSH_SECONDS - (time.monotonic() - started)))

    async def _drain_often(self) -> None:
        loop = asyncio.get_running_loop()
        failures = 0
        while True:
            if await loop.run_in_executor(self._database_thread, self.drain):
                failures = 0
                await asyncio.sleep(FLUSH_SECONDS / 2)
            else:
                await asyncio.sleep(_RETRY_SECONDS[min(failures, len(_RETRY_SECONDS) - 1)])
                failures += 1
