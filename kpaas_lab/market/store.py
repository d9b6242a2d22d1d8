"""The catalogue: publish, withdraw, find. Functions over a session; the caller opens and commits it."""

from __future__ import annotations

import datetime as dt
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from sqlalchemy import Select, func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, selectinload

from kpaas_lab.errors import AlreadyExistsError, NotAuthorizedError, NotFoundError
from kpaas_lab.i18n import _
from kpaas_lab.market.models import Listing, ListingVersion, Plan

PAGE_SIZE = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanTerms:
    """What a plan allows; None is no limit. The price is in Korean won."""

    name: str
    calls_per_day: int | None = None
    calls_per_second: int | None = None
    concurrency: int | None = None
    price_per_1000_calls: Decimal = Decimal(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A version to publish; `schema`, `example` and `conformance` are what the check of the endpoint found."""

    title: str
    description: str
    endpoint: str
    protocol: str
    model: str
    schema: Mapping[str, Any]
    example: Mapping[str, Any]
    conformance: Mapping[str, Any]
    plans: Sequence[PlanTerms]


@dataclass(frozen=True, slots=True)
class Page:
    """A page of listings, newest first. `number` counts from 1."""

    listings: Sequence[Listing]
    number: int
    pages: int
    total: int


def now() -> dt.datetime:
    """The time, UTC."""
    return dt.datetime.now(dt.UTC)


def publish(session: Session, publisher: str, name: str, draft: Draft) -> Listing:
    """The listing's first version, or its next one; a withdrawn listing is offered again.

    Raises:
        AlreadyExistsError: the same listing is being published at this moment.
    """
    time = now()
    statement = _loaded(select(Listing).where(Listing.publisher == publisher, Listing.name == name)).with_for_update()
    listing = session.scalars(statement).one_or_none()
    if listing is None:
        listing = Listing(publisher=publisher, name=name, search_text="", created_at=time)
        session.add(listing)
    listing.withdrawn_at = None
    listing.search_text = folded(" ".join((draft.title, name, publisher, draft.description)))
    listing.versions.append(
        ListingVersion(
            number=1 + max((version.number for version in listing.versions), default=0),
            title=draft.title,
            description=draft.description,
            endpoint=draft.endpoint,
            protocol=draft.protocol,
            model=draft.model,
            schema=dict(draft.schema),
            example=dict(draft.example),
            conformance=dict(draft.conformance),
            created_at=time,
        )
    )
    try:
        _offer(session, listing, draft.plans, time)
        session.flush()
    except IntegrityError:
        raise AlreadyExistsError(
            _("'{publisher}/{name}' is being published by another session.").format(publisher=publisher, name=name),
            hint=_("Look at the listing, then publish again."),
        ) from None
    return listing


def _offer(session: Session, listing: Listing, plans: Sequence[PlanTerms], time: dt.datetime) -> None:
    """Exactly these plans from now on. A plan with other terms is another row: subscribers keep what they agreed to."""
    offered = {plan.name: plan for plan in listing.plans if plan.retired_at is None}
    kept = set()
    for position, terms in enumerate(plans):
        plan = offered.get(terms.name)
        if plan is not None and terms_of(plan) == terms:
            plan.position = position
            kept.add(plan.name)
    for plan in offered.values():
        if plan.name not in kept:
            plan.retired_at = time
    session.flush()  # a name is free for its new row only once the old row is retired
    for position, terms in enumerate(plans):
        if terms.name not in kept:
            listing.plans.append(
                Plan(
                    name=terms.name,
                    position=position,
                    calls_per_day=terms.calls_per_day,
                    calls_per_second=terms.calls_per_second,
                    concurrency=terms.concurrency,
                    price_per_1000_calls=terms.price_per_1000_calls,
                )
            )


def terms_of(plan: Plan) -> PlanTerms:
    """A plan's terms, as a value."""
    return PlanTerms(
        name=plan.name,
        calls_per_day=plan.calls_per_day,
        calls_per_second=plan.calls_per_second,
        concurrency=plan.concurrency,
        price_per_1000_calls=plan.price_per_1000_calls,
    )


def offered_plans(listing: Listing) -> list[Plan]:
    """The plans that can be subscribed to now, in the publisher's order."""
    return sorted((plan for plan in listing.plans if plan.retired_at is None), key=lambda plan: plan.position)


def current(listing: Listing) -> ListingVersion:
    """The version that is called now."""
    return listing.versions[-1]


def withdraw(session: Session, person: str, publisher: str, name: str) -> Listing:
    """Offer an own listing no longer; its record, subscriptions and usage stay. Idempotent.

    Raises:
        NotFoundError: there is no such listing.
        NotAuthorizedError: it is another's.
    """
    listing = get(session, publisher, name, viewer=person)
    if publisher != person:
        raise NotAuthorizedError(
            _("Only '{publisher}' may withdraw '{publisher}/{name}'.").format(publisher=publisher, name=name)
        )
    listing.withdrawn_at = listing.withdrawn_at or now()
    return listing


def get(session: Session, publisher: str, name: str, *, viewer: str = "") -> Listing:
    """One listing. A withdrawn one is shown to its publisher only.

    Raises:
        NotFoundError: there is none.
    """
    listing = session.scalars(
        _loaded(select(Listing).where(Listing.publisher == publisher, Listing.name == name))
    ).one_or_none()
    if listing is None or (listing.withdrawn_at is not None and viewer != publisher):
        shown = f"{publisher}/{name}"
        raise NotFoundError(
            _("No listing '{name}'.").format(name=shown if len(shown) <= 80 else f"{shown[:80]}…"),
            hint=_("Look for it in the catalogue; it may have been withdrawn."),
        )
    return listing


def search(session: Session, query: str = "", *, page: int = 1, publisher: str = "") -> Page:
    """A page of what is offered, newest first; of one publisher's own with `publisher`, withdrawn ones included.

    Every word of the query must stand in the title, name, publisher or description, in either case.
    """
    statement = select(Listing)
    if publisher:
        statement = statement.where(Listing.publisher == publisher)
    else:
        statement = statement.where(Listing.withdrawn_at.is_(None))
    for word in folded(query).split():
        statement = statement.where(Listing.search_text.contains(word, autoescape=True))
    total = session.scalar(select(func.count()).select_from(statement.subquery())) or 0
    pages = max(1, -(-total // PAGE_SIZE))
    number = min(max(page, 1), pages)
    newest = statement.order_by(Listing.created_at.desc(), Listing.id.desc())
    found = session.scalars(_loaded(newest.limit(PAGE_SIZE).offset((number - 1) * PAGE_SIZE))).all()
    return Page(found, number, pages, total)


def folded(text: str) -> str:
    """Text as it is searched: composed (macOS types Korean decomposed) and without case.

    Example:
        >>> folded("Ｄigits 한글") == "digits 한글"
        True
    """
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())


def _loaded(statement: Select[Listing]) -> Select[Listing]:
    return statement.options(selectinload(Listing.versions), selectinload(Listing.plans))
