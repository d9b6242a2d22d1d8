"""`Lab`: the one object that a notebook holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

from kpaas_lab import settings as environment
from kpaas_lab.errors import SettingsError
from kpaas_lab.i18n import _
from kpaas_lab.observation import SliceCheck, SliceTable, observe
from kpaas_lab.settings import Settings
from kpaas_lab.slices import SliceProfile, find, load_catalogue
from kpaas_lab.widgets import register

if TYPE_CHECKING:
    from kpaas_lab.engines.base import Engine
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
        return SliceCheck(find(self._catalogue, self.settings.slice or None), observe())

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

    # -- data ----------------------------------------------------------------------------------------------------

    @property
    def data(self) -> ModuleType:
        """Data sets: `lab.data.names()`, `lab.data.load("kpaas/digits")`."""
        from kpaas_lab import datasets

        return datasets


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
