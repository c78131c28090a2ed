"""Wakes sync streams: one LISTEN connection a process, and an index of who is concerned by what.

A stream reads its checkpoint, then says what it is interested in; `mark` taken before the read makes sure that
nothing announced in between is missed. Whoever is not concerned is not woken, and who only has new totals is given
them. Delivery is a plain call in the process: through a channel layer it would cost fifteen times as much.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import psycopg
from psycopg import AsyncConnection, OperationalError

from ..buckets.announcement import CHANNEL, Announcement, BucketTotals, decode_announcement
from ..exceptions import ProtocolError
from ..protocol.revocations import CHANNEL as REVOCATION_CHANNEL
from ..protocol.revocations import Revocation, Revocations, decode_revocation
from ..tokens import oldest_token
from .connections import connection_parameters
from .revocations import LIST

log = logging.getLogger(__name__)

REMEMBERED_ANNOUNCEMENTS = 256  # far more than come during one read; at most a few MB
START_TIMEOUT_S = 5.0
FIRST_RETRY_S, LAST_RETRY_S = 0.2, 5.0
HEARTBEAT_S = 15.0  # finds dead connections, and checkpoints whose announcement was lost

# A peer that vanished is noticed although nothing is ever sent to it.
KEEPALIVES = {"keepalives": 1, "keepalives_idle": 20, "keepalives_interval": 5, "keepalives_count": 3}


class Listener(Protocol):
    """A stream that wants to know. Both are called in the event loop; they must not wait, nor change who listens."""

    def announce_totals(self, op_id: int, totals: Mapping[int, BucketTotals]) -> None:
        """Buckets have new totals at this checkpoint, which comes after all told before.

        All at once: a checkpoint is whole (I2).
        """

    def announce_outdated(self) -> None:
        """Anything may have changed: read the checkpoint."""


@dataclass(frozen=True, slots=True)
class Interests:
    """What concerns a stream: ids of its buckets, and digests as in an Announcement."""

    buckets: frozenset[int]
    created: frozenset[int]
    lookups: frozenset[int]
    write_checkpoint: int

    def outdated_by(self, announcement: Announcement) -> bool:
        """Whether more than totals may have changed."""
        return (
            announcement.everything
            or announcement.rules
            or self.write_checkpoint in announcement.write_checkpoints
            or not self.created.isdisjoint(announcement.created)
            or not self.lookups.isdisjoint(announcement.lookups)
        )


class Audience:
    """Listeners by their interests. The index decides in time proportional to what changed, not to who listens."""

    def __init__(self) -> None:
        self._interests: dict[Listener, Interests] = {}
        self._index: dict[tuple[str, int], set[Listener]] = {}

    def add(self, listener: Listener, interests: Interests) -> None:
        """Register a listener, or change its interests."""
        self.remove(listener)
        self._interests[listener] = interests
        for key in _index_keys(interests):
            self._index.setdefault(key, set()).add(listener)

    def remove(self, listener: Listener) -> None:
        """Forget a listener; nothing happens if it is unknown."""
        interests = self._interests.pop(listener, None)
        for key in _index_keys(interests) if interests else ():
            listeners = self._index[key]
            listeners.discard(listener)
            if not listeners:
                del self._index[key]

    def deliver(self, announcement: Announcement) -> None:
        """Tell everyone concerned."""
        outdated = self._find_outdated(announcement)
        for listener in outdated:
            listener.announce_outdated()
        news: dict[Listener, dict[int, BucketTotals]] = {}
        for bucket_id, totals in announcement.buckets.items():
            for listener in self._index.get(("bucket", bucket_id), ()):
                news.setdefault(listener, {})[bucket_id] = totals
        for listener, changed in news.items():
            if listener not in outdated:
                listener.announce_totals(announcement.op_id, changed)

    def deliver_to(self, listener: Listener, announcement: Announcement) -> None:
        """Tell one listener, if it is concerned."""
        interests = self._interests[listener]
        if interests.outdated_by(announcement):
            listener.announce_outdated()
            return
        changed = announcement.buckets.keys() & interests.buckets
        if changed:
            listener.announce_totals(announcement.op_id, {bucket: announcement.buckets[bucket] for bucket in changed})

    def _find_outdated(self, announcement: Announcement) -> set[Listener]:
        if announcement.everything or announcement.rules:
            return set(self._interests)
        kinds = {
            "created": announcement.created,
            "lookup": announcement.lookups,
            "write_checkpoint": announcement.write_checkpoints,
        }
        keys = ((kind, digest) for kind, digests in kinds.items() for digest in digests)
        return {listener for key in keys for listener in self._index.get(key, ())}


class Notifications:
    """Listens to the announcements of one storage alias, in one event loop, for as long as the loop lives."""

    def __init__(self, alias: str) -> None:
        self._alias = alias
        self.revocations = Revocations()
        self.when_revoked: Callable[[], None] = lambda: None  # called when `revocations` has become longer
        self._audience = Audience()
        self._recent: deque[Announcement] = deque(maxlen=REMEMBERED_ANNOUNCEMENTS)
        self._count = 0
        self._last: Announcement | None = None  # since the connection was made
        self._op_id = 0
        self._listening = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Listen; answers when the connection stands. Raises OperationalError when it cannot be made."""
        if self._task is None:
            self._task = asyncio.create_task(self._listen())
        if self._listening.is_set():
            return
        try:
            await asyncio.wait_for(self._listening.wait(), START_TIMEOUT_S)
        except TimeoutError:
            raise OperationalError("cannot listen for checkpoints: the database does not answer") from None

    async def stop(self) -> None:
        """Close the connection."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def mark(self) -> int:
        """A point in the flow of announcements; take it before the read that `subscribe` follows."""
        return self._count

    def subscribe(self, listener: Listener, interests: Interests, since: int) -> None:
        """Register or change a listener's interests, and tell it what concerns it since the mark."""
        self._audience.add(listener, interests)
        missed = self._count - since
        if missed > len(self._recent):
            listener.announce_outdated()
            return
        for announcement in list(self._recent)[len(self._recent) - missed :]:
            self._audience.deliver_to(listener, announcement)

    def unsubscribe(self, listener: Listener) -> None:
        """Forget a listener."""
        self._audience.remove(listener)

    def publish(self, announcement: Announcement) -> None:
        """Tell everyone concerned, now and when they subscribe later with an earlier mark."""
        self._count += 1
        self._recent.append(announcement)
        self._audience.deliver(announcement)

    async def _listen(self) -> None:
        retry_s = FIRST_RETRY_S
        while True:
            try:
                async with await self._connect() as connection:
                    retry_s = FIRST_RETRY_S
                    await self._follow(connection)
            except psycopg.Error as error:
                level = logging.WARNING if retry_s == FIRST_RETRY_S else logging.DEBUG  # an outage is told once
                log.log(level, "no connection that announces checkpoints: %s", error)
            self._listening.clear()
            await asyncio.sleep(retry_s)
            retry_s = min(retry_s * 2, LAST_RETRY_S)

    async def _connect(self) -> AsyncConnection[tuple[Any, ...]]:
        parameters = {"application_name": "django_localsync", **connection_parameters(self._alias), **KEEPALIVES}
        return await AsyncConnection.connect(**parameters, autocommit=True)

    async def _follow(self, connection: AsyncConnection[tuple[Any, ...]]) -> None:
        await connection.execute(f"LISTEN {CHANNEL}")
        await connection.execute(f"LISTEN {REVOCATION_CHANNEL}")
        await self._read_revocations(connection)
        self._last = None
        self._op_id = await self._read_op_id(connection)
        self._publish_everything()  # whatever was announced before is lost
        self._listening.set()
        while True:
            async for notification in connection.notifies(timeout=HEARTBEAT_S):
                self._receive(notification)
            self.revocations.forget_before(oldest_token(time.time()))
            op_id = await self._read_op_id(connection)
            async for notification in connection.notifies(timeout=0):
                self._receive(notification)
            if op_id > self._op_id:
                log.warning("a checkpoint was not announced; every stream reads again")
                self._op_id = op_id
                self._publish_everything()

    OP_ID = "SELECT op_id FROM localsync_checkpoint"

    async def _read_op_id(self, connection: AsyncConnection[tuple[Any, ...]]) -> int:
        exists = await (await connection.execute("SELECT to_regclass('localsync_checkpoint')")).fetchone()
        if exists is None or exists[0] is None:
            return 0  # not migrated yet; the reader says so to clients
        row = await (await connection.execute(self.OP_ID)).fetchone()
        return int(row[0]) if row else 0

    async def _read_revocations(self, connection: AsyncConnection[tuple[Any, ...]]) -> None:
        """Know the whole list: while nobody listened, anything may have been revoked."""
        exists = await (await connection.execute("SELECT to_regclass('localsync_revocation')")).fetchone()
        if exists is not None and exists[0] is not None:  # else not migrated yet
            rows = await (await connection.execute(LIST)).fetchall()
            self.revocations.replace(Revocation(*row) for row in rows)
            self.when_revoked()

    def _receive(self, notification: psycopg.Notify) -> None:
        try:
            if notification.channel == REVOCATION_CHANNEL:
                self.revocations.add(decode_revocation(notification.payload))
                self.when_revoked()
                return
            announcement = decode_announcement(notification.payload)
        except ProtocolError as error:
            log.warning("ignored a notification on channel %s: %s", notification.channel, error)
            return
        last, self._last = self._last, announcement
        self._op_id = max(self._op_id, announcement.op_id)
        if last is not None and (last.run, last.sequence + 1) != (announcement.run, announcement.sequence):
            self._publish_everything()
        self.publish(announcement)

    def _publish_everything(self) -> None:
        self.publish(Announcement(run="", sequence=0, op_id=0, everything=True))


def _index_keys(interests: Interests) -> Iterator[tuple[str, int]]:
    kinds: dict[str, Iterable[int]] = {
        "bucket": interests.buckets,
        "created": interests.created,
        "lookup": interests.lookups,
        "write_checkpoint": (interests.write_checkpoint,),
    }
    return ((kind, number) for kind, numbers in kinds.items() for number in numbers)
