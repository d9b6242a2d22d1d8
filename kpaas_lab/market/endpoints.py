"""Where a publisher's endpoint is: the Unix sockets in their home, found and reached without following a link.

The home belongs to the learner, who may plant symbolic links, FIFOs or another's socket in it, and may swap them at any
moment. So each folder is opened from the one above it with O_NOFOLLOW, the socket itself with O_PATH, and what was
checked is the very thing that is connected to: `/proc/self/fd/<n>` of that descriptor (proc(5)), which is also shorter
than the 107 bytes a Unix address may have.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import re
import socket
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kpaas_lab.workloads import NAME

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_SOCKET = re.compile(r"(0|[1-9][0-9]?)\.sock", re.ASCII)
_BUSY_PAUSES = (0.002, 0.01, 0.05, 0.2)


@dataclass(frozen=True, slots=True)
class Replica:
    """One process that answers for an endpoint.

    Attributes:
        publisher: the learner's name, as the hub knows it.
        endpoint: the name of their endpoint.
        number: which of its replicas.
    """

    publisher: str
    endpoint: str
    number: int

    @property
    def host(self) -> str:
        """A host name that stands for it in URLs: connections are kept for reuse by host.

        Example:
            >>> Replica("ann", "digits", 0).host
            '0.digits.616e6e.endpoint'
        """
        return f"{self.number}.{self.endpoint}.{self.publisher.encode().hex()}.endpoint"

    @classmethod
    def from_host(cls, host: str) -> Replica:
        """The inverse of `host`.

        Raises:
            ValueError: the host names no replica.

        Example:
            >>> Replica.from_host("0.digits.616e6e.endpoint")
            Replica(publisher='ann', endpoint='digits', number=0)
        """
        number, endpoint, publisher, suffix = host.split(".")
        if suffix != "endpoint":
            raise ValueError(host)
        return cls(bytes.fromhex(publisher).decode(), endpoint, int(number))


def replicas(learners_dir: Path, publisher: str, endpoint: str) -> list[Replica]:
    """The replicas of an endpoint whose sockets are there, by number; none where there is no such endpoint.

    Example:
        >>> replicas(Path("/nonexistent"), "ann", "digits")
        []
    """
    try:
        with _workload_folder(learners_dir, publisher, endpoint) as (folder, owner):
            found = [
                Replica(publisher, endpoint, int(match[1])) for match in map(_SOCKET.fullmatch, _names(folder)) if match
            ]
            return sorted((r for r in found if _is_socket(folder, r.number, owner)), key=lambda r: r.number)
    except OSError:
        return []


async def connect(learners_dir: Path, replica: Replica) -> socket.socket:
    """A non-blocking connection to a replica.

    Raises:
        OSError: it isn't there, isn't a socket of its publisher's own, or doesn't accept.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        with (
            _workload_folder(learners_dir, replica.publisher, replica.endpoint) as (folder, owner),
            _socket(folder, replica.number, owner) as descriptor,
        ):
            await _connect(connection, f"/proc/self/fd/{descriptor}")
    except BaseException:
        connection.close()
        raise
    return connection


async def _connect(connection: socket.socket, address: str) -> None:
    """A Unix connect is done at once, or says EAGAIN while the listener's queue is full (connect(2)): no poll helps."""
    for pause in _BUSY_PAUSES:
        with contextlib.suppress(BlockingIOError):
            connection.connect(address)
            return
        await asyncio.sleep(pause)
    connection.connect(address)


@contextlib.contextmanager
def _workload_folder(learners_dir: Path, publisher: str, endpoint: str) -> Iterator[tuple[int, int]]:
    """The endpoint's folder, open, and the uid of the home's owner."""
    if not _is_learner(publisher) or not NAME.fullmatch(endpoint):
        raise FileNotFoundError(errno.ENOENT, "no such endpoint", f"{publisher}/{endpoint}")
    with contextlib.ExitStack() as stack:
        folder = os.open(learners_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, folder)
        owner = -1
        for name in (publisher, ".kpaas-lab", "workloads", endpoint):
            folder = os.open(name, _FOLDER, dir_fd=folder)
            stack.callback(os.close, folder)
            owner = os.fstat(folder).st_uid if owner == -1 else owner
        yield folder, owner


@contextlib.contextmanager
def _socket(folder: int, number: int, owner: int) -> Iterator[int]:
    """The socket, open as a place only (O_PATH), after it was checked."""
    descriptor = os.open(f"{number}.sock", os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    try:
        found = os.fstat(descriptor)
        # A second name (hard link) would be another's socket under this learner's name.
        if not stat.S_ISSOCK(found.st_mode) or found.st_uid != owner or found.st_nlink != 1:
            raise ConnectionRefusedError(errno.ECONNREFUSED, "not a socket of this learner's own", f"{number}.sock")
        yield descriptor
    finally:
        os.close(descriptor)


def _is_socket(folder: int, number: int, owner: int) -> bool:
    with contextlib.suppress(OSError), _socket(folder, number, owner):
        return True
    return False


def _names(folder: int) -> list[str]:
    # An endpoint has a handful of files; a learner who fills the folder gets no more of our time than this.
    with os.scandir(folder) as entries:
        return [entry.name for entry, _count in zip(entries, range(10_000), strict=False)]


def _is_learner(name: str) -> bool:
    """One folder's name, never a way out of it; the hub decides what else a user may be called."""
    return (
        0 < len(name.encode(errors="replace")) <= 255
        and not name.startswith(".")
        and "/" not in name
        and name.isprintable()
    )
