"""Work in a learner's home, by the platform. Learners own what is in there and may plant links: none is followed."""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kpaas_lab.errors import SettingsError
from kpaas_lab.i18n import _

FIRST_UID = 200_000
# Where the user namespace we are in (a container's) has no uid 200000.
FIRST_UID_IN_CONTAINER = 20_000
FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@contextmanager
def open_folder(name: str | Path, parent: int | None = None) -> Iterator[int]:
    """A folder's descriptor; its last part is no link.

    Raises:
        OSError: a link, not a folder, or not there.
    """
    descriptor = os.open(name, FOLDER, dir_fd=parent)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def own(home: Path, name: str) -> tuple[int, int]:
    """Make the home and give it to its learner; (uid, gid).

    As root every learner is a user of their own, and the home's owner is the record of who; else all are this user.

    Raises:
        SettingsError: the home is a link or can't be made.
    """
    try:
        home.parent.mkdir(parents=True, exist_ok=True)
        with open_folder(home.parent.resolve()) as parent:
            fcntl.flock(parent, fcntl.LOCK_EX)  # one learner at a time gets a number
            with suppress(FileExistsError):
                os.mkdir(home.name, 0o700, dir_fd=parent)
            with open_folder(home.name, parent) as folder:
                os.fchmod(folder, 0o700)
                if os.geteuid() != 0:
                    return os.geteuid(), os.getegid()
                uid = os.fstat(folder).st_uid
                if uid < first_uid():
                    _give(folder, uid, _next_uid(parent))
                return os.fstat(folder).st_uid, os.fstat(folder).st_gid
    except OSError as error:
        raise SettingsError(
            _("The home of {name!r}, {home}, can't be used: {error}.").format(
                name=name, home=home, error=error.strerror
            ),
            hint=_("It must be a folder on a disk with room, and no link."),
        ) from error


def first_uid() -> int:
    """The first of the learners' user numbers."""
    with open("/proc/self/uid_map", encoding="ascii") as table:
        rows = [[int(field) for field in line.split()] for line in table]
    return (
        FIRST_UID
        if any(start <= FIRST_UID < start + count for start, _outer, count in rows)
        else FIRST_UID_IN_CONTAINER
    )


def _next_uid(parent: int) -> int:
    owners = [entry.stat(follow_symlinks=False).st_uid for entry in os.scandir(parent)]
    return max([*owners, first_uid() - 1]) + 1


def _give(folder: int, former: int, uid: int) -> None:
    """Everything in there that belonged to the former owner, the folder itself last: a broken run is done again."""
    for _path, folders, files, descriptor in os.fwalk(".", dir_fd=folder, follow_symlinks=False):
        for name in (*folders, *files):
            if os.stat(name, dir_fd=descriptor, follow_symlinks=False).st_uid == former:
                os.chown(name, uid, uid, dir_fd=descriptor, follow_symlinks=False)
    os.fchown(folder, uid, uid)


def place_tree(source: Path, home: Path, relative: str, uid: int) -> list[str]:
    """Copy a file or folder into a home. Nothing that is there is changed, no link is followed.

    Args:
        source: what to copy; links in it are skipped.
        home: the learner's home.
        relative: where in it, for example "courses/kpaas-ai".
        uid: who owns what is made, when root makes it.

    Returns:
        The files made, relative to the home.

    Raises:
        SettingsError: `relative` leaves the home.
        OSError: the disk is full or the home can't be written.
    """
    parts = Path(relative).parts
    if not parts or Path(relative).is_absolute() or ".." in parts:
        raise SettingsError(_("{path!r} is not a path in a home.").format(path=relative))
    made: list[str] = []
    with open_folder(home) as folder:
        _place(source, folder, parts, "", uid, made)
    return made


def _place(source: Path, folder: int, parts: tuple[str, ...], path: str, uid: int, made: list[str]) -> None:
    name, rest = parts[0], parts[1:]
    path = f"{path}/{name}".lstrip("/")
    if not rest and not source.is_dir():
        if _place_file(source, folder, name, uid):
            made.append(path)
        return
    try:
        os.mkdir(name, 0o755, dir_fd=folder)
        fresh = True
    except FileExistsError:
        fresh = False
    try:
        with open_folder(name, folder) as inner:
            if fresh:
                _belong(inner, uid)
            if rest:
                _place(source, inner, rest, path, uid, made)
                return
            for entry in sorted(source.iterdir()):
                if not entry.is_symlink() and entry.name != "__pycache__":
                    _place(entry, inner, (entry.name,), path, uid, made)
    except OSError as error:
        if error.errno not in {20, 40}:  # ENOTDIR, ELOOP: the learner has something else of that name; theirs stays
            raise


def _place_file(source: Path, folder: int, name: str, uid: int) -> bool:
    """Under another name first, so that a kill half-way leaves no half file that would then count as the learner's."""
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
        return False
    except FileNotFoundError:
        pass
    temporary = f".{name[:200]}.{uuid.uuid4().hex[:8]}~"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    executable = source.stat().st_mode & stat.S_IXUSR
    descriptor = os.open(temporary, flags, 0o755 if executable else 0o644, dir_fd=folder)
    try:
        with source.open("rb") as reader, os.fdopen(descriptor, "wb") as writer:
            shutil.copyfileobj(reader, writer)
            writer.flush()
            os.fsync(writer.fileno())
            _belong(writer.fileno(), uid)
        os.link(temporary, name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
        return True
    except FileExistsError:
        return False
    finally:
        os.unlink(temporary, dir_fd=folder)


def _belong(descriptor: int, uid: int) -> None:
    if os.geteuid() == 0:
        os.fchown(descriptor, uid, uid)
