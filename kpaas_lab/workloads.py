"""What every engine runs. Plain data: no engine, no machine learning."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from pathlib import Path

from kpaas_lab.errors import SettingsError
from kpaas_lab.i18n import N_, _

# A DNS label (RFC 1123), so that one name serves as folder, Kubernetes object and host name.
NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,51}[a-z0-9])?")


class Phase(StrEnum):
    """Where a workload is in its life."""

    PENDING = N_("Pending")  # accepted; waits for a slice or for its processes to start
    RUNNING = N_("Running")  # a Job works; a Service has a replica that answers
    SUCCEEDED = N_("Succeeded")
    FAILED = N_("Failed")
    CANCELLED = N_("Cancelled")

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen.

        Example:
            >>> Phase.FAILED.ended, Phase.RUNNING.ended
            (True, False)
        """
        return self in {Phase.SUCCEEDED, Phase.FAILED, Phase.CANCELLED}


def check_name(name: str) -> str:
    """A workload's name, or an error that says what a name may be.

    Raises:
        SettingsError: not 1 to 53 lower-case letters, digits and hyphens.

    Example:
        >>> check_name("digits-2")
        'digits-2'
    """
    if not isinstance(name, str) or not NAME.fullmatch(name):
        shown = repr(name if len(str(name)) <= 60 else f"{str(name)[:60]}…")
        raise SettingsError(
            _("{name} can't be a name.").format(name=shown),
            hint=_("Use 1 to 53 lower-case letters, digits and hyphens, for example 'digits-2'."),
        )
    return name


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Runs to its end.

    Attributes:
        name: unique among the owner's workloads.
        command: program and arguments; never a shell.
        workdir: where it starts; a folder of the lab's home, which every engine shows to its workloads at this path.
        env: added to the engine's own environment for workloads.
        slice: name of a slice, None for the default CPU slice.
        nodes: how many copies run at once. Each finds KPAAS_LAB_NODE_RANK (0 to nodes - 1), KPAAS_LAB_NODES and,
            where nodes > 1, KPAAS_LAB_MASTER (`host:port`, reachable by every node, served by rank 0).
        labels: for finding it again.
    """

    name: str
    command: tuple[str, ...]
    workdir: Path
    env: Mapping[str, str] = field(default_factory=dict)
    slice: str | None = None
    nodes: int = 1
    labels: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_name(self.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """Answers HTTP until it is deleted; restarted when it dies.

    Each replica is told where to listen in KPAAS_LAB_LISTEN (`unix:<path>` or `<host>:<port>`) and finds its number in
    KPAAS_LAB_REPLICA. Other attributes are those of Job.

    Attributes:
        replicas: how many copies answer.
        ready_path: GET answers 200 there once the replica can serve.
        grace: seconds between SIGTERM and SIGKILL.
    """

    name: str
    command: tuple[str, ...]
    workdir: Path
    env: Mapping[str, str] = field(default_factory=dict)
    slice: str | None = None
    replicas: int = 1
    ready_path: str = "/v2/health/ready"
    grace: float = 10.0
    labels: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_name(self.name)


Workload = Job | Service


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """What an engine knows of a workload.

    Attributes:
        kind: "Job" or "Service".
        reason: one CamelCase word a program can read: "OutOfMemory", "TooManyProcesses", "Error", "Killed", "Lost",
            "Unschedulable", "".
        message: the same in a sentence, for people.
        created, started, finished: UTC.
        exit_code: of the first process that failed; negative is a signal.
        ready: replicas that answer now.
        addresses: of the replicas that should answer: `unix:<absolute path>` or `http://<host>:<port>`.
    """

    name: str
    kind: str
    phase: Phase
    created: datetime
    reason: str = ""
    message: str = ""
    started: datetime | None = None
    finished: datetime | None = None
    exit_code: int | None = None
    slice: str | None = None
    ready: int = 0
    addresses: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
