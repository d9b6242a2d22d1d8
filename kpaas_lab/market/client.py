"""What a notebook calls: publish, find, subscribe, predict, usage. Needs no database and no server library."""

from __future__ import annotations

import datetime as dt
import functools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

from kpaas_lab.errors import EngineUnavailableError, ModelError, SettingsError
from kpaas_lab.i18n import _, language
from kpaas_lab.market.calls import error_of, predict
from kpaas_lab.market.keystore import KeyStore, StoredKey

TIMEOUT = httpx.Timeout(60.0, connect=5.0)  # publishing waits for the checks of the endpoint


@dataclass(frozen=True, slots=True)
class Plan:
    """What a subscription allows. None is no limit; the price is in Korean won.

    Example:
        >>> Plan("free", calls_per_day=1000)
        Plan('free', 1,000 calls a day, free of charge)
    """

    name: str
    calls_per_day: int | None = field(default=None, kw_only=True)
    calls_per_second: int | None = field(default=None, kw_only=True)
    concurrency: int | None = field(default=None, kw_only=True)
    price_per_1000_calls: float | Decimal = field(default=0, kw_only=True)

    def __repr__(self) -> str:
        limits = {
            _("{count} calls a day"): self.calls_per_day,
            _("{count} calls a second"): self.calls_per_second,
            _("{count} calls at once"): self.concurrency,
        }
        words = [text.format(count=f"{limit:,}") for text, limit in limits.items() if limit is not None]
        price = f"₩{self.price_per_1000_calls:,}"
        words.append(
            _("{price} for 1,000 calls").format(price=price) if self.price_per_1000_calls else _("free of charge")
        )
        return f"Plan({self.name!r}, {', '.join(words)})"

    def to_json(self) -> dict[str, Any]:
        """As the market takes it."""
        return {**asdict(self), "price_per_1000_calls": float(self.price_per_1000_calls)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """Calls of a day, of a key, or in all; latencies in ms. `of` is the day or the key's prefix."""

    of: str
    calls: int
    errors: int
    rejected: int
    p50_ms: float | None
    p95_ms: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Usage of a period, both days included."""

    first: dt.date
    last: dt.date
    total: Count
    days: Sequence[Count]
    keys: Sequence[Count]

    def __repr__(self) -> str:
        total = self.total
        words = _("{calls:,} calls, {errors:,} errors, {rejected:,} turned away, p50 {p50} ms, p95 {p95} ms").format(
            calls=total.calls, errors=total.errors, rejected=total.rejected, p50=total.p50_ms, p95=total.p95_ms
        )
        return f"Usage({self.first} – {self.last}: {words})"


@dataclass(frozen=True, slots=True)
class Listing:
    """An API in the catalogue.

    Attributes:
        publisher, name: together its address in the market, see `full_name`.
        page: where it is shown in a browser.
        raw: all that the market says of it.
    """

    raw: Mapping[str, Any] = field(repr=False)
    publisher: str
    name: str
    title: str
    version: int
    page: str
    market: Market = field(repr=False, compare=False)

    @property
    def full_name(self) -> str:
        """`publisher/name`."""
        return f"{self.publisher}/{self.name}"

    @property
    def plans(self) -> list[Plan]:
        """What can be subscribed to."""
        return [_plan(plan) for plan in self.raw["plans"]]

    def subscribe(self, *, plan: str) -> Subscription:
        """See Market.subscribe."""
        return self.market.subscribe(self.full_name, plan=plan)

    def usage(self, *, first: dt.date | None = None, last: dt.date | None = None) -> Usage:
        """Of all its subscribers for its publisher, else one's own."""
        return self.market.usage(listing=self.full_name, first=first, last=last)

    def withdraw(self) -> None:
        """Offer it no longer (its publisher only)."""
        self.market.request("DELETE", f"/listings/{_path(self.full_name)}")


@dataclass(frozen=True, slots=True)
class Subscription:
    """The right to call a listing, with a key in one's own store.

    Attributes:
        listing: `publisher/name`.
        url: the listing's address at the gateway.
    """

    raw: Mapping[str, Any] = field(repr=False)
    id: str
    listing: str
    plan: Plan
    url: str
    market: Market = field(repr=False, compare=False)

    @property
    def key_prefix(self) -> str:
        """The beginning of the key that this notebook uses."""
        return self.market.key_of(self).text[:12]

    def predict(self, data: Any, *, output: str | None = None, timeout: float = 60.0) -> Any:
        """Call the API.

        Args:
            data: an array (or tensor, or list) of rows for an API of one input, or a dict by input name. One row
                without its batch dimension is answered by one row.
            output: of several outputs only this one.
            timeout: seconds.

        Returns:
            An array where there is one output, else a dict of arrays by name.

        Raises:
            QuotaExceededError: over the plan; `retry_after` says how long to wait.
            NotSubscribedError: the subscription was cancelled. NotAuthorizedError: the key was revoked.
            ModelError: an input of a wrong shape or type.
        """
        known = self.market.schema(self.listing)
        try:
            return self._call(known, data, output, timeout)
        except ModelError:
            newest = self.market.schema(self.listing, again=True)  # it may be another version by now
            if newest["version"] == known["version"]:
                raise
            return self._call(newest, data, output, timeout)

    def _call(self, listing: Mapping[str, Any], data: Any, output: str | None, timeout: float) -> Any:
        key = self.market.key_of(self).text
        return predict(self.market.http, self.url, listing, key, data, output=output, timeout=timeout)

    def usage(self, *, first: dt.date | None = None, last: dt.date | None = None) -> Usage:
        """Its calls; the last 30 days by default."""
        return self.market.usage(subscription=self.id, first=first, last=last)

    def rotate(self) -> Subscription:
        """Replace this notebook's key: the new one is kept before the old one ends."""
        old = self.market.key_of(self).text
        self.market.new_key(self)
        for key in self.raw["keys"]:
            if old.startswith(key["prefix"]):
                self.market.request("DELETE", f"/subscriptions/{self.id}/keys/{key['id']}")
        return self.market.subscription(self.id)

    def cancel(self) -> None:
        """End it: its keys stop working, its usage stays."""
        self.market.request("DELETE", f"/subscriptions/{self.id}")
        self.market.keys.remove(self.id)


class Market:
    """The market, as one learner sees it.

    Args:
        url: its public address, without a trailing slash.
        token: of the hub.
        api_url: the gateway's address.
        home: the lab's home, where `keys.json` is.
    """

    def __init__(self, url: str, token: str, api_url: str, *, home: Path) -> None:
        if not url or not token:
            raise SettingsError(
                _("There is no market here."), hint=_("Open this notebook on a hub that has one (kpaas-lab up).")
            )
        self.url, self.api_url = url.rstrip("/"), api_url.rstrip("/")
        self.keys = KeyStore(Path(home) / "keys.json")
        self._token = token
        self._schemas: dict[str, Mapping[str, Any]] = {}

    def __repr__(self) -> str:
        return f"Market({self.url!r})"

    @functools.cached_property
    def http(self) -> httpx.Client:
        """Connections to market and gateway."""
        return httpx.Client(timeout=TIMEOUT, follow_redirects=False)

    def publish(
        self,
        name: str,
        *,
        title: str,
        endpoint: str,
        plans: Sequence[Plan],
        description: str = "",
        model: str | None = None,
        schema: Mapping[str, Any] | None = None,
        example: Mapping[str, Any] | None = None,
    ) -> Listing:
        """Offer an own endpoint; again, its next version.

        Args:
            name: of the listing: lower-case letters, digits and hyphens.
            title: for people.
            endpoint: the name of an own endpoint that runs.
            plans: one at least.
            description: text or Markdown.
            model: its name in the protocol's paths; the endpoint's where it is left out.
            schema: what it must serve, `{"inputs": [...], "outputs": [...]}`; what it serves where it is left out.
            example: a request that works; the endpoint's own where it is left out.

        Raises:
            NotConformantError: with a sentence for each check that the endpoint failed.
        """
        body: dict[str, Any] = {
            "name": name, "title": title, "description": description, "endpoint": endpoint,
            "plans": [plan.to_json() for plan in plans],
        }  # fmt: skip
        optional = {"model": model, "schema": schema, "example": example}
        body |= {key: value for key, value in optional.items() if value is not None}
        listing = self._listing(self.request("POST", "/listings", json=body))
        self._schemas.pop(listing.full_name, None)
        return listing

    def listings(self, q: str = "", *, page: int = 1, mine: bool = False) -> list[Listing]:
        """A page of the catalogue, newest first, 24 a page; [] past the last."""
        found = self.request("GET", "/listings", params={"q": q, "page": page, "mine": mine})
        return [self._listing(raw) for raw in found["items"]] if page <= found["pages"] else []

    def listing(self, full_name: str) -> Listing:
        """One listing, `publisher/name`, with its schema and versions."""
        return self._listing(self.request("GET", f"/listings/{_path(full_name)}"))

    def schema(self, full_name: str, *, again: bool = False) -> Mapping[str, Any]:
        """A listing's version, model and schema; asked for once, or again."""
        if again or full_name not in self._schemas:
            self._schemas[full_name] = self.listing(full_name).raw
        return self._schemas[full_name]

    def subscribe(self, full_name: str, *, plan: str) -> Subscription:
        """Subscribe; where one is subscribed already, the same subscription.

        Its key is kept in one's own store (0600); where that has none that works, a new one is made.

        Raises:
            AlreadyExistsError: subscribed under another plan.
        """
        self.keys.check_writable()
        answer = self.request("POST", f"/listings/{_path(full_name)}/subscriptions", json={"plan": plan})
        subscription = self._subscription(answer["subscription"])
        if answer["key"]:
            self.keys.put(subscription.id, StoredKey(subscription.listing, answer["key"]))
        elif not self._has_working_key(subscription):
            self.new_key(subscription)
        return subscription

    def subscriptions(self) -> list[Subscription]:
        """One's active subscriptions, newest first."""
        found = self.request("GET", "/subscriptions")["items"]
        return [self._subscription(raw) for raw in found if raw["cancelled_at"] is None]

    def subscription(self, id: str) -> Subscription:
        """One's active subscription of that id."""
        found = next((each for each in self.subscriptions() if each.id == id), None)
        if found is None:
            raise SettingsError(_("No active subscription of that id."), hint=_("Look at lab.subscriptions."))
        return found

    def usage(
        self,
        *,
        listing: str = "",
        subscription: str = "",
        first: dt.date | None = None,
        last: dt.date | None = None,
    ) -> Usage:
        """Calls, errors and latency by day and by key; one's own, or an own listing's."""
        wanted = {"listing": listing, "subscription": subscription, "from": first, "to": last}
        raw = self.request("GET", "/usage", params={name: str(value) for name, value in wanted.items() if value})
        return Usage(
            first=dt.date.fromisoformat(raw["from"]),
            last=dt.date.fromisoformat(raw["to"]),
            total=_count("", raw["total"]),
            days=[_count(day["day"], day) for day in raw["days"]],
            keys=[_count(key["key"], key) for key in raw["keys"]],
        )

    def key_of(self, subscription: Subscription) -> StoredKey:
        """The key that is kept here, or a new one."""
        return self.keys.get(subscription.id) or self.new_key(subscription)

    def new_key(self, subscription: Subscription) -> StoredKey:
        """A new key of a subscription, kept in place of the one that was here."""
        self.keys.check_writable()
        made = self.request("POST", f"/subscriptions/{subscription.id}/keys", json={"label": _("notebook")})
        key = StoredKey(subscription.listing, made["key"])
        self.keys.put(subscription.id, key)
        return key

    def request(self, method: str, path: str, **options: Any) -> Any:
        """One request to the market's API; its JSON, None where it gives none."""
        headers = {"Authorization": f"token {self._token}", "Accept-Language": language()}
        try:
            answer = self.http.request(method, f"{self.url}/api/v1{path}", headers=headers, **options)
        except httpx.HTTPError as error:
            raise EngineUnavailableError(
                _("The market {url} doesn't answer ({kind}).").format(url=self.url, kind=type(error).__name__),
                hint=_("Try again in a minute; if it stays, tell the operator."),
            ) from None
        if answer.is_error:
            refused = error_of(answer)
            if answer.status_code == 401:
                refused.hint = refused.hint or _("Log out of the hub, log in again, and restart your server.")
            raise refused
        return answer.json() if answer.content else None

    def _has_working_key(self, subscription: Subscription) -> bool:
        kept = self.keys.get(subscription.id)
        return kept is not None and any(
            kept.text.startswith(key["prefix"]) and key["revoked_at"] is None and key["expires_at"] is None
            for key in subscription.raw["keys"]
        )

    def _listing(self, raw: Mapping[str, Any]) -> Listing:
        page = f"{self.url}/listings/{quote(raw['publisher'], safe='')}/{quote(raw['name'], safe='')}"
        return Listing(raw, raw["publisher"], raw["name"], raw["title"], raw["version"], page, self)

    def _subscription(self, raw: Mapping[str, Any]) -> Subscription:
        listing = f"{raw['listing']['publisher']}/{raw['listing']['name']}"
        url = f"{self.api_url}/{_path(listing)}" if self.api_url else raw["url"]
        return Subscription(raw, raw["id"], listing, _plan(raw["plan"]), url, self)


def _path(full_name: str) -> str:
    publisher, slash, name = full_name.rpartition("/")
    if not (publisher and slash and name):
        raise SettingsError(
            _("{name!r} names no listing.").format(name=full_name),
            hint=_("Write 'publisher/name', as in 'ann/digits'."),
        )
    return f"{quote(publisher, safe='')}/{quote(name, safe='')}"


def _plan(raw: Mapping[str, Any]) -> Plan:
    return Plan(
        raw["name"],
        calls_per_day=raw["calls_per_day"],
        calls_per_second=raw["calls_per_second"],
        concurrency=raw["concurrency"],
        price_per_1000_calls=raw["price_per_1000_calls"],
    )


def _count(of: str, raw: Mapping[str, Any]) -> Count:
    names = ("calls", "errors", "rejected", "p50_ms", "p95_ms")
    return Count(of=of, **{name: raw[name] for name in names})
