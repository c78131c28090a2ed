"""Requests that wait are answered together; a lonely one waits for nobody."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from django_localsync.storage.gathering import Gathering


class Answering:
    """Answers numbers by their squares, once it is let; remembers the groups."""

    def __init__(self) -> None:
        self.groups: list[list[int]] = []
        self.gate = asyncio.Event()
        self.at_once = self.most_at_once = 0

    async def answer(self, requests: Sequence[int]) -> Sequence[int | Exception]:
        self.groups.append(list(requests))
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await self.gate.wait()
            if 13 in requests:
                raise LookupError("no thirteen")
            return [ValueError(str(number)) if number < 0 else number**2 for number in requests]
        finally:
            self.at_once -= 1


async def begin(gathering: Gathering[int, int], *numbers: int) -> list[asyncio.Task[int]]:
    tasks = [asyncio.create_task(gathering.ask(number)) for number in numbers]
    for _ in range(3):
        await asyncio.sleep(0)
    return tasks


async def test_what_comes_while_others_are_answered_is_answered_together():
    answering = Answering()
    gathering = Gathering(answering.answer, groups=1, group_size=3)
    tasks = await begin(gathering, 1)
    tasks += await begin(gathering, 2, 3, 4, 5)
    answering.gate.set()
    assert await asyncio.gather(*tasks) == [1, 4, 9, 16, 25]
    assert answering.groups == [[1], [2, 3, 4], [5]]
    assert answering.most_at_once == 1


@pytest.mark.parametrize("way", ["ask", "ask_to_the_end"])
async def test_who_asks_again_at_once_is_answered(way):
    """In the turn of the loop in which the one who answered has ended."""
    answering = Answering()
    answering.gate.set()
    gathering = Gathering(answering.answer, groups=1, group_size=3)

    async def ask_often() -> list[int]:
        return [await getattr(gathering, way)(number) for number in range(12)]

    async with asyncio.timeout(5):
        answers = await asyncio.gather(*(ask_often() for _ in range(5)))
    assert answers == [[number**2 for number in range(12)]] * 5


async def test_a_lonely_request_waits_for_nobody():
    answering = Answering()
    gathering = Gathering(answering.answer, groups=2, group_size=3)
    await begin(gathering, 1)
    await begin(gathering, 2)
    assert answering.groups == [[1], [2]]
    await begin(gathering, 3)
    assert answering.groups == [[1], [2]]
    answering.gate.set()


async def test_what_is_wrong_with_one_is_raised_for_it_alone():
    answering = Answering()
    gathering = Gathering(answering.answer, groups=1, group_size=9)
    answering.gate.set()
    one, bad, two = await begin(gathering, 1, -1, 2)
    assert (await one, await two) == (1, 4)
    with pytest.raises(ValueError, match="-1"):
        await bad


async def test_what_makes_a_group_fail_is_raised_for_all_of_it_and_no_other():
    answering = Answering()
    gathering = Gathering(answering.answer, groups=1, group_size=2)
    answering.gate.set()
    tasks = [asyncio.create_task(gathering.ask(number)) for number in (1, 13, 2, 3)]
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [LookupError, LookupError, int, int]


async def test_who_gave_up_is_not_answered_and_holds_nobody_up():
    answering = Answering()
    gathering = Gathering(answering.answer, groups=1, group_size=9)
    first, *others = await begin(gathering, 1), *await begin(gathering, 2, 3)
    others[0].cancel()
    first[0].cancel()
    answering.gate.set()
    assert await others[1] == 9
    assert answering.groups == [[1], [3]]
    assert await gathering.ask(4) == 16


async def test_a_lonely_request_takes_no_turn_of_the_loop_more_than_its_answer():
    async def answer(requests: Sequence[int]) -> Sequence[int]:
        return [number**2 for number in requests]

    gathering = Gathering[int, int](answer, groups=1, group_size=9)
    turns: list[str] = []
    asyncio.get_running_loop().call_soon(turns.append, "a turn")
    assert await gathering.ask_to_the_end(3) == 9
    assert turns == []


async def test_who_asks_to_the_end_shares_groups_with_others():
    answering = Answering()
    gathering = Gathering(answering.answer, groups=1, group_size=3)
    tasks = [asyncio.create_task(gathering.ask_to_the_end(number)) for number in (1, 2, 3, -4)]
    tasks += await begin(gathering, 5)
    assert answering.groups == [[1]]
    answering.gate.set()
    assert await asyncio.gather(*tasks[:3], tasks[4]) == [1, 4, 9, 25]
    assert answering.groups == [[1], [2, 3, -4], [5]]
    assert answering.most_at_once == 1
    with pytest.raises(ValueError, match="-4"):
        await tasks[3]
    with pytest.raises(LookupError):
        await gathering.ask_to_the_end(13)


async def test_a_task_that_is_cancelled_leaves_nobody_waiting():
    answering = Answering()
    gathering = Gathering(answering.answer, groups=1, group_size=9)
    (waiting,) = await begin(gathering, 1)
    (task,) = gathering._tasks
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
