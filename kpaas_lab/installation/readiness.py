"""Whether a process answers. Standard library only: this is on the path of every start."""

from __future__ import annotations

import http.client
from collections.abc import Mapping

# Where each process answers 200 once it can serve, by the port's name in ports.json.
DIRECT = {
    "hub": ("hub", "/hub/health"),
    "market": ("market", "/services/market/healthz"),
    "api": ("api", "/services/api/healthz"),
}
# The same through the proxy: the hub has written its routes, and Traefik has read them.
PUBLIC = ("/hub/health", "/services/market/healthz", "/services/api/healthz")
ANY = range(100, 600)


def status(host: str, port: int, path: str) -> int:
    """The HTTP status of a GET; 0 if nothing answers in two seconds."""
    connection = http.client.HTTPConnection(host, port, timeout=2)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()


def local_host(bind: str) -> str:
    """Where this machine itself reaches a server that listens there.

    Example:
        >>> local_host("0.0.0.0"), local_host("::"), local_host("192.0.2.7")
        ('127.0.0.1', '::1', '192.0.2.7')
    """
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(bind, bind)  # noqa: S104


def answers(name: str, ports: Mapping[str, int], host: str) -> bool:
    """Whether one process serves.

    Args:
        name: one of `programs.NAMES`.
        ports: of ports.json.
        host: where the proxy is reached.
    """
    if name == "proxy":
        return status(host, ports["public"], "/") in ANY
    port, path = DIRECT[name]
    return status("127.0.0.1", ports[port], path) == 200


def open_to_people(ports: Mapping[str, int], host: str) -> bool:
    """Whether all of it answers at the public address."""
    return all(status(host, ports["public"], path) == 200 for path in PUBLIC)
