"""What the hub is told: environment variables (ARCHITECTURE.md has the table) and secrets.json, read once, checked."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kpaas_lab.errors import SettingsError
from kpaas_lab.i18n import _
from kpaas_lab.installation import credentials
from kpaas_lab.installation.credentials import Credentials

# A slice's memory is a limit that notebooks seldom come near, and its sandbox is held to it. Should all of them come
# near it at once, the kernel ends learners' processes first, never the platform's (oom_score_adj).
OVERCOMMIT = 2.0
PORTS = ("hub", "market", "api", "traefik_api")


@dataclass(frozen=True, slots=True, kw_only=True)
class HubSettings:
    """Everything that `jupyterhub_config.py` wires.

    Attributes:
        home: the state folder.
        public_url: the address people open, without a trailing slash.
        ports: of hub, market, api and traefik_api, on loopback, and the public one where it is told.
        secrets: the entries of secrets.json; never printed.
        slices_file: the catalogue.
        overcommit: how many times the machine's memory learners may be promised (KPAAS_LAB_OVERCOMMIT).
        idle_seconds: without activity for so long a server is stopped (KPAAS_LAB_IDLE_SECONDS).
        idle_gpu_seconds: the same where it holds a GPU slice (KPAAS_LAB_IDLE_GPU_SECONDS).
        starts_at_once: how many servers start side by side; others wait their turn (KPAAS_LAB_STARTS_AT_ONCE).
    """

    home: Path
    public_url: str
    ports: Mapping[str, int]
    secrets: Credentials
    slices_file: Path
    overcommit: float
    idle_seconds: int
    idle_gpu_seconds: int
    starts_at_once: int

    def __repr__(self) -> str:
        return f"HubSettings(home={str(self.home)!r}, public_url={self.public_url!r})"

    @property
    def learners(self) -> Path:
        """The folder of the learners' homes."""
        return self.home / "learners"


def from_environment(environ: Mapping[str, str] | None = None) -> HubSettings:
    """The hub's settings.

    Raises:
        SettingsError: a variable or a secret is missing or isn't what it should be; the message names it.
    """
    env = os.environ if environ is None else environ
    home = Path(_required(env, "KPAAS_LAB_HOME"))
    default_slices = Path(__file__).parent / "slices.yaml"
    return HubSettings(
        home=home,
        public_url=_required(env, "KPAAS_LAB_PUBLIC_URL").rstrip("/"),
        ports=_ports(_required(env, "KPAAS_LAB_PORTS")),
        secrets=credentials.load(Path(_required(env, "KPAAS_LAB_SECRETS"))),
        slices_file=Path(env.get("KPAAS_LAB_SLICES") or default_slices),
        overcommit=_number(env, "KPAAS_LAB_OVERCOMMIT", OVERCOMMIT, least=0.1),
        idle_seconds=int(_number(env, "KPAAS_LAB_IDLE_SECONDS", 3600, least=1)),
        idle_gpu_seconds=int(_number(env, "KPAAS_LAB_IDLE_GPU_SECONDS", 900, least=1)),
        starts_at_once=int(_number(env, "KPAAS_LAB_STARTS_AT_ONCE", max(2, os.cpu_count() or 1), least=1)),
    )


def _required(env: Mapping[str, str], name: str) -> str:
    value = env.get(name, "")
    if not value:
        raise SettingsError(_("{name} is not set.").format(name=name), hint=_("Start the hub with `kpaas-lab up`."))
    return value


def _number(env: Mapping[str, str], name: str, default: float, *, least: float) -> float:
    value = env.get(name) or str(default)
    try:
        number = float(value)
    except ValueError:
        number = float("nan")
    if not number >= least:
        raise SettingsError(
            _("{name} is {value!r}.").format(name=name, value=value[:40]),
            hint=_("It is a number, {least} or more; without it, {default}.").format(least=least, default=default),
        )
    return number


def _ports(text: str) -> dict[str, int]:
    try:
        ports = json.loads(text)
        return {name: int(ports[name]) for name in (*PORTS, *({"public"} & set(ports)))}
    except (ValueError, TypeError, KeyError) as error:
        raise SettingsError(
            _("KPAAS_LAB_PORTS has no port for {name}.").format(name=error),
            hint=_("It is JSON: {example}.").format(example='{"hub": 1, "market": 2, "api": 3, "traefik_api": 4}'),
        ) from error
