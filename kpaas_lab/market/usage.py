"""What was called, by whom and how fast: sums of the gateway's meter, which counts by key, version and UTC day."""

from __future__ import annotations

import csv
import datetime as dt
import io
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session

from kpaas_lab.errors import NotFoundError, SettingsError
from kpaas_lab.i18n import _
from kpaas_lab.market.models import ApiKey, Listing, Subscription, Usage, UsageLatency

MAX_DAYS = 366
BUCKET_GROWTH = 1.1
BUCKET_UNIT_MS = 0.1
COLUMNS = ("day", "listing", "key", "label", "calls", "errors", "rejected", "bytes_in", "bytes_out", "p50_ms", "p95_ms")


@dataclass(frozen=True, slots=True)
class Period:
    """Days, both ends included."""

    first: dt.date
    last: dt.date

    def days(self) -> list[dt.date]:
        """Each of them, oldest first."""
        return [self.first + dt.timedelta(days=n) for n in range((self.last - self.first).days + 1)]


@dataclass(slots=True)
class Count:
    """A sum of calls.

    Attributes:
        calls: that reached the upstream.
        errors: of these, how many failed.
        rejected: turned away before (quota, limits).
        latency: calls by bucket, see `percentile`.
    """

    calls: int = 0
    errors: int = 0
    rejected: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    latency: dict[int, int] = field(default_factory=dict)

    @property
    def p50(self) -> float | None:
        """Median latency in ms."""
        return percentile(self.latency, 0.5)

    @property
    def p95(self) -> float | None:
        """95th percentile of the latency in ms."""
        return percentile(self.latency, 0.95)

    def add(self, calls: int, errors: int, rejected: int, bytes_in: int, bytes_out: int) -> None:
        """Count more."""
        self.calls += calls
        self.errors += errors
        self.rejected += rejected
        self.bytes_in += bytes_in
        self.bytes_out += bytes_out


@dataclass(frozen=True, slots=True)
class KeyInfo:
    """Which key: its id, what its owner recognises it by, and the listing it calls."""

    id: str
    prefix: str
    label: str
    listing: str


@dataclass(slots=True)
class Report:
    """Usage of a period: in all, by day (every day of the period), by key (most calls first).

    `cells` has each day of each key; it is empty where it wasn't asked for.
    """

    period: Period
    total: Count
    days: Mapping[dt.date, Count]
    keys: Mapping[KeyInfo, Count]
    cells: Mapping[tuple[dt.date, KeyInfo], Count]


def percentile(latency: Mapping[int, int], q: float) -> float | None:
    """The latency in ms below which a share q of the calls stays, None without calls.

    Bucket b holds latencies of [1.1 ** b, 1.1 ** (b + 1)) times 0.1 ms; within a bucket they are taken to be spread
    evenly on its logarithmic scale, so that the answer is within 10 % of the exact one.

    Example:
        >>> round(percentile({46: 99, 70: 1}, 0.5), 1)  # bucket 46 is 8.0 to 8.8 ms
        8.4
        >>> percentile({}, 0.5) is None
        True
    """
    total = sum(latency.values())
    if total <= 0:
        return None
    rank, below = q * total, 0
    for bucket in sorted(latency):
        count = latency[bucket]
        if count and below + count >= rank:
            return float(BUCKET_UNIT_MS * BUCKET_GROWTH ** (bucket + (rank - below) / count))
        below += count
    return float(BUCKET_UNIT_MS * BUCKET_GROWTH ** (max(latency) + 1))


def period(first: dt.date | None, last: dt.date | None, *, today: dt.date | None = None) -> Period:
    """The period asked for; 30 days to today by default.

    Raises:
        SettingsError: its end is before its start, or it is longer than a year.

    Example:
        >>> period(None, None, today=dt.date(2026, 1, 30)).first
        datetime.date(2026, 1, 1)
    """
    last = last or today or dt.datetime.now(dt.UTC).date()
    first = first or dt.date.fromordinal(max(last.toordinal() - 29, 1))
    if first > last:
        raise SettingsError(
            _("The period ends ({last}) before it begins ({first}).").format(first=first, last=last),
            hint=_("Swap the two days."),
        )
    if (last - first).days >= MAX_DAYS:
        raise SettingsError(
            _("The period is longer than {days} days.").format(days=MAX_DAYS), hint=_("Choose a shorter one.")
        )
    return Period(first, last)


def of_subscriber(
    session: Session,
    person: str,
    when: Period,
    *,
    subscription_id: str | None = None,
    listing: Listing | None = None,
    cells: bool = False,
) -> Report:
    """A person's own calls: all, of one subscription, or of one listing."""
    where = [Subscription.subscriber == person]
    if subscription_id is not None:
        where.append(Subscription.id == subscription_id)
    if listing is not None:
        where.append(Subscription.listing_id == listing.id)
    return _report(session, when, where, cells=cells)


def of_listing(session: Session, listing: Listing, when: Period, *, cells: bool = False) -> Report:
    """All calls of a listing, for its publisher: of its subscribers they see a key's prefix, no name and no label."""
    report = _report(session, when, [Subscription.listing_id == listing.id], cells=cells)
    hidden = {info: KeyInfo(info.id, info.prefix, "", info.listing) for info in report.keys}
    return Report(
        report.period,
        report.total,
        report.days,
        {hidden[info]: count for info, count in report.keys.items()},
        {(day, hidden[info]): count for (day, info), count in report.cells.items()},
    )


def visible(
    session: Session,
    person: str,
    when: Period,
    *,
    listing: tuple[str, str] | None,
    subscription_id: str | None,
    cells: bool = False,
) -> Report:
    """What a person may see: a listing's usage if they publish it, else their own.

    Args:
        session: a reading one.
        person: who asks.
        when: the days.
        listing: publisher and name; None for any.
        subscription_id: one of the person's own; None for any.
        cells: each day of each key too.

    Raises:
        NotFoundError: a listing they neither publish nor subscribe to, or a subscription that isn't theirs.
    """
    if subscription_id is not None:
        owned = select(Subscription.id).where(Subscription.id == subscription_id, Subscription.subscriber == person)
        if session.scalar(owned) is None:
            raise NotFoundError(_("No such subscription of yours."), hint=_("Look at your subscriptions."))
        return of_subscriber(session, person, when, subscription_id=subscription_id, cells=cells)
    if listing is None:
        return of_subscriber(session, person, when, cells=cells)
    found = session.scalars(
        select(Listing).where(Listing.publisher == listing[0], Listing.name == listing[1])
    ).one_or_none()
    if found is not None and found.publisher == person:
        return of_listing(session, found, when, cells=cells)
    mine = found and session.scalar(
        select(Subscription.id).where(Subscription.listing_id == found.id, Subscription.subscriber == person)
    )
    if found is None or mine is None:
        raise NotFoundError(
            _("You have neither published nor subscribed to this listing."), hint=_("Usage is shown to these only.")
        )
    return of_subscriber(session, person, when, listing=found, cells=cells)


def _report(session: Session, when: Period, where: Sequence[ColumnElement[bool]], *, cells: bool) -> Report:
    """The database adds up: only sums come here, and single days of single keys only where they are wanted."""
    infos = {
        row.id: KeyInfo(row.id, row.prefix, row.label, f"{row.publisher}/{row.name}")
        for row in session.execute(
            select(ApiKey.id, ApiKey.prefix, ApiKey.label, Listing.publisher, Listing.name)
            .join(Subscription, Subscription.id == ApiKey.subscription_id)
            .join(Listing, Listing.id == Subscription.listing_id)
            .where(*where)
        )
    }
    wanted = select(ApiKey.id).join(Subscription, Subscription.id == ApiKey.subscription_id).where(*where)
    total = Count()
    days = {day: Count() for day in when.days()}
    keys: dict[KeyInfo, Count] = defaultdict(Count)
    single: dict[tuple[dt.date, KeyInfo], Count] = defaultdict(Count)
    sums = (func.sum(column) for column in (Usage.calls, Usage.errors, Usage.rejected, Usage.bytes_in, Usage.bytes_out))
    for key, day, *counted in session.execute(
        select(Usage.key_id, Usage.day, *sums)
        .where(Usage.key_id.in_(wanted), Usage.day.between(when.first, when.last))
        .group_by(Usage.key_id, Usage.day)
    ):
        numbers = [int(value) for value in counted]
        for count in (total, days[day], keys[infos[key]], *([single[day, infos[key]]] if cells else ())):
            count.add(*numbers)

    def buckets(*by: Any) -> Iterable[Any]:
        return session.execute(
            select(*by, UsageLatency.bucket, func.sum(UsageLatency.calls))
            .where(UsageLatency.key_id.in_(wanted), UsageLatency.day.between(when.first, when.last))
            .group_by(*by, UsageLatency.bucket)
        )

    for day, bucket, calls in buckets(UsageLatency.day):
        days[day].latency[bucket] = int(calls)
        total.latency[bucket] = total.latency.get(bucket, 0) + int(calls)
    for key, bucket, calls in buckets(UsageLatency.key_id):
        keys[infos[key]].latency[bucket] = int(calls)
    for key, day, bucket, calls in buckets(UsageLatency.key_id, UsageLatency.day) if cells else ():
        single[day, infos[key]].latency[bucket] = int(calls)
    ranked = dict(sorted(keys.items(), key=lambda pair: (-pair[1].calls, pair[0].prefix)))
    by_day = dict(sorted(single.items(), key=lambda pair: (pair[0][0], pair[0][1].prefix)))
    return Report(when, total, days, ranked, by_day)


def to_csv(report: Report) -> str:
    """One line for each key and day with calls. A cell never starts like a spreadsheet's formula."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow(COLUMNS)
    for (day, info), count in report.cells.items():
        names = (safe_cell(part) for part in (info.listing, info.prefix, info.label))
        numbers = (count.calls, count.errors, count.rejected, count.bytes_in, count.bytes_out)
        latencies = (f"{value:.2f}" if value is not None else "" for value in (count.p50, count.p95))
        writer.writerow([day.isoformat(), *names, *numbers, *latencies])
    return text.getvalue()


def safe_cell(text: str) -> str:
    """Text that no spreadsheet runs (OWASP: CSV injection).

    Example:
        >>> safe_cell('=HYPERLINK("http://x")')[:2]
        "'="
        >>> safe_cell("notebook")
        'notebook'
    """
    return (
        f"'{text}"
        if text[:1] in {"=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20"}
        else text
    )
