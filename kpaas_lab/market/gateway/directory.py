"""Who may call what: the gateway's view of the catalogue, read from the database and remembered for a second.

A key that was made, revoked or rotated, and a listing that was published anew or withdrawn, takes effect within
`TTL` seconds. While the database is away, keys that were known go on working for `STALE` seconds.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import math
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from kpaas_lab.errors import EngineUnavailableError, LabError
from kpaas_lab.i18n import _
from kpaas_lab.market.database import reading
from kpaas_lab.market.gateway.limiting import Limiter, PlanLimits
from kpaas_lab.market.gateway.meter import Database, Meter
from kpaas_lab.market.models import ApiKey, Listing, ListingVersion, Plan, Subscription, Usage

log = logging.getLogger(__name__)

FRESH = 0.5  # seconds: no need to look again
TTL = 1.0  # seconds: not used any longer without looking again
STALE = 3600.0  # seconds: used while the database is away
PATIENCE = 2.0  # seconds that a call waits for the database
KNOWN, UNKNOWN, WAITING = 50_000, 10_000, 2_000  # how many keys are remembered, and looked up at once
_BATCH = 200


@dataclass(frozen=True, slots=True)
class Grant:
    """What a key opens.

    Attributes:
        key_id: the key's id; the key itself is known to nobody.
        sha256: its fingerprint.
        subscription: id.
        publisher, listing: what it may call.
        version: id of the listing's current version.
        endpoint, model: who answers, and the model's name in the paths.
        plan: limits.
        expires_at: Unix time, None for never.
        refusal: "" for a key that may call, else "revoked", "cancelled" or "withdrawn".
    """

    key_id: str
    sha256: str
    subscription: str
    publisher: str
    listing: str
    version: int
    endpoint: str
    model: str
    plan: PlanLimits
    expires_at: float | None
    refusal: str


@dataclass(slots=True)
class _Entry:
    grant: Grant
    read_at: float


def read_grants(session: Session, fingerprints: Sequence[str]) -> dict[str, Grant]:
    """What these keys open, by fingerprint; unknown ones are left out."""
    newest = (
        select(func.max(ListingVersion.number))
        .where(ListingVersion.listing_id == Listing.id)
        .correlate(Listing)
        .scalar_subquery()
    )
    statement = (
        select(
            ApiKey.id,
            ApiKey.sha256,
            ApiKey.expires_at,
            ApiKey.revoked_at,
            Subscription.id,
            Subscription.cancelled_at,
            Listing.publisher,
            Listing.name,
            Listing.withdrawn_at,
            ListingVersion.id,
            ListingVersion.endpoint,
            ListingVersion.model,
            Plan.name,
            Plan.calls_per_day,
            Plan.calls_per_second,
            Plan.concurrency,
        )
        .join(Subscription, ApiKey.subscription_id == Subscription.id)
        .join(Plan, Subscription.plan_id == Plan.id)
        .join(Listing, Subscription.listing_id == Listing.id)
        .join(ListingVersion, (ListingVersion.listing_id == Listing.id) & (ListingVersion.number == newest))
        .where(ApiKey.sha256.in_(fingerprints))
    )
    grants = {}
    for key, sha256, expires, revoked, subscription, cancelled, publisher, name, withdrawn, *rest in session.execute(
        statement
    ):
        version, endpoint, model, *plan = rest
        # Cancelling revokes the keys too; what a new key wouldn't mend is said first.
        refusals = {"withdrawn": withdrawn, "cancelled": cancelled, "revoked": revoked}
        grants[sha256] = Grant(
            key, sha256, subscription, publisher, name, version, endpoint, model, PlanLimits(*plan),
            expires.timestamp() if expires else None,
            next((why for why, at in refusals.items() if at is not None), ""),
        )  # fmt: skip
    return grants


def read_calls(session: Session, subscriptions: Iterable[str], day: dt.date) -> dict[str, int]:
    """How many calls of a day the database has, by subscription."""
    statement = (
        select(ApiKey.subscription_id, func.sum(Usage.calls))
        .join(ApiKey, Usage.key_id == ApiKey.id)
        .where(Usage.day == day, ApiKey.subscription_id.in_(list(subscriptions)))
        .group_by(ApiKey.subscription_id)
    )
    return {subscription: int(calls) for subscription, calls in session.execute(statement)}


def read_version(session: Session, publisher: str, name: str) -> ListingVersion | None:
    """A listing's current version, None where there is none or it was withdrawn."""
    return session.scalars(
        select(ListingVersion)
        .join(Listing)
        .where(Listing.publisher == publisher, Listing.name == name, Listing.withdrawn_at.is_(None))
        .order_by(ListingVersion.number.desc())
        .limit(1)
    ).one_or_none()


class Directory:
    """Grants by fingerprint. Questions that come together are asked in one query, by one thread.

    Args:
        database: the market's.
        meter: knows which of the calls in the database are this process's own.
        limiter: is told how many calls of others the database has.
    """

    def __init__(self, database: Database, meter: Meter, limiter: Limiter) -> None:
        self._database = database
        self._meter = meter
        self._limiter = limiter
        self._known: dict[str, _Entry] = {}
        self._unknown: dict[str, float] = {}
        self._waiting: dict[str, asyncio.Future[Grant | None]] = {}
        self._loader: asyncio.Task[None] | None = None
        self._away_until = 0.0
        self._thread = ThreadPoolExecutor(1, "directory")

    async def grant(self, fingerprint: str, *, again: bool = False) -> Grant | None:
        """What a key opens, None where there is no such key.

        Args:
            fingerprint: its SHA-256.
            again: look in the database, whatever is remembered.

        Raises:
            EngineUnavailableError: the database is away and the key wasn't used of late.
        """
        now = time.monotonic()
        entry = self._known.get(fingerprint)
        if entry is not None and not again:
            age = now - entry.read_at
            if age < FRESH:
                return entry.grant
            if age < TTL:
                self._ask(fingerprint).add_done_callback(_ignore)
                return entry.grant
        elif entry is None and now - self._unknown.get(fingerprint, -TTL) < TTL:
            return None
        try:
            if now < self._away_until or len(self._waiting) >= WAITING:
                raise _away()
            async with asyncio.timeout(PATIENCE):
                return await asyncio.shield(self._ask(fingerprint))
        except (TimeoutError, LabError) as error:
            if isinstance(error, TimeoutError):
                self._away_until = math.inf  # until the question that hangs is answered
            if entry is not None and now - entry.read_at < STALE:
                return entry.grant
            raise _away() from None

    async def version(self, publisher: str, name: str) -> ListingVersion | None:
        """A listing's current version.

        Raises:
            EngineUnavailableError: the database is away.
        """

        def read() -> ListingVersion | None:
            with reading(self._database.engine()) as session:
                found = read_version(session, publisher, name)
                session.expunge_all()
                return found

        try:
            async with asyncio.timeout(PATIENCE):
                return await asyncio.get_running_loop().run_in_executor(self._thread, read)
        except (TimeoutError, LabError, SQLAlchemyError):
            raise _away() from None

    def close(self) -> None:
        """Stop looking."""
        if self._loader is not None:
            self._loader.cancel()
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _ask(self, fingerprint: str) -> asyncio.Future[Grant | None]:
        future = self._waiting.get(fingerprint)
        if future is None:
            future = self._waiting[fingerprint] = asyncio.get_running_loop().create_future()
            if self._loader is None or self._loader.done():
                self._loader = asyncio.create_task(self._load())
        return future

    async def _load(self) -> None:
        """Answer all who wait, some at a time; ends when nobody does."""
        loop = asyncio.get_running_loop()
        while self._waiting:
            some = list(self._waiting)[:_BATCH]
            try:
                grants, day, others = await loop.run_in_executor(self._thread, self._read, some)
            except Exception as error:
                if not isinstance(error, LabError | SQLAlchemyError):
                    log.exception("keys can't be looked up")
                self._away_until = time.monotonic() + 1.0
                for fingerprint in list(self._waiting):
                    future = self._waiting.pop(fingerprint)
                    future.add_done_callback(_ignore)
                    future.set_exception(_away())
                return
            now, self._away_until = time.monotonic(), 0.0
            for subscription, calls in others.items():
                self._limiter.count(subscription, day, others=calls)
            for fingerprint in some:
                grant = grants.get(fingerprint)
                self._remember(fingerprint, grant, now)
                self._waiting.pop(fingerprint).set_result(grant)

    def _remember(self, fingerprint: str, grant: Grant | None, now: float) -> None:
        if grant is None:
            self._known.pop(fingerprint, None)
            self._unknown[fingerprint] = now
            if len(self._unknown) > UNKNOWN:
                del self._unknown[next(iter(self._unknown))]
            return
        self._unknown.pop(fingerprint, None)
        self._known.pop(fingerprint, None)
        self._known[fingerprint] = _Entry(grant, now)
        if len(self._known) > KNOWN:
            del self._known[next(iter(self._known))]

    def _read(self, fingerprints: Sequence[str]) -> tuple[dict[str, Grant], dt.date, dict[str, int]]:
        """In the thread: grants, the day, and its calls that the database has and this process didn't admit."""
        if not self._meter.replayed:
            raise _away()  # what a crash left in the spool counts for the quotas, too
        day = dt.datetime.now(dt.UTC).date()
        with self._meter.steady() as added, reading(self._database.engine()) as session:
            grants = read_grants(session, fingerprints)
            limited = {grant.subscription for grant in grants.values() if grant.plan.calls_per_day is not None}
            calls = read_calls(session, limited, day) if limited else {}
            return grants, day, {one: calls.get(one, 0) - added[one, day] for one in limited}


def _away() -> EngineUnavailableError:
    return EngineUnavailableError(_("The market's database doesn't answer."))


def _ignore(future: asyncio.Future[Grant | None]) -> None:
    if not future.cancelled():
        future.exception()
