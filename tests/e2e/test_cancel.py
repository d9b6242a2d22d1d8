"""The cancel button is heard while a cell waits for the run, and the picture stays when the kernel is gone."""

from __future__ import annotations

import json

import nbformat
from playwright.sync_api import Browser, expect

from tests.e2e.shots import shoot
from tests.e2e.steps import CELL, PAGE, Learner
from tests.fixtures.platform import Platform

CELLS = [
    """
def slow(steps=600):
    import time

    from kpaas_lab.training import report

    for step in range(1, steps + 1):
        report(step=step, total=steps, loss=1 / step)
        time.sleep(0.2)
""",
    "from kpaas_lab import Lab\nrun = Lab().train(slow, name='slow')\nrun",
    "try:\n    run.wait()\nexcept Exception as error:\n    print('ended:', error)",
]


def test_cancel_while_a_cell_waits(browser: Browser, platform: Platform) -> None:
    learner = Learner.arrive(browser, platform.address, "carol")
    try:
        learner.log_in(platform.password)
        learner.choose_slice("cpu")
        learner.wait_for_lab()
        _put_notebook(learner, "cancel.ipynb")
        learner.open("cancel.ipynb")
        learner.run_all()
        cancel = learner.output("button:has-text('Cancel')")
        expect(learner.output(".kpl-charts svg")).to_be_visible(timeout=CELL)
        cancel.click()
        expect(learner.output("pre:has-text('ended: slow was cancelled')")).to_be_visible(timeout=PAGE)
        expect(learner.output(".kpl-pill:has-text('Cancelled')")).to_be_visible(timeout=PAGE)
        expect(cancel).to_be_hidden()
        shoot(learner.page, "20-cancelled")
        learner.stop_server()
    except BaseException:
        shoot(learner.page, "failed-cancel")
        print(platform.logs())
        raise


def _put_notebook(learner: Learner, path: str) -> None:
    """Through Jupyter's own contents API, as this person."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source.strip()) for source in CELLS])  # type: ignore[no-untyped-call]
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}
    base = f"/user/{learner.name}/"
    [xsrf] = [
        cookie["value"] for cookie in learner.context.cookies() if cookie["name"] == "_xsrf" and cookie["path"] == base
    ]
    answer = learner.context.request.put(
        f"{learner.address}{base}api/contents/{path}",
        headers={"X-XSRFToken": xsrf, "Content-Type": "application/json"},
        data=json.dumps({"type": "notebook", "format": "json", "content": notebook}),
    )
    assert answer.status == 201, answer.text()
