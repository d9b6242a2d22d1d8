"""The market's JSON API (ARCHITECTURE.md, "The market")."""

from __future__ import annotations

import datetime as dt
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query
from fastapi.responses import PlainTextResponse, Response
from sqlalchemy import text

from kpaas_lab import __version__
from kpaas_lab.errors import SettingsError
from kpaas_lab.i18n import _
from kpaas_lab.market import publishing, schemas, store, subscriptions, usage
from kpaas_lab.market.database import reading, writing
from kpaas_lab.market.services import Caller, Shared

ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": schemas.ErrorModel, "description": text_}
    for status, text_ in {
        400: "A value that can't be used.",
        401: "No token, or one that the hub doesn't know.",
        403: "The token may not use the market.",
        404: "There is none, or it is another's.",
        409: "It is there already, in another form.",
        413: "The request is too large.",
        422: "A field is wrong, or the endpoint doesn't conform to its protocol.",
        429: "Too many keys.",
        503: "The hub or the database doesn't answer.",
    }.items()
}
Publisher = Annotated[str, Path(min_length=1, max_length=255, examples=["ann"])]
ListingPart = Annotated[str, Path(min_length=1, max_length=255, examples=["digits"])]
Id = Annotated[str, Path(min_length=1, max_length=64, examples=["0123456789abcdef0123456789abcdef"])]

router = APIRouter(prefix="/api/v1", responses=ERRORS)


@router.get("/healthz", tags=["service"], summary="Whether the market and its database answer")
def healthz(shared: Shared) -> dict[str, str]:
    """Needs no token."""
    with reading(shared.engine) as session:
        session.execute(text("SELECT 1"))
    return {"status": "ok", "version": __version__}


@router.get("/listings", tags=["catalogue"], summary="Search the catalogue", response_model=schemas.ListingPage)
def list_listings(
    shared: Shared,
    person: Caller,
    q: Annotated[str, Query(max_length=200, description="Words; all must occur.")] = "",
    page: Annotated[int, Query(ge=1, le=1_000_000)] = 1,
    mine: Annotated[bool, Query(description="The caller's own listings, withdrawn ones included.")] = False,
) -> Any:
    """Listings, newest first, 24 a page. A page past the last is the last."""
    with reading(shared.engine) as session:
        found = store.search(session, q, page=page, publisher=person.name if mine else "")
        return schemas.ListingPage(
            items=[schemas.ListingSummary.of(listing) for listing in found.listings],
            page=found.number,
            pages=found.pages,
            total=found.total,
        )


@router.post("/listings", tags=["catalogue"], summary="Publish", status_code=201, response_model=schemas.ListingModel)
async def publish(shared: Shared, person: Caller, body: schemas.PublishBody) -> Any:
    """Examine the endpoint, then store the listing's first or next version.

    The endpoint is named, never addressed: it is looked for among the caller's own. `not_conformant` says which checks
    failed; nothing is stored then.
    """
    listing = await publishing.publish(shared, person.name, body)
    return schemas.ListingModel.full(listing, shared.settings.api_url)


@router.get(
    "/listings/{publisher}/{name}", tags=["catalogue"], summary="One listing", response_model=schemas.ListingModel
)
def get_listing(shared: Shared, person: Caller, publisher: Publisher, name: ListingPart) -> Any:
    """With its schema, an example request, plans and versions."""
    with reading(shared.engine) as session:
        listing = store.get(session, publisher, name, viewer=person.name)
        return schemas.ListingModel.full(listing, shared.settings.api_url)


@router.delete("/listings/{publisher}/{name}", tags=["catalogue"], summary="Withdraw", status_code=204)
def withdraw(shared: Shared, person: Caller, publisher: Publisher, name: ListingPart) -> Response:
    """Offer an own listing no longer. Its record, its subscriptions and their usage stay."""
    with writing(shared.engine) as session:
        store.withdraw(session, person.name, publisher, name)
    return Response(status_code=204)


@router.post(
    "/listings/{publisher}/{name}/subscriptions",
    tags=["subscriptions"],
    summary="Subscribe",
    status_code=201,
    response_model=schemas.NewSubscription,
    responses={200: {"model": schemas.NewSubscription, "description": "Subscribed already: no new key."}},
)
def subscribe(
    shared: Shared,
    person: Caller,
    publisher: Publisher,
    name: ListingPart,
    body: schemas.SubscribeBody,
    response: Response,
) -> Any:
    """A subscription and its first key, which is in this answer only.

    Asking again under the same plan changes nothing and gives no key; under another plan it is a conflict.
    """
    with writing(shared.engine) as session:
        subscription, key = subscriptions.subscribe(session, person.name, publisher, name, body.plan)
        response.status_code = 201 if key else 200
        return schemas.NewSubscription(
            subscription=schemas.SubscriptionModel.of(subscription, shared.settings.api_url),
            key=key.text if key else None,
        )


@router.get(
    "/subscriptions",
    tags=["subscriptions"],
    summary="The caller's subscriptions",
    response_model=schemas.SubscriptionList,
)
def list_subscriptions(shared: Shared, person: Caller) -> Any:
    """Active ones first; cancelled ones stay listed."""
    with reading(shared.engine) as session:
        items = [
            schemas.SubscriptionModel.of(subscription, shared.settings.api_url)
            for subscription in subscriptions.of_person(session, person.name)
        ]
    return schemas.SubscriptionList(items=items)


@router.delete("/subscriptions/{id}", tags=["subscriptions"], summary="Cancel", status_code=204)
def cancel(shared: Shared, person: Caller, id: Id) -> Response:
    """End a subscription and revoke its keys. Its usage stays."""
    with writing(shared.engine) as session:
        subscriptions.cancel(session, person.name, id)
    return Response(status_code=204)


@router.post(
    "/subscriptions/{id}/keys",
    tags=["subscriptions"],
    summary="A new key",
    status_code=201,
    response_model=schemas.NewKeyModel,
)
def add_key(shared: Shared, person: Caller, id: Id, body: schemas.KeyBody) -> Any:
    """The key is in this answer only. 20 keys may work at once."""
    with writing(shared.engine) as session:
        subscription = subscriptions.find_active(session, person.name, id)
        return schemas.NewKeyModel.of(
            subscriptions.add_key(session, subscription, label=body.label, expires_in=body.expires_in)
        )


@router.delete("/subscriptions/{id}/keys/{key_id}", tags=["subscriptions"], summary="Revoke a key", status_code=204)
def revoke_key(shared: Shared, person: Caller, id: Id, key_id: Id) -> Response:
    """Calls with it are refused from now on."""
    with writing(shared.engine) as session:
        subscriptions.revoke_key(session, person.name, id, key_id)
    return Response(status_code=204)


@router.get(
    "/usage",
    tags=["usage"],
    summary="Calls, errors and latency",
    response_model=schemas.UsageModel,
    responses={200: {"content": {"text/csv": {"schema": {"type": "string"}}}}},
)
def get_usage(
    shared: Shared,
    person: Caller,
    listing: Annotated[
        str | None,
        Query(max_length=520, description="`publisher/name`: all its calls for its publisher, else one's own."),
    ] = None,
    subscription: Annotated[str | None, Query(max_length=64, description="One of the caller's own.")] = None,
    from_: Annotated[dt.date | None, Query(alias="from", description="First UTC day; 30 days by default.")] = None,
    to: Annotated[dt.date | None, Query(description="Last UTC day; today by default.")] = None,
    format: Annotated[Literal["json", "csv"], Query()] = "json",
) -> Any:
    """By day and by key, for the publisher of a listing or for its subscriber; for nobody else."""
    report = usage_report(shared, person.name, listing, subscription, from_, to, cells=format == "csv")
    if format == "csv":
        return csv_response(report)
    return schemas.UsageModel.of(report)


def usage_report(
    shared: Shared,
    person: str,
    listing: str | None,
    subscription: str | None,
    first: dt.date | None,
    last: dt.date | None,
    *,
    cells: bool,
) -> usage.Report:
    """What this person may see."""
    when = usage.period(first, last)
    parts = None
    if listing:
        publisher, slash, name = listing.rpartition("/")
        if not (publisher and slash and name):
            raise SettingsError(
                _("'{listing}' names no listing.").format(listing=listing[:80]), hint=_("Write publisher/name.")
            )
        parts = (publisher, name)
    with reading(shared.engine) as session:
        return usage.visible(session, person, when, listing=parts, subscription_id=subscription or None, cells=cells)


def csv_response(report: usage.Report) -> Response:
    """A file to download, which a spreadsheet opens with Korean text as it is (UTF-8 with its mark)."""
    name = f"usage-{report.period.first}-{report.period.last}.csv"
    return PlainTextResponse(
        "\ufeff" + usage.to_csv(report),
        media_type="text/csv",
        headers={"Content-Disposition": f'attachment; filename="{name}"'},
    )
