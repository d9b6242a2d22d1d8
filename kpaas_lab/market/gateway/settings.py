"""The gateway's environment, read once."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from kpaas_lab.errors import SettingsError
from kpaas_lab.i18n import _


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the gateway puts up with; each is set by KPAAS_LAB_GATEWAY_<NAME>.

    Attributes:
        max_header_bytes: of a request's line and headers.
        max_body_bytes: of a request's body.
        max_answer_bytes: of an answer's body; a longer one is cut off.
        max_in_flight: calls at once; more are turned away with 503.
        max_in_flight_per_listing: the same for one listing, so that one that hangs doesn't take all.
        connect_timeout: seconds for a connection to a replica.
        read_timeout: seconds until an answer's first byte, and between any two.
        total_timeout: seconds for a whole call.
    """

    max_header_bytes: int = 32 << 10
    max_body_bytes: int = 64 << 20
    max_answer_bytes: int = 256 << 20
    max_in_flight: int = 512
    max_in_flight_per_listing: int = 128
    connect_timeout: float = 2.0
    read_timeout: float = 60.0
    total_timeout: float = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewaySettings:
    """What a gateway needs to know.

    Attributes:
        listen: KPAAS_LAB_LISTEN, `host:port` or `unix:<path>`.
        database_url: KPAAS_LAB_DATABASE_URL; never printed.
        learners_dir: KPAAS_LAB_LEARNERS_DIR.
        spool_dir: KPAAS_LAB_SPOOL_DIR.
        prefix: JUPYTERHUB_SERVICE_PREFIX without its last slash: where the gateway's routes begin.
        api_url: KPAAS_LAB_API_URL, its public address, for documents.
        limits: see there.
    """

    listen: str
    database_url: str
    learners_dir: Path
    spool_dir: Path
    prefix: str
    api_url: str
    limits: Limits

    def __repr__(self) -> str:
        return f"GatewaySettings(listen={self.listen!r}, learners_dir={str(self.learners_dir)!r})"


def from_environment(environ: Mapping[str, str] | None = None) -> GatewaySettings:
    """Settings from environment variables.

    Raises:
        SettingsError: one is missing or can't be used.

    Example:
        >>> given = {"KPAAS_LAB_LISTEN": "127.0.0.1:8001", "KPAAS_LAB_DATABASE_URL": "sqlite:////srv/market.sqlite",
        ...          "KPAAS_LAB_LEARNERS_DIR": "/srv/learners", "KPAAS_LAB_SPOOL_DIR": "/srv/spool"}
        >>> from_environment(given).prefix
        '/services/api'
    """
    env = os.environ if environ is None else environ

    def required(name: str) -> str:
        value = env.get(name, "")
        if not value:
            raise SettingsError(
                _("{name} isn't set.").format(name=name), hint=_("`kpaas-lab up` sets it; see ARCHITECTURE.md.")
            )
        return value

    listen = required("KPAAS_LAB_LISTEN")
    host, _colon, port = listen.rpartition(":")
    if not listen.startswith("unix:/") and not (host and port.isdigit() and int(port) < 65536):
        raise SettingsError(
            _("KPAAS_LAB_LISTEN is {listen!r}.").format(listen=listen),
            hint=_("Use <host>:<port> or unix:<absolute path>."),
        )
    prefix = "/" + env.get("JUPYTERHUB_SERVICE_PREFIX", "/services/api/").strip("/")
    return GatewaySettings(
        listen=listen,
        database_url=required("KPAAS_LAB_DATABASE_URL"),
        learners_dir=Path(required("KPAAS_LAB_LEARNERS_DIR")),
        spool_dir=Path(required("KPAAS_LAB_SPOOL_DIR")),
        prefix=prefix.rstrip("/"),
        api_url=env.get("KPAAS_LAB_API_URL", "").rstrip("/"),
        limits=_limits(env),
    )


def _limits(env: Mapping[str, str]) -> Limits:
    values: dict[str, int | float] = {}
    for field in fields(Limits):
        name = f"KPAAS_LAB_GATEWAY_{field.name.upper()}"
        if text := env.get(name, ""):
            try:
                value = int(text) if isinstance(field.default, int) else float(text)
            except ValueError:
                value = 0
            if value <= 0:
                raise SettingsError(
                    _("{name} is {value!r}.").format(name=name, value=text), hint=_("Use a number above 0.")
                )
            values[field.name] = value
    return Limits(**values)  # type: ignore[arg-type]
