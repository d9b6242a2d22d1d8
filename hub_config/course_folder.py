"""The course folder: what learners get of `courses/<course>/source`, which is an instructor's view.

The release view is made with nbgrader's own preprocessors (solutions, hidden tests and marks taken out, outputs
cleared), once for each state of a course, into a folder of the hub. From there a learner's copy is placed; what a
learner has is never touched again.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

log = logging.getLogger("kpaas_lab.courses")
COURSES = Path(__file__).resolve().parent.parent / "courses"
LEFT_OUT = frozenset({".ipynb_checkpoints", "__pycache__", ".DS_Store"})


def courses(root: Path = COURSES) -> list[Path]:
    """The courses there are: folders with a folder `source`."""
    return sorted(path.parent for path in root.glob("*/source") if path.is_dir())


def files(source: Path) -> Iterator[Path]:
    """A course's files, relative, in order; no links, no hidden left-overs."""
    for folder, names, here in os.walk(source):
        names[:] = sorted(name for name in names if name not in LEFT_OUT)
        for name in sorted(here):
            path = Path(folder) / name
            if name not in LEFT_OUT and not path.is_symlink():
                yield path.relative_to(source)


def release_view(course: Path, cache: Path) -> Path:
    """The folder with what learners get of a course, made if this state of it isn't there yet.

    Args:
        course: a folder of `courses/`.
        cache: a folder of the hub that no learner can write.
    """
    source = course / "source"
    view = cache / f"{course.name}-{_digest(source)}"
    if view.is_dir():
        return view
    cache.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{view.name}-", dir=cache))
    try:
        for relative in files(source):
            target = partial / relative
            target.parent.mkdir(parents=True, exist_ok=True)
            if relative.suffix == ".ipynb":
                _release(source / relative, target)
            else:
                shutil.copyfile(source / relative, target)
        partial.chmod(0o755)
        partial.rename(view)
    except OSError:
        shutil.rmtree(partial, ignore_errors=True)
        if not view.is_dir():  # unless another start made the same view meanwhile
            raise
    return view


def _release(notebook: Path, target: Path) -> None:
    try:
        target.write_text(released(notebook.read_text(encoding="utf-8")), encoding="utf-8")
    except OSError:
        raise
    except Exception:  # nbformat's and nbgrader's many kinds; it must not keep learners out, nor show them a solution
        log.exception("%s has no release view, so learners don't get it.", notebook)


def release_all(cache: Path) -> None:
    """Make every course's release view, so that no learner waits for it."""
    for course in courses():
        try:
            release_view(course, cache)
        except OSError:
            log.exception("The release view of %s could not be made.", course)


def released(notebook: str) -> str:
    """A notebook's release view.

    Args:
        notebook: of nbformat 4, as JSON.
    """
    import nbformat
    from nbgrader.preprocessors import ClearHiddenTests, ClearMarkScheme, ClearOutput, ClearSolutions

    content = nbformat.reads(notebook, as_version=4)  # type: ignore[no-untyped-call]
    for preprocessor in (ClearSolutions, ClearHiddenTests, ClearMarkScheme, ClearOutput):
        content, _resources = preprocessor().preprocess(content, {})
    text: str = nbformat.writes(content)  # type: ignore[no-untyped-call]
    return text + "\n"


def first_page(root: Path = COURSES) -> str:
    """What JupyterLab opens: the first course's first notebook, else the home.

    Example:
        >>> first_page(Path("/nonexistent"))
        '/lab'
    """
    for course in courses(root):
        found = next((path for path in files(course / "source") if path.suffix == ".ipynb"), None)
        if found:
            return f"/lab/tree/courses/{course.name}/{found}"
    return "/lab"


def _digest(source: Path) -> str:
    content = hashlib.sha256()
    for relative in files(source):
        content.update(str(relative).encode() + b"\0" + (source / relative).read_bytes() + b"\0")
    return content.hexdigest()[:12]
