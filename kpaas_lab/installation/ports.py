"""The ports: the public one is the operator's choice; the others are found, and kept while they are free."""

from __future__ import annotations

import errno
import json
import random
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

from kpaas_lab import durable
from kpaas_lab.errors import SettingsError
from kpaas_lab.i18n import _

INTERNAL = ("hub", "market", "api", "traefik_api")
# Below the kernel's range for outgoing connections, which could take a port between two starts.
CANDIDATES = range(20000, 32000)
LOOPBACK = "127.0.0.1"


def bind_error(address: str, port: int) -> int:
    """0 if a server could listen there now, else the errno that says why not."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port in TIME_WAIT is free
        try:
            probe.bind((address, port))
        except OSError as error:
            return error.errno or errno.EINVAL
    return 0


def is_free(port: int) -> bool:
    """Whether a server could listen on this port of the loopback."""
    return bind_error(LOOPBACK, port) == 0


def _shuffled() -> Iterator[int]:
    yield from random.sample(CANDIDATES, len(CANDIDATES))


def choose(kept: dict[str, int], public: int, free: Callable[[int], bool]) -> dict[str, int]:
    """The internal ports: those of the last start that are still free, else others.

    Example:
        >>> chosen = choose({"hub": 20001, "api": 20002}, 8123, lambda port: port != 20002)
        >>> chosen["hub"], chosen["public"], len(set(chosen.values()))
        (20001, 8123, 5)
    """
    chosen = {"public": public}
    candidates = _shuffled()
    for name in INTERNAL:
        port = kept.get(name, 0)
        while not port or port in chosen.values() or not free(port):
            port = next(candidates)
        chosen[name] = port
    return chosen


def check_public(address: str, port: int) -> int:
    """The public port (0 asks for any), if a server can listen there.

    Raises:
        SettingsError: taken, forbidden, or no address of this machine; the hint names a port that is free.
    """
    code = bind_error(address, port)
    if code == 0:
        return port or next(candidate for candidate in _shuffled() if bind_error(address, candidate) == 0)
    if code == errno.EADDRINUSE:
        other = next((p for p in range(port + 1, min(port + 200, 65536)) if bind_error(address, p) == 0), 0)
        raise SettingsError(
            _("Port {port} of {address} is taken by another program.").format(port=port, address=address),
            hint=_("Port {other} is free: add --port {other} (with make: PORT={other}).").format(other=other or "0"),
        )
    if code == errno.EACCES:
        raise SettingsError(
            _("Port {port} is for the administrator of this machine only.").format(port=port),
            hint=_("Choose one from 1024 on, for example --port 8123."),
        )
    raise SettingsError(
        _("{address} is no address of this machine.").format(address=address),
        hint=_("Use --bind 127.0.0.1 for this machine only, or --bind 0.0.0.0 for all its addresses."),
    )


def load(path: Path) -> dict[str, int]:
    """The ports of the last start; none if the file is absent or damaged (they are only a preference)."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(raw, dict):
        return {}
    return {name: port for name, port in raw.items() if type(port) is int and 0 < port < 65536}


def allocate(path: Path, address: str, public: int) -> dict[str, int]:
    """Choose all ports and keep the choice.

    Raises:
        SettingsError: the public port can't be used.
        OSError: the choice couldn't be written.
    """
    ports = choose(load(path), check_public(address, public), is_free)
    durable.write(path, json.dumps(ports) + "\n")
    return ports
