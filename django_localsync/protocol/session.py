"""The server's side of one sync stream, without I/O: events in, actions out.

What is sent when: docs/reference/wire-protocol.md, "What a stream sends". Upholds I2 (only whole checkpoints are
announced, operations never beyond them) and I5 (only the buckets of the newest checkpoint that was read).

`start` and `handle` answer with lines to send and, last, one action to perform next. The shell performs it and
reports what came of it; before it waits or reads on it reports news if `accepts_news`, and `TimePassed` when
`wake_at` is reached. Times are seconds of any one clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from math import ceil, inf
from typing import NamedTuple

from ..buckets.announcement import BucketTotals
from ..buckets.operation import OpId
from ..exceptions import ProtocolError
from .lines import (
    BucketChecksum,
    Checkpoint,
    CheckpointComplete,
    CheckpointDiff,
    LineFormat,
    PartialCheckpointComplete,
    StreamInfo,
    TokenExpiresIn,
    encode_checkpoint,
    encode_checkpoint_complete,
    encode_checkpoint_diff,
    encode_partial_checkpoint_complete,
    encode_token_expires_in,
)

UNINTERRUPTED_OPERATIONS = 1000  # so that a client makes progress however often checkpoints come
SHARED_LINES = 1024  # most lines that are kept because other clients are about to get them
EXPIRY_WARNING_S = 20.0  # clients fetch new credentials when told of 30 s or less


class ServedBucket(NamedTuple):
    """A bucket as a client may have it: its id in storage (None while it is empty there), totals, and why.

    `generation` counts how often storage rewrote it, each time with a new name.
    """

    id: int | None
    totals: BucketTotals
    priority: int
    reasons: tuple[tuple[str, int], ...] = ()
    generation: int = 0


@dataclass(frozen=True, slots=True)
class ServedCheckpoint:
    """Everything a client may have at one checkpoint, read in one snapshot; buckets by their wire names."""

    rule_set: int
    op_id: OpId
    buckets: Mapping[str, ServedBucket]
    streams: tuple[StreamInfo, ...] = ()
    write_checkpoint: int | None = None


@dataclass(frozen=True, slots=True)
class CheckpointRead:
    """ReadCheckpoint was performed."""

    checkpoint: ServedCheckpoint


@dataclass(frozen=True, slots=True)
class PageRead:
    """ReadPage was performed: a data line, how many operations it holds and the last one's op id.

    `packed` is the line in the content coding of the transport, if it was compressed already.
    """

    line: bytes
    operations: int
    next_after: OpId
    has_more: bool
    packed: bytes | None = None


@dataclass(frozen=True, slots=True)
class PageRefused:
    """ReadPage was not performed: compaction has reached beyond this checkpoint, or the bucket was rewritten (I4)."""


@dataclass(frozen=True, slots=True)
class TotalsAnnounced:
    """News: buckets (by id) have new totals at a newer checkpoint, and nothing else concerns this stream."""

    op_id: OpId
    totals: Mapping[int, BucketTotals]


@dataclass(frozen=True, slots=True)
class CheckpointOutdated:
    """News: more than totals may have changed, so the checkpoint must be read."""


@dataclass(frozen=True, slots=True)
class EndRequested:
    """News: clients shall reconnect, because the rules were replaced or the server stops."""


@dataclass(frozen=True, slots=True)
class TokenRevoked:
    """News: the token is not good any more."""


@dataclass(frozen=True, slots=True)
class TimePassed:
    """`wake_at` is reached."""


Event = (
    CheckpointRead
    | PageRead
    | PageRefused
    | TotalsAnnounced
    | CheckpointOutdated
    | EndRequested
    | TokenRevoked
    | TimePassed
)


@dataclass(frozen=True, slots=True)
class SendLine:
    """Send the bytes of one line; `at_once` if it must not wait for more to send with it. `packed`: see PageRead."""

    line: bytes
    at_once: bool = False
    packed: bytes | None = None


@dataclass(frozen=True, slots=True)
class ReadCheckpoint:
    """Read the newest checkpoint of this request; report CheckpointRead."""


@dataclass(frozen=True, slots=True)
class ReadPage:
    """Read a bucket's operations with after < op id ≤ through, up to a page; report PageRead or PageRefused."""

    bucket_id: int
    bucket: str
    after: OpId
    through: OpId
    generation: int = 0


@dataclass(frozen=True, slots=True)
class Wait:
    """Wait for news or for `wake_at`; report it."""


@dataclass(frozen=True, slots=True)
class End:
    """End the response normally; there is no event after it."""


Action = SendLine | ReadCheckpoint | ReadPage | Wait | End


class Phase(Enum):
    """What the session waits for."""

    READING = "waiting for a checkpoint"
    SENDING = "waiting for operations"
    IDLE = "waiting for news"
    ENDED = "ended"


class StreamSession:
    """One client's sync stream.

    `positions` are the op ids after which the client wants each bucket; `expires_at` is when its token expires. A
    transport with keepalives of its own has an infinite `keepalive_interval_s`.
    """

    def __init__(
        self,
        positions: Mapping[str, OpId],
        *,
        now: float,
        expires_at: float,
        keepalive_interval_s: float,
        format: LineFormat = LineFormat.NDJSON,
    ) -> None:
        self._format = format
        self._phase = Phase.READING
        self._positions = dict(positions)
        self._rule_set: int | None = None  # until the first checkpoint
        self._op_id = OpId(0)
        self._buckets: dict[str, ServedBucket] = {}
        self._names: dict[int, str] = {}
        self._streams: tuple[StreamInfo, ...] = ()
        self._write_checkpoint: int | None = None
        self._queue: deque[str] = deque()  # buckets with operations to send, in order
        self._sent_operations = 0  # of the announced checkpoint
        self._keepalive_interval_s = keepalive_interval_s
        self._keepalive_at = now + keepalive_interval_s
        self._expires_at = expires_at
        # A token that is about to expire already is not warned of: the client would reconnect in circles.
        self._warn_at = expires_at - EXPIRY_WARNING_S if expires_at - EXPIRY_WARNING_S > now else inf

    @property
    def wake_at(self) -> float:
        """When TimePassed is due."""
        return min(self._keepalive_at, self._warn_at, self._expires_at)

    @property
    def accepts_news(self) -> bool:
        """Whether news may be reported; else the shell keeps them."""
        interruptible = self._phase is Phase.SENDING and self._sent_operations >= UNINTERRUPTED_OPERATIONS
        return self._phase is Phase.IDLE or interruptible

    def start(self, now: float) -> list[Action]:
        """The first actions."""
        return self._expire() if now >= self._expires_at else [ReadCheckpoint()]

    def handle(self, event: Event, now: float) -> list[Action]:
        """What to do about an event. Raises ProtocolError for one that cannot occur now."""
        match event:
            case TimePassed():
                return self._pass_time(now)
            case EndRequested():
                return self._end()
            case TokenRevoked():
                return self._expire()
            case PageRead() if self._phase is Phase.SENDING:
                return self._send_page(event)
            case CheckpointRead(checkpoint) if self._phase is Phase.READING:
                return self._begin(checkpoint) if self._rule_set is None else self._advance(checkpoint)
            case PageRefused() if self._phase is Phase.SENDING:
                self._phase = Phase.READING  # a newer checkpoint takes the place of this one, which is not completed
                return [ReadCheckpoint()]
            case CheckpointOutdated() if self.accepts_news:
                self._phase = Phase.READING
                return [ReadCheckpoint()]
            case TotalsAnnounced(op_id, totals) if self.accepts_news:
                return self._add_totals(op_id, totals)
        raise ProtocolError(f"{type(event).__name__} while {self._phase.value}")

    def _begin(self, checkpoint: ServedCheckpoint) -> list[Action]:
        """Send the first line.

        Positions beyond the checkpoint cannot come from this history (storage was restored, or the client lies).
        Such a bucket is left out of the first line, which makes the client forget it, and added by the next one.
        """
        self._rule_set = checkpoint.rule_set
        ahead = [
            name for name, after in self._positions.items() if after > checkpoint.op_id and name in checkpoint.buckets
        ]
        for name in ahead:
            del self._positions[name]
        self._adopt(checkpoint)
        lines = [self._checkpoint_line(leave_out=frozenset(ahead))]
        if ahead:
            lines.append(self._diff_line(ahead, ()))
        return [*lines, *self._send_operations(self._buckets)]

    def _advance(self, checkpoint: ServedCheckpoint) -> list[Action]:
        """Send what changed since the line before."""
        if checkpoint.rule_set != self._rule_set or checkpoint.op_id < self._op_id:
            return self._end()
        changed = [name for name, bucket in checkpoint.buckets.items() if self._buckets.get(name) != bucket]
        removed = [name for name in self._buckets if name not in checkpoint.buckets]
        same_streams = checkpoint.streams == self._streams
        if same_streams and not changed and not removed and checkpoint.write_checkpoint == self._write_checkpoint:
            return self._resume()
        self._adopt(checkpoint)
        # A diff cannot carry streams.
        line = self._diff_line(changed, removed) if same_streams else self._checkpoint_line()
        return [line, *self._send_operations([*changed, *self._queue])]

    def _add_totals(self, op_id: OpId, totals: Mapping[int, BucketTotals]) -> list[Action]:
        changed = []
        for bucket_id, new in totals.items() if op_id > self._op_id else ():
            name = self._names.get(bucket_id)
            if name is not None and self._buckets[name].totals != new:
                old = self._buckets[name]
                self._buckets[name] = ServedBucket(old.id, new, old.priority, old.reasons, old.generation)
                changed.append(name)
        if not changed:
            return self._resume()
        self._op_id = op_id
        return [self._totals_line(changed), *self._send_operations([*changed, *self._queue])]

    def _adopt(self, checkpoint: ServedCheckpoint) -> None:
        self._op_id = checkpoint.op_id
        self._buckets = dict(checkpoint.buckets)
        self._names = {bucket.id: name for name, bucket in self._buckets.items() if bucket.id is not None}
        self._streams = checkpoint.streams
        self._write_checkpoint = checkpoint.write_checkpoint
        # A position never exceeds the bucket's last op id, so that clients in the same state share their lines.
        self._positions = {
            name: OpId(min(self._positions.get(name, 0), bucket.totals.last_op_id))
            for name, bucket in self._buckets.items()
        }

    def _send_operations(self, candidates: Iterable[str]) -> list[Action]:
        """Begin to send the operations of the candidates that have any, urgent buckets first."""
        names = {name for name in candidates if name in self._buckets and self._is_behind(name)}
        self._queue = deque(sorted(names, key=lambda name: (self._buckets[name].priority, name)))
        self._sent_operations = 0
        return self._continue() if self._queue else self._complete()

    def _is_behind(self, name: str) -> bool:
        return self._buckets[name].totals.last_op_id > self._positions[name]

    def _send_page(self, page: PageRead) -> list[Action]:
        name = self._queue[0]
        self._positions[name] = page.next_after
        self._sent_operations += page.operations
        lines: list[Action] = [SendLine(page.line, packed=page.packed)] if page.operations else []
        if page.has_more:
            return [*lines, *self._continue()]
        self._queue.popleft()
        if not self._queue:
            return [*lines, *self._complete()]
        priority = self._buckets[name].priority
        if self._buckets[self._queue[0]].priority > priority:
            partial = PartialCheckpointComplete(self._op_id, priority)
            lines.append(SendLine(encode_partial_checkpoint_complete(partial, self._format), at_once=True))
        return [*lines, *self._continue()]

    def _continue(self) -> list[Action]:
        self._phase = Phase.SENDING
        name = self._queue[0]
        bucket = self._buckets[name]
        if bucket.id is None:
            raise ProtocolError(f"bucket {name!r} has operations but no id")
        through = OpId(bucket.totals.last_op_id)
        return [ReadPage(bucket.id, name, self._positions[name], through, bucket.generation)]

    def _complete(self) -> list[Action]:
        self._phase = Phase.IDLE
        return [_complete_line(self._op_id, self._format), Wait()]

    def _resume(self) -> list[Action]:
        """Go on with the announced checkpoint: what was read or announced changes nothing."""
        if self._queue:
            return self._continue()
        self._phase = Phase.IDLE
        return [Wait()]

    def _pass_time(self, now: float) -> list[Action]:
        if now >= self._expires_at:
            return self._expire()
        if now >= self._warn_at:
            self._warn_at = inf
        self._keepalive_at = now + self._keepalive_interval_s
        line = encode_token_expires_in(TokenExpiresIn(ceil(self._expires_at - now)), self._format)
        return [SendLine(line), *([ReadCheckpoint()] if self._phase is Phase.READING else self._resume())]

    def _expire(self) -> list[Action]:
        return [SendLine(encode_token_expires_in(TokenExpiresIn(0), self._format)), *self._end()]

    def _end(self) -> list[Action]:
        self._phase = Phase.ENDED
        return [End()]

    def _checkpoint_line(self, leave_out: frozenset[str] = frozenset()) -> SendLine:
        buckets = tuple(self._checksum(name) for name in self._buckets if name not in leave_out)
        line = Checkpoint(self._op_id, buckets, self._write_checkpoint, self._streams)
        return SendLine(encode_checkpoint(line, self._format))

    def _diff_line(self, changed: Iterable[str], removed: Iterable[str]) -> SendLine:
        updated = tuple(self._checksum(name) for name in changed)
        line = CheckpointDiff(self._op_id, updated, tuple(removed), self._write_checkpoint)
        return SendLine(encode_checkpoint_diff(line, self._format))

    def _totals_line(self, changed: list[str]) -> SendLine:
        """The diff of new totals; that of one bucket is mostly the same for many clients."""
        if len(changed) > 1:
            return self._diff_line(changed, ())
        return _one_diff_line(self._op_id, changed[0], self._buckets[changed[0]], self._write_checkpoint, self._format)

    def _checksum(self, name: str) -> BucketChecksum:
        return _bucket_checksum(name, self._buckets[name])


def _bucket_checksum(name: str, bucket: ServedBucket) -> BucketChecksum:
    totals = bucket.totals
    return BucketChecksum(name, totals.checksum, totals.operations, bucket.priority, bucket.reasons)


# Lines that a thousand clients of a bucket get one after the other: encoding them would cost more than sending them.


@lru_cache(maxsize=SHARED_LINES)
def _complete_line(op_id: OpId, format: LineFormat) -> SendLine:
    return SendLine(encode_checkpoint_complete(CheckpointComplete(op_id), format))


@lru_cache(maxsize=SHARED_LINES)
def _one_diff_line(
    op_id: OpId, name: str, bucket: ServedBucket, write_checkpoint: int | None, format: LineFormat
) -> SendLine:
    line = CheckpointDiff(op_id, (_bucket_checksum(name, bucket),), (), write_checkpoint)
    return SendLine(encode_checkpoint_diff(line, format))
