"""The client's side of one sync stream: events in, actions out. No sockets, no clock, no SQL.

    line received ─► SyncIteration ─► what to do in the database (in one transaction with everything the line causes)
                                  └─► what to do with the stream and the credentials (after that transaction)

Rules: docs/reference/wire-protocol.md §5.5 and §6.5. Data lines are not parsed here but handed to SQLite as they
are, for they are nearly all of a download.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..buckets.operation import OpId
from ..exceptions import ProtocolError
from ..protocol.lines import (
    BucketChecksum,
    BucketData,
    Checkpoint,
    CheckpointComplete,
    CheckpointDiff,
    PartialCheckpointComplete,
    StreamInfo,
    TokenExpiresIn,
    UnknownLine,
    parse_line,
)

FULL_SYNC_PRIORITY = 2147483647
"""Stands for "every priority" where the time of the last sync is kept."""

PREFETCH_BELOW_S = 30
"""New credentials are fetched when the token has this many seconds left: one keepalive interval and a half."""

DATA_LINE_START = b'{"data":'


@dataclass(frozen=True, slots=True)
class Target:
    """The checkpoint that the server is sending: what the buckets must add up to."""

    last_op_id: OpId
    write_checkpoint: int | None
    buckets: dict[str, BucketChecksum]

    def through(self, priority: int | None) -> list[BucketChecksum]:
        """The buckets of this priority and of smaller numbers; None: all."""
        return [bucket for bucket in self.buckets.values() if priority is None or bucket.priority <= priority]


@dataclass(frozen=True, slots=True)
class LineReceived:
    """A whole line of the stream, without its newline."""

    line: bytes


@dataclass(frozen=True, slots=True)
class UploadsFinished:
    """The upload queue is empty and its write checkpoint is known."""


@dataclass(frozen=True, slots=True)
class ChecksumsFailed:
    """These buckets do not add up to what the checkpoint announced."""

    buckets: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CheckpointHeld:
    """The checksums match, but a local write waits for its write checkpoint."""

    priority: int | None


@dataclass(frozen=True, slots=True)
class CheckpointPublished:
    """The app sees the checkpoint; `priority` is None for all of it."""

    priority: int | None


Event = LineReceived | UploadsFinished | ChecksumsFailed | CheckpointHeld | CheckpointPublished


@dataclass(frozen=True, slots=True)
class KeepOnlyBuckets:
    """Delete every bucket but these."""

    names: frozenset[str]


@dataclass(frozen=True, slots=True)
class RemoveBuckets:
    """Delete these buckets."""

    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class NoteStreams:
    """Remember which streams are served; `subscriptions` are the ids of the rows sent with the request."""

    streams: tuple[StreamInfo, ...]
    subscriptions: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class StoreData:
    """Add a data line's operations to its bucket."""

    line: bytes


@dataclass(frozen=True, slots=True)
class CompleteCheckpoint:
    """Check the buckets up to `priority` (None: all) and publish them if the gate is open.

    Answered with ChecksumsFailed, CheckpointHeld or CheckpointPublished.
    """

    target: Target
    priority: int | None


StoreAction = KeepOnlyBuckets | RemoveBuckets | NoteStreams | StoreData | CompleteCheckpoint


@dataclass(frozen=True, slots=True)
class CloseStream:
    """End this stream and begin another; `mismatch` if the data was wrong, so that it is not tried without pause."""

    mismatch: bool = False


@dataclass(frozen=True, slots=True)
class FetchCredentials:
    """Get new credentials: the token has expired, or will soon."""

    expired: bool


@dataclass(frozen=True, slots=True)
class ExtendSubscriptions:
    """Keepalive: the subscriptions that the app holds live on."""


@dataclass(frozen=True, slots=True)
class SyncCompleted:
    """All of a checkpoint is published. `write_checkpoint` is the receipt that came with it."""

    write_checkpoint: int | None


Instruction = CloseStream | FetchCredentials | ExtendSubscriptions | SyncCompleted
Action = StoreAction | Instruction


class SyncIteration:
    """One sync stream, from its request to its end (upholds I6 together with `may_publish`).

    Raises ProtocolError for lines that break the protocol; the stream must then be closed.
    """

    def __init__(self, subscriptions: Sequence[int] = ()) -> None:
        self._subscriptions = tuple(subscriptions)
        self._target: Target | None = None
        self._held: Target | None = None
        self.downloading = False
        self.streams: tuple[StreamInfo, ...] = ()

    def handle(self, event: Event) -> list[Action]:
        """What to do about an event, in this order."""
        match event:
            case LineReceived(line):
                return self._read(line)
            case UploadsFinished():
                return [CompleteCheckpoint(self._held, None)] if self._held else []
            case ChecksumsFailed(buckets):
                self._held = None
                return [RemoveBuckets(buckets), CloseStream(mismatch=True)]
            case CheckpointHeld(priority):
                if priority is None:
                    self._held = self._target
                return []
            case CheckpointPublished(priority):
                if priority is not None:
                    return []
                self._held = None
                return [SyncCompleted(self._target.write_checkpoint if self._target else None)]

    def _read(self, line: bytes) -> list[Action]:
        if line.startswith(DATA_LINE_START):
            self.downloading = True
            return [StoreData(line)]
        match parse_line(line):
            case Checkpoint() as checkpoint:
                return self._begin(checkpoint)
            case CheckpointDiff() as diff:
                return self._patch(diff)
            case CheckpointComplete():
                self.downloading = False
                return [CompleteCheckpoint(self._expect_target("checkpoint_complete"), None)]
            case PartialCheckpointComplete(priority=priority):
                return [CompleteCheckpoint(self._expect_target("partial_checkpoint_complete"), priority)]
            case TokenExpiresIn(seconds):
                return _keep_alive(seconds)
            case BucketData():
                return [StoreData(line)]
            case UnknownLine():
                return []

    def _begin(self, checkpoint: Checkpoint) -> list[Action]:
        buckets = {bucket.bucket: bucket for bucket in checkpoint.buckets}
        self._target, self._held = Target(checkpoint.last_op_id, checkpoint.write_checkpoint, buckets), None
        self.downloading, self.streams = True, checkpoint.streams
        return [KeepOnlyBuckets(frozenset(buckets)), NoteStreams(checkpoint.streams, self._subscriptions)]

    def _patch(self, diff: CheckpointDiff) -> list[Action]:
        target = self._expect_target("checkpoint_diff")
        buckets = target.buckets | {bucket.bucket: bucket for bucket in diff.updated_buckets}
        for name in diff.removed_buckets:
            buckets.pop(name, None)
        self._target = replace(
            target, last_op_id=diff.last_op_id, write_checkpoint=diff.write_checkpoint, buckets=buckets
        )
        self._held, self.downloading = None, True
        return [RemoveBuckets(diff.removed_buckets)] if diff.removed_buckets else []

    def _expect_target(self, kind: str) -> Target:
        if self._target is None:
            raise ProtocolError(f"a {kind} line came before any checkpoint")
        return self._target


def may_publish(*, priority: int | None, queue_is_empty: bool, gate: int | None, seen: int | None) -> bool:
    """Whether a valid checkpoint may be shown to the app (I6).

    `gate`: the write checkpoint to wait for; `seen`: the latest one that came with a full checkpoint. Priority 0
    never waits.

    >>> may_publish(priority=None, queue_is_empty=True, gate=3, seen=2)
    False
    """
    if priority == 0:
        return True
    return queue_is_empty and (gate is None or (seen is not None and gate <= seen))


def stream_request(
    *,
    client_id: str,
    buckets: Iterable[tuple[str, int]],
    subscriptions: Iterable[tuple[str, object, int | None]],
    parameters: dict[str, Any],
    include_defaults: bool = True,
) -> dict[str, Any]:
    """The body of POST /sync/stream. `buckets`: names, last op ids; `subscriptions`: stream, parameters, priority."""
    return {
        "buckets": [{"name": name, "after": str(after)} for name, after in buckets],
        "include_checksum": True,
        "raw_data": True,
        "client_id": client_id,
        "parameters": parameters,
        "streams": {
            "include_defaults": include_defaults,
            "subscriptions": [
                {"stream": stream, "parameters": arguments, "override_priority": priority}
                for stream, arguments, priority in subscriptions
            ],
        },
    }


def _keep_alive(seconds: int) -> list[Action]:
    if seconds <= 0:
        return [FetchCredentials(expired=True), CloseStream()]
    if seconds <= PREFETCH_BELOW_S:
        return [ExtendSubscriptions(), FetchCredentials(expired=False)]
    return [ExtendSubscriptions()]
