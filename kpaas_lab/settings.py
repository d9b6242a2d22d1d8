"""The environment of a notebook, read once. Operators' settings are the options of `kpaas-lab up`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kpaas_lab.errors import SettingsError
from kpaas_lab.i18n import _


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a `Lab` needs to know.

    Attributes:
        engine: KPAAS_LAB_ENGINE, "local" or "kubernetes".
        home: KPAAS_LAB_USER_HOME, the lab's state of this learner: runs/, endpoints/, keys.json, mlflow.db.
        user: JUPYTERHUB_USER, or "" outside a hub.
        slice: KPAAS_LAB_SLICE, the slice this notebook itself runs on.
        slices_file: KPAAS_LAB_SLICES, the catalogue.
        market_url: KPAAS_LAB_MARKET_URL, without a trailing slash; "" where there is no market.
        api_url: KPAAS_LAB_API_URL, the gateway's, as seen from the notebook.
        token: JUPYTERHUB_API_TOKEN; never printed.
    """

    engine: str
    home: Path
    user: str
    slice: str
    slices_file: Path
    market_url: str
    api_url: str
    token: str

    def __repr__(self) -> str:
        return f"Settings(engine={self.engine!r}, home={str(self.home)!r}, user={self.user!r})"


def from_environment(environ: Mapping[str, str] | None = None) -> Settings:
    """Settings from environment variables, each with a default that works on one machine.

    Raises:
        SettingsError: an engine that isn't one.

    Example:
        >>> from_environment({"HOME": "/home/ann", "JUPYTERHUB_USER": "ann"}).home
        PosixPath('/home/ann/.kpaas-lab')
    """
    env = os.environ if environ is None else environ
    engine = env.get("KPAAS_LAB_ENGINE", "local")
    if engine not in {"local", "kubernetes"}:
        raise SettingsError(
            _("KPAAS_LAB_ENGINE is {engine!r}.").format(engine=engine),
            hint=_("Engines: local, kubernetes."),
        )
    home = env.get("KPAAS_LAB_USER_HOME") or str(Path(env.get("HOME") or Path.home()) / ".kpaas-lab")
    catalogue = env.get("KPAAS_LAB_SLICES") or str(Path(__file__).parent.parent / "hub_config" / "slices.yaml")
    return Settings(
        engine=engine,
        home=Path(home),
        user=env.get("JUPYTERHUB_USER", ""),
        slice=env.get("KPAAS_LAB_SLICE", ""),
        slices_file=Path(catalogue),
        market_url=env.get("KPAAS_LAB_MARKET_URL", "").rstrip("/"),
        api_url=env.get("KPAAS_LAB_API_URL", "").rstrip("/"),
        token=env.get("JUPYTERHUB_API_TOKEN", ""),
    )
