"""A crash-safe queue of small records in files: what the gateway metered and the database doesn't have yet.

A record is one line, `<CRC-32 in hexadecimal> <payload>`, and is durable (fsync) when `append` returns. Lines stand in
segment files; a segment is deleted when all of it was taken. Several gateways may share the folder: each holds a lock
on a folder of its own in it, and takes over what a dead one left. Nothing bounds the queue but the disk.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import threading
import time
import zlib
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

from kpaas_lab.durable import sync_folder

SEGMENT_BYTES = 1 << 20
_SUFFIX = ".segment"


@dataclass(slots=True)
class _Segment:
    path: Path
    size: int  # of what is durable
    position: int = 0  # up to where it was taken
    taken: list[bytes] = field(default_factory=list)


class Spool:
    """One gateway's queue. `append` may be called by one thread while another calls `take` and `drop`.

    Args:
        folder: shared by all gateways of a machine.

    Raises:
        OSError: the folder can't be made or written to.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     spool = Spool(Path(folder))
        ...     spool.append(b"one")
        ...     spool.append(b"two")
        ...     spool.take(), spool.drop(), spool.take()
        ([b'one', b'two'], [], [])
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._guard = threading.Lock()
        self._folder, self._lock = _own_folder(folder)
        self._segments: deque[_Segment] = deque(
            _Segment(path, path.stat().st_size) for path in sorted(self._folder.glob(f"*{_SUFFIX}"))
        )
        self._writing: int | None = None
        self.damaged = 0

    @property
    def pending_bytes(self) -> int:
        """What wasn't taken yet."""
        with self._guard:
            return sum(segment.size - segment.position for segment in self._segments)

    def append(self, payload: bytes) -> None:
        """Keep a record; it is durable when this returns.

        Raises:
            OSError: it isn't kept (a full disk, say). Earlier records are unharmed, and a later call may succeed.
        """
        if b"\n" in payload:
            raise ValueError("a record is one line")
        line = b"%08x %s\n" % (zlib.crc32(payload), payload)
        writing = self._writing if self._writing is not None else self._begin_segment()
        segment = self._segments[-1]
        try:
            if os.write(writing, line) != len(line):
                raise OSError(errno.ENOSPC, "short write", str(segment.path))
            os.fsync(writing)
        except OSError:
            # What is there of the line must not become the start of the next one; a torn end is found when read.
            with contextlib.suppress(OSError):
                os.ftruncate(writing, segment.size)
            self.end_segment()
            raise
        with self._guard:
            segment.size += len(line)
        if segment.size >= SEGMENT_BYTES:
            self.end_segment()

    def take(self, limit: int = 256 * 1024) -> list[bytes]:
        """The next records, oldest first, of about `limit` bytes of one segment; [] where there is none.

        They stay in the file until `drop`: after a crash they are taken again.
        """
        with self._guard:
            segment = next((s for s in self._segments if s.position < s.size), None)
            end = segment.size if segment else 0
        if segment is None:
            return []
        with segment.path.open("rb") as file:
            file.seek(segment.position)
            data = file.read(min(limit, end - segment.position))
            if not data.endswith(b"\n") and segment.position + len(data) < end:
                data += file.readline()
        payloads = [payload for line in data.splitlines() if (payload := self._payload(line)) is not None]
        with self._guard:
            segment.position += len(data)
            segment.taken += payloads
        return payloads or self.take(limit)

    def drop(self) -> list[bytes]:
        """Delete the segments that were taken whole and are closed.

        Returns:
            their records: none of them will ever be taken again.
        """
        dropped: list[bytes] = []
        while True:
            with self._guard:
                segment = self._segments[0] if self._segments else None
                open_still = self._writing is not None and len(self._segments) == 1
                if segment is None or open_still or segment.position < segment.size:
                    break
                self._segments.popleft()
            segment.path.unlink()
            dropped += segment.taken
        if dropped:
            sync_folder(self._folder)
        return dropped

    def close(self) -> None:
        """Close the segment being written, and let another gateway take over."""
        self.end_segment()
        os.close(self._lock)

    def end_segment(self) -> None:
        """Close the segment being written, so that `drop` can delete it. Called by the thread that appends."""
        with self._guard:
            writing, self._writing = self._writing, None
        if writing is not None:
            os.close(writing)

    def _payload(self, line: bytes) -> bytes | None:
        checksum, _space, payload = line.partition(b" ")
        if checksum == b"%08x" % zlib.crc32(payload):
            return payload
        self.damaged += 1  # torn by a crash: it was never acknowledged
        return None

    def _begin_segment(self) -> int:
        path = self._folder / f"{time.time_ns():020d}-{secrets.token_hex(4)}{_SUFFIX}"
        writing = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        with self._guard:
            self._writing = writing
            self._segments.append(_Segment(path, 0))
        sync_folder(self._folder)
        return writing


def _own_folder(shared: Path) -> tuple[Path, int]:
    """A folder that only this process holds: one that a dead gateway left, else a new one; and its lock.

    What other dead gateways left is moved into it. A lock is on the open folder itself, and the kernel lets go of it
    when the process ends, however it ends.
    """
    own: tuple[Path, int] | None = None
    for path in sorted(shared.iterdir()):
        lock = _try_lock(path)
        if lock is None:
            continue
        if own is None:
            own = path, lock
            continue
        for segment in path.glob(f"*{_SUFFIX}"):
            segment.rename(own[0] / segment.name)
        sync_folder(own[0])
        with contextlib.suppress(OSError):
            path.rmdir()
        os.close(lock)
    while own is None:
        path = shared / f"gateway-{secrets.token_hex(4)}"
        path.mkdir(mode=0o700)
        sync_folder(shared)
        lock = _try_lock(path)
        own = (path, lock) if lock is not None else None
    return own


def _try_lock(path: Path) -> int | None:
    try:
        lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if path.stat().st_ino == os.fstat(lock).st_ino:
            return lock
    except OSError:
        pass
    os.close(lock)
    return None
