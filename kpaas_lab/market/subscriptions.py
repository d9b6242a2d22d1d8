"""Subscriptions and their keys. Functions over a session; the caller opens and commits it.

Whatever belongs to another person is reported as not found: an id tells nothing.
"""

from __future__ import annotations

import datetime as dt
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, selectinload

from kpaas_lab.errors import AlreadyExistsError, NotFoundError, QuotaExceededError, SettingsError
from kpaas_lab.i18n import _
from kpaas_lab.market.keys import new_key
from kpaas_lab.market.models import ApiKey, Listing, Plan, Subscription, Usage
from kpaas_lab.market.store import get, now, offered_plans

MAX_ACTIVE_KEYS = 20  # of one subscription


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key's record and, this once, its text."""

    record: ApiKey
    text: str

    def __repr__(self) -> str:
        return f"NewKey({self.record.prefix}…)"


def subscribe(
    session: Session, subscriber: str, publisher: str, name: str, plan: str
) -> tuple[Subscription, NewKey | None]:
    """The person's subscription of a listing, with its first key where it is new.

    Asking again for the plan one has changes nothing and gives no key. Who comes back after a cancellation gets the
    same subscription: its usage goes on, and so does the day's quota.

    Raises:
        NotFoundError: no such listing.
        SettingsError: no such plan.
        AlreadyExistsError: subscribed already under another plan.
    """
    listing = get(session, publisher, name)
    chosen = _plan(listing, plan)
    existing = session.scalars(
        select(Subscription)
        .where(Subscription.listing_id == listing.id, Subscription.subscriber == subscriber)
        .with_for_update()
    ).one_or_none()
    if existing is not None and existing.cancelled_at is None:
        if existing.plan.name != plan:
            raise AlreadyExistsError(
                _("You are subscribed to '{listing}' already, under the plan '{plan}'.").format(
                    listing=f"{publisher}/{name}", plan=existing.plan.name
                ),
                hint=_("Use that subscription, or cancel it and subscribe again."),
            )
        return existing, None
    if existing is None:
        existing = Subscription(id=secrets.token_hex(16), listing=listing, subscriber=subscriber, created_at=now())
        session.add(existing)
    existing.cancelled_at = None
    existing.plan = chosen
    try:
        session.flush()
    except IntegrityError:
        raise AlreadyExistsError(
            _("You are subscribing to '{listing}' from another page at this moment.").format(
                listing=f"{publisher}/{name}"
            ),
            hint=_("Look at your subscriptions."),
        ) from None
    return existing, add_key(session, existing, label=_("first key"))


def _plan(listing: Listing, name: str) -> Plan:
    offered = offered_plans(listing)
    plan = next((plan for plan in offered if plan.name == name), None)
    if plan is None:
        raise SettingsError(
            _("'{listing}' has no plan '{plan}'.").format(
                listing=f"{listing.publisher}/{listing.name}", plan=name if len(name) <= 64 else f"{name[:64]}…"
            ),
            hint=_("Plans: {plans}.").format(plans=", ".join(plan.name for plan in offered)),
        )
    return plan


def find(session: Session, subscriber: str, subscription_id: str) -> Subscription:
    """One of this person's subscriptions, cancelled or not.

    Raises:
        NotFoundError: there is none, or it is another's.
    """
    found = session.scalars(
        select(Subscription)
        .where(Subscription.id == subscription_id, Subscription.subscriber == subscriber)
        .options(selectinload(Subscription.keys), selectinload(Subscription.plan))
    ).one_or_none()
    if found is None:
        raise NotFoundError(_("No such subscription of yours."), hint=_("Look at your subscriptions for their ids."))
    return found


def find_active(session: Session, subscriber: str, subscription_id: str) -> Subscription:
    """As `find`, and an error where it is cancelled."""
    found = find(session, subscriber, subscription_id)
    if found.cancelled_at is not None:
        raise SettingsError(
            _("This subscription was cancelled."), hint=_("Subscribe to the listing again: its usage goes on.")
        )
    return found


def of_person(session: Session, subscriber: str) -> Sequence[Subscription]:
    """All of a person's subscriptions: active ones first, newest first."""
    return session.scalars(
        select(Subscription)
        .where(Subscription.subscriber == subscriber)
        .order_by(Subscription.cancelled_at.is_not(None), Subscription.created_at.desc())
        .options(
            selectinload(Subscription.keys),
            selectinload(Subscription.plan),
            selectinload(Subscription.listing).selectinload(Listing.versions),
        )
    ).all()


def active_on(session: Session, subscriber: str, listing: Listing) -> Subscription | None:
    """The person's active subscription of a listing, if any."""
    return session.scalars(
        select(Subscription).where(
            Subscription.listing_id == listing.id,
            Subscription.subscriber == subscriber,
            Subscription.cancelled_at.is_(None),
        )
    ).one_or_none()


def cancel(session: Session, subscriber: str, subscription_id: str) -> Subscription:
    """End it and revoke its keys; its usage stays. Idempotent."""
    subscription = find(session, subscriber, subscription_id)
    time = now()
    subscription.cancelled_at = subscription.cancelled_at or time
    for key in subscription.keys:
        key.revoked_at = key.revoked_at or time
    return subscription


def add_key(session: Session, subscription: Subscription, *, label: str, expires_in: int | None = None) -> NewKey:
    """One more key of an active subscription.

    Args:
        session: a writing one.
        subscription: whose key.
        label: for its owner.
        expires_in: seconds, None for a key that lasts.

    Raises:
        QuotaExceededError: the subscription has 20 keys that work.
    """
    time = now()
    if sum(is_active(key, time) for key in subscription.keys) >= MAX_ACTIVE_KEYS:
        raise QuotaExceededError(
            _("This subscription has {count} keys that work already.").format(count=MAX_ACTIVE_KEYS),
            hint=_("Revoke one that is no longer used."),
        )
    key = new_key()
    record = ApiKey(
        id=secrets.token_hex(16),
        prefix=key.prefix,
        sha256=key.sha256,
        label=label,
        created_at=time,
        expires_at=None if expires_in is None else time + dt.timedelta(seconds=expires_in),
    )
    subscription.keys.append(record)
    session.flush()
    return NewKey(record, key.text)


def revoke_key(session: Session, subscriber: str, subscription_id: str, key_id: str) -> ApiKey:
    """End a key. Idempotent.

    Raises:
        NotFoundError: no such key of this person's subscription.
    """
    subscription = find(session, subscriber, subscription_id)
    key = next((key for key in subscription.keys if key.id == key_id), None)
    if key is None:
        raise NotFoundError(_("No such key of this subscription."), hint=_("Look at your subscriptions for its keys."))
    key.revoked_at = key.revoked_at or now()
    return key


def rotate_key(session: Session, subscriber: str, subscription_id: str, key_id: str) -> NewKey:
    """A new key under the same label; the old one ends in the same transaction."""
    subscription = find_active(session, subscriber, subscription_id)
    old = revoke_key(session, subscriber, subscription_id, key_id)
    return add_key(session, subscription, label=old.label)


def retire_labelled(subscription: Subscription, label: str, *, keep: int) -> None:
    """Revoke the oldest keys of a label that still work, so that only some are left."""
    time = now()
    working = [key for key in subscription.keys if key.label == label and is_active(key, time)]
    for key in sorted(working, key=lambda key: key.created_at)[: max(len(working) - keep, 0)]:
        key.revoked_at = time


class Expiring(Protocol):
    """A key, as the database or the API has it."""

    revoked_at: Any
    expires_at: Any


def is_active(key: Expiring, time: dt.datetime) -> bool:
    """Whether a key works at a time."""
    return key.revoked_at is None and (key.expires_at is None or bool(key.expires_at > time))


def last_used(session: Session, subscriber: str) -> Mapping[str, dt.date]:
    """By key id, the last UTC day on which it was used."""
    rows = session.execute(
        select(Usage.key_id, func.max(Usage.day))
        .join(ApiKey, ApiKey.id == Usage.key_id)
        .join(Subscription, Subscription.id == ApiKey.subscription_id)
        .where(Subscription.subscriber == subscriber)
        .group_by(Usage.key_id)
    )
    return dict(rows.tuples().all())


def counts(session: Session, publisher: str) -> Mapping[int, int]:
    """By listing id, how many active subscriptions a publisher's listings have."""
    rows = session.execute(
        select(Subscription.listing_id, func.count())
        .join(Listing, Listing.id == Subscription.listing_id)
        .where(Listing.publisher == publisher, Subscription.cancelled_at.is_(None))
        .group_by(Subscription.listing_id)
    )
    return dict(rows.tuples().all())
