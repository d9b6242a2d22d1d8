"""A log that can't fill the disk: its beginning and its end are kept, and a line says how much is missing.

The beginning is the file `log`. What comes after its share goes to `log.<offset>`, where offset is the place of its
first byte in the whole output; the newest two such files stay. So the names alone say what is missing, and a reader
that follows keeps its place while files come and go. Standard library only.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

HEAD = "log"
DEFAULT_LIMIT = 8 << 20
CHUNK = 1 << 16
POLL = 0.05


def parts(folder: Path) -> list[tuple[int, Path]]:
    """The files of a log with the offset of each one's first byte, in order."""
    found = [(int(path.suffix[1:]), path) for path in folder.glob(f"{HEAD}.*") if path.suffix[1:].isdigit()]
    return [(0, folder / HEAD), *sorted(found)]


class LogWriter:
    """Appends output within a limit of bytes. A full disk loses lines, not the workload."""

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder = folder
        self._head, self._tail = limit // 2, max(1, limit // 4)
        self._start, path = parts(folder)[-1]
        self._file: BinaryIO = path.open("ab", buffering=0)
        self._size = self._file.tell()

    def write(self, data: bytes) -> None:
        """Append, and start the next file when this one has its share."""
        view = memoryview(data)
        while view:
            share = self._head if self._start == 0 else self._tail
            if self._size >= share:
                self._next()
                continue
            piece = view[: share - self._size]
            written = len(piece)  # where it can't be written it counts as written, and is missing
            with contextlib.suppress(OSError, ValueError):
                written = self._file.write(piece) or written
            self._size += written
            view = view[written:]

    def _next(self) -> None:
        start = self._start + self._size
        self._file.close()
        for _offset, path in parts(self._folder)[1:-1]:
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self._file = (self._folder / f"{HEAD}.{start}").open("ab", buffering=0)
        self._start, self._size = start, 0

    def drop_tail(self) -> None:
        """Give disk back: forget everything but the beginning."""
        for _offset, path in parts(self._folder)[1:]:
            with contextlib.suppress(OSError):
                path.open("wb").close()

    def close(self) -> None:
        """Finish the file."""
        self._file.close()


def _read_at(folder: Path, place: int) -> tuple[bytes, int]:
    """Bytes at this place of the output or, where they are gone, at the next place that is kept; and that place."""
    for start, path in parts(folder):
        try:
            with path.open("rb") as file:
                size = file.seek(0, 2)
                if start + size <= place:
                    continue
                file.seek(max(0, place - start))
                return file.read(CHUNK), max(place, start)
        except OSError:
            continue
    return b"", place


def read_lines(
    folder: Path, *, follow: bool, ended: Callable[[], bool], cut: Callable[[int], str] = "… {} bytes …".format
) -> Iterator[str]:
    """The log's lines without their ends.

    Args:
        folder: of the workload.
        follow: wait for more until it has ended.
        ended: whether nothing more will be written.
        cut: the line that stands for so many missing bytes.
    """
    place, rest, skipped = 0, b"", 0
    while True:
        last = not follow or ended()  # asked before reading: what was written before the end is read
        data, found = _read_at(folder, place)
        if found > place:
            skipped += len(rest) + found - place
            rest = b""
        place = found + len(data)
        if skipped and data:  # the first line after a gap is half a line
            half, newline, data = data.partition(b"\n")
            skipped += len(half) + len(newline)
            if not newline:
                continue
            yield cut(skipped)
            skipped = 0
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            yield line.removesuffix(b"\r").decode("utf-8", "replace")
        if place == found and last:
            break
        if place == found:
            time.sleep(POLL)
    if skipped:
        yield cut(skipped)
    if rest:
        yield rest.decode("utf-8", "replace")
