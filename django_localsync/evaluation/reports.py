"""What `localsync_explain` tells, as JSON-like structures: of a user, of a row, of a stream."""

from __future__ import annotations

from typing import Any

from django.contrib.auth import get_user_model
from django.contrib.auth.base_user import AbstractBaseUser
from django.core.exceptions import ValidationError
from django.db import models

from ..sync_rules.compiled import CompiledPlan
from ..sync_rules.expressions import SqliteValue
from ..sync_rules.plan import RequestParameters
from ..sync_rules.queries import CompiledDefinition, Output, Position, Querier, RowQuery
from ..tokens import user_claims
from .describe import describe, describe_condition, describe_selection
from .differences import storage_differences
from .evaluator import BucketKey, Evaluator, Resolved
from .explain import Explainer
from .paths import Path

Report = dict[str, Any]


def find_user(user_id: Any) -> AbstractBaseUser | None:
    """The user with this primary key, given as text; None if there is none."""
    try:
        return get_user_model()._default_manager.filter(pk=user_id).first()
    except (ValueError, TypeError, ValidationError):
        return None


def claims_of(user_id: str) -> dict[str, Any]:
    """The claims of a user's tokens; of somebody who is not in the database just `sub`."""
    user = find_user(user_id)
    return {"sub": user_id} if user is None else user_claims(user)


def user_report(evaluator: Evaluator, request: RequestParameters) -> Report:
    """The buckets that a request gets, with why, and how much they hold."""
    explainer = Explainer(evaluator)
    resolved = evaluator.resolve(request)
    contents = evaluator.contents(resolved.buckets)
    buckets = [
        {
            "bucket": explainer.bucket_name(key),
            "streams": sorted({path.definition.name for path in ways} or _streams_of(resolved, key)),
            "priority": resolved.buckets[key].priority,
            "rows": contents[key].rows,
            "bytes": contents[key].bytes,
            "why": [explainer.line_of_path(path) for path in ways],
        }
        for key in resolved.buckets
        for ways in [explainer.ways_taken(resolved, key)]
    ]
    return {
        "user": request.claims["sub"],
        "claims": dict(request.claims),
        "problem": resolved.problem,
        "streams": [
            {"stream": item.name, "default": item.is_default, "errors": [error.message for error in item.errors]}
            for item in resolved.resolution.streams
        ],
        "buckets": buckets,
        "rows": sum(content.rows for content in contents.values()),
        "bytes": sum(content.bytes for content in contents.values()),
        "storage": storage_differences(evaluator.plan, resolved),
        "errors": errors_report(evaluator),
    }


def _streams_of(resolved: Resolved, key: BucketKey) -> set[str]:
    streams, asked = resolved.resolution.streams, resolved.request.subscriptions
    reasons = resolved.buckets[key].reasons
    return {streams[index].name if kind == "default" else asked[index].stream for kind, index in reasons}


def row_report(
    evaluator: Evaluator, instance: models.Model, request: RequestParameters | None, *, max_ways: int
) -> Report:
    """The buckets that hold a row, and the ways on which users reach them; with a request, whether that gets it."""
    explainer = Explainer(evaluator)
    row = evaluator.locate(instance)
    report: Report = {
        "row": row.name if row else f"{instance._meta.db_table} {instance.pk}",
        "buckets": [],
        "looked_up": [],
        "reasons": [],
    }
    if row is None or not row.buckets:
        report["reasons"] = explainer.lines_of_absence(instance)
    if row is not None:
        for place in row.buckets:
            paths, more = explainer.paths((place.source, place.parameters), max_ways)
            report["buckets"].append(
                {
                    "bucket": explainer.bucket_name((place.source, place.parameters)),
                    "type": place.row_type,
                    "id": place.row_id,
                    "bytes": len(place.data.encode()),
                    "ways": [_way(explainer, path, (place.source, place.parameters)) for path in paths],
                    "more_ways": more,
                }
            )
        report["looked_up"] = [
            {"index": evaluator.plan.indexes[entry.source].name, "key": entry.key, "gives": entry.outputs}
            for entry in row.entries
        ]
    if request is not None:
        resolved = evaluator.resolve(request)
        lines = explainer.lines_of_access(row, resolved) if row else []
        report["user"] = request.claims["sub"]
        report["user_gets_it"] = bool(lines) and resolved.problem is None
        refusal = [] if report["user_gets_it"] else explainer.lines_of_refusal(instance, row, resolved)
        report["because"] = refusal or lines
    report["errors"] = errors_report(evaluator)
    return report


def _way(explainer: Explainer, path: Path, bucket: BucketKey) -> Report:
    """A way to a bucket; where it names a user, whether that one really gets the bucket on it."""
    user_id, who, gets = path.user_id, None, None
    if user_id is not None:
        user = find_user(user_id)
        who = str(user) if user is not None else None
        gets = _is_open(explainer.evaluator, path, bucket, user_id, user)
    return {
        "stream": path.definition.name,
        "user": user_id,
        "name": who,
        "everybody": path.is_for_everybody,
        "gets_it": gets,
        "subscribe": None if _is_default(path.definition) else path.parameters("subscription"),
        "path": explainer.line_of_path(path),
    }


def _is_open(
    evaluator: Evaluator, path: Path, bucket: BucketKey, user_id: SqliteValue, user: AbstractBaseUser | None
) -> bool:
    claims = {"sub": user_id} if user is None else user_claims(user)
    request = RequestParameters(claims, path.parameters("connection"), [path.subscription])
    resolved = evaluator.resolve(request)
    return bucket in resolved.buckets and resolved.problem is None


def _is_default(definition: CompiledDefinition) -> bool:
    return definition.auto_subscribe or definition.always


def stream_report(plan: CompiledPlan, name: str) -> Report:
    """The compiled plan of a stream or bucket definition: what it asks of a request, and what of rows."""
    definition = next(item for item in plan.definitions if item.name == name)
    return {
        "stream": name,
        "subscribed": "always" if definition.always else "by default" if definition.auto_subscribe else "on request",
        "variants": [_variant(plan, querier) for querier in definition.queriers],
    }


def _variant(plan: CompiledPlan, querier: Querier) -> Report:
    bucket = plan.buckets[querier.bucket]
    return {
        "bucket": bucket.name,
        "priority": querier.priority,
        "if": describe_condition(querier.filters),
        "lookups": [
            {
                "reads": [_lookup(query) for query in plan.indexes[step.source].queries],
                "key": [_position(plan, querier, position) for position in step.key],
            }
            for step in querier.steps
        ],
        "parameters": [_position(plan, querier, position) for position in querier.parameters],
        "rows": [_rows(query) for query in bucket.queries],
    }


def _lookup(query: RowQuery) -> str:
    outputs = ", ".join(map(describe, query.outputs)) or "1"
    return f"SELECT {outputs} FROM {query.table}{_where([*query.filters], query, 'key')}"


def _rows(query: RowQuery) -> str:
    alias = query.selection.row_type if query.selection else None
    named = f" AS {alias}" if alias else ""
    return f"SELECT {describe_selection(query)} FROM {query.table}{named}{_where([*query.filters], query, 'parameter')}"


def _where(filters: list[Any], query: RowQuery, word: str) -> str:
    terms = [describe_condition(filters)] if filters else []
    terms += [f"{describe(expr)} = {word} {number}" for number, expr in enumerate(query.values, 1)]
    return f" WHERE {' AND '.join(terms)}" if terms else ""


def _position(plan: CompiledPlan, querier: Querier, position: Position) -> str:
    return " = ".join(
        _output(plan, querier, operand) if isinstance(operand, Output) else describe(operand) for operand in position
    )


def _output(plan: CompiledPlan, querier: Querier, output: Output) -> str:
    queries = plan.indexes[querier.steps[output.step].source].queries
    named = dict.fromkeys(describe(query.outputs[output.index]) for query in queries)
    return f"lookup {output.step + 1}'s {' or '.join(named)}"


def errors_report(evaluator: Evaluator) -> list[Report]:
    """Rows that queries had to leave out."""
    return [{"query": name, "message": message, "rows": count} for (name, message), count in evaluator.errors.items()]
