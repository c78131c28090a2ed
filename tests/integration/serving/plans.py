"""A plan small enough to see through: the rules' text lists bucket sources and what their parameter comes from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from hashlib import sha256
from typing import Any

from django_localsync.sync_rules.plan import (
    BucketSource,
    LookupKey,
    LookupSource,
    RequestParameters,
    Resolution,
    ResolvedBucket,
    ResolvedStream,
    Resolving,
)


class ListedPlan:
    """Buckets "of everyone", "of the user" (one by `sub`), and "of lists" that a lookup by `sub` gives."""

    def __init__(self, text: str, format: int = 1) -> None:
        self._sources: list[dict[str, Any]] = json.loads(text)
        self.bucket_sources = [BucketSource(item["name"], _hash(item["name"])) for item in self._sources]
        self.lookup_sources = [LookupSource("members", _hash("members"))]

    def resolve(self, request: RequestParameters) -> Resolving:
        user = request.claims["sub"]
        membership = LookupKey(0, _json([user]))
        found = yield [membership]
        lists = [json.loads(outputs)[0] for outputs in found.get(membership, ())]
        parameters = {"everyone": [[]], "user": [[user]], "lists": [[name] for name in lists]}
        return Resolution(
            buckets=tuple(
                ResolvedBucket(index, _json(values), source.get("priority", 3), (("default", index),))
                for index, source in enumerate(self._sources)
                for values in parameters[source["of"]]
            ),
            streams=tuple(ResolvedStream(source["name"], True) for source in self._sources),
            lookups=frozenset([membership]),
        )


def _hash(text: str) -> str:
    return sha256(text.encode()).hexdigest()


def _json(value: Sequence[Any]) -> str:
    return json.dumps(value, separators=(",", ":"))
