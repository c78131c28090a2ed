"""Keeps a database in sync: the stream, the uploads, credentials, and what to do when any of them fails.

The shell around `SyncIteration`, shared by both drivers: it runs in an event loop (the blocking driver gives it one in
a thread). All decisions about lines are the engine's, all SQL is the store's.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum
from typing import Any, TypeVar, assert_never

from ..exceptions import AuthError, LocalSyncError
from .engine import (
    CloseStream,
    Event,
    ExtendSubscriptions,
    FetchCredentials,
    Instruction,
    LineReceived,
    SyncCompleted,
    SyncIteration,
    UploadsFinished,
    stream_request,
)
from .line_buffer import LineBuffer
from .status import StatusHolder
from .store import Store
from .subscriptions import Key, extend
from .transport import Credentials, Transport
from .upload_queue import set_gate

T = TypeVar("T")
logger = logging.getLogger("django_localsync.client")

# A backend whose new tokens are about to expire as well must not make the stream restart without end.
PREFETCH_INTERVAL_S = 10.0


@dataclass(frozen=True, slots=True)
class SyncOptions:
    """How a connection behaves.

    `parameters`: connection parameters for the rules. `include_defaults`: also sync the streams that are subscribed by
    default. `retry_delay_s`: the first pause after a failure; it doubles up to `max_retry_delay_s`.
    `upload_throttle_s`: the shortest time from the end of one upload to the next.
    """

    parameters: dict[str, Any] = field(default_factory=dict)
    include_defaults: bool = True
    retry_delay_s: float = 1.0
    max_retry_delay_s: float = 30.0
    upload_throttle_s: float = 0.05


class StreamEnd(Enum):
    """Why a stream ended."""

    CUT = "the server or the network ended it"
    RESTARTED = "a new request replaces it"
    EXPIRED = "the token has expired"
    MISMATCHED = "checksums did not match; the buckets are downloaded again"


class Backoff:
    """Pauses that double with each failure, each varied by half so that a thousand clients do not return at once."""

    def __init__(self, first_s: float, most_s: float) -> None:
        self._first_s, self._most_s, self._failures = first_s, most_s, 0

    def next_s(self) -> float:
        """The pause after one more failure, in seconds."""
        pause: float = min(self._first_s * 2.0 ** min(self._failures, 16), self._most_s)
        self._failures += 1
        return pause * random.uniform(0.5, 1.0)

    def reset(self) -> None:
        """Something worked."""
        self._failures = 0


class Synchroniser:
    """One `connect()`. `run()` works until it is cancelled.

    `exclusive` runs a function with the driver's write lock held, without blocking the event loop; `fetch` and
    `upload` are the connector's methods; `held` names the subscriptions that the app holds now.
    """

    def __init__(
        self,
        store: Store,
        status: StatusHolder,
        options: SyncOptions,
        *,
        exclusive: Callable[[Callable[[], Any]], Awaitable[Any]],
        fetch: Callable[[], Awaitable[Credentials]],
        upload: Callable[[], Awaitable[None]],
        held: Callable[[], Iterable[Key]],
    ) -> None:
        self._store, self._status, self._options = store, status, options
        self._exclusive, self._fetch, self._upload, self._held = exclusive, fetch, upload, held
        self._transport = Transport()
        self._credentials: Credentials | None = None
        self._iteration: SyncIteration | None = None
        self._buffer: LineBuffer | None = None
        self._end = StreamEnd.CUT
        self._prefetch: asyncio.Task[None] | None = None
        self._prefetch_not_before = 0.0
        self._upload_wanted = asyncio.Event()
        self._stream_backoff = Backoff(options.retry_delay_s, options.max_retry_delay_s)
        self._mismatch_backoff = Backoff(options.retry_delay_s, options.max_retry_delay_s)
        self._upload_backoff = Backoff(options.retry_delay_s, options.max_retry_delay_s)

    async def run(self) -> None:
        """Stream and upload until cancelled."""
        loop = asyncio.get_running_loop()

        def note(tables: frozenset[str]) -> None:
            if "ps_crud" in tables:
                with suppress(RuntimeError):  # the loop may be closing
                    loop.call_soon_threadsafe(self._upload_wanted.set)

        stop_listening = self._store.changes.add(note)
        try:
            async with self._transport, asyncio.TaskGroup() as tasks:
                tasks.create_task(self._keep_streaming())
                tasks.create_task(self._keep_uploading())
        finally:
            stop_listening()
            if self._prefetch:
                self._prefetch.cancel()
            self._status.update(connected=False, connecting=False, downloading=False, uploading=False)

    def restart_stream(self) -> None:
        """Begin a new request at once: what to ask for has changed. Call it in the event loop."""
        self._end_stream(StreamEnd.RESTARTED)

    # The stream

    async def _keep_streaming(self) -> None:
        while True:
            pause_s = 0.0
            try:
                match await self._stream_once():
                    case StreamEnd.CUT | StreamEnd.EXPIRED:
                        pause_s = self._stream_backoff.next_s()
                    case StreamEnd.MISMATCHED:
                        logger.warning("checksums did not match; the buckets concerned are downloaded again")
                        pause_s = self._mismatch_backoff.next_s()
                    case StreamEnd.RESTARTED:
                        continue
            except Exception as error:
                pause_s = self._stream_backoff.next_s()
                self._note_stream_error(error, pause_s)
            self._status.update(connected=False, connecting=False, downloading=False)
            await asyncio.sleep(pause_s)

    async def _stream_once(self) -> StreamEnd:
        if not self._status.current.connected:
            self._status.update(connecting=True)
        credentials = await self._get_credentials()
        body, iteration = await self._exclusive(self._prepare_request)
        try:
            async with self._transport.stream(credentials, body) as arrivals:
                self._iteration, self._buffer, self._end = iteration, LineBuffer(), StreamEnd.CUT
                self._status.update(connected=True, connecting=False)
                return await self._receive(iteration, self._buffer, arrivals)
        finally:
            self._iteration = self._buffer = None

    def _prepare_request(self) -> tuple[dict[str, Any], SyncIteration]:
        self._extend_subscriptions()
        buckets, wanted = self._store.read_stream_state()
        body = stream_request(
            client_id=self._store.client_id(),
            buckets=buckets,
            subscriptions=[(each.stream, each.parameters, each.priority) for each in wanted],
            parameters=self._options.parameters,
            include_defaults=self._options.include_defaults,
        )
        return body, SyncIteration([each.row for each in wanted])

    async def _receive(
        self, iteration: SyncIteration, buffer: LineBuffer, arrivals: AsyncIterator[list[bytes]]
    ) -> StreamEnd:
        reading = asyncio.create_task(_read_into(buffer, arrivals))
        try:
            is_first = True
            while (batch := await buffer.take()) is not None:
                await self._advance(iteration, map(LineReceived, batch))
                if is_first:
                    is_first = False
                    self._stream_backoff.reset()
                    self._status.update(download_error=None)
                    self._upload_wanted.set()
            if self._end is StreamEnd.CUT:
                await reading  # raises what cut the stream, if it was not a regular end
            return self._end
        finally:
            reading.cancel()
            await asyncio.wait([reading])
            reading.cancelled() or reading.exception()  # looked at, so that asyncio does not complain

    async def _advance(self, iteration: SyncIteration, events: Iterable[Event]) -> None:
        instructions = await self._exclusive(lambda: self._store.advance(iteration, events))
        self._status.update(downloading=iteration.downloading, stream_errors=tuple(_stream_errors(iteration)))
        for instruction in instructions:
            await self._follow(instruction)

    async def _follow(self, instruction: Instruction) -> None:
        match instruction:
            case SyncCompleted():
                self._mismatch_backoff.reset()
                self._status.update(last_synced_at=datetime.now(UTC))
            case CloseStream(mismatch):
                self._end_stream(StreamEnd.MISMATCHED if mismatch else StreamEnd.EXPIRED)
            case FetchCredentials(expired):
                if expired:
                    self._credentials = None
                elif time.monotonic() >= self._prefetch_not_before:
                    self._prefetch_not_before = time.monotonic() + PREFETCH_INTERVAL_S
                    self._prefetch = asyncio.create_task(self._prefetch_credentials())
            case ExtendSubscriptions():
                await self._exclusive(self._extend_subscriptions)
            case _:
                assert_never(instruction)

    def _end_stream(self, why: StreamEnd) -> None:
        if self._buffer:
            self._end = why
            self._buffer.end(drop=True)

    def _extend_subscriptions(self) -> None:
        if held := list(self._held()):
            with self._store.transaction() as connection:
                extend(connection, held, int(time.time()))

    def _note_stream_error(self, error: Exception, pause_s: float) -> None:
        if isinstance(error, AuthError):
            self._credentials = None
        logger.warning("sync stream failed, next attempt in %.1f s: %s", pause_s, describe(error))
        self._status.update(download_error=error)

    # Credentials

    async def _get_credentials(self) -> Credentials:
        if self._credentials is None:
            self._credentials = await self._fetch()
        return self._credentials

    async def _prefetch_credentials(self) -> None:
        try:
            self._credentials = await self._fetch()
        except Exception as error:
            # The token is still good; when it has expired, credentials are fetched again.
            logger.warning("new credentials could not be fetched ahead of time: %s", describe(error))
        else:
            self._end_stream(StreamEnd.RESTARTED)

    # Uploads

    async def _keep_uploading(self) -> None:
        while True:
            await self._upload_wanted.wait()
            self._upload_wanted.clear()
            try:
                await self._upload_all()
                self._upload_backoff.reset()
                self._status.update(uploading=False, upload_error=None)
                await asyncio.sleep(self._options.upload_throttle_s)
            except Exception as error:
                if isinstance(error, AuthError):
                    self._credentials = None
                pause_s = self._upload_backoff.next_s()
                logger.warning("upload failed, next attempt in %.1f s: %s", pause_s, describe(error))
                self._status.update(uploading=False, upload_error=error)
                await asyncio.sleep(pause_s)
                self._upload_wanted.set()

    async def _upload_all(self) -> None:
        """Upload until the queue is empty, then learn which write checkpoint to wait for (§5.5)."""
        while True:
            first = await asyncio.to_thread(self._store.first_op_id)
            if first is not None:
                self._status.update(uploading=True)
                await self._upload()
                if await asyncio.to_thread(self._store.first_op_id) == first:
                    raise LocalSyncError(
                        "upload_data returned, but the oldest write is still in the queue; "
                        "call complete() on what the backend has taken, or raise"
                    )
                continue
            sequence = await asyncio.to_thread(self._store.needs_write_checkpoint)
            if sequence is None or await self._ask_for_receipt(sequence):
                break
        if iteration := self._iteration:
            await self._advance(iteration, [UploadsFinished()])

    async def _ask_for_receipt(self, sequence: int) -> bool:
        client_id = await self._exclusive(self._store.client_id)
        number = await self._transport.write_checkpoint(await self._get_credentials(), client_id)

        def wait_for_it() -> bool:
            with self._store.transaction() as connection:
                return set_gate(connection, number, sequence)

        return bool(await self._exclusive(wait_for_it))


async def uncancelled(work: Awaitable[T]) -> T:
    """Wait for work that must not be left half done: a cancellation is raised when it has ended."""
    task = asyncio.ensure_future(work)
    cancellation: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancellation = error
    if cancellation:
        raise cancellation
    return task.result()


def describe(error: BaseException) -> str:
    """An error in one line; for an error without text its class."""
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


async def _read_into(buffer: LineBuffer, arrivals: AsyncIterator[list[bytes]]) -> None:
    try:
        async for lines in arrivals:
            await buffer.put(lines)
    finally:
        buffer.end()


def _stream_errors(iteration: SyncIteration) -> Iterable[str]:
    for stream in iteration.streams:
        for _, message in stream.errors:
            yield f"{stream.name}: {message}"
