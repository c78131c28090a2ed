"""The rows that requests reach: by the plan, evaluated here; and by Postgres, which runs the rules as queries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from django_localsync.sync_rules.plan import BucketRow, LookupKey, Plan, RequestParameters, Resolution
from tests.integration.rules.grammar import Both
from tests.integration.rules.world import World, execute

Reached = dict[tuple[str, int], frozenset[tuple[str, str]]]
"""(stream, number of the request) → ids of rows, each with the JSON of its column `v`."""


def by_plan(plan: Plan, world: World) -> Reached:
    """What the buckets hold that each request may have, by stream."""
    held: dict[tuple[int, str], list[BucketRow]] = {}
    index: dict[LookupKey, list[str]] = {}
    errors: list[tuple[str, str]] = []
    for table, rows in world.rows.items():
        evaluate = plan.row_evaluator(world.table_name(table), world.layout(table), lambda *error: errors.append(error))
        for row in rows:
            buckets, lookups = evaluate(row)
            for bucket in buckets:
                held.setdefault((bucket.source, bucket.parameters), []).append(bucket)
            for lookup in lookups:
                index.setdefault(LookupKey(lookup.source, lookup.key), []).append(lookup.outputs)
    assert errors == []
    reached: Reached = {}
    for number, request in enumerate(world.requests):
        found: dict[str, set[tuple[str, str]]] = {}
        for name, rows_of in _granted(_resolve(plan, request, index), request, held):
            found.setdefault(name, set()).update((row.row_id, _value_of(row.data)) for row in rows_of)
        reached.update({(name, number): frozenset(rows) for name, rows in found.items() if rows})
    return reached


def _granted(resolution: Resolution, request: RequestParameters, held: Mapping[Any, list[BucketRow]]) -> Any:
    """The rows of each granted bucket, once for every stream that is a reason for it."""
    assert [stream.errors for stream in resolution.streams if stream.errors] == []
    for bucket in resolution.buckets:
        for kind, number in bucket.reasons:
            name = resolution.streams[number].name if kind == "default" else request.subscriptions[number].stream
            yield name, held.get((bucket.source, bucket.parameters), ())


def _resolve(plan: Plan, request: RequestParameters, index: Mapping[LookupKey, list[str]]) -> Resolution:
    resolving = plan.resolve(request)
    try:
        keys = next(resolving)
        while True:
            keys = resolving.send({key: index[key] for key in keys if key in index})
    except StopIteration as stop:
        resolution: Resolution = stop.value
        return resolution


def by_postgres(connection: Any, queries: Mapping[str, Sequence[Both]]) -> Reached:
    """What the queries give for each request: all of them in one statement."""
    selects = [
        f"SELECT '{name}', r.n, q.id, q.v::text FROM request r CROSS JOIN LATERAL ({query.pg}) AS q (id, v)"
        for name, alternatives in queries.items()
        for query in alternatives
    ]
    found: dict[tuple[str, int], set[tuple[str, str]]] = {}
    for name, number, row_id, value in execute(connection, " UNION ALL ".join(selects)):
        assert name is not None
        assert row_id is not None
        found.setdefault((name, int(number or 0)), set()).add((row_id, _plain(orjson.loads(value or "null"))))
    return {key: frozenset(rows) for key, rows in found.items()}


def _value_of(data: str) -> str:
    return _plain(orjson.loads(data).get("v"))


def _plain(value: Any) -> str:
    """A value's text, in which 1 and 1.0 are the same."""
    return str(float(value)) if isinstance(value, float) and not value.is_integer() else str(_whole(value))


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) else repr(value) if isinstance(value, str) else value
