"""Keeps a Job. Standard library only: the shim runs it."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

from kpaas_lab.engines.keeper import Keeper, Member


class JobKeeper(Keeper):
    """Every rank once; the first failure ends them all."""

    def __init__(self, folder: Path, spec: dict[str, Any]) -> None:
        self.copies = spec["workload"]["nodes"]
        super().__init__(folder, spec)
        self.master = f"127.0.0.1:{free_port()}" if self.copies > 1 else ""

    def place(self, member: Member) -> dict[str, str]:
        """Rank, number of ranks and where they meet."""
        variables = {"KPAAS_LAB_NODE_RANK": str(member.index), "KPAAS_LAB_NODES": str(self.copies)}
        return variables | ({"KPAAS_LAB_MASTER": self.master} if self.master else {})

    def on_start(self, member: Member) -> None:
        """Running once the last rank runs."""
        if member.index == self.copies - 1:
            self.record(phase="Running", started=self.elapsed())

    def on_end(self, member: Member, code: int) -> None:
        """Keep the first failure; the other ranks can't go on without this one."""
        member.done = True
        if code and self.status["exit_code"] is None and self.stopping != "Cancelled":
            self.status.update(exit_code=code, reason=self.reason(member, code))
            if not self.stopping:
                self.stop("Failed", "")
        elif code == 0 and not self.stopping and all(other.done for other in self.members):
            self.status["exit_code"] = 0


def free_port() -> int:
    """A TCP port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
