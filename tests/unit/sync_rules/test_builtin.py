"""The built-in stream of rejected writes, beside whatever rules a project has."""

from __future__ import annotations

from typing import Any

import pytest

from django_localsync.exceptions import RulesError
from django_localsync.sync_rules import compile_rules
from django_localsync.sync_rules.builtin import REJECTIONS, with_rejections

STREAMS = "config: {edition: 3}\nstreams:\n  mine:\n    query: SELECT id FROM todos WHERE owner = auth.user_id()\n"
BUCKETS = "bucket_definitions:\n  all:\n    data: [SELECT id FROM todos]\n"
ALPHA = "config: {edition: 2}\nstreams:\n  mine:\n    query: SELECT id FROM todos WHERE owner = auth.user_id()\n"


@pytest.mark.parametrize("rules", [STREAMS, BUCKETS, ALPHA])
def test_it_is_added_to_rules_of_every_edition(rules: str) -> None:
    tables = {str(named.table) for named in compile_rules(with_rejections(rules)).tables}

    assert tables == {"public.todos", "public.localsync_rejection"}


def test_a_projects_own_definition_of_the_name_is_kept() -> None:
    own: dict[str, Any] = {"config": {"edition": 3}, "streams": {REJECTIONS: {"query": "SELECT id FROM mine"}}}

    assert with_rejections(own) == own


@pytest.mark.parametrize("rules", ["[]", "streams: 7", "a: [", "config: {edition: 3}\nstreams: []", ""])
def test_what_is_wrong_with_the_rules_is_still_said(rules: str) -> None:
    with pytest.raises(RulesError):
        compile_rules(with_rejections(rules))
