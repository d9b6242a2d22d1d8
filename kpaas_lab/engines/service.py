"""Keeps a Service. Standard library only: the shim runs it."""

from __future__ import annotations

import functools
import time
from pathlib import Path
from typing import Any

from kpaas_lab.engines.keeper import Keeper, Member
from kpaas_lab.engines.process import Probe
from kpaas_lab.i18n import _

FIRST_DELAY, LONGEST_DELAY = 0.5, 30.0  # of a restart; doubled at each failure
STEADY = 30.0  # a replica that ran this long starts again with the first delay
PROBE_TIMEOUT = 2.0


class ServiceKeeper(Keeper):
    """Every replica for ever: one that ends is started again, later each time."""

    is_service = True

    def __init__(self, folder: Path, spec: dict[str, Any]) -> None:
        self.copies = spec["workload"]["replicas"]
        super().__init__(folder, spec)

    def socket_path(self, member: Member) -> Path:
        """Where a replica listens."""
        return self.folder / f"{member.index}.sock"

    def place(self, member: Member) -> dict[str, str]:
        """Where to listen, and which replica it is."""
        return {
            "KPAAS_LAB_LISTEN": f"unix:{self.socket_path(member)}",
            "KPAAS_LAB_REPLICA": str(member.index),
        }

    def due(self) -> list[float]:
        """The next probe or start of each replica."""
        if self.stopping:
            return []
        return [member.probe_at if member.process else member.start_at for member in self.members]

    def start(self, member: Member) -> None:
        """Remove the socket that the last process left; then as any."""
        self.socket_path(member).unlink(missing_ok=True)
        member.probe_at = time.monotonic()
        member.probe_failures = 0
        super().start(member)

    def tick(self, now: float) -> None:
        """Probe what is due."""
        super().tick(now)
        for member in self.members:
            if member.process and now >= member.probe_at and not self.stopping:
                if member.probe:  # no answer in time
                    member.probe.close()
                    self._answered(member, False)
                member.probe_at = now + PROBE_TIMEOUT
                member.probe = None
                probe = Probe(
                    self.socket_path(member),
                    self.workload["ready_path"],
                    self.selector,
                    functools.partial(self._answered, member),
                )
                member.probe = probe if probe.open else None

    def _answered(self, member: Member, ready: bool) -> None:
        now = time.monotonic()
        member.probe = None
        member.probe_failures = 0 if ready else member.probe_failures + 1
        wait = PROBE_TIMEOUT if ready else min(1.0, 0.05 * 1.2**member.probe_failures)
        member.probe_at = now + wait
        if ready != member.ready:
            member.ready = ready
            self._record_ready()

    def _record_ready(self) -> None:
        ready = sum(member.ready for member in self.members)
        changes: dict[str, Any] = {"ready": ready, "phase": "Running" if ready else "Pending"}
        if ready == self.copies:
            changes |= {"reason": "", "exit_code": None}
        self.record(**changes, started=self.status["started"] or self.elapsed())

    def on_end(self, member: Member, code: int) -> None:
        """Start it again, unless the Service stops."""
        if member.probe:
            member.probe.close()
            member.probe = None
        member.ready = False
        if self.stopping:
            return
        now = time.monotonic()
        member.failures = 1 if now - member.started > STEADY else member.failures + 1
        delay = min(LONGEST_DELAY, FIRST_DELAY * 2 ** (member.failures - 1))
        member.start_at = now + delay
        line = _("Replica {number} ended with {code}; it starts again in {delay:g} s.")
        self.log.write(f"{line.format(number=member.index, code=code, delay=delay)}\n".encode())
        ready = sum(other.ready for other in self.members)
        phase = "Running" if ready else "Pending"
        self.record(phase=phase, ready=ready, exit_code=code, reason=self.reason(member, code))
