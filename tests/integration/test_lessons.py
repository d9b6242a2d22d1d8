"""Every lesson is really executed, and its assignment is really graded by nbgrader."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode

from kpaas_lab.lab import Lab
from tests.fixtures.classroom import Classroom

COURSE = Path(__file__).resolve().parents[2] / "courses" / "kpaas-ai"
LESSON = COURSE / "source" / "01-first-api"


def read(path: Path) -> NotebookNode:
    return nbformat.read(path, as_version=4)  # type: ignore[no-any-return, no-untyped-call]


def execute(notebook: NotebookNode, environment: Mapping[str, str], folder: Path) -> NotebookNode:
    """Run All, in a kernel of its own; a cell that raises fails the test with its traceback."""
    client = NotebookClient(notebook, timeout=180, kernel_name="python3", resources={"metadata": {"path": str(folder)}})
    client.execute(env={**os.environ, **environment})
    return notebook


def shown(notebook: NotebookNode) -> str:
    """All that the outputs show, as text and as HTML."""
    parts = []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            parts += [output.get("text", ""), *map(str, output.get("data", {}).values())]
    return "\n".join(parts)


@pytest.fixture(scope="module")
def published(classroom: Classroom) -> tuple[NotebookNode, Lab]:
    """The first lesson, executed by ann; and her lab."""
    environment = classroom.environment("ann")
    try:
        notebook = execute(read(LESSON / "first-api.ipynb"), environment, Path(environment["HOME"]))
    except Exception as error:
        raise AssertionError(f"{error}\n{classroom.logs()}") from error
    return notebook, Lab(settings=classroom.settings("ann"))


def test_the_first_lesson_ends_with_a_listing(published: tuple[NotebookNode, Lab]) -> None:
    notebook, lab = published
    text = shown(notebook)
    assert "images are right" in text
    assert "<svg" in text, "no loss curve"
    [listing] = lab.listings(mine=True)
    assert listing.full_name == "ann/digits"
    assert [plan.name for plan in listing.plans] == ["trial", "class"]
    assert listing.page in text


def test_its_model_is_good(published: tuple[NotebookNode, Lab]) -> None:
    _notebook, lab = published
    test = lab.data.load("kpaas/digits").test
    predicted = lab.endpoints["digits"].predict(test.images).argmax(axis=1)
    assert (predicted == test.labels).mean() > 0.96


def test_the_run_is_still_there_for_another_kernel(published: tuple[NotebookNode, Lab]) -> None:
    _notebook, lab = published
    [run] = lab.runs.values()
    assert run.metrics()[-1]["loss"] < 0.1


def test_the_other_side_calls_it(published: tuple[NotebookNode, Lab], classroom: Classroom) -> None:
    environment = classroom.environment("bob")
    notebook = execute(read(LESSON / "the-other-side.ipynb"), environment, Path(environment["HOME"]))
    text = shown(notebook)
    assert "200 output [1, 10]" in text
    assert "trial" in text
    key = next(iter(Lab(settings=classroom.settings("bob")).subscriptions.values())).market.keys
    [kept] = key._read().values()
    assert kept.text not in str(notebook), "the key stands in the notebook"
    assert kept.text[:12] in text


def test_the_first_lesson_can_be_run_again(published: tuple[NotebookNode, Lab], classroom: Classroom) -> None:
    environment = classroom.environment("ann")
    execute(read(LESSON / "first-api.ipynb"), environment, Path(environment["HOME"]))
    [listing] = published[1].listings(mine=True)
    assert listing.version == 2


def nbgrader(course: Path, *arguments: str, **environment: str) -> None:
    """nbgrader, with its programs in PATH: it calls alembic by name."""
    programs = Path(nbformat.__file__).parents[4] / "bin"
    done = subprocess.run(
        [sys.executable, "-m", "nbgrader", *arguments],
        cwd=course,
        env={**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_assignment_is_graded(tmp_path: Path) -> None:
    course = tmp_path / "course"
    shutil.copytree(COURSE, course)
    nbgrader(course, "generate_assignment", "01-first-api")
    released = course / "release" / "01-first-api"
    for path in released.glob("*.ipynb"):
        text = path.read_text()
        assert "BEGIN SOLUTION" not in text
        assert "HIDDEN TESTS" not in text
    assert "NotImplementedError" in (released / "your-turn.ipynb").read_text()

    for learner, source in (("ann", LESSON), ("bob", released)):
        folder = course / "submitted" / learner / "01-first-api"
        folder.mkdir(parents=True)
        shutil.copy(source / "your-turn.ipynb", folder)
    nbgrader(course, "autograde", "01-first-api", KPAAS_LAB_USER_HOME=str(tmp_path / "lab"), HOME=str(tmp_path))
    assert scores(course) == {"ann": (10.0, 10.0), "bob": (0.0, 10.0)}


def scores(course: Path) -> dict[str, tuple[float, float]]:
    from nbgrader.api import Gradebook

    with Gradebook(f"sqlite:///{course}/gradebook.db") as gradebook:
        return {
            submission.student.id: (submission.score, submission.max_score)
            for submission in gradebook.assignment_submissions("01-first-api")
        }


@pytest.mark.parametrize("path", sorted(COURSE.rglob("*.ipynb")), ids=lambda path: path.stem)
def test_notebooks_are_clean(path: Path) -> None:
    """No outputs, no counts, valid, and both languages in every text."""
    notebook = read(path)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert not cell.get("outputs")
        assert not cell.get("execution_count")
        if cell.cell_type == "markdown":
            assert any("가" <= letter <= "힣" for letter in cell.source), cell.source
            assert any(letter.isascii() and letter.isalpha() for letter in cell.source), cell.source
