"""Servers that start in a fraction of a second: forked from a process that has their imports done."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import Any, Protocol


class WarmPool(Protocol):
    """Where a warm server can be had."""

    def ready(self) -> bool:
        """Whether one can be had now."""
        ...

    def join(self, pid: int, channel: socket.socket, output: int, order: Mapping[str, Any]) -> None:
        """Send one into the sandbox whose first process is `pid`."""
        ...
