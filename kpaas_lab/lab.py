"""`Lab`: the one object that a notebook holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from types import ModuleType
from typing import TYPE_CHECKING, Any

from kpaas_lab import settings as environment
from kpaas_lab.errors import NotSubscribedError, SettingsError
from kpaas_lab.i18n import _
from kpaas_lab.observation import SliceCheck, SliceTable, observe
from kpaas_lab.settings import Settings
from kpaas_lab.slices import SliceProfile, find, load_catalogue
from kpaas_lab.texttable import plain_table
from kpaas_lab.widgets import register

if TYPE_CHECKING:
    from kpaas_lab.engines.base import Engine
    from kpaas_lab.market.client import Listing, Market, Plan, Subscription
    from kpaas_lab.serving import Endpoint, Endpoints
    from kpaas_lab.training import Run, Runs


class Lab:
    """Train, serve, publish and subscribe, from a notebook.

    Args:
        settings: None reads the environment, which the hub has set.

    Raises:
        SettingsError: the environment names an engine that isn't there, or a slice catalogue that can't be read.

    Example:
        >>> import tempfile
        >>> from kpaas_lab.settings import from_environment
        >>> lab = Lab(settings=from_environment({"HOME": tempfile.mkdtemp()}))
        >>> lab.slices()[0].profile.name
        'cpu'
        >>> lab.data.load("kpaas/digits").test.labels.shape
        (360,)
    """

    def __init__(self, *, settings: Settings | None = None) -> None:
        self.settings = environment.from_environment() if settings is None else settings
        self._catalogue = load_catalogue(self.settings.slices_file)
        self._engine = _engine(self.settings, self._catalogue)
        register()

    def __repr__(self) -> str:
        who = self.settings.user or _("outside a hub")
        return f"Lab({who}, engine={self.settings.engine!r}, home={str(self.settings.home)!r})"

    # -- slices --------------------------------------------------------------------------------------------------

    def slices(self) -> SliceTable:
        """What this installation offers, and what of it is free now."""
        return SliceTable(self._engine.slices())

    def slice(self) -> SliceCheck:
        """This notebook's own slice: what it promises, and what this process really has."""
        profile = find(self._catalogue, self.settings.slice or None)
        return SliceCheck(profile, observe(), sandboxed=bool(self.settings.user))

    # -- train ---------------------------------------------------------------------------------------------------

    def train(
        self,
        function: Callable[..., Any] | str,
        *,
        name: str | None = None,
        data: str | None = None,
        slice: str | None = None,
        nodes: int = 1,
        seed: int = 0,
        **params: Any,
    ) -> Run:
        """Run a training function elsewhere; it is recorded and started when this returns.

        Args:
            function: made with `def`, or "file.py:function". It returns `(model, example input)`.
            name: of the run; None is the function's name and a number.
            data: name of a data set, passed as the parameter `data`.
            slice: name of a slice; None is the first CPU slice.
            nodes: processes that train together, as torchrun starts them.
            seed: of random, numpy and torch.
            **params: plain data, passed to the function.

        Raises:
            SettingsError: the function can't run elsewhere, or its parameters don't fit; nothing was started.
            AlreadyExistsError: there is a run of this name.
            UnknownSliceError, NoCapacityError: see `lab.slices()`.
        """
        from kpaas_lab.training import train

        return train(
            self._engine, self.settings, function, name=name, data=data, slice=slice, nodes=nodes, seed=seed, **params
        )

    @property
    def runs(self) -> Runs:
        """All runs by name, those of earlier kernels too."""
        from kpaas_lab.training import runs

        return runs(self._engine, self.settings)

    # -- serve ---------------------------------------------------------------------------------------------------

    def serve(
        self,
        model: Any,
        *,
        name: str,
        slice: str | None = None,
        replicas: int = 1,
        example: Any = None,
        replace: bool = False,
        **options: Any,
    ) -> Endpoint:
        """Serve a model: it answers when this returns, and keeps answering after this kernel has ended.

        Args:
            model: `run.model`, the folder of a saved model, a torch module, a scikit-learn estimator, or a function of
                arrays.
            name: of the endpoint.
            slice: name of a slice; None is the first CPU slice.
            replicas: processes that answer.
            example: an input that the model takes; modules and functions need one.
            replace: an endpoint of this name, if there is one, changes over to this model without a gap; it keeps its
                slice, replicas and options, and those given here are for a new one.
            **options: of `kpaas_lab.serving.serve`: max_batch, max_delay, max_bytes, wait.

        Raises:
            AlreadyExistsError: there is an endpoint of this name.
            ModelError: the model can't be saved safely.
            RunFailedError: it doesn't start; with the last lines of its log.
            UnknownSliceError, NoCapacityError: see `lab.slices()`.
        """
        from kpaas_lab.serving import serve

        if replace and name in self.endpoints:
            return self.endpoints[name].update(model, example=example)
        return serve(
            self._engine,
            self.settings,
            model,
            name=name,
            slice=slice,
            replicas=replicas,
            example=example,
            **options,
        )

    @property
    def endpoints(self) -> Endpoints:
        """All endpoints by name, those of earlier kernels too."""
        from kpaas_lab.serving import endpoints

        return endpoints(self._engine, self.settings)

    # -- market --------------------------------------------------------------------------------------------------

    @cached_property
    def market(self) -> Market:
        """The marketplace of this hub.

        Raises:
            SettingsError: this notebook doesn't run on a hub that has one.
        """
        from kpaas_lab.market.client import Market

        mine = self.settings
        return Market(mine.market_url, mine.token, mine.api_url, home=mine.home)

    def publish(
        self,
        endpoint: Endpoint | str,
        *,
        title: str,
        plans: Sequence[Plan],
        name: str | None = None,
        description: str = "",
    ) -> Listing:
        """Offer an endpoint on the marketplace; published again, it is the listing's next version.

        Args:
            endpoint: from `lab.serve`, or its name.
            title: for people.
            plans: what one can subscribe to; one at least.
            name: of the listing; None is the endpoint's.
            description: text or Markdown.

        Raises:
            NotConformantError: the endpoint doesn't do what its protocol says; one sentence for each failed check.
            SettingsError: there is no market here, or something in the arguments can't be used.
        """
        served = endpoint if isinstance(endpoint, str) else endpoint.name
        return self.market.publish(
            name or served, title=title, endpoint=served, plans=_sequence(plans), description=description
        )

    def listings(self, q: str = "", *, page: int = 1, mine: bool = False) -> Listings:
        """Search the marketplace, newest first, a page at a time.

        Args:
            q: words in name, title or description; empty finds all.
            page: from 1.
            mine: only those that this learner publishes, withdrawn ones too.
        """
        return Listings(self.market.listings(q, page=page, mine=mine))

    def subscribe(self, listing: Listing | str, *, plan: str) -> Subscription:
        """Subscribe to an API; subscribed already, it is the same subscription. The key is kept in one's own home.

        Args:
            listing: from `lab.listings`, or "publisher/name".
            plan: name of one of its plans.

        Raises:
            NotFoundError: no such listing or plan.
            AlreadyExistsError: subscribed under another plan.
        """
        return self.market.subscribe(listing if isinstance(listing, str) else listing.full_name, plan=plan)

    @property
    def subscriptions(self) -> Subscriptions:
        """Active subscriptions by listing: `lab.subscriptions["ann/digits"].predict(images)`."""
        return Subscriptions({each.listing: each for each in self.market.subscriptions()})

    # -- data ----------------------------------------------------------------------------------------------------

    @property
    def data(self) -> ModuleType:
        """Data sets: `lab.data.names()`, `lab.data.load("kpaas/digits")`."""
        from kpaas_lab import datasets

        return datasets


class Listings(tuple["Listing", ...]):
    """Listings that were found; prints as a table."""

    __slots__ = ()

    def __repr__(self) -> str:
        rows = [[each.full_name, each.title, ", ".join(plan.name for plan in each.plans)] for each in self]
        return plain_table([_("listing"), _("title"), _("plans")], rows) if rows else _("No listing was found.")


class Subscriptions(dict[str, "Subscription"]):
    """Active subscriptions by listing; prints as a table."""

    def __missing__(self, name: str) -> Subscription:
        """An error with the names there are."""
        hint = _("Subscriptions: {names}.").format(names=", ".join(self)) if self else _("There are none yet.")
        raise NoSubscriptionError(_("No subscription of {name!r}.").format(name=name), hint=hint)

    def __repr__(self) -> str:
        rows = [[name, repr(each.plan)] for name, each in self.items()]
        return plain_table([_("listing"), _("plan")], rows) if rows else _("No subscriptions yet.")


class NoSubscriptionError(NotSubscribedError, KeyError):
    """No active subscription of that listing; a KeyError too, as of any mapping."""


def _sequence(plans: Sequence[Plan]) -> Sequence[Plan]:
    """Plans as a list, also where one was given alone.

    Raises:
        SettingsError: none, or something that isn't a plan.
    """
    from kpaas_lab.market.client import Plan

    given = [plans] if isinstance(plans, Plan) else list(plans) if isinstance(plans, Sequence) else []
    if not given or not all(isinstance(plan, Plan) for plan in given):
        raise SettingsError(
            _("Publishing needs a list of plans."), hint=_('For example plans=[Plan("free", calls_per_day=1000)].')
        )
    return given


def _engine(settings: Settings, catalogue: Sequence[SliceProfile]) -> Engine:
    """The engine that the settings name; endpoints that a restart of the machine ended run again."""
    if settings.engine != "local":
        raise SettingsError(
            _("This version has no engine {name!r}.").format(name=settings.engine),
            hint=_("Set KPAAS_LAB_ENGINE=local, or leave it out."),
        )
    from kpaas_lab.engines.local import LocalEngine

    engine = LocalEngine(settings.home, catalogue)
    engine.restore()
    return engine
