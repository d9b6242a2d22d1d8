"""The market's tables, shared by the app (which writes the catalogue) and the gateway (which reads it and meters).

Times are UTC. Changes go through alembic (`market/migrations`).
"""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from typing import Any, ClassVar

from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Numeric,
    String,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship
from sqlalchemy.types import TypeDecorator


class UtcDateTime(TypeDecorator[dt.datetime]):
    """A time with its zone, on SQLite (which stores none) as on PostgreSQL."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: dt.datetime | None, _dialect: Any) -> dt.datetime | None:
        """To UTC."""
        return None if value is None else value.astimezone(dt.UTC)

    def process_result_value(self, value: dt.datetime | None, _dialect: Any) -> dt.datetime | None:
        """With its zone."""
        return value if value is None or value.tzinfo else value.replace(tzinfo=dt.UTC)


class Base(DeclarativeBase):
    """Base of all tables."""

    # Names that SQLite and PostgreSQL agree on, so that a later migration can alter them.
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(column_0_label)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        dt.datetime: UtcDateTime,
        dict[str, Any]: JSON,
        int: BigInteger().with_variant(Integer, "sqlite"),
    }


class Listing(Base):
    """One API in the catalogue: `publisher/name`, with versions and plans.

    Attributes:
        search_text: what a search looks through, case-folded; kept by `store.publish`.
    """

    __tablename__ = "listings"
    __table_args__ = (UniqueConstraint("publisher", "name"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    publisher: Mapped[str] = mapped_column(String(255))
    name: Mapped[str] = mapped_column(String(64))
    search_text: Mapped[str] = mapped_column(Text)
    created_at: Mapped[dt.datetime]
    withdrawn_at: Mapped[dt.datetime | None]

    versions: Mapped[list[ListingVersion]] = relationship(
        back_populates="listing", order_by="ListingVersion.number", cascade="all, delete-orphan"
    )
    plans: Mapped[list[Plan]] = relationship(
        back_populates="listing", order_by="Plan.position", cascade="all, delete-orphan"
    )


class ListingVersion(Base):
    """What subscribers see and call; the highest number is the current one.

    Attributes:
        endpoint: the publisher's endpoint that answers, by its name; never an address.
        protocol: "oip-v2".
        model: the model's name in the protocol's paths.
        schema: the model's metadata: `{"inputs": [{name, datatype, shape}], "outputs": [...]}`.
        example: a request body that works.
        conformance: the checks that passed when it was published.
    """

    __tablename__ = "listing_versions"
    __table_args__ = (UniqueConstraint("listing_id", "number"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    listing_id: Mapped[int] = mapped_column(ForeignKey("listings.id"), index=True)
    number: Mapped[int]
    title: Mapped[str] = mapped_column(String(200))
    description: Mapped[str] = mapped_column(Text)
    endpoint: Mapped[str] = mapped_column(String(64))
    protocol: Mapped[str] = mapped_column(String(32))
    model: Mapped[str] = mapped_column(String(64))
    schema: Mapped[dict[str, Any]]
    example: Mapped[dict[str, Any]]
    conformance: Mapped[dict[str, Any]]
    created_at: Mapped[dt.datetime]

    listing: Mapped[Listing] = relationship(back_populates="versions")


class Plan(Base):
    """What a subscription allows. None is no limit.

    A row's terms never change under those who subscribed: a publisher who changes a plan retires its row for a new one.
    """

    __tablename__ = "plans"
    __table_args__ = (
        Index(
            "one_offered_plan",
            "listing_id",
            "name",
            unique=True,
            sqlite_where=text("retired_at IS NULL"),
            postgresql_where=text("retired_at IS NULL"),
        ),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    listing_id: Mapped[int] = mapped_column(ForeignKey("listings.id"), index=True)
    name: Mapped[str] = mapped_column(String(64))
    position: Mapped[int]
    calls_per_day: Mapped[int | None]
    calls_per_second: Mapped[int | None]
    concurrency: Mapped[int | None]
    price_per_1000_calls: Mapped[Decimal] = mapped_column(Numeric(12, 4))
    retired_at: Mapped[dt.datetime | None]

    listing: Mapped[Listing] = relationship(back_populates="plans")


class Subscription(Base):
    """One person's right to call a listing under a plan; cancelled and taken up again, it stays one row."""

    __tablename__ = "subscriptions"
    __table_args__ = (UniqueConstraint("listing_id", "subscriber"),)

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    listing_id: Mapped[int] = mapped_column(ForeignKey("listings.id"), index=True)
    plan_id: Mapped[int] = mapped_column(ForeignKey("plans.id"))
    subscriber: Mapped[str] = mapped_column(String(255), index=True)
    created_at: Mapped[dt.datetime]
    cancelled_at: Mapped[dt.datetime | None]

    listing: Mapped[Listing] = relationship()
    plan: Mapped[Plan] = relationship()
    keys: Mapped[list[ApiKey]] = relationship(back_populates="subscription", cascade="all, delete-orphan")


class ApiKey(Base):
    """A key's fingerprint; the key itself is shown once and stored nowhere.

    Attributes:
        prefix: its first characters, by which its owner recognises it.
        sha256: of the whole key, in hexadecimal.
    """

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    subscription_id: Mapped[str] = mapped_column(ForeignKey("subscriptions.id"), index=True)
    prefix: Mapped[str] = mapped_column(String(16))
    sha256: Mapped[str] = mapped_column(String(64), unique=True)
    label: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[dt.datetime]
    expires_at: Mapped[dt.datetime | None]
    revoked_at: Mapped[dt.datetime | None]

    subscription: Mapped[Subscription] = relationship(back_populates="keys")


class Usage(Base):
    """Calls of one key to one version on one UTC day. `calls` counts all that reached the upstream."""

    __tablename__ = "usage"
    __table_args__ = ({"sqlite_with_rowid": False},)  # kept in the key's order: read in one go

    key_id: Mapped[str] = mapped_column(ForeignKey("api_keys.id"), primary_key=True)
    version_id: Mapped[int] = mapped_column(ForeignKey("listing_versions.id"), primary_key=True)
    day: Mapped[dt.date] = mapped_column(primary_key=True)
    calls: Mapped[int]
    errors: Mapped[int]
    rejected: Mapped[int]
    bytes_in: Mapped[int]
    bytes_out: Mapped[int]


class UsageLatency(Base):
    """The same calls by latency: bucket b holds those of [1.1 ** b, 1.1 ** (b + 1)) times 0.1 ms."""

    __tablename__ = "usage_latency"
    __table_args__ = ({"sqlite_with_rowid": False},)

    key_id: Mapped[str] = mapped_column(ForeignKey("api_keys.id"), primary_key=True)
    version_id: Mapped[int] = mapped_column(ForeignKey("listing_versions.id"), primary_key=True)
    day: Mapped[dt.date] = mapped_column(primary_key=True)
    bucket: Mapped[int] = mapped_column(primary_key=True)
    calls: Mapped[int]


class UsageBatch(Base):
    """A flush of the gateway's meter that is already counted, so that a replay after a crash counts nothing twice."""

    __tablename__ = "usage_batches"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    applied_at: Mapped[dt.datetime]
