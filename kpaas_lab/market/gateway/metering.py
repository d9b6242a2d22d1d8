"""Counting calls so that none that was flushed is lost and none is counted twice.

    call -> Tally (memory, a second at most) -> Spool (a file, fsync) -> database, by key, version and UTC day

A batch's id goes into `usage_batches` in the transaction that adds its counts. A crash at any point leads to the batch
being applied again, and to its id being found there.

Durations are measured with the monotonic clock. A call belongs to the UTC day on which it began by the wall clock: a
clock that jumps puts calls on the day it shows, and changes no count that was made before.
"""

from __future__ import annotations

import datetime as dt
import logging
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import orjson
from sqlalchemy import Table, delete, insert, select
from sqlalchemy.engine import Engine
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from kpaas_lab.market.models import ApiKey, ListingVersion, Usage, UsageBatch, UsageLatency

log = logging.getLogger(__name__)

_T = TypeVar("_T")
_RATIO = math.log(1.1)
_COUNTS = ("calls", "errors", "rejected", "bytes_in", "bytes_out")


def bucket(seconds: float) -> int:
    """The latency bucket of a call: b holds those of [1.1 ** b, 1.1 ** (b + 1)) times 0.1 ms, 0 those below too.

    Example:
        >>> bucket(0.00001), bucket(0.0001), bucket(0.001), bucket(1.0)
        (0, 0, 24, 96)
    """
    tenths = seconds * 10_000
    return math.floor(math.log(tenths) / _RATIO) if tenths > 1 else 0


@dataclass(slots=True)
class Row:
    """Calls of one key to one version on one UTC day, as counted in `Usage` and `UsageLatency`."""

    calls: int = 0
    errors: int = 0
    rejected: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    latency: Counter[int] = field(default_factory=Counter)

    def add(self, other: Row) -> None:
        """Count another's calls as well."""
        for name in _COUNTS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.latency.update(other.latency)


# Whose calls: key, subscription, version, day.
Who = tuple[str, str, int, dt.date]


class Tally:
    """The calls since the last flush, in memory."""

    def __init__(self) -> None:
        self._rows: defaultdict[Who, Row] = defaultdict(Row)

    def call(self, who: Who, *, error: bool, bytes_in: int, bytes_out: int, seconds: float) -> None:
        """Count a call that reached the upstream and has ended."""
        row = self._rows[who]
        row.calls += 1
        row.errors += error
        row.bytes_in += bytes_in
        row.bytes_out += bytes_out
        row.latency[bucket(seconds)] += 1

    def rejection(self, who: Who) -> None:
        """Count a call that was refused, or that no replica took."""
        self._rows[who].rejected += 1

    def swap(self) -> dict[Who, Row]:
        """What was counted; counting starts again at zero."""
        rows, self._rows = self._rows, defaultdict(Row)
        return rows


@dataclass(frozen=True, slots=True)
class Batch:
    """What one flush holds. `id` is unique among all gateways and all their lives: `<life>-<number>`."""

    id: str
    rows: Mapping[Who, Row]

    @property
    def life(self) -> str:
        """Of which process it is."""
        return self.id.rpartition("-")[0]

    def encode(self) -> bytes:
        """As a record of the spool.

        Example:
            >>> batch = Batch("a-1", {("k", "s", 7, dt.date(2026, 11, 23)): Row(calls=2, latency=Counter({5: 2}))})
            >>> Batch.decode(batch.encode()) == batch
            True
        """
        rows = [
            [
                key,
                subscription,
                version,
                day.isoformat(),
                *(getattr(row, name) for name in _COUNTS),
                [*row.latency.items()],
            ]
            for (key, subscription, version, day), row in self.rows.items()
        ]
        return orjson.dumps({"id": self.id, "rows": rows})

    @classmethod
    def decode(cls, payload: bytes) -> Batch:
        """The inverse of `encode`."""
        data = orjson.loads(payload)
        return cls(
            data["id"],
            {
                (key, subscription, version, dt.date.fromisoformat(day)): _row(counts, latency)
                for key, subscription, version, day, *counts, latency in data["rows"]
            },
        )


def _row(counts: Sequence[int], latency: Iterable[tuple[int, int]]) -> Row:
    return Row(**dict(zip(_COUNTS, counts, strict=True)), latency=Counter(dict(latency)))


def apply(
    engine: Engine, batches: Sequence[Batch], committing: Callable[[Sequence[Batch]], AbstractContextManager[None]]
) -> None:
    """Add the batches' counts to the database, those that it doesn't have yet, in one transaction.

    Args:
        engine: the market's database.
        batches: what to add; any of them may have been added before.
        committing: is entered with the batches that are new, around the commit alone.

    Raises:
        sqlalchemy.exc.SQLAlchemyError: nothing was added, or (where only the answer got lost) all of it was.
    """
    try:
        _apply(engine, batches, committing, known_only=False)
    except IntegrityError:
        # Usage of a key or version that was deleted from the database, or another process added one of the batches.
        _apply(engine, batches, committing, known_only=True)


def forget(engine: Engine, ids: Sequence[str]) -> None:
    """Forget the ids of batches that no spool holds any more."""
    with Session(engine.execution_options(immediate=True)) as session, session.begin():
        for some in _chunks(ids):
            session.execute(delete(UsageBatch).where(UsageBatch.id.in_(some)))


def _apply(
    engine: Engine,
    batches: Sequence[Batch],
    committing: Callable[[Sequence[Batch]], AbstractContextManager[None]],
    *,
    known_only: bool,
) -> None:
    with Session(engine.execution_options(immediate=True)) as session:
        there: set[str] = set()
        for some in _chunks([batch.id for batch in batches]):
            there |= set(session.scalars(select(UsageBatch.id).where(UsageBatch.id.in_(some))))
        new = [batch for batch in batches if batch.id not in there]
        if not new:
            return
        now = dt.datetime.now(dt.UTC)
        session.execute(insert(UsageBatch), [{"id": batch.id, "applied_at": now} for batch in new])
        rows = _merge(new)
        if known_only:
            rows = _known(session, rows)
        _add_rows(session, rows)
        with committing(new):
            session.commit()


def _merge(batches: Iterable[Batch]) -> dict[tuple[str, int, dt.date], Row]:
    rows: defaultdict[tuple[str, int, dt.date], Row] = defaultdict(Row)
    for batch in batches:
        for (key, _subscription, version, day), row in batch.rows.items():
            rows[key, version, day].add(row)
    return rows


def _known(session: Session, rows: Mapping[tuple[str, int, dt.date], Row]) -> dict[tuple[str, int, dt.date], Row]:
    """The rows whose key and version still stand in the database; the log says what was left out."""
    keys: set[str] = set()
    for some in _chunks(sorted({key for key, _version, _day in rows})):
        keys |= set(session.scalars(select(ApiKey.id).where(ApiKey.id.in_(some))))
    versions: set[int] = set()
    for numbers in _chunks(sorted({version for _key, version, _day in rows})):
        versions |= set(session.scalars(select(ListingVersion.id).where(ListingVersion.id.in_(numbers))))
    known = {who: row for who, row in rows.items() if who[0] in keys and who[1] in versions}
    for who in rows.keys() - known.keys():
        log.warning("usage of key id %s, version %s, day %s: no longer in the database; %s", *who, rows[who])
    return known


def _add_rows(session: Session, rows: Mapping[tuple[str, int, dt.date], Row]) -> None:
    """Add to what is there. In one order always, so that two gateways can't wait for one another."""
    usage: list[dict[str, Any]] = []
    latency: list[dict[str, Any]] = []
    for (key, version, day), row in sorted(rows.items()):
        who = {"key_id": key, "version_id": version, "day": day}
        usage.append(who | {name: getattr(row, name) for name in _COUNTS})
        latency += [who | {"bucket": number, "calls": calls} for number, calls in sorted(row.latency.items())]
    for model, values, counts in ((Usage, usage, _COUNTS), (UsageLatency, latency, ("calls",))):
        if values:
            session.execute(_upsert(session, model.__table__, counts), values)  # type: ignore[arg-type]


def _upsert(session: Session, table: Table, counts: Sequence[str]) -> Any:
    if session.get_bind().dialect.name == "postgresql":
        from sqlalchemy.dialects.postgresql import insert as dialect_insert
    else:
        from sqlalchemy.dialects.sqlite import insert as dialect_insert  # type: ignore[assignment]
    statement = dialect_insert(table)
    return statement.on_conflict_do_update(
        index_elements=list(table.primary_key.columns),
        set_={name: table.c[name] + statement.excluded[name] for name in counts},
    )


def _chunks(items: Sequence[_T], size: int = 500) -> Iterable[Sequence[_T]]:
    return (items[start : start + size] for start in range(0, len(items), size))
