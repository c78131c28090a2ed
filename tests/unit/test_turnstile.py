"""One goes on in each turn of the loop, in the order in which they came."""

from __future__ import annotations

import asyncio

from django_localsync.turnstile import Turnstile


class Turns:
    """Counts the turns of the loop while somebody enters, one after another."""

    def __init__(self) -> None:
        self.number = 0
        self.passed: list[tuple[str, int]] = []
        self.turnstile = Turnstile()
        self._count()

    def _count(self) -> None:
        self.number += 1
        asyncio.get_running_loop().call_soon(self._count)

    async def enter(self, name: str) -> None:
        await self.turnstile.enter()
        self.passed.append((name, self.number))


async def test_a_lonely_one_does_not_wait():
    turns = Turns()
    before = turns.number
    await turns.enter("a")
    assert turns.passed == [("a", before)]


async def test_those_that_come_together_go_on_one_a_turn_in_order():
    turns = Turns()
    await asyncio.gather(*(turns.enter(name) for name in "abcdef"))
    assert "".join(name for name, _ in turns.passed) == "abcdef"
    numbers = [number for _, number in turns.passed]
    assert len(set(numbers)) == 6
    assert numbers[-1] - numbers[0] <= 7


async def test_who_gives_up_takes_no_turn():
    turns = Turns()
    tasks = [asyncio.create_task(turns.enter(name)) for name in "abcd"]
    await asyncio.sleep(0)
    tasks[1].cancel()
    tasks[2].cancel()
    await asyncio.wait(tasks)
    assert [name for name, _ in turns.passed] == ["a", "d"]
    assert turns.passed[1][1] - turns.passed[0][1] <= 3


async def test_it_is_open_again_when_all_have_passed():
    turns = Turns()
    await asyncio.gather(*(turns.enter(name) for name in "abc"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    before = turns.number
    await turns.enter("d")
    assert turns.passed[-1] == ("d", before)
