"""The four processes: what each is told, and the step between supervisor and each of them.

Supervisor runs `python -m kpaas_lab.installation.programs <name>`, which sets that process's environment (so no secret
stands in supervisor's configuration), ties its life to supervisor's, and becomes the process.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from kpaas_lab.installation import credentials, proxy
from kpaas_lab.installation.credentials import Credentials
from kpaas_lab.installation.layout import PACKAGE, Layout, slices_file
from kpaas_lab.installation.tether import die_with_parent

NAMES = ("proxy", "hub", "market", "api")
SERVICES = ("market", "api")
# Marks every process of one state folder, for the sweep after a crash. Sandboxes don't carry it.
MARK = "KPAAS_LAB_SUPERVISED_HOME"
# What a person's environment may tell the platform. The rest (their Jupyter, Python and cloud settings) stays theirs.
KEPT = frozenset({"PATH", "LANG", "LANGUAGE", "TZ", "TMPDIR", "USER", "LOGNAME", "LD_LIBRARY_PATH"})
KEPT_PREFIXES = ("LC_", "SSL_CERT_", "CUDA_", "NVIDIA_", "KPAAS_LAB_")


def base_environment(
    environ: Mapping[str, str], layout: Layout, ports: Mapping[str, int], *, public_url: str, database_url: str,
    slices: Path, lang: str,
) -> dict[str, str]:  # fmt: skip
    """What supervisor runs with, and hands to every process.

    Example:
        >>> made = base_environment({"PATH": "/bin", "AWS_SECRET_ACCESS_KEY": "x"}, Layout(Path("/srv/lab")), {},
        ...     public_url="http://127.0.0.1:8123", database_url="", slices=Path("/s.yaml"), lang="ko")
        >>> made["KPAAS_LAB_PUBLIC_URL"], "AWS_SECRET_ACCESS_KEY" in made
        ('http://127.0.0.1:8123', False)
    """
    kept = {name: value for name, value in environ.items() if name in KEPT or name.startswith(KEPT_PREFIXES)}
    # Programs of the environment (nbgrader runs `alembic`) are found first.
    folders = [str(Path(sys.executable).parent), str(proxy.program().parent), kept.get("PATH", os.defpath)]
    return {
        **kept,
        "PATH": os.pathsep.join(dict.fromkeys(folders)),
        "PYTHONUNBUFFERED": "1",
        "KPAAS_LAB_PYTHON": sys.executable,
        "KPAAS_LAB_HOME": str(layout.home),
        "KPAAS_LAB_PUBLIC_URL": public_url,
        "KPAAS_LAB_PORTS": json.dumps(dict(ports)),
        "KPAAS_LAB_DATABASE_URL": database_url or f"sqlite:///{layout.home}/market/market.sqlite",
        "KPAAS_LAB_SLICES": str(slices or slices_file()),
        "KPAAS_LAB_LANG": lang,
        MARK: str(layout.home),
    }


def _service(name: str, base: Mapping[str, str], ports: Mapping[str, int], token: str) -> dict[str, str]:
    """What JupyterHub gives to a service that it starts itself (jupyterhub.services.service)."""
    public = base["KPAAS_LAB_PUBLIC_URL"]
    prefix = f"/services/{name}/"
    access = json.dumps([f"access:services!service={name}"])
    return {
        "JUPYTERHUB_SERVICE_NAME": name,
        "JUPYTERHUB_SERVICE_PREFIX": prefix,
        "JUPYTERHUB_SERVICE_URL": f"http://127.0.0.1:{ports[name]}{prefix}",
        "JUPYTERHUB_API_TOKEN": token,
        "JUPYTERHUB_API_URL": f"http://127.0.0.1:{ports['hub']}/hub/api",
        "JUPYTERHUB_BASE_URL": "/",
        "JUPYTERHUB_CLIENT_ID": f"service-{name}",
        "JUPYTERHUB_HOST": "",
        "JUPYTERHUB_OAUTH_CALLBACK_URL": f"{prefix}oauth_callback",
        "JUPYTERHUB_OAUTH_SCOPES": access,
        "JUPYTERHUB_OAUTH_ACCESS_SCOPES": access,
        "JUPYTERHUB_OAUTH_CLIENT_ALLOWED_SCOPES": "[]",
        "JUPYTERHUB_PUBLIC_URL": f"{public}{prefix}",
        "JUPYTERHUB_PUBLIC_HUB_URL": f"{public}/hub/",
    }


def environment(name: str, base: Mapping[str, str], layout: Layout, secrets: Credentials) -> dict[str, str]:
    """One process's whole environment (ARCHITECTURE.md, "Environment variables"): nothing that it doesn't need.

    Example:
        >>> base = {"KPAAS_LAB_PORTS": "{}", "KPAAS_LAB_DATABASE_URL": "sqlite://", "SUPERVISOR_ENABLED": "1"}
        >>> sorted(environment("proxy", base, Layout(Path("/srv/lab")), credentials.generate()))
        ['HOME', 'KPAAS_LAB_PORTS']
    """
    env = {
        key: value
        for key, value in base.items()
        if not key.startswith("SUPERVISOR_") and key not in {"KPAAS_LAB_PYTHON", "KPAAS_LAB_DATABASE_URL"}
    }
    # Nobody's dot files steer a process, and it leaves none outside the state folder.
    env["HOME"] = str(layout.home / name)
    if name == "hub":
        env["KPAAS_LAB_SECRETS"] = str(layout.secrets)
        env["JUPYTERHUB_CRYPT_KEY"] = secrets.crypt_key
    if name in SERVICES:
        ports = json.loads(base["KPAAS_LAB_PORTS"])
        token = secrets.market_token if name == "market" else secrets.api_token
        env |= _service(name, base, ports, token)
        env |= {
            "KPAAS_LAB_DATABASE_URL": base["KPAAS_LAB_DATABASE_URL"],
            "KPAAS_LAB_LEARNERS_DIR": str(layout.home / "learners"),
            "KPAAS_LAB_API_URL": f"{base['KPAAS_LAB_PUBLIC_URL']}/services/api",
            "KPAAS_LAB_LISTEN": f"127.0.0.1:{ports[name]}",
        }
    if name == "api":
        env["KPAAS_LAB_SPOOL_DIR"] = str(layout.home / "api" / "spool")
    return env


def command(name: str, layout: Layout) -> list[str]:
    """What to run.

    Example:
        >>> command("market", Layout(Path("/srv/lab")))[1:]
        ['-P', '-m', 'kpaas_lab.market.app']
    """
    # -P: the folder that it starts in must not shadow a module.
    python = [sys.executable, "-P", "-m"]
    commands = {
        "hub": [*python, "jupyterhub", "-f", str(PACKAGE.parent / "hub_config" / "jupyterhub_config.py")],
        "market": [*python, "kpaas_lab.market.app"],
        "api": [*python, "kpaas_lab.market.gateway"],
        "supervisor": [*python, "supervisor.supervisord", "-c", str(layout.supervisor_config)],
    }
    if name == "proxy":
        return [str(proxy.program()), f"--configfile={layout.proxy_config}"]
    return commands[name]


def main(name: str) -> None:
    """Become the process."""
    layout = Layout(Path(os.environ["KPAAS_LAB_HOME"]))
    if name == "supervisor":
        die_with_parent(signal.SIGTERM)
        env = dict(os.environ)
    else:
        die_with_parent(signal.SIGKILL)
        env = environment(name, os.environ, layout, credentials.load(layout.secrets))
        os.chdir(layout.home / name)
        try:
            with layout.starts(name).open("a") as starts:
                starts.write(f"{time.time():.3f}\n")
        except OSError:
            pass  # a full disk must not keep it from coming back
    argv = command(name, layout)
    os.execve(argv[0], argv, env)  # noqa: S606


if __name__ == "__main__":
    main(sys.argv[1])
