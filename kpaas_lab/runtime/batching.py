"""Adaptive micro-batching: requests that wait at the same time run as one.

A lone request never waits. When the last batches held several rows, the next one waits for as many, at most max_delay.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from queue import SimpleQueue

import numpy as np

from kpaas_lab.i18n import _
from kpaas_lab.oip import ProtocolError
from kpaas_lab.oip.tensors import Array

Arrays = Mapping[str, Array]
Run = Callable[[Arrays], dict[str, Array]]
Outcome = dict[str, Array] | BaseException


@dataclass(slots=True, eq=False)
class _Item:
    inputs: Arrays
    rows: int
    key: tuple[tuple[int, ...], ...]
    answer: asyncio.Future[dict[str, Array]]


class Batcher:
    """Runs a model in a thread of its own, rows of several requests at a time.

    Used from one event loop only.

    Args:
        run: the model; called by one thread at a time.
        names: of its inputs; None is a model whose rows depend on one another: each request runs alone.
        max_batch: rows at most in one run; a request that has more of its own runs alone.
        max_delay: seconds a request waits at most for others.
        max_queue: requests that may wait; more are refused with status 503.
        observe: told the rows and the seconds of each run.
    """

    def __init__(
        self,
        run: Run,
        *,
        names: Sequence[str] | None,
        max_batch: int,
        max_delay: float,
        max_queue: int = 1024,
        observe: Callable[[int, float], None] = lambda rows, seconds: None,
    ) -> None:
        self._run = run
        self._names = names if max_batch > 1 else None
        self._max_batch = max_batch
        self._max_delay = max_delay
        self._max_queue = max_queue
        self._observe = observe
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[_Item] = deque()
        self._rows = 0  # of those waiting
        self._expected = 1  # rows worth waiting for
        self._busy = False
        self._considering = False
        self._closed = False
        self._timer: asyncio.TimerHandle | None = None
        self._groups: SimpleQueue[list[_Item] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)
        self._thread.start()

    @property
    def queued(self) -> int:
        """Requests that wait."""
        return len(self._waiting)

    def submit(self, inputs: Arrays) -> asyncio.Future[dict[str, Array]]:
        """The outputs of these inputs, once they have run.

        Raises:
            ProtocolError: too many requests wait, or the inputs have different numbers of rows.
        """
        if self._closed:
            raise RuntimeError("the batcher is closed")
        if len(self._waiting) >= self._max_queue:
            raise ProtocolError(
                _("The model is busy: {count} requests wait.").format(count=len(self._waiting)),
                hint=_("Try again in a moment."),
                status=503,
            )
        rows, key = self._group_of(inputs)
        item = _Item(inputs, rows, key, self._loop.create_future())
        self._waiting.append(item)
        self._rows += rows
        if not self._considering and not self._busy:
            self._considering = True
            self._loop.call_soon(self._consider)  # after those that arrive in the same turn of the loop
        return item.answer

    def close(self) -> None:
        """End the thread once everything that waits has run."""
        self._closed = True
        self._consider()

    def _group_of(self, inputs: Arrays) -> tuple[int, tuple[tuple[int, ...], ...]]:
        if self._names is None:
            return 1, ()
        rows = len(inputs[self._names[0]])
        if any(len(inputs[name]) != rows for name in self._names):
            raise ProtocolError(
                _("The inputs have different numbers of rows: {rows}.").format(
                    rows=", ".join(f"'{name}' {len(inputs[name])}" for name in self._names)
                )
            )
        return rows, tuple([inputs[name].shape[1:] for name in self._names])

    def _consider(self) -> None:
        """Start a run now, or when others have come, or when the delay is over."""
        self._considering = False
        if self._busy:
            return
        if not self._waiting:
            if self._closed:
                self._groups.put(None)
            return
        if self._closed or not self._max_delay or self._rows >= min(self._expected, self._max_batch):
            self._dispatch()
        elif self._timer is None:
            self._timer = self._loop.call_later(self._max_delay, self._dispatch)

    def _dispatch(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._busy or not self._waiting:
            return
        group = self._take()
        self._busy = True
        self._groups.put(group)

    def _take(self) -> list[_Item]:
        """The oldest request, and those behind it that fit into one run with it."""
        head = self._waiting.popleft()
        group, rows = [head], head.rows
        if self._names is not None and self._waiting:
            rest: deque[_Item] = deque()
            for item in self._waiting:
                if item.key == head.key and rows + item.rows <= self._max_batch:
                    group.append(item)
                    rows += item.rows
                else:
                    rest.append(item)
            self._waiting = rest
        self._rows -= rows
        if self._names is not None:
            self._expected = max(rows, 1)
        return group

    def _finish(self, group: list[_Item], outcomes: list[Outcome], seconds: float) -> None:
        self._busy = False
        self._observe(sum(item.rows for item in group), seconds)
        self._consider()  # before the answers are written: the model needn't wait for that
        for item, outcome in zip(group, outcomes, strict=True):
            if item.answer.done():  # its client went away
                continue
            if isinstance(outcome, BaseException):
                item.answer.set_exception(_raisable(outcome))
            else:
                item.answer.set_result(outcome)

    def _work(self) -> None:
        while (group := self._groups.get()) is not None:
            started = time.perf_counter()
            outcomes = run_group(self._run, [item.inputs for item in group], [item.rows for item in group])
            try:
                self._loop.call_soon_threadsafe(self._finish, group, outcomes, time.perf_counter() - started)
            except RuntimeError:  # the loop has ended: nobody waits any more
                return
            del group, outcomes


def run_group(run: Run, requests: Sequence[Arrays], rows: Sequence[int]) -> list[Outcome]:
    """The outcome of each request. One that fails doesn't take those beside it along: they run again, alone.

    Args:
        run: the model.
        requests: the inputs of each.
        rows: the number of rows of each.

    Example:
        >>> run_group(lambda inputs: {"y": inputs["x"] * 2}, [{"x": np.array([1])}, {"x": np.array([2, 3])}], [1, 2])
        [{'y': array([2])}, {'y': array([4, 6])}]
    """
    if len(requests) == 1:
        return [_run_one(run, requests[0])]
    try:
        joined = {name: np.concatenate([inputs[name] for inputs in requests]) for name in requests[0]}
        return _split(run(joined), rows)
    except BaseException:
        return [_run_one(run, inputs) for inputs in requests]


def _run_one(run: Run, inputs: Arrays) -> Outcome:
    try:
        return run(inputs)
    except BaseException as error:  # a served function may call sys.exit
        return error


def _split(outputs: dict[str, Array], rows: Sequence[int]) -> list[Outcome]:
    total = sum(rows)
    for name, array in outputs.items():
        if not array.ndim or len(array) != total:
            raise ValueError(_("output '{name}' has not one row for each row of the inputs").format(name=name))
    outcomes: list[Outcome] = []
    start = 0
    for count in rows:
        outcomes.append({name: array[start : start + count] for name, array in outputs.items()})
        start += count
    return outcomes


def _raisable(error: BaseException) -> Exception:
    """A future takes no StopIteration, and SystemExit would end the server."""
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        return error
    wrapped = RuntimeError(f"{type(error).__name__}: {error}")
    wrapped.__cause__ = error
    return wrapped
