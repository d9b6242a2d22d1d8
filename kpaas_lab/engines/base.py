"""What every engine does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from kpaas_lab.slices import SliceCapacity
from kpaas_lab.workloads import Status, Workload


class Engine(Protocol):
    """Where workloads run. Raises only kpaas_lab.errors."""

    def slices(self) -> Sequence[SliceCapacity]:
        """What this installation offers, and what of it is free now."""
        ...

    def create(self, workload: Workload, /) -> Status:
        """Accept a workload; it is durable when this returns.

        Raises:
            AlreadyExistsError: the name is taken by a workload that wasn't deleted.
            UnknownSliceError, NoCapacityError: see the errors' own texts.
            EngineUnavailableError: the engine can't be reached or written to.
        """
        ...

    def get(self, name: str) -> Status:
        """How it is now.

        Raises:
            NotFoundError: with the names there are.
        """
        ...

    def list(self, *, labels: Mapping[str, str] | None = None) -> Sequence[Status]:
        """All of the owner's workloads that carry these labels, oldest first."""
        ...

    def logs(self, name: str, *, follow: bool = False) -> Iterator[str]:
        """Lines without their line ends, oldest first; with `follow`, until the workload has ended."""
        ...

    def cancel(self, name: str) -> Status:
        """Stop it (SIGTERM, then SIGKILL after its grace) and keep its record and log. Idempotent."""
        ...

    def delete(self, name: str) -> None:
        """Stop it and forget it. Idempotent."""
        ...
