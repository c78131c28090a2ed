"""Requests that come while others are being answered are answered together.

What a storm asks of the database then takes a few round trips, and a lonely request waits for nobody.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

Request = TypeVar("Request")
Answer = TypeVar("Answer")


class Gathering(Generic[Request, Answer]):
    """Answers requests in groups, in the order in which they came; belongs to one event loop."""

    def __init__(
        self,
        answer: Callable[[Sequence[Request]], Awaitable[Sequence[Answer | Exception]]],
        *,
        groups: int,
        group_size: int,
    ) -> None:
        """`answer` answers a group of at most `group_size`, each request by itself or with what is wrong with it.

        At most `groups` are answered at the same time.
        """
        self._answer, self._groups, self._group_size = answer, groups, group_size
        self._waiting: deque[tuple[Request, asyncio.Future[Answer]]] = deque()
        self._tasks: set[asyncio.Task[None]] = set()  # to keep them alive, also some that have ended
        self._answering = 0

    async def ask(self, request: Request) -> Answer:
        """The answer to a request. Raises what is wrong with it, or what made its whole group fail.

        A caller that is cancelled leaves the group to be answered: to break it off would cost a connection.
        """
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((request, future))
        self._begin()
        return await future

    async def ask_to_the_end(self, request: Request) -> Answer:
        """The same for a caller that is never cancelled: where nobody waits, it takes no turn of the loop more."""
        if self._waiting or self._answering >= self._groups:
            return await self.ask(request)
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._answering += 1
        try:
            await self._answer_group([(request, future)])
        finally:
            self._end()
        return future.result()

    def _begin(self) -> None:
        if self._answering < self._groups:
            self._answering += 1
            task = asyncio.create_task(self._answer_waiting())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _end(self) -> None:
        """At once: who asks in this very turn of the loop must not rely on somebody who has ended."""
        self._answering -= 1
        if self._waiting:
            self._begin()

    async def _answer_waiting(self) -> None:
        try:
            while group := self._take():
                await self._answer_group(group)
        finally:
            self._end()

    async def _answer_group(self, group: Sequence[tuple[Request, asyncio.Future[Answer]]]) -> None:
        answers: Sequence[Answer | BaseException]
        try:
            answers = await self._answer([request for request, _ in group])
        except BaseException as error:
            answers = [error] * len(group)
            if not isinstance(error, Exception):
                raise
        finally:
            for (_, future), found in zip(group, answers, strict=True):
                if future.done():  # nobody waits any more
                    continue
                if isinstance(found, BaseException):
                    future.set_exception(found)
                else:
                    future.set_result(found)

    def _take(self) -> list[tuple[Request, asyncio.Future[Answer]]]:
        """The next group: those that somebody still waits for."""
        group: list[tuple[Request, asyncio.Future[Answer]]] = []
        while self._waiting and len(group) < self._group_size:
            item = self._waiting.popleft()
            if not item[1].done():
                group.append(item)
        return group
