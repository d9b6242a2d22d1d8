"""Micro-batching: what runs together, what waits, and what a failure takes along."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from kpaas_lab.oip import ProtocolError
from kpaas_lab.runtime.batching import Batcher, run_group


class Model:
    """Doubles; keeps the rows of each run; waits where it is told to."""

    def __init__(self) -> None:
        self.runs: list[int] = []
        self.open = threading.Event()
        self.open.set()

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.open.wait(10)
        self.runs.append(len(inputs["x"]))
        if (inputs["x"] == 13).any():
            raise ValueError("thirteen")
        return {"y": inputs["x"] * 2}


def x(*values: float, width: int = 1) -> dict[str, np.ndarray]:
    return {"x": np.repeat(np.array(values, dtype=np.float32)[:, None], width, axis=1)}


async def together(model: Model, batcher: Batcher, requests: list[dict[str, np.ndarray]]) -> list[Any]:
    """Submit all while the model is held by a first request."""
    model.open.clear()
    first = batcher.submit(x(0))
    await asyncio.sleep(0.05)
    answers = [batcher.submit(request) for request in requests]
    model.open.set()
    await first
    return await asyncio.gather(*answers, return_exceptions=True)


def batcher(model: Model, **more: Any) -> Batcher:
    return Batcher(model, **{"names": ["x"], "max_batch": 8, "max_delay": 0.0, **more})


async def test_those_that_wait_run_as_one() -> None:
    model = Model()
    answers = await together(model, batcher(model), [x(1), x(2, 3), x(4)])
    assert [answer["y"].ravel().tolist() for answer in answers] == [[2], [4, 6], [8]]
    assert model.runs == [1, 4]


async def test_no_run_has_more_rows_than_max_batch() -> None:
    model = Model()
    await together(model, batcher(model), [x(*range(5)), x(*range(5)), x(1), x(*range(20))])
    assert model.runs == [1, 6, 5, 20]  # the third fits beside the first; one that is larger by itself runs alone


async def test_other_shapes_run_apart() -> None:
    model = Model()
    answers = await together(model, batcher(model), [x(1), x(2, width=2), x(3), x(4, width=2)])
    assert [answer["y"].shape for answer in answers] == [(1, 1), (1, 2), (1, 1), (1, 2)]
    assert model.runs == [1, 2, 2]


async def test_one_failure_is_its_own() -> None:
    model = Model()
    answers = await together(model, batcher(model), [x(1), x(13), x(3)])
    assert answers[0]["y"].tolist() == [[2]]
    assert isinstance(answers[1], ValueError)
    assert answers[2]["y"].tolist() == [[6]]


async def test_a_model_whose_rows_depend_on_one_another_runs_alone() -> None:
    model = Model()
    await together(model, batcher(model, names=None), [x(1), x(2)])
    assert model.runs == [1, 1, 1]


async def test_a_lone_request_doesnt_wait_and_company_is_waited_for() -> None:
    model = Model()
    made = batcher(model, max_delay=5.0)
    assert (await asyncio.wait_for(made.submit(x(1)), 4))["y"].tolist() == [[2]]
    await asyncio.wait_for(together(model, made, [x(1), x(2), x(3)]), 4)
    waiting = made.submit(x(1))  # the last run had three rows: this one waits for two more
    await asyncio.sleep(0.1)
    assert not waiting.done()
    others = [made.submit(x(2)), made.submit(x(3))]
    await asyncio.wait_for(asyncio.gather(waiting, *others), 4)
    assert model.runs == [1, 1, 3, 3]


async def test_a_delay_ends_and_is_forgotten() -> None:
    model = Model()
    made = batcher(model, max_delay=0.2)
    await together(model, made, [x(1), x(2), x(3)])
    await asyncio.wait_for(made.submit(x(1)), 5)
    made._max_delay = 60.0  # would be felt if it still expected company
    await asyncio.wait_for(made.submit(x(1)), 5)
    assert model.runs == [1, 3, 1, 1]


async def test_a_full_queue_refuses_with_503() -> None:
    model = Model()
    made = batcher(model, max_queue=2)
    model.open.clear()
    answers = [made.submit(x(1))]
    await asyncio.sleep(0.05)
    answers += [made.submit(x(1)), made.submit(x(1))]
    with pytest.raises(ProtocolError, match="busy") as caught:
        made.submit(x(1))
    assert caught.value.status == 503
    model.open.set()
    await asyncio.gather(*answers)


async def test_inputs_of_different_rows_are_refused() -> None:
    made = Batcher(dict, names=["a", "b"], max_batch=8, max_delay=0)
    with pytest.raises(ProtocolError, match="'a' 2, 'b' 3"):
        made.submit({"a": np.zeros(2), "b": np.zeros(3)})


async def test_a_client_that_goes_away_leaves_the_others() -> None:
    model = Model()
    made = batcher(model)
    model.open.clear()
    first, second = made.submit(x(1)), made.submit(x(2))
    first.cancel()
    model.open.set()
    assert (await second)["y"].tolist() == [[4]]


async def test_closing_runs_what_waits_and_ends_the_thread() -> None:
    model = Model()
    made = batcher(model)
    model.open.clear()
    answers = [made.submit(x(1)), made.submit(x(2))]
    made.close()
    with pytest.raises(RuntimeError):
        made.submit(x(3))
    model.open.set()
    await asyncio.gather(*answers)
    await asyncio.to_thread(made._thread.join, 5)
    assert not made._thread.is_alive()


async def test_sys_exit_in_a_model_is_an_error_of_its_request() -> None:
    def leaves(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        raise SystemExit(3)

    made = Batcher(leaves, names=["x"], max_batch=8, max_delay=0)
    for _number in range(2):
        with pytest.raises(RuntimeError, match="SystemExit: 3"):
            await made.submit(x(1))


def test_an_output_without_the_inputs_rows_falls_back_to_runs_alone() -> None:
    outcomes = run_group(lambda inputs: {"sum": inputs["x"].sum(axis=0)}, [x(1), x(2)], [1, 1])
    assert [outcome["sum"].tolist() for outcome in outcomes if isinstance(outcome, dict)] == [[1], [2]]
