"""Random QuerySets: the rows reached through buckets are the rows that Postgres gives for that user's values."""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import Any

import pytest
from django.apps import apps
from django.db import transaction
from django.db.models import QuerySet

from django_localsync.exceptions import RulesError
from django_localsync.querysets import Stream, evaluated_for, expressions
from django_localsync.sync_rules.plan import RequestParameters
from tests.conftest import SOAK

from .random_querysets import QuerySets, fill, requests
from .reached import Tables, buckets_of, name_of, read_tables

pytestmark = pytest.mark.django_db

CASES = 34_000 if SOAK else 300  # some 60 % are compared, the others refused
CASES_A_DATASET = 100
USER_MODELS = ["auth.User", "library.Person", "library.Account"]


class Mismatch(AssertionError):
    """A stream gives other rows than the QuerySet."""


def rows_of(queryset: QuerySet[Any], request: RequestParameters) -> set[tuple[str, str]]:
    """The rows that Postgres gives."""
    with evaluated_for(request):
        keys = set(queryset.values_list("pk", flat=True))
    return {(name_of(queryset.model._meta.db_table).name, str(key)) for key in keys}


def check(queryset: QuerySet[Any], tables: Tables, asking: list[RequestParameters], outcomes: Counter[str]) -> None:
    """One case; raises Mismatch."""
    try:
        queries = Stream(queryset, name="tested").sql()
        buckets = buckets_of(queries, tables)
    except RulesError as error:
        outcomes[f"refused: {str(error).rpartition(': ')[2]}"] += 1
        return
    for request in asking:
        reached, wanted = buckets.reached(request), rows_of(queryset, request)
        if reached != wanted or buckets.errors:
            raise Mismatch(
                f"{queryset.query.model.__name__}: {queries}\n{queryset.query.where}\n{request}\n"
                f"too much: {sorted(reached - wanted)}\nmissing: {sorted(wanted - reached)}\n{buckets.errors[:3]}"
            )
        outcomes["rows" if wanted else "nothing"] += 1
    outcomes["equal"] += 1


def run(seed: int, cases: int) -> Counter[str]:
    """Random cases, on a new dataset every so often."""
    random, outcomes = Random(seed), Counter[str]()
    for first in range(0, cases, CASES_A_DATASET):
        with transaction.atomic():
            fill(random)
            tables, asking, querysets = read_tables(), requests(random), QuerySets(random)
            for _ in range(min(CASES_A_DATASET, cases - first)):
                check(querysets.queryset(), tables, asking, outcomes)
            transaction.set_rollback(True)
    return outcomes


@pytest.fixture
def user_model(request: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    """The models refer to three kinds of users; one of them is the project's."""
    monkeypatch.setattr(expressions, "get_user_model", lambda: apps.get_model(request.param))
    return str(request.param)


@pytest.mark.parametrize("user_model", USER_MODELS, indirect=True)
def test_streams_give_what_their_querysets_give(user_model: str, request: Any):
    seed = request.config.option.hypothesis_seed
    outcomes = run(int(seed), CASES if user_model == "auth.User" else CASES // 5)

    assert outcomes["equal"] > 0.4 * sum(
        count for name, count in outcomes.items() if name.startswith(("equal", "refused"))
    )
    assert outcomes["rows"] > 0.2 * outcomes["nothing"]
