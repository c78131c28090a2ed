"""Two users, two lists, and rules that share lists with their members."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from django.contrib.auth.models import User

from tests.testapp.models import Tag, Todo, TodoList

MINE = "(SELECT todolist_id FROM lists_members WHERE CAST(user_id AS TEXT) = auth.user_id())"
RULES = {
    "config": {"edition": 3},
    "streams": {
        "shared_lists": {
            "auto_subscribe": True,
            "queries": [
                f"SELECT * FROM lists WHERE id IN {MINE}",
                f"SELECT id, list_id, title, priority FROM todos WHERE NOT done AND list_id IN {MINE}",
            ],
        },
        "one_list": {
            "query": f"SELECT * FROM todos WHERE list_id = subscription.parameter('list') AND list_id IN {MINE}",
        },
        "tags": {
            "query": "SELECT code AS id, list_id FROM tags WHERE code IN connection.parameter('tags')",
            "accept_potentially_dangerous_queries": True,
        },
        "counters": {"query": "SELECT * FROM counters WHERE value = 1 AND 'counter' IN auth.parameter('roles')"},
    },
}


@pytest.fixture
def world(db: Any, settings: Any) -> SimpleNamespace:
    """Alice is in the list `hers` with its to-dos `milk` and `done`; Bob in `his` with `beer`."""
    settings.LOCALSYNC = {"RULES": RULES}
    alice, bob = (User.objects.create_user(name) for name in ("alice", "bob"))
    hers, his = (TodoList.objects.create(name=name) for name in ("hers", "his"))
    hers.members.add(alice)
    his.members.add(bob)
    return SimpleNamespace(
        alice=alice,
        bob=bob,
        hers=hers,
        his=his,
        milk=Todo.objects.create(list=hers, title="milk"),
        done=Todo.objects.create(list=hers, title="done", done=True),
        beer=Todo.objects.create(list=his, title="beer"),
        tag=Tag.objects.create(code="red"),
    )
