"""Data lines, made once for all streams of a process.

The line of a bucket between two op ids is the same bytes for every client, so a thousand streams on one bucket cost
one read, one encoding and one compression: requests for a line that is being made wait for it, and recent lines are
kept.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import NamedTuple, Protocol

from ..buckets.operation import OpId
from ..protocol.codings import Coding, pack
from ..protocol.lines import LineFormat, encode_bucket_data
from ..protocol.session import PageRead
from .reader import StorageReader

MAX_KEPT_BYTES = 32 << 20
ENTRY_BYTES = 500  # what a kept page costs beside its line

PACKED_IN_LOOP_BYTES = 32 << 10  # a third of a millisecond; more than that is compressed in a thread


class LineForm(NamedTuple):
    """What a client's data lines look like. `raw_data`: row data is JSON text in JSON; always so in BSON."""

    format: LineFormat = LineFormat.NDJSON
    raw_data: bool = True
    coding: Coding = Coding.IDENTITY


class PageKey(NamedTuple):
    """A data line: a bucket's operations after the first and through the second op id, or the first page of them."""

    bucket_id: int
    generation: int
    bucket: str
    after: OpId
    through: OpId
    form: LineForm


class PageTaker(Protocol):
    """Who asks for a page. Both are called in the event loop and must not wait."""

    def take_page(self, key: PageKey, page: PageRead | None) -> None:
        """The page that was asked for, or None where it is refused."""

    def take_failure(self, key: PageKey, error: BaseException) -> None:
        """It could not be read."""


class Pages:
    """A cache of data lines over a reader."""

    def __init__(self, reader: StorageReader, max_kept_bytes: int = MAX_KEPT_BYTES) -> None:
        self._reader = reader
        self._max_kept_bytes, self._kept_bytes = max_kept_bytes, 0
        self._kept: OrderedDict[PageKey, PageRead] = OrderedDict()
        self._waiting: dict[PageKey, list[PageTaker]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def find(self, key: PageKey) -> PageRead | None:
        """The page, if it is kept."""
        page = self._kept.get(key)
        if page is not None:
            self._kept.move_to_end(key)
            if page.has_more:
                self._read_ahead(key, page.next_after)
        return page

    def ask(self, key: PageKey, taker: PageTaker) -> None:
        """Read a page that is not kept, for whoever asks for it meanwhile.

        A call for each of them, not a future to wait for: a thousand tasks would be woken once more.
        """
        self._begin(key)
        self._waiting[key].append(taker)

    def _read_ahead(self, key: PageKey, after: OpId) -> None:
        """Let Postgres work on the page that follows one that was asked for, while that is encoded and sent."""
        following = key._replace(after=after)
        if following not in self._kept:
            self._begin(following)

    def _begin(self, key: PageKey) -> None:
        if key not in self._waiting:
            self._waiting[key] = []
            task = asyncio.create_task(self._read_for_all(key))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _read_for_all(self, key: PageKey) -> None:
        try:
            page = await self._read(key)
        except BaseException as error:
            for taker in self._waiting.pop(key):
                taker.take_failure(key, error)
            if not isinstance(error, Exception):
                raise
        else:
            for taker in self._waiting.pop(key):
                taker.take_page(key, page)

    async def _read(self, key: PageKey) -> PageRead | None:
        operations = await self._reader.read_page(key.bucket_id, key.generation, key.after, key.through)
        if operations is None:
            return None
        next_after = OpId(operations[-1][0]) if operations else key.through
        has_more = next_after < key.through
        if has_more and self._waiting[key]:  # else it was read ahead itself
            self._read_ahead(key, next_after)
            await asyncio.sleep(0)  # its query is sent
        format, raw_data, coding = key.form
        line = encode_bucket_data(key.bucket, key.after, operations, has_more, raw_data=raw_data, format=format)
        page = PageRead(line, len(operations), next_after, has_more, await _pack(line, coding))
        self._keep(key, page)
        return page

    def _keep(self, key: PageKey, page: PageRead) -> None:
        """Keep a page, and forget those that were not asked for the longest."""
        self._kept[key] = page
        self._kept_bytes += _weight(page)
        while self._kept_bytes > self._max_kept_bytes:
            _, oldest = self._kept.popitem(last=False)
            self._kept_bytes -= _weight(oldest)


async def _pack(line: bytes, coding: Coding) -> bytes | None:
    if len(line) <= PACKED_IN_LOOP_BYTES or coding is Coding.IDENTITY:
        return pack(line, coding)
    return await asyncio.to_thread(pack, line, coding)


def _weight(page: PageRead) -> int:
    return len(page.line) + len(page.packed or b"") + ENTRY_BYTES
