"""JupyterHub on one machine: wiring, no logic. Values come from the environment (`settings.py`) or are data here."""

from __future__ import annotations

import sys
from pathlib import Path

from hub_config import course_folder, language, names, roles, settings
from hub_config.authenticator import LabAuthenticator
from hub_config.machine import this_machine
from hub_config.server_environment import forks_kernels
from hub_config.spawners import LocalSandboxSpawner
from hub_config.warm import KERNELS, KERNELS_ENV, WarmPool
from kpaas_lab.slices import Way, load_catalogue

c = get_config()  # type: ignore[name-defined]  # noqa: F821  (JupyterHub puts it there)
lab = settings.from_environment()
state = lab.home / "hub"
catalogue = load_catalogue(lab.slices_file)
loopback = "http://127.0.0.1:{}"

# Addresses
c.JupyterHub.bind_url = lab.public_url
c.JupyterHub.public_url = lab.public_url
c.JupyterHub.hub_bind_url = loopback.format(lab.ports["hub"])

# State, and what outlives a restart of the hub: learners' servers and the proxy (`kpaas-lab down` ends them)
c.JupyterHub.db_url = f"sqlite:///{state / 'jupyterhub.sqlite'}"
c.JupyterHub.cookie_secret = bytes.fromhex(lab.secrets.cookie_secret)
c.CryptKeeper.keys = [bytes.fromhex(lab.secrets.crypt_key)]
c.JupyterHub.cleanup_servers = False
c.JupyterHub.cleanup_proxy = False
c.ConfigurableHTTPProxy.pid_file = str(state / "proxy.pid")

# The proxy is traefik, started by `kpaas-lab up`; the hub writes its routes
c.JupyterHub.proxy_class = "traefik_file"
c.TraefikFileProviderProxy.should_start = False
c.TraefikFileProviderProxy.dynamic_config_file = str(lab.home / "proxy" / "dynamic.toml")
c.TraefikFileProviderProxy.traefik_api_url = loopback.format(lab.ports["traefik_api"])
c.TraefikFileProviderProxy.traefik_api_username = lab.secrets.traefik_user
c.TraefikFileProviderProxy.traefik_api_password = lab.secrets.traefik_password
c.TraefikFileProviderProxy.traefik_entrypoint = "http"

# Who may log in
c.JupyterHub.authenticator_class = LabAuthenticator
c.SharedPasswordAuthenticator.user_password = lab.secrets.user_password
c.SharedPasswordAuthenticator.admin_password = lab.secrets.admin_password
c.Authenticator.admin_users = {lab.secrets.admin_user}
c.Authenticator.allow_all = True
c.Authenticator.username_pattern = names.USERNAME

# Who may do what
c.JupyterHub.load_roles = roles.ROLES
c.Spawner.server_token_scopes = roles.SERVER

# The services; `kpaas-lab up` starts market and api, and the hub does not wait for them (timeout, in seconds)
c.JupyterHub.services = [
    {
        "name": "market",
        "url": loopback.format(lab.ports["market"]),
        "api_token": lab.secrets.market_token,
        "oauth_no_confirm": True,
        "display": True,
        "timeout": 1,
    },
    {
        "name": "api",
        "url": loopback.format(lab.ports["api"]),
        "api_token": lab.secrets.api_token,
        "display": False,
        "timeout": 1,
    },
    {
        "name": "idle-culler",
        "command": [
            sys.executable, "-m", "jupyterhub_idle_culler",
            f"--config={Path(__file__).with_name('idle_culler_config.py')}",
            f"--timeout={lab.idle_seconds}",
            f"--cull-every={max(1, min(60, lab.idle_seconds // 3))}",
        ],
        "environment": {
            "KPAAS_LAB_GPU_SLICES": ",".join(entry.name for entry in catalogue if entry.way is not Way.CPU),
            "KPAAS_LAB_IDLE_GPU_SECONDS": str(lab.idle_gpu_seconds),
        },
    },
]  # fmt: skip

# Learners' servers. No limit of JupyterHub's own on starts: it would answer 429; ours queues (`admission.py`)
c.JupyterHub.spawner_class = LocalSandboxSpawner
c.JupyterHub.concurrent_spawn_limit = 0
c.JupyterHub.active_server_limit = 0
c.Spawner.env_keep = []
c.Spawner.start_timeout = 3600  # with the wait in the queue; a start's own deadline is launch_timeout
c.Spawner.http_timeout = 60
c.Spawner.poll_interval = 60  # a server's end is heard of at once (`_watch_end`); this is for what could be missed
c.Spawner.consecutive_failure_limit = 0
c.LocalSandboxSpawner.state_home = str(lab.home)
c.LocalSandboxSpawner.catalogue = catalogue
c.LocalSandboxSpawner.machine = this_machine(lab.overcommit)
c.LocalSandboxSpawner.closed_ports = tuple(lab.ports.values())
c.LocalSandboxSpawner.starts_at_once = lab.starts_at_once
c.LocalSandboxSpawner.readable = (str(lab.slices_file),)
c.LocalSandboxSpawner.sandbox_environment = {
    "KPAAS_LAB_SLICES": str(lab.slices_file),
    "KPAAS_LAB_MARKET_URL": f"{lab.public_url}/services/market",
    "KPAAS_LAB_API_URL": f"{lab.public_url}/services/api",
}
course_folder.release_all(state / "courses")

# What servers and notebook kernels are forked from
LocalSandboxSpawner.warm = WarmPool(lab.home / "log" / "warm.log")
LocalSandboxSpawner.warm.start()
if forks_kernels():
    LocalSandboxSpawner.kernels = WarmPool(lab.home / "log" / "warm-kernels.log", KERNELS, KERNELS_ENV)
    LocalSandboxSpawner.kernels.start()

# Pages
c.JupyterHub.template_paths = language.template_paths()
c.JupyterHub.template_vars = {
    "t": lambda _user: language.t,
    "t_attr": lambda _user: language.t_attr,
    "is_name": lambda _user: names.is_name,
}
