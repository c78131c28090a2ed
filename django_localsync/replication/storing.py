"""Storage's side of a stream: steps become storage transactions, whole transactions of the source checkpoints.

While there is a backlog, a thread of its own talks to storage, so that Postgres and Python work at the same time:

    follower   read 2 · work out 1 · read 3 · work out 2 · read 4 · work out 3 · …
    thread     look up 2 ·· write 1 · look up 3 ·· write 2 · look up 4 ·· write 3 · …

So what is looked up for a step is from before the step before it was written. What that one does to rows is known,
however, since it was worked out, and takes the place of what was found. The thread does one thing after the other, and
whoever else needs storage calls `finish` first: then all is as if there were one thread.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import ExitStack
from datetime import datetime
from functools import partial
from typing import NamedTuple, TypeVar

from ..storage.writer import BucketKey, StorageWriter, WriteSet
from .changes import Known, RowTexts, Step
from .filling import Filling

logger = logging.getLogger(__name__)

T = TypeVar("T")
AndThen = Callable[[], None]


class Checkpoint(NamedTuple):
    """What a checkpoint covers: the source's transactions that end at or before `lsn`."""

    lsn: int
    committed_at: datetime | None
    write_checkpoints: frozenset[int]


class _Asked(NamedTuple):
    """A step for which storage was asked."""

    step: Step
    answer: Future[Known]
    checkpoint: Checkpoint | None
    and_then: AndThen


def _nothing() -> None:
    pass


class Storing:
    """The storage transactions of one stream."""

    def __init__(self, writer: StorageWriter, filling: Filling, source: int, lsn: int) -> None:
        self._writer, self._filling, self._source = writer, filling, source
        self._applier = filling.applier
        self.position = lsn
        """End of the last commit that storage holds."""
        self._transaction = ExitStack()
        self._thread = ThreadPoolExecutor(1, "localsync storage")
        self._tasks: deque[Future[Known] | Future[None]] = deque()  # in order, as far as nobody has looked at them
        self._has_failed = False
        self._asked: _Asked | None = None
        self._since: RowTexts = {}  # what the last step does to rows

    def is_busy(self) -> bool:
        """Whether something is being stored, or waits for it. Raises what made it fail."""
        while self._tasks and self._tasks[0].done():
            self._tasks.popleft().result()
        return self._asked is not None or bool(self._tasks)

    def finish(self) -> None:
        """Wait until everything is stored. Raises what made it fail."""
        if self._asked is not None:
            asked, self._asked = self._asked, None
            self._work_out(asked)
        self._wait()
        self._since = {}

    def store(self, step: Step, checkpoint: Checkpoint | None, and_then: AndThen = _nothing) -> None:
        """Write a step into the open storage transaction, beginning one; then make all that was written a checkpoint.

        Without `checkpoint`, nothing of it is seen yet. `and_then` is called before that, for whatever belongs into the
        same transaction. Raises NeedsReading and Resume, too.
        """
        self.finish()
        self._begin()
        output, _ = self._applier.work_out(step, self._look_up(step), {}, self._writer.bucket_ids)
        self._check()
        self._write(output, checkpoint, and_then)

    def store_later(self, step: Step, checkpoint: Checkpoint | None, and_then: AndThen = _nothing) -> None:
        """The same, while the caller goes on. Raises what made an earlier step fail."""
        asked = _Asked(step, self._submit(partial(self._look_up, step)), checkpoint, and_then)
        before, self._asked = self._asked, None
        if before is not None:
            self._work_out(before)
        self._asked = asked

    def close(self, error: BaseException | None) -> None:
        """Let what is being stored come to its end, and take back a transaction that is still open.

        `error` is why; without one, the stream was stopped.
        """
        self._thread.shutdown(wait=True, cancel_futures=True)
        if self._writer.in_transaction:
            error = error or InterruptedError("the stream was stopped within a transaction")
            try:
                self._transaction.__exit__(type(error), error, error.__traceback__)
            except Exception as again:
                if again is not error:
                    logger.debug("rolling back: %s", again)

    def _submit(self, task: Callable[[], T]) -> Future[T]:
        future = self._thread.submit(self._try, task)
        self._tasks.append(future)  # type: ignore[arg-type]
        return future

    def _try(self, task: Callable[[], T]) -> T:
        """Nothing is done after something that failed."""
        if self._has_failed:
            raise CancelledError
        try:
            return task()
        except BaseException:
            self._has_failed = True
            raise

    def _wait(self) -> None:
        """In order, so that it is the first failure that is raised."""
        while self._tasks:
            self._tasks.popleft().result()

    def _look_up(self, step: Step) -> Known:
        return self._applier.look_up(step.needed, self._begin)

    def _work_out(self, asked: _Asked) -> None:
        while self._tasks and (self._has_failed or not asked.answer.done()):
            self._tasks.popleft().result()
        known = asked.answer.result()
        output, self._since = self._applier.work_out(asked.step, known, self._since, self._find_buckets)
        self._check()
        self._submit(partial(self._write, output, asked.checkpoint, asked.and_then))

    def _find_buckets(self, keys: Collection[BucketKey]) -> Mapping[BucketKey, int]:
        self._wait()
        self._begin()
        return self._writer.bucket_ids(keys)

    def _check(self) -> None:
        if self._applier.incomplete:
            self._filling.check_incomplete()

    def _begin(self) -> None:
        if not self._writer.in_transaction:
            self._transaction.enter_context(self._writer.transaction())

    def _write(self, output: WriteSet, checkpoint: Checkpoint | None, and_then: AndThen) -> None:
        self._begin()
        self._writer.write(output)
        and_then()
        if checkpoint is None:
            return
        shown = self._filling.finish()
        self._writer.publish(
            self._source,
            checkpoint.lsn,
            committed_at=checkpoint.committed_at,
            write_checkpoints=checkpoint.write_checkpoints,
            show=shown.shows,
            rules_replaced=shown.rules,
        )
        self._transaction.close()  # commits
        self.position = checkpoint.lsn
        self._filling.settle()
