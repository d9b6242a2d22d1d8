"""What the market's JSON API takes and gives."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainSerializer, field_validator

from kpaas_lab.i18n import _
from kpaas_lab.market import store, subscriptions, usage
from kpaas_lab.market.models import ApiKey, Listing, ListingVersion, Plan, Subscription
from kpaas_lab.workloads import NAME

MAX_LIMIT = 1_000_000_000


def _printable(text: str) -> str:
    """No control character: a database refuses NUL, and a terminal obeys the others."""
    if any((ord(char) < 32 and char not in "\n\t") or ord(char) == 127 for char in text):
        raise ValueError(_("control characters are not allowed"))
    return text


def _one_line(text: str) -> str:
    text = " ".join(_printable(text).split())
    if not text:
        raise ValueError(_("empty"))
    return text


Line = Annotated[str, AfterValidator(_one_line)]
Text = Annotated[str, AfterValidator(_printable)]
Limit = Annotated[int | None, Field(ge=1, le=MAX_LIMIT)]
Price = Annotated[
    Decimal,
    Field(ge=0, max_digits=12, decimal_places=4),
    PlainSerializer(float, return_type=float, when_used="json"),
]
Name = Annotated[str, Field(pattern=f"^{NAME.pattern}$", max_length=53, examples=["digits"])]


class Body(BaseModel):
    """A request's body: a field that isn't known is an error, not a surprise later."""

    model_config = ConfigDict(extra="forbid")


class PlanModel(Body):
    """What a subscription allows. null is no limit; the price is in Korean won."""

    name: Line = Field(max_length=64, examples=["free"])
    calls_per_day: Limit = Field(default=None, examples=[1000])
    calls_per_second: Limit = Field(default=None, examples=[10])
    concurrency: Limit = Field(default=None, examples=[4])
    price_per_1000_calls: Price = Field(default=Decimal(0), examples=[0])

    @classmethod
    def of(cls, plan: Plan) -> Self:
        """From the database."""
        return cls.model_validate(store.terms_of(plan), from_attributes=True)

    def terms(self) -> store.PlanTerms:
        """For the store."""
        return store.PlanTerms(**self.model_dump())


class PublishBody(Body):
    """A listing to publish. The endpoint is a name of the caller's own endpoints; the market finds it itself."""

    name: Name
    title: Line = Field(max_length=200, examples=["Handwritten digits"])
    description: Text = Field(default="", max_length=20_000, examples=["Reads a digit of 8 x 8 pixels."])
    endpoint: Name
    protocol: str = Field(default="oip-v2", pattern="^oip-v2$", examples=["oip-v2"])
    model: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$",
        description="The model's name in the protocol's paths; the endpoint's name where it is left out.",
    )
    schema_: dict[str, Any] | None = Field(
        default=None,
        alias="schema",
        description="The declared inputs and outputs. The endpoint must serve exactly these; left out, the served ones "
        "are taken.",
        examples=[{"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 64]}]}],
    )
    example: dict[str, Any] | None = Field(
        default=None, description="A request that works, shown to subscribers; left out, the endpoint's own is taken."
    )
    plans: list[PlanModel] = Field(min_length=1, max_length=10)

    @field_validator("plans")
    @classmethod
    def _names_differ(cls, plans: list[PlanModel]) -> list[PlanModel]:
        if len({plan.name for plan in plans}) < len(plans):
            raise ValueError(_("two plans have the same name"))
        return plans


class SubscribeBody(Body):
    """Which plan."""

    plan: Line = Field(max_length=64, examples=["free"])


class KeyBody(Body):
    """A new key."""

    label: Line = Field(default="key", max_length=64, examples=["notebook"])
    expires_in: int | None = Field(
        default=None, ge=60, le=366 * 86400, description="Seconds; null is until it is revoked.", examples=[86400]
    )


class ListingSummary(BaseModel):
    """A listing as the catalogue shows it."""

    publisher: str
    name: str
    title: str
    description: str
    version: int
    created_at: dt.datetime
    withdrawn: bool
    plans: list[PlanModel]

    @classmethod
    def of(cls, listing: Listing) -> Self:
        """From the database."""
        return cls(**_summary(listing))


class VersionModel(BaseModel):
    """One version of a listing."""

    number: int
    title: str
    created_at: dt.datetime
    checks: list[str] = Field(description="The checks that its endpoint passed.")


class ListingModel(ListingSummary):
    """A listing with all that a caller needs."""

    url: str = Field(description="Its address at the gateway; `/v2/...` follows.")
    protocol: str
    model: str
    schema_: dict[str, Any] = Field(alias="schema", serialization_alias="schema")
    example: dict[str, Any]
    versions: list[VersionModel]

    @classmethod
    def full(cls, listing: Listing, api_url: str) -> Self:
        """From the database."""
        version = store.current(listing)
        return cls(
            **_summary(listing),
            url=listing_url(api_url, listing),
            protocol=version.protocol,
            model=version.model,
            schema=version.schema,
            example=version.example,
            versions=[_version(each) for each in reversed(listing.versions)],
        )


class ListingPage(BaseModel):
    """A page of the catalogue, newest first."""

    items: list[ListingSummary]
    page: int
    pages: int
    total: int


class KeyModel(BaseModel):
    """A key as its owner sees it: never its text."""

    id: str
    prefix: str = Field(examples=["kpl_Zk3v0qRt"])
    label: str
    created_at: dt.datetime
    expires_at: dt.datetime | None
    revoked_at: dt.datetime | None

    @classmethod
    def of(cls, key: ApiKey) -> Self:
        """From the database."""
        return cls.model_validate(key, from_attributes=True)


class ListingName(BaseModel):
    """Which listing."""

    publisher: str
    name: str
    title: str
    withdrawn: bool


class SubscriptionModel(BaseModel):
    """A person's right to call a listing."""

    id: str
    listing: ListingName
    plan: PlanModel
    url: str
    model: str
    created_at: dt.datetime
    cancelled_at: dt.datetime | None
    keys: list[KeyModel]

    @classmethod
    def of(cls, subscription: Subscription, api_url: str) -> Self:
        """From the database."""
        listing = subscription.listing
        version = store.current(listing)
        return cls(
            id=subscription.id,
            listing=ListingName(
                publisher=listing.publisher,
                name=listing.name,
                title=version.title,
                withdrawn=listing.withdrawn_at is not None,
            ),
            plan=PlanModel.of(subscription.plan),
            url=listing_url(api_url, listing),
            model=version.model,
            created_at=subscription.created_at,
            cancelled_at=subscription.cancelled_at,
            keys=[KeyModel.of(key) for key in sorted(subscription.keys, key=lambda key: key.created_at)],
        )


class SubscriptionList(BaseModel):
    """All of a person's subscriptions, active ones first."""

    items: list[SubscriptionModel]


class NewSubscription(BaseModel):
    """A subscription with its first key."""

    subscription: SubscriptionModel
    key: str | None = Field(
        description="The key, in this answer only; null where the subscription was there already.",
        examples=["kpl_" + "x" * 43],
    )


class NewKeyModel(BaseModel):
    """A new key: its text is in this answer only."""

    id: str
    prefix: str
    key: str = Field(examples=["kpl_" + "x" * 43])
    expires_at: dt.datetime | None

    @classmethod
    def of(cls, new: subscriptions.NewKey) -> Self:
        """From the store."""
        return cls(id=new.record.id, prefix=new.record.prefix, key=new.text, expires_at=new.record.expires_at)


class CountModel(BaseModel):
    """A sum of calls. `rejected` were turned away before they reached the endpoint; latencies are in ms."""

    calls: int
    errors: int
    rejected: int
    bytes_in: int
    bytes_out: int
    p50_ms: float | None
    p95_ms: float | None


class DayCount(CountModel):
    """Of one UTC day."""

    day: dt.date


class KeyCount(CountModel):
    """Of one key."""

    listing: str
    key: str = Field(description="The key's prefix.")
    label: str


class UsageModel(BaseModel):
    """Usage of a period: in all, by day, by key."""

    from_: dt.date = Field(alias="from", serialization_alias="from")
    to: dt.date
    total: CountModel
    days: list[DayCount]
    keys: list[KeyCount]

    @classmethod
    def of(cls, report: usage.Report) -> Self:
        """From the sums."""
        return cls(
            **{"from": report.period.first},
            to=report.period.last,
            total=CountModel(**_count(report.total)),
            days=[DayCount(day=day, **_count(count)) for day, count in report.days.items()],
            keys=[
                KeyCount(listing=info.listing, key=info.prefix, label=info.label, **_count(count))
                for info, count in report.keys.items()
            ],
        )


class ErrorDetail(BaseModel):
    """What went wrong, in the caller's language."""

    code: str = Field(examples=["not_found"])
    message: str
    hint: str
    failures: list[str] | None = Field(default=None, description="Of `not_conformant`: what failed.")


class ErrorModel(BaseModel):
    """Every error's shape."""

    error: ErrorDetail


def listing_url(api_url: str, listing: Listing) -> str:
    """The listing's address at the gateway."""
    return f"{api_url}/{listing.publisher}/{listing.name}"


def _summary(listing: Listing) -> dict[str, Any]:
    version = store.current(listing)
    return {
        "publisher": listing.publisher,
        "name": listing.name,
        "title": version.title,
        "description": version.description,
        "version": version.number,
        "created_at": version.created_at,
        "withdrawn": listing.withdrawn_at is not None,
        "plans": [PlanModel.of(plan) for plan in store.offered_plans(listing)],
    }


def _version(version: ListingVersion) -> VersionModel:
    return VersionModel(
        number=version.number,
        title=version.title,
        created_at=version.created_at,
        checks=[str(name) for name in version.conformance.get("passed", [])],
    )


def _count(count: usage.Count) -> dict[str, Any]:
    def rounded(value: float | None) -> float | None:
        return None if value is None else round(value, 2)

    return {
        "calls": count.calls,
        "errors": count.errors,
        "rejected": count.rejected,
        "bytes_in": count.bytes_in,
        "bytes_out": count.bytes_out,
        "p50_ms": rounded(count.p50),
        "p95_ms": rounded(count.p95),
    }
