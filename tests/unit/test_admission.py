"""The queue of starts."""

import asyncio

from hub_config.admission import Turns


async def test_first_come_first_served_and_each_knows_the_place() -> None:
    turns, order, gate = Turns(2), [], asyncio.Event()

    async def start(name: str) -> None:
        async with turns.turn(name):
            order.append(name)
            await gate.wait()

    tasks = [asyncio.create_task(start(name)) for name in "abcde"]
    await asyncio.sleep(0)
    assert order == ["a", "b"]
    assert [turns.place(name) for name in "abcdex"] == [0, 0, 1, 2, 3, 0]
    tasks[2].cancel()
    await asyncio.gather(tasks[2], return_exceptions=True)
    assert [turns.place(name) for name in "de"] == [1, 2]
    gate.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert order == ["a", "b", "d", "e"]


async def test_one_that_fails_or_is_cancelled_lets_the_next_one_in() -> None:
    turns, done = Turns(1), []

    async def start(name: str, *, fail: bool = False) -> None:
        async with turns.turn(name):
            await asyncio.sleep(0)
            if fail:
                raise ValueError(name)
            done.append(name)

    first = asyncio.create_task(start("a", fail=True))
    second = asyncio.create_task(start("b"))
    third = asyncio.create_task(start("c"))
    await asyncio.gather(first, return_exceptions=True)
    second.cancel()  # it has its turn already, and gives it back
    await asyncio.wait_for(asyncio.gather(second, third, return_exceptions=True), 5)
    assert "c" in done


async def test_many_never_more_than_so_many_at_once() -> None:
    turns, inside, most = Turns(3), 0, 0

    async def start(name: str) -> None:
        nonlocal inside, most
        async with turns.turn(name):
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0)
            inside -= 1

    await asyncio.gather(*(start(str(number)) for number in range(200)))
    assert most == 3
