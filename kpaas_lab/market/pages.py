"""The market's web pages. Forms carry a token against cross-site requests; a key is shown once and never again."""

from __future__ import annotations

import datetime as dt
from typing import Annotated

from fastapi import APIRouter, Form, Query, Request
from fastapi.responses import JSONResponse, RedirectResponse, Response

from kpaas_lab.errors import NotSubscribedError, SettingsError
from kpaas_lab.i18n import _
from kpaas_lab.market import samples, schemas, store, subscriptions
from kpaas_lab.market.api import csv_response, usage_report
from kpaas_lab.market.database import reading, writing
from kpaas_lab.market.identity import Person
from kpaas_lab.market.login import Sender, Visitor
from kpaas_lab.market.plot import by_day
from kpaas_lab.market.services import Services, Shared
from kpaas_lab.market.subscriptions import NewKey

TRY_LABEL = "try-it"
TRY_SECONDS = 600
TRY_KEPT = 3  # pages open at once that go on working when another makes a key
KEYS_SHOWN = 20  # on a usage page; its CSV has all

router = APIRouter(include_in_schema=False)


@router.get("/")
def catalogue(
    request: Request,
    shared: Shared,
    person: Visitor,
    q: Annotated[str, Query(max_length=200)] = "",
    page: Annotated[int, Query(ge=1, le=1_000_000)] = 1,
) -> Response:
    """Search, and a card for each listing."""
    with reading(shared.engine) as session:
        found = store.search(session, q, page=page)
        cards = [schemas.ListingSummary.of(listing) for listing in found.listings]
    return shared.pages.render(request, "catalogue.html", person=person, cards=cards, found=found, q=q)


@router.get("/listings/{publisher}/{name}")
def listing_page(request: Request, shared: Shared, person: Visitor, publisher: str, name: str) -> Response:
    """A listing's description, schema, example, plans, try-it form and versions."""
    with reading(shared.engine) as session:
        found = store.get(session, publisher, name, viewer=person.name)
        listing = schemas.ListingModel.full(found, shared.settings.api_url)
        subscription = subscriptions.active_on(session, person.name, found)
        plan = subscription.plan.name if subscription else None
        endpoint = store.current(found).endpoint
    first_plan = listing.plans[0].name
    return shared.pages.render(
        request,
        "listing.html",
        person=person,
        listing=listing,
        plan=plan,
        subscription_id=subscription.id if subscription else None,
        endpoint=endpoint if person.name == publisher else None,
        curl=samples.curl(listing.url, listing.model, listing.example),
        python=samples.python(listing.url, listing.model, listing.example),
        notebook=samples.notebook(publisher, name, plan or first_plan),
        long_example=len(samples.compact(listing.example)) > samples.INLINE,
        example=samples.pretty(listing.example),
        call_url=samples.infer_url(
            f"{shared.settings.browser_api_url}/{listing.publisher}/{listing.name}", listing.model
        ),
        xsrf=request.state.xsrf,
    )


@router.get("/listings/{publisher}/{name}/example.json")
def example_file(shared: Shared, person: Visitor, publisher: str, name: str) -> Response:
    """The example request, to download."""
    with reading(shared.engine) as session:
        example = store.current(store.get(session, publisher, name, viewer=person.name)).example
    return JSONResponse(example, headers={"Content-Disposition": 'attachment; filename="example.json"'})


@router.post("/listings/{publisher}/{name}/subscribe")
def subscribe(
    request: Request,
    shared: Shared,
    person: Sender,
    publisher: str,
    name: str,
    plan: Annotated[str, Form(max_length=64)],
) -> Response:
    """Subscribe, and show the key this once."""
    with writing(shared.engine) as session:
        subscription, key = subscriptions.subscribe(session, person.name, publisher, name, plan)
        shown = schemas.SubscriptionModel.of(subscription, shared.settings.api_url)
    if key is None:
        return RedirectResponse(shared.pages.link("subscriptions"), 303)
    return _show_key(request, shared, person, shown, key)


@router.post("/listings/{publisher}/{name}/try-key")
def try_key(shared: Shared, person: Sender, publisher: str, name: str) -> Response:
    """A key for the try-it form: ten minutes, kept by the page in memory only."""
    with writing(shared.engine) as session:
        listing = store.get(session, publisher, name, viewer=person.name)
        subscription = subscriptions.active_on(session, person.name, listing)
        if subscription is None:
            raise NotSubscribedError(
                _("You aren't subscribed to '{listing}'.").format(listing=f"{publisher}/{name}"),
                hint=_("Choose a plan on this page first."),
            )
        subscriptions.retire_labelled(subscription, TRY_LABEL, keep=TRY_KEPT)
        key = subscriptions.add_key(session, subscription, label=TRY_LABEL, expires_in=TRY_SECONDS)
    return JSONResponse({"key": key.text, "expires_in": TRY_SECONDS})


@router.get("/mine")
def mine(
    request: Request, shared: Shared, person: Visitor, page: Annotated[int, Query(ge=1, le=1_000_000)] = 1
) -> Response:
    """A publisher's own listings."""
    with reading(shared.engine) as session:
        found = store.search(session, page=page, publisher=person.name)
        counts = subscriptions.counts(session, person.name)
        rows = [(schemas.ListingSummary.of(listing), counts.get(listing.id, 0)) for listing in found.listings]
    return shared.pages.render(request, "mine.html", person=person, rows=rows, found=found, xsrf=request.state.xsrf)


@router.post("/listings/{publisher}/{name}/withdraw")
def withdraw(shared: Shared, person: Sender, publisher: str, name: str) -> Response:
    """Offer an own listing no longer."""
    with writing(shared.engine) as session:
        store.withdraw(session, person.name, publisher, name)
    return RedirectResponse(shared.pages.link("mine"), 303)


@router.get("/subscriptions")
def my_subscriptions(request: Request, shared: Shared, person: Visitor) -> Response:
    """A subscriber's subscriptions and their keys."""
    with reading(shared.engine) as session:
        items = [
            schemas.SubscriptionModel.of(each, shared.settings.api_url)
            for each in subscriptions.of_person(session, person.name)
        ]
        used = subscriptions.last_used(session, person.name)
    time = store.now()
    hidden = [
        key.id
        for item in items
        for key in item.keys
        if key.label == TRY_LABEL and not subscriptions.is_active(key, time)
    ]  # they come and go with each use of the form
    return shared.pages.render(
        request,
        "subscriptions.html",
        person=person,
        items=items,
        used=used,
        hidden=hidden,
        works=lambda key: subscriptions.is_active(key, time),
        xsrf=request.state.xsrf,
    )


@router.post("/subscriptions/{id}/cancel")
def cancel(shared: Shared, person: Sender, id: str) -> Response:
    """End a subscription and its keys."""
    with writing(shared.engine) as session:
        subscriptions.cancel(session, person.name, id)
    return RedirectResponse(shared.pages.link("subscriptions"), 303)


@router.post("/subscriptions/{id}/keys")
def add_key(
    request: Request, shared: Shared, person: Sender, id: str, label: Annotated[str, Form(max_length=64)] = ""
) -> Response:
    """One more key, shown this once."""
    body = schemas.KeyBody(label=" ".join(label.split()) or _("key"))
    with writing(shared.engine) as session:
        subscription = subscriptions.find_active(session, person.name, id)
        key = subscriptions.add_key(session, subscription, label=body.label)
        shown = schemas.SubscriptionModel.of(subscription, shared.settings.api_url)
    return _show_key(request, shared, person, shown, key)


@router.post("/subscriptions/{id}/keys/{key_id}/rotate")
def rotate_key(request: Request, shared: Shared, person: Sender, id: str, key_id: str) -> Response:
    """A new key for an old one, shown this once."""
    with writing(shared.engine) as session:
        key = subscriptions.rotate_key(session, person.name, id, key_id)
        shown = schemas.SubscriptionModel.of(subscriptions.find(session, person.name, id), shared.settings.api_url)
    return _show_key(request, shared, person, shown, key)


@router.post("/subscriptions/{id}/keys/{key_id}/revoke")
def revoke_key(shared: Shared, person: Sender, id: str, key_id: str) -> Response:
    """End a key."""
    with writing(shared.engine) as session:
        subscriptions.revoke_key(session, person.name, id, key_id)
    return RedirectResponse(shared.pages.link("subscriptions"), 303)


@router.get("/usage")
def usage_page(
    request: Request,
    shared: Shared,
    person: Visitor,
    listing: Annotated[str, Query(max_length=520)] = "",
    subscription: Annotated[str, Query(max_length=64)] = "",
    from_: Annotated[str, Query(alias="from", max_length=10)] = "",
    to: Annotated[str, Query(max_length=10)] = "",
    format: Annotated[str, Query(pattern="^(html|csv)$")] = "html",
) -> Response:
    """Calls, errors and latency: a plot by day, a table by key, CSV."""
    report = usage_report(shared, person.name, listing, subscription, _date(from_), _date(to), cells=format == "csv")
    if format == "csv":
        return csv_response(report)
    with reading(shared.engine) as session:
        published = [f"{each.publisher}/{each.name}" for each in store.search(session, publisher=person.name).listings]
        subscribed = [
            (each.id, f"{each.listing.publisher}/{each.listing.name}")
            for each in subscriptions.of_person(session, person.name)
        ]
    return shared.pages.render(
        request,
        "usage.html",
        person=person,
        report=report,
        plot=by_day(report.days),
        keys=list(report.keys.items())[:KEYS_SHOWN],
        keys_shown=KEYS_SHOWN,
        published=published,
        subscribed=subscribed,
        listing=listing,
        subscription=subscription,
        as_publisher=listing in published,
    )


def _show_key(
    request: Request, shared: Services, person: Person, subscription: schemas.SubscriptionModel, key: NewKey
) -> Response:
    response: Response = shared.pages.render(request, "key.html", person=person, subscription=subscription, key=key)
    return response


def _date(text: str) -> dt.date | None:
    try:
        return dt.date.fromisoformat(text) if text else None
    except ValueError:
        raise SettingsError(_("{text!r} is no date.").format(text=text), hint=_("Write it as 2026-01-31.")) from None
