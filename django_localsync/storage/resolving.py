"""What a client may have at a checkpoint: its buckets by the rules, as storage has them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..buckets.announcement import BucketTotals, bucket_digest, lookup_digest, write_checkpoint_digest
from ..buckets.operation import OpId
from ..exceptions import LimitExceeded
from ..protocol.lines import StreamInfo
from ..protocol.session import ServedBucket, ServedCheckpoint
from ..sync_rules.plan import LookupKey, LookupResults, Plan, RequestParameters, Resolution
from .notifications import Interests


@dataclass(frozen=True, slots=True)
class Client:
    """Whose checkpoint is read: the user and device a write checkpoint is for, and what the rules may ask."""

    user_key: str
    client_id: str
    parameters: RequestParameters


@dataclass(frozen=True, slots=True)
class ServedRules:
    """The active rule set: its compiled plan, and the ids its bucket and lookup sources have in storage.

    `names` are those that definitions were made with: a stream that is renamed keeps its buckets, and their names.
    """

    id: int
    plan: Plan
    bucket_definitions: tuple[int, ...]
    lookup_definitions: tuple[int, ...]
    names: Mapping[int, str]


@dataclass(frozen=True, slots=True)
class Reading:
    """A client's checkpoint, and what must change in storage for another one to be read."""

    checkpoint: ServedCheckpoint
    interests: Interests


class FoundBucket(NamedTuple):
    """A bucket as storage has it; its id is None where it does not exist yet."""

    id: int | None
    generation: int
    totals: BucketTotals


NOT_FOUND = FoundBucket(None, 0, BucketTotals(0, 0, 0))


class Resolving:
    """One client's buckets on their way: the keys that are asked of the parameter index next, or the outcome."""

    def __init__(self, plan: Plan, request: RequestParameters, max_buckets: int) -> None:
        self._plan, self._max_buckets = plan, max_buckets
        self._running = plan.resolve(request)
        self._results = Counter[str]()
        self.keys: Sequence[LookupKey] = ()
        self.outcome: Resolution | Exception | None = None
        self._advance(lambda: next(self._running))

    def go_on(self, found: LookupResults) -> None:
        """Take the entries of the keys that were asked."""
        for key, entries in found.items():
            self._results[self._plan.lookup_sources[key.source].name] += len(entries)
        if self._results.total() > self._max_buckets:
            self.outcome = _too_many("results of parameter queries", self._results, self._max_buckets)
        else:
            self._advance(lambda: self._running.send({key: entries for key, entries in found.items() if entries}))

    def _advance(self, step: Callable[[], Sequence[LookupKey]]) -> None:
        try:
            self.keys = step()
        except StopIteration as done:
            resolution: Resolution = done.value
            names = Counter(self._plan.bucket_sources[bucket.source].name for bucket in resolution.buckets)
            too_many = names.total() > self._max_buckets
            self.outcome = _too_many("buckets", names, self._max_buckets) if too_many else resolution
        except Exception as error:
            self.outcome = error


def wanted_totals(rules: ServedRules, outcome: Resolution | Exception) -> list[dict[str, Any]]:
    """The buckets whose totals a client needs, in order: definition's id `d` and parameters `p`."""
    if isinstance(outcome, Exception):
        return []
    return [{"d": rules.bucket_definitions[bucket.source], "p": bucket.parameters} for bucket in outcome.buckets]


def make_reading(
    rules: ServedRules, client: Client, head: Sequence[Any], resolution: Resolution, totals: Sequence[FoundBucket]
) -> Reading:
    """A client's checkpoint, from the row of HEAD and the totals of its buckets in their order."""
    op_id, incarnation, write_checkpoint = head
    buckets = _name_buckets(rules, incarnation, resolution, totals)
    checkpoint = ServedCheckpoint(rules.id, OpId(op_id), buckets, _describe_streams(resolution), write_checkpoint)
    return Reading(checkpoint, _find_interests(rules, client, resolution, totals))


def _name_buckets(
    rules: ServedRules, incarnation: str, resolution: Resolution, totals: Sequence[FoundBucket]
) -> dict[str, ServedBucket]:
    buckets = {}
    for bucket, (id_, generation, known) in zip(resolution.buckets, totals, strict=True):
        definition = rules.bucket_definitions[bucket.source]
        prefix = f"{incarnation}.{definition}.{generation}" if generation else f"{incarnation}.{definition}"
        name = f"{prefix}#{rules.names[definition]}{bucket.parameters}"
        buckets[name] = ServedBucket(id_, known, bucket.priority, bucket.reasons, generation)
    return buckets


def _describe_streams(resolution: Resolution) -> tuple[StreamInfo, ...]:
    return tuple(
        StreamInfo(
            stream.name, stream.is_default, tuple((error.subscription, error.message) for error in stream.errors)
        )
        for stream in resolution.streams
    )


def _find_interests(
    rules: ServedRules, client: Client, resolution: Resolution, totals: Sequence[FoundBucket]
) -> Interests:
    return Interests(
        buckets=frozenset(found.id for found in totals if found.id is not None),
        created=frozenset(
            bucket_digest(rules.bucket_definitions[bucket.source], bucket.parameters)
            for bucket, found in zip(resolution.buckets, totals, strict=True)
            if found.id is None
        ),
        lookups=frozenset(
            lookup_digest(rules.lookup_definitions[lookup.source], lookup.key) for lookup in resolution.lookups
        ),
        write_checkpoint=write_checkpoint_digest(client.user_key, client.client_id),
    )


def _too_many(what: str, found: Counter[str], most: int) -> LimitExceeded:
    """The error for a client that has more than it may, counted by source; names the stream that has most."""
    streams = Counter[str]()
    for source, number in found.items():
        streams[re.split(r"[|:]", source)[0]] += number
    ((stream, number),) = streams.most_common(1)
    return LimitExceeded(
        f"too many {what}: {found.total()} (at most {most}), {number} of them by stream {stream!r}; narrow its rules, "
        "subscribe to less of it, or raise MAX_BUCKETS",
        status=500,
    )
