"""The market in a notebook: listings, subscriptions, usage. A key's text is never shown here: notebooks are saved."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from kpaas_lab.i18n import _
from kpaas_lab.widgets.bars import bars
from kpaas_lab.widgets.markup import Html, card, code, pill, row, soft, table, tag

if TYPE_CHECKING:
    from kpaas_lab.market.client import Count, Listing, Plan, Subscription, Usage

SHORT = 280  # characters of a description


def listing_html(listing: Listing) -> Html:
    """A card with the way to the listing's page."""
    description = str(listing.raw.get("description", ""))
    return card(
        row(
            tag("h4", listing.title),
            pill(_("version {number}").format(number=listing.version), "good"),
            pill(_("withdrawn"), "warn") if listing.raw.get("withdrawn") else None,
            soft(listing.full_name),
        ),
        tag("p", description if len(description) <= SHORT else f"{description[:SHORT]}…") if description else None,
        table(_plan_header(), map(_plan_row, listing.plans)),
        tag("p", _link(listing, _("Open it in the marketplace"))),
    )


def listings_html(listings: Iterable[Listing]) -> Html:
    """What was found, one line each."""
    rows = [
        [
            _link(listing, listing.full_name),
            listing.title if len(listing.title) <= 60 else f"{listing.title[:59]}…",
            ", ".join(plan.name for plan in listing.plans),
        ]
        for listing in listings
    ]
    if not rows:
        return card(
            tag("p", _("No listing was found.")),
            tag("p", soft(_("Search for another word, or publish the first one: lab.publish(endpoint, …)."))),
        )
    return card(table([_("listing"), _("title"), _("plans")], rows))


def subscription_html(subscription: Subscription) -> Html:
    """Plan, address, and which key is used."""
    name = subscription.listing
    key = subscription.market.keys.get(subscription.id)
    kept = (
        _("Your key {prefix}… is kept in keys.json of your home, which only you can read; predict() uses it.")
        if key
        else _("No key of it is kept here yet; the first predict() makes one.")
    )
    return card(
        row(tag("h4", name), pill(subscription.plan.name, "good"), soft(subscription.url)),
        table(_plan_header(), [_plan_row(subscription.plan)]),
        tag("p", kept.format(prefix=key.text[:12] if key else "")),
        tag("p", soft(_("A key is like a password. New keys, and the end of old ones: the marketplace's own page."))),
        code(_("In another notebook"), f'api = lab.subscriptions["{name}"]\napi.predict(inputs)'),
    )


def subscriptions_html(subscriptions: Mapping[str, Subscription]) -> Html:
    """One's own subscriptions."""
    if not subscriptions:
        hint = _("Find an API with lab.listings('word'), then lab.subscribe('publisher/name', plan='free').")
        return card(tag("p", _("No subscriptions yet.")), tag("p", soft(hint)))
    rows = [[name, *_plan_row(each.plan)] for name, each in subscriptions.items()]
    return card(table([_("listing"), *_plan_header()], rows))


def usage_html(usage: Usage) -> Html:
    """Calls by day and by key."""
    total = usage.total
    return card(
        row(
            tag("h4", _("Usage")),
            soft(f"{usage.first} – {usage.last}"),
            pill(_("{count:,} calls").format(count=total.calls), "good"),
            pill(_("{count:,} errors").format(count=total.errors), "bad") if total.errors else None,
            pill(_("{count:,} turned away").format(count=total.rejected), "warn") if total.rejected else None,
        ),
        bars([(day.of, day.calls) for day in usage.days]) if usage.days else None,
        table(_count_header(_("key")), map(_count_row, usage.keys)) if usage.keys else None,
        tag("p", soft(_("Nobody has called yet."))) if not total.calls else None,
    )


def _link(listing: Listing, text: str) -> Html:
    return tag("a", text, href=listing.page, target="_blank", rel="noopener")


def _plan_header() -> list[str]:
    return [_("plan"), _("calls a day"), _("calls a second"), _("at once"), _("price of 1,000 calls")]


def _plan_row(plan: Plan) -> list[str]:
    limits = (plan.calls_per_day, plan.calls_per_second, plan.concurrency)
    shown = [_("no limit") if limit is None else f"{limit:,}" for limit in limits]
    price = f"₩{plan.price_per_1000_calls:,g}" if plan.price_per_1000_calls else _("free of charge")
    return [plan.name, *shown, price]


def _count_header(of: str) -> list[str]:
    return [of, _("calls"), _("errors"), _("turned away"), _("median, ms"), _("95 % within, ms")]


def _count_row(count: Count) -> list[str]:
    latencies = [f"{value:g}" if value is not None else "" for value in (count.p50_ms, count.p95_ms)]
    return [count.of, f"{count.calls:,}", f"{count.errors:,}", f"{count.rejected:,}", *latencies]
