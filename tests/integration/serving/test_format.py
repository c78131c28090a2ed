"""Streams over a storage that another release filled, or that is not migrated."""

from __future__ import annotations

from typing import Any

import pytest

from django_localsync.exceptions import ConfigurationError
from django_localsync.models import RuleSet
from django_localsync.sync_rules import compile_rules, formats
from tests.integration.serving.conftest import Storage, Streams
from tests.integration.serving.conftest import storage as storage

RULES = {"config": {"edition": 3}, "streams": {"all": {"query": "SELECT * FROM todos"}}}


@pytest.mark.parametrize(("number", "way_out"), [(2, "a newer release filled it"), (0, "let run_replicator")])
def test_a_format_that_is_not_known_is_refused_with_the_way_out(
    storage: Storage, start_server: Any, streams: Streams, number: int, way_out: str
) -> None:
    RuleSet.objects.update(format=number)

    response = streams.open(start_server(fresh=True))

    assert response.status_code == 503
    error = response.read().decode()
    assert f"bucket storage has format {number}" in error
    assert way_out in error


def test_a_storage_without_this_release_s_columns_asks_for_migrate(
    storage: Storage, start_server: Any, streams: Streams
) -> None:
    storage.connection.execute("ALTER TABLE localsync_rule_set RENAME format TO absent")
    try:
        response = streams.open(start_server(fresh=True))
        assert response.status_code == 500
        assert "manage.py migrate" in response.read().decode()
    finally:
        storage.connection.execute("ALTER TABLE localsync_rule_set RENAME absent TO format")


def test_another_format_is_another_identity_of_every_definition() -> None:
    first, second = (compile_rules(RULES, format=number).plan for number in (1, 2))

    assert compile_rules(RULES).plan.identity == compile_rules(RULES, format=formats.FORMAT).plan.identity
    assert first.identity != second.identity
    assert {source.identity for source in first.buckets}.isdisjoint(source.identity for source in second.buckets)


def test_a_replicator_may_replace_an_older_format_but_not_a_newer_one() -> None:
    formats.check_format(0)
    with pytest.raises(ConfigurationError, match="install that one here"):
        formats.check_format(formats.KNOWN_FORMATS[-1] + 1)
