"""The course folder: the release view of a course."""

import json
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_notebook, new_output

from hub_config import course_folder


def make_course(root: Path) -> Path:
    source = root / "lesson" / "source" / "01"
    source.mkdir(parents=True)
    cells = [
        new_code_cell("def mean(x):\n    ### BEGIN SOLUTION\n    return sum(x) / len(x)\n    ### END SOLUTION"),
        new_code_cell("assert mean([1]) == 1\n### BEGIN HIDDEN TESTS\nassert mean([7]) == 7\n### END HIDDEN TESTS"),
        new_code_cell("print(1)", execution_count=3, outputs=[new_output("stream", text="secret output")]),
    ]
    for cell, facts in zip(
        cells, ({"solution": True, "grade": False}, {"solution": False, "grade": True}), strict=False
    ):
        cell.metadata["nbgrader"] = {
            "schema_version": 3, "grade_id": cell.id, "locked": False, "task": False, "points": 1, **facts,
        }  # fmt: skip
    nbformat.write(new_notebook(cells=cells), source / "a.ipynb")
    (source / "data.csv").write_text("1,2\n")
    (source / "link").symlink_to("/etc/passwd")
    (source / ".ipynb_checkpoints").mkdir()
    (source / ".ipynb_checkpoints" / "a.ipynb").write_text("{}")
    return root / "lesson"


def test_learners_get_no_solution_no_hidden_test_no_output_no_link(tmp_path: Path) -> None:
    view = course_folder.release_view(make_course(tmp_path), tmp_path / "cache")
    assert sorted(str(path.relative_to(view)) for path in view.rglob("*")) == ["01", "01/a.ipynb", "01/data.csv"]
    text = (view / "01" / "a.ipynb").read_text()
    assert all(secret not in text for secret in ("sum(x)", "mean([7])", "secret output"))
    assert "assert mean([1]) == 1" in text
    nbformat.validate(json.loads(text))


def test_a_broken_notebook_is_left_out_and_the_rest_is_there(tmp_path: Path) -> None:
    course = make_course(tmp_path)
    (course / "source" / "01" / "broken.ipynb").write_text('{"cells": [')
    half = new_notebook(cells=[new_code_cell("### BEGIN SOLUTION\nsecret = 42")])
    half.cells[0].metadata["nbgrader"] = {
        "schema_version": 3, "grade_id": "x", "locked": False, "task": False, "points": 1,
        "solution": True, "grade": False,
    }  # fmt: skip
    nbformat.write(half, course / "source" / "01" / "half.ipynb")
    view = course_folder.release_view(course, tmp_path / "cache")
    assert sorted(path.name for path in (view / "01").iterdir()) == ["a.ipynb", "data.csv"]


def test_made_once_for_each_state_of_the_course(tmp_path: Path) -> None:
    course = make_course(tmp_path)
    first = course_folder.release_view(course, tmp_path / "cache")
    assert course_folder.release_view(course, tmp_path / "cache") == first
    (course / "source" / "01" / "data.csv").write_text("3,4\n")
    second = course_folder.release_view(course, tmp_path / "cache")
    assert second != first
    assert (second / "01" / "data.csv").read_text() == "3,4\n"
    assert not [path for path in (tmp_path / "cache").iterdir() if path.name.startswith(".")]


def test_the_first_page_is_the_first_notebook(tmp_path: Path) -> None:
    make_course(tmp_path)
    assert course_folder.first_page(tmp_path) == "/lab/tree/courses/lesson/01/a.ipynb"


def test_every_shipped_course_has_a_release_view(tmp_path: Path) -> None:
    for course in course_folder.courses():
        view = course_folder.release_view(course, tmp_path)
        assert list(course_folder.files(view)) == list(course_folder.files(course / "source"))
