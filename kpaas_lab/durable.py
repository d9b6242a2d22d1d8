"""Files that a reader, a kill and a machine that loses power find old or new, never half. Standard library only."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path


def write(path: Path, content: str | bytes, *, mode: int = 0o600) -> None:
    """Replace a file's content; it is on the disk when this returns.

    Args:
        path: its folder must be there.
        content: text is written as UTF-8.
        mode: permissions, less what the umask takes away.

    Raises:
        OSError: nothing was changed.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write(Path(folder) / "name", "ann")
        ...     (Path(folder) / "name").read_text()
        'ann'
    """
    data = content.encode() if isinstance(content, str) else content
    draft = path.with_name(f".{path.name[:200]}.{os.urandom(6).hex()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable: what was made, renamed or removed there."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # file systems that can't sync a folder don't need to
            raise
    finally:
        os.close(descriptor)
