"""Runs sync streams: performs what a StreamSession asks for, whatever the transport.

Each event loop has one `StreamServer`, made with its first stream: a reader, the announcements, the shared data lines
and the streams that are open. HTTP and WebSocket consumers hand it requests.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import random
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from math import inf
from threading import current_thread, main_thread
from types import FrameType
from typing import Any
from weakref import WeakKeyDictionary, WeakValueDictionary

import psycopg

from .buckets.announcement import BucketTotals
from .buckets.operation import OpId
from .conf import get_settings
from .counters import counters
from .exceptions import AuthError, LimitExceeded, RequestError
from .health import HealthCheck
from .protocol.codings import Coding
from .protocol.errors import TOO_MANY_REQUESTS
from .protocol.lines import LineFormat
from .protocol.requests import StreamRequest
from .protocol.revocations import Bearer
from .protocol.session import (
    Action,
    CheckpointOutdated,
    CheckpointRead,
    End,
    EndRequested,
    Event,
    PageRead,
    PageRefused,
    ReadCheckpoint,
    ReadPage,
    SendLine,
    ServedCheckpoint,
    StreamSession,
    TimePassed,
    TokenRevoked,
    TotalsAnnounced,
)
from .storage.notifications import Notifications
from .storage.pages import LineForm, PageKey, Pages
from .storage.reader import StorageReader
from .storage.resolving import Client
from .sync_rules import compile_rules
from .sync_rules.plan import Plan, RequestParameters, Subscription
from .tokens import EXPIRED, REVOKED

SEND_BYTES = 64 << 10  # lines are gathered up to this size: a send costs more than a line
STALL_CHECK_S = 5.0  # how often stalled clients are looked for, at least
YOUNG_OBJECTS = 20_000  # of the garbage collector's youngest generation
STOP_TIMEOUT_S, STOP_CHECK_S = 1.0, 0.05  # how long a stopping server lets streams end by themselves

log = logging.getLogger(__name__)

Send = Callable[[Sequence[SendLine]], Awaitable[None]]
"""Sends lines; waits while the transport is full."""


class StreamServer:
    """Everything that the streams of one event loop share."""

    def __init__(self, reader: StorageReader, notifications: Notifications) -> None:
        self.reader, self.notifications, self.pages = reader, notifications, Pages(reader)
        notifications.when_revoked = self._end_revoked
        self.health = HealthCheck(reader)
        self.streams: set[Stream] = set()
        self._by_user = Counter[str]()
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._stopping = False
        self._loop = asyncio.get_running_loop()
        self._closing: asyncio.Task[None] | None = None
        self._cut_stalled()

    async def start(self) -> None:
        """Connect to storage. Raises RequestError (503) when the server stops, OperationalError without storage."""
        if self._stopping:
            raise RequestError("the server is stopping; try again", status=503, code="PSYNC_S2003")
        await self.reader.open()
        await self.notifications.start()

    def admit(self, stream: Stream) -> None:
        """Count a stream as open. Raises LimitExceeded (429) when there are too many, here or of its user (I8)."""
        settings = get_settings()
        if len(self.streams) >= settings.max_streams:
            raise _too_many_streams(f"this server has {settings.max_streams} open streams", "MAX_STREAMS")
        if self._by_user[stream.user_key] >= settings.max_streams_per_user:
            raise _too_many_streams(
                f"this user has {settings.max_streams_per_user} open streams here", "MAX_STREAMS_PER_USER"
            )
        self.streams.add(stream)
        self._by_user[stream.user_key] += 1

    def turn_of(self, user_key: str) -> asyncio.Lock:
        """What a user's streams hold while they begin, one after another: a storm of them shall not fill the loop, nor
        the pool (I8). Those that were given up meanwhile read nothing. Streams keep it alive.
        """
        return self._turns.setdefault(user_key, asyncio.Lock())

    def forget(self, stream: Stream) -> None:
        """The stream has ended, if it was ever admitted."""
        if stream in self.streams:
            self.streams.discard(stream)
            self._by_user[stream.user_key] -= 1
            if not self._by_user[stream.user_key]:
                del self._by_user[stream.user_key]

    def check(self, bearer: Bearer) -> None:
        """Raise AuthError (401) when the bearer's token was revoked; to be asked once the server has started."""
        if self.notifications.revocations.refuses(bearer):
            raise AuthError(REVOKED, code=EXPIRED)

    def _end_revoked(self) -> None:
        for stream in self.streams:
            if self.notifications.revocations.refuses(stream.bearer):
                stream.revoke()

    @property
    def is_stopping(self) -> bool:
        """Whether it takes no more streams."""
        return self._stopping

    def stop(self) -> None:
        """End every stream normally; clients reconnect to whoever serves then."""
        if not self._stopping:
            self._stopping = True
            for stream in self.streams:
                stream.end()
            self._closing = self._loop.create_task(self._close())

    async def _close(self) -> None:
        """Disconnect from storage when every stream has ended: a pool that is merely cancelled can hang."""
        patience_s = STOP_TIMEOUT_S
        while self.streams and patience_s > 0:
            patience_s -= STOP_CHECK_S
            await asyncio.sleep(STOP_CHECK_S)
        for stream in list(self.streams):
            stream.cut()
        await self.notifications.stop()
        await self.reader.close()

    def _cut_stalled(self) -> None:
        """Cut off clients that take nothing, now and again: a timeout around every send would cost more than it."""
        timeout_s = get_settings().stall_timeout_s
        for stream in [item for item in self.streams if self._loop.time() - item.sending_since >= timeout_s]:
            log.info("a stream is cut off: its client took nothing for %g seconds", timeout_s)
            stream.cut()
        self._loop.call_later(min(STALL_CHECK_S, timeout_s / 2), self._cut_stalled)


def get_stream_server() -> StreamServer:
    """The running event loop's server; SIGTERM and SIGINT will end its streams.

    A signal handler, because servers wait for open responses before they tell an application (ASGI lifespan) that
    they stop.
    """
    loop = asyncio.get_running_loop()
    server = _servers.get(loop)
    if server is None:
        settings = get_settings()
        reader = StorageReader(
            settings.storage,
            plan_for=compile_plan,
            pool_size=settings.stream_pool_size,
            max_buckets=settings.max_buckets,
        )
        server = _servers[loop] = StreamServer(reader, Notifications(settings.storage))
        _stop_on_signals()
        _collect_less_often()
    return server


def _collect_less_often() -> None:
    """Let the garbage collector wait until a thousand streams that are woken at once have had their lines.

    They make thousands of objects that are gone a moment later. With Python's own threshold, these are searched for
    garbage a dozen times meanwhile, and the objects of all streams now and again: a fifth of a delivery's time.
    Whoever has chosen more, or no collector, keeps that.
    """
    youngest, middle, oldest = gc.get_threshold()
    if 0 < youngest < YOUNG_OBJECTS:
        gc.set_threshold(YOUNG_OBJECTS, middle, oldest)


_servers: WeakKeyDictionary[asyncio.AbstractEventLoop, StreamServer] = WeakKeyDictionary()
_previous_handlers: dict[int, Callable[[int, FrameType | None], Any]] = {}


def _stop_on_signals() -> None:
    """Put our handler before the server's own; where there is none, or in another thread, nothing is done."""
    for number in (signal.SIGTERM, signal.SIGINT) if current_thread() is main_thread() else ():
        previous = signal.getsignal(number)
        if callable(previous) and previous is not _handle_signal:
            _previous_handlers[number] = previous
            signal.signal(number, _handle_signal)


def _handle_signal(number: int, frame: FrameType | None) -> None:
    for loop, server in list(_servers.items()):
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(server.stop)
    _previous_handlers[number](number, frame)


def count_open_streams() -> int:
    """How many streams this process serves now."""
    return sum(len(server.streams) for server in list(_servers.values()))


def compile_plan(rules: str, format: int) -> Plan:
    """The plan of a stored rule set."""
    return compile_rules(rules, format=format).plan


class Stream:
    """One client's open stream (a Listener and PageTaker): keeps the news that its session does not accept yet."""

    def __init__(
        self,
        server: StreamServer,
        request: StreamRequest,
        *,
        claims: dict[str, Any],
        user_key: str,
        expires_at: float,
        format: LineFormat = LineFormat.NDJSON,
        coding: Coding = Coding.IDENTITY,
        keepalives: bool = True,
    ) -> None:
        """`expires_at` is when the token expires, in seconds since the epoch. What is sent has this line format, and
        data lines come packed in this coding; `keepalives`: whether the transport has none of its own.
        """
        self._server = server
        self._form = LineForm(format, request.raw_data or format is LineFormat.BSON, coding)
        self.user_key = user_key
        self._turn: asyncio.Lock | None = server.turn_of(user_key)  # until its first checkpoint was read
        self.bearer = Bearer.of(claims, user_key, request.client_id)
        self._client = Client(user_key, request.client_id, _request_parameters(request, claims))
        self._loop = asyncio.get_running_loop()
        now = self._loop.time()
        self._session = StreamSession(
            request.positions,
            now=now,
            expires_at=now + expires_at - time.time(),
            # Streams that began together shall not send together for ever.
            keepalive_interval_s=get_settings().keepalive_interval_s * random.uniform(0.9, 1.1) if keepalives else inf,
            format=format,
        )
        self._action: Action = ReadCheckpoint()  # what the session asked for last
        self._asked: PageKey | None = None  # the page that is being read for it
        self._answer: PageRead | PageRefused | None = None
        self._failure: BaseException | None = None
        self._lines: list[SendLine] = []
        self._gathered_bytes = 0
        self._must_flush = False  # before anything else is gathered
        self._outdated = self._ending = self._revoked = False
        self._totals: Mapping[int, BucketTotals] = {}
        self._totals_op_id = 0
        self._waiter: asyncio.Future[None] | None = None
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_at = inf
        self._task: asyncio.Task[Any] | None = None
        self._is_cut = False
        self.sending_since = inf
        """When the transport last took something of what is being sent, in the loop's time; never while nothing is."""

    async def run(self, send: Send) -> None:
        """Serve until the stream ends.

        Raises RequestError (nothing was sent if it is the first read that fails), and TimeoutError when it was cut.
        """
        self._task = asyncio.current_task()
        try:
            await self._serve(send)
        except (psycopg.OperationalError, psycopg.InterfaceError):
            raise RequestError("storage cannot be reached; try again", status=503, code="PSYNC_S2003") from None
        except asyncio.CancelledError:
            if not self._is_cut or self._task is None:
                raise
            self._task.uncancel()
            raise TimeoutError("the stream was cut") from None
        finally:
            self._server.notifications.unsubscribe(self)
            self._server.forget(self)
            self._clear_alarm()

    async def _serve(self, send: Send) -> None:
        """The task sends and reads checkpoints; all else happens in `_advance`, in whichever call brings the news."""
        self._server.admit(self)
        counters.streams += 1
        await self._server.start()
        self._server.check(self.bearer)  # whatever is revoked from now on finds this stream among the open ones
        self._follow(self._session.start(self._loop.time()))
        while True:
            if not self._advance():
                self._waiter = self._loop.create_future()
                await self._waiter
            if self._failure is not None:
                raise self._failure
            await self._flush(send)
            match self._action:
                case ReadCheckpoint():
                    self._handle(CheckpointRead(await self._read_checkpoint()))
                case End():
                    return

    def announce_totals(self, op_id: int, totals: Mapping[int, BucketTotals]) -> None:
        """See Listener."""
        self._totals = {**self._totals, **totals} if self._totals else totals
        self._totals_op_id = op_id
        self._wake()

    def announce_outdated(self) -> None:
        """See Listener."""
        self._outdated = True
        self._wake()

    def note_progress(self) -> None:
        """The transport has taken a part of what is being sent: a slow client is no stalled one."""
        self.sending_since = self._loop.time()

    def end(self) -> None:
        """Let the stream end normally."""
        self._ending = True
        self._wake()

    def revoke(self) -> None:
        """Let the stream end, and say that the token is not good any more."""
        self._revoked = True
        self._wake()

    def cut(self) -> None:
        """Let `run` raise TimeoutError at once."""
        if self._task is not None:
            self._is_cut = True
            self._task.cancel()

    def take_page(self, key: PageKey, page: PageRead | None) -> None:
        """See PageTaker."""
        if key == self._asked:
            self._answer = PageRefused() if page is None else page
            self._wake()

    def take_failure(self, key: PageKey, error: BaseException) -> None:
        """See PageTaker."""
        if key == self._asked:
            self._failure = error
            self._wake()

    def _wake(self) -> None:
        """Something has happened. A stream that waits goes on here, so that its task is woken once, to send."""
        if self._waiter is None or self._waiter.done():
            return
        try:
            is_needed = self._advance()
        except Exception as error:
            self._failure, is_needed = error, True
        if is_needed:
            self._waiter.set_result(None)

    def _advance(self) -> bool:
        """Do what can be done without waiting; answers whether the task has something to do.

        That is to send the lines, then to perform the action.
        """
        while self._failure is None and (event := self._next_event()) is not None:
            self._handle(event)
        if self._failure is not None or self._must_flush or isinstance(self._action, ReadCheckpoint | End):
            return True
        if self._asked is not None:
            return False
        self._set_alarm(self._session.wake_at)
        return bool(self._lines)

    def _next_event(self) -> Event | None:
        """What the session is to be told, unless the task has something to do first, or nothing has happened."""
        if isinstance(self._action, End):
            return None
        if self._asked is None:
            if (event := self._take_urgent_event()) is not None:
                return event
            if isinstance(self._action, ReadPage):
                self._ask_for_page(self._action)  # before the lines are sent: the read goes on meanwhile
        if self._must_flush or (answer := self._answer) is None:
            return None
        self._asked = self._answer = None
        if isinstance(answer, PageRead):
            counters.operations += answer.operations
        return answer

    def _handle(self, event: Event) -> None:
        self._follow(self._session.handle(event, self._loop.time()))

    def _follow(self, actions: Sequence[Action]) -> None:
        """Gather the lines, and know the action to perform next."""
        *lines, self._action = actions
        for line in lines:
            if isinstance(line, SendLine):
                self._lines.append(line)
                self._gathered_bytes += len(line.line)
                self._must_flush |= line.at_once
        self._must_flush |= self._gathered_bytes >= SEND_BYTES

    def _ask_for_page(self, action: ReadPage) -> None:
        pages = self._server.pages
        key = PageKey(action.bucket_id, action.generation, action.bucket, action.after, action.through, self._form)
        self._asked, self._answer = key, pages.find(key)
        if self._answer is None:
            pages.ask(key, self)

    def _take_urgent_event(self) -> Event | None:
        if self._revoked:
            return TokenRevoked()
        if self._ending:
            return EndRequested()
        if (self._outdated or self._totals) and self._session.accepts_news:
            if self._outdated:
                return CheckpointOutdated()  # the read that follows forgets the news
            totals, self._totals = self._totals, {}
            return TotalsAnnounced(OpId(self._totals_op_id), totals)
        return TimePassed() if self._loop.time() >= self._session.wake_at else None

    async def _read_checkpoint(self) -> ServedCheckpoint:
        if self._turn is None:
            return await self._read_checkpoint_now()
        async with self._turn:
            checkpoint = await self._read_checkpoint_now()
        self._turn = None
        return checkpoint

    async def _read_checkpoint_now(self) -> ServedCheckpoint:
        notifications = self._server.notifications
        mark = notifications.mark()
        reading = await self._server.reader.read_checkpoint(self._client)
        self._outdated, self._totals = False, {}  # what came meanwhile comes again if it still concerns this stream
        notifications.subscribe(self, reading.interests, mark)
        return reading.checkpoint

    def _set_alarm(self, at: float) -> None:
        """Wake at a time. The alarm stays set while the stream is busy: that costs less than a new one each time."""
        if self._alarm is None or self._alarm_at != at:
            self._clear_alarm()
            self._alarm, self._alarm_at = self._loop.call_at(at, self._ring), at

    def _ring(self) -> None:
        self._alarm = None
        self._wake()

    def _clear_alarm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    async def _flush(self, send: Send) -> None:
        if self._lines:
            lines, self._lines, self._must_flush = self._lines, [], False
            size, self._gathered_bytes = self._gathered_bytes, 0
            self.sending_since = self._loop.time()
            await send(lines)
            counters.bytes += size
            self.sending_since = inf


def _too_many_streams(found: str, setting: str) -> LimitExceeded:
    return LimitExceeded(f"{found}, which is the most ({setting}); try again later", status=429, code=TOO_MANY_REQUESTS)


def _request_parameters(request: StreamRequest, claims: dict[str, Any]) -> RequestParameters:
    return RequestParameters(
        claims=claims,
        connection=request.parameters,
        subscriptions=tuple(
            Subscription(item.stream, item.parameters, item.override_priority) for item in request.subscriptions
        ),
        include_defaults=request.include_defaults,
    )
