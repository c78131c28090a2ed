"""Where the replicated state differs from the live tables, as far as an index of storage tells it at once."""

from __future__ import annotations

from collections import defaultdict

from django.db import DatabaseError, transaction

from ..conf import get_settings
from ..models import Definition, ParameterLookup, RuleSet
from ..sync_rules.compiled import CompiledPlan
from ..sync_rules.plan import LookupKey
from .evaluator import Resolved

MAX_KEYS = 1000
MAX_LINES = 10


def storage_differences(plan: CompiledPlan, resolved: Resolved) -> list[str]:
    """How storage would answer the lookups of a request otherwise than the live tables do; empty if it would not."""
    alias = get_settings().storage
    try:
        with transaction.atomic(using=alias):
            active = RuleSet.objects.using(alias).filter(state=RuleSet.State.ACTIVE).first()
            if active is None:
                return ["nothing is served yet; start `manage.py run_replicator`"]
            if active.identity != plan.identity:
                return ["it serves other rules than those of the settings; restart `manage.py run_replicator`"]
            if len(resolved.entries) > MAX_KEYS:
                return [f"not compared: the request asks for more than {MAX_KEYS} keys"]
            stored = _stored(alias, plan, resolved)
    except DatabaseError:
        return []  # its tables do not exist, or cannot be read: `manage.py check` and the replicator tell
    lines = []
    for key, entries in resolved.entries.items():
        live, now = sorted(entry.outputs for entry in entries), sorted(stored[key])
        if live != now:
            name = plan.indexes[key.source].name
            lines.append(f"{name} {key.key} gives {_listed(now)} there, and {_listed(live)} in the live tables")
    more = [f"and {len(lines) - MAX_LINES} more lookups"] if len(lines) > MAX_LINES else []
    return [*lines[:MAX_LINES], *more]


def _stored(alias: str, plan: CompiledPlan, resolved: Resolved) -> dict[LookupKey, list[str]]:
    sources = {plan.indexes[key.source].identity: key.source for key in resolved.entries}
    definitions = Definition.objects.using(alias).filter(
        kind=Definition.Kind.LOOKUP, state=Definition.State.SERVED, identity__in=sources
    )
    numbers = {definition.pk: sources[definition.identity] for definition in definitions}
    keys = {key.key for key in resolved.entries}
    found: dict[LookupKey, list[str]] = defaultdict(list)
    lookups = ParameterLookup.objects.using(alias).filter(definition__in=numbers, key__in=keys)
    for definition, key, outputs in lookups.values_list("definition_id", "key", "outputs"):
        found[LookupKey(numbers[definition], key)].append(outputs)
    return found


def _listed(outputs: list[str]) -> str:
    return ", ".join(outputs[:5]) + (" …" if len(outputs) > 5 else "") if outputs else "nothing"
