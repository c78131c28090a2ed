"""`manage.py localsync_explain`: its four questions, as JSON and as text."""

from __future__ import annotations

import io
import json
import tracemalloc
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.management import CommandError, call_command
from django.db import connection

from django_localsync.evaluation import Evaluator, compile_project_rules
from django_localsync.evaluation.estimate import estimate
from django_localsync.models import RuleSet
from django_localsync.sync_rules import compile_rules
from django_localsync.sync_rules.plan import RequestParameters
from tests.integration.evaluation.conftest import RULES
from tests.testapp.models import Counter, Todo, TodoList


def explain(*arguments: str) -> str:
    output = io.StringIO()
    call_command("localsync_explain", *arguments, stdout=output, no_color=True)
    return output.getvalue()


def report(*arguments: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(explain(*arguments, "--json"))
    return found


def membership(todo_list: TodoList, user: User) -> str:
    row = TodoList.members.through.objects.get(todolist=todo_list, user=user)
    return f"lists_members id={row.pk}"


def test_a_user_is_told_with_the_buckets_their_rows_and_the_way_to_them(world):
    found = report("--user", str(world.alice.pk))

    (bucket,) = found["buckets"]
    assert (found["rows"], found["problem"]) == (2, None)
    assert bucket["bucket"] == f'shared_lists|0["{world.hers.pk}"]'
    assert (bucket["streams"], bucket["rows"], bucket["priority"]) == (["shared_lists"], 2, 3)
    (why,) = bucket["why"]
    assert f'auth.user_id() = "{world.alice.pk}"' in why
    assert why.endswith(f"through {membership(world.hers, world.alice)}")


def test_subscriptions_and_parameters_of_the_device_count(world):
    found = report(
        "--user",
        str(world.bob.pk),
        "--subscribe",
        f'one_list:{{"list": "{world.his.pk}"}}',
        "--subscribe",
        "tags",
        "--param",
        'tags=["red", "blue"]',
    )

    counts = {bucket["bucket"]: bucket["rows"] for bucket in found["buckets"]}
    assert counts == {
        f'shared_lists|0["{world.his.pk}"]': 2,
        f'one_list|0["{world.his.pk}"]': 1,
        'tags|0["red"]': 1,
        'tags|0["blue"]': 0,
    }
    red = next(bucket for bucket in found["buckets"] if bucket["bucket"] == 'tags|0["red"]')
    assert red["why"] == ["stream tags: connection.parameter('tags') contains \"red\""]


def test_somebody_who_is_not_in_the_database_is_a_subject_of_foreign_tokens(world):
    assert report("--user", "carol@example.com")["buckets"] == []


def test_a_user_beyond_the_limits_is_named(world, settings):
    settings.LOCALSYNC = {"RULES": RULES, "MAX_BUCKETS": 1}
    world.his.members.add(world.alice)

    assert "MAX_BUCKETS is 1" in report("--user", str(world.alice.pk))["problem"]
    assert "the server refuses this user" in explain("--user", str(world.alice.pk))


def test_a_row_is_told_with_its_buckets_and_the_users_who_reach_them(world):
    found = report("--row", f"testapp.Todo:{world.milk.pk}")

    by_bucket = {bucket["bucket"]: bucket["ways"] for bucket in found["buckets"]}
    assert set(by_bucket) == {f'{name}|0["{world.hers.pk}"]' for name in ("shared_lists", "one_list")}
    for (way,) in by_bucket.values():
        assert (way["user"], way["name"], way["gets_it"]) == (str(world.alice.pk), "alice", True)
        assert membership(world.hers, world.alice) in way["path"]
    (way,) = by_bucket[f'one_list|0["{world.hers.pk}"]']
    assert way["subscribe"] == {"list": str(world.hers.pk)}


def test_every_user_who_gets_a_row_is_on_a_way_to_it_and_nobody_else(world):
    users = [User.objects.create_user(f"user{number}") for number in range(6)]
    members = users[::2]
    world.hers.members.set(members)

    found = report("--row", f"testapp.TodoList:{world.hers.pk}")

    ways = [way for bucket in found["buckets"] for way in bucket["ways"]]
    assert {way["user"] for way in ways if way["gets_it"]} == {str(user.pk) for user in members}


def test_no_more_ways_are_shown_than_asked_for(world):
    world.hers.members.set([User.objects.create_user(f"user{number}") for number in range(4)])

    (bucket,) = report("--row", f"testapp.TodoList:{world.hers.pk}", "--limit", "3")["buckets"]

    assert (len(bucket["ways"]), bucket["more_ways"]) == (3, True)


def test_an_index_with_many_entries_is_not_followed_to_its_end(world, settings, monkeypatch):
    monkeypatch.setattr("django_localsync.evaluation.explain.MAX_ENTRIES", 5)
    User.objects.bulk_create(User(username=f"user{number}") for number in range(3))
    query = "SELECT * FROM tags WHERE auth.user_id() IN (SELECT CAST(id AS TEXT) FROM auth_user)"
    settings.LOCALSYNC = {"RULES": {"config": {"edition": 3}, "streams": {"s": {"query": f"{query}"}}}}

    (all_five,) = report("--row", "testapp.Tag:red")["buckets"]
    User.objects.create_user("one more")
    (cut,) = report("--row", "testapp.Tag:red")["buckets"]

    assert (len(all_five["ways"]), all_five["more_ways"]) == (5, False)
    assert (len(cut["ways"]), cut["more_ways"]) == (5, True)


def test_a_row_and_a_user_together_ask_whether_that_user_gets_it(world):
    row = ("--row", f"testapp.Todo:{world.milk.pk}")
    hers, his = (report(*row, "--user", str(user.pk)) for user in (world.alice, world.bob))

    assert (hers["user_gets_it"], his["user_gets_it"]) == (True, False)
    assert any("which the user does not have" in line for line in his["because"])


def test_a_row_that_needs_a_claim_says_which(world):
    counter = Counter.objects.create(value=1)

    ((way,),) = [bucket["ways"] for bucket in report("--row", f"testapp.Counter:{counter.pk}")["buckets"]]

    assert (way["user"], way["everybody"]) == (None, False)
    assert "'counter' IN auth.parameter('roles')" in way["path"]


def test_a_row_that_is_in_no_bucket_says_why(world):
    found = report("--row", f"testapp.Counter:{Counter.objects.create(value=2).pk}")

    assert found["buckets"] == []
    assert any("value = 1 is not true" in line for line in found["reasons"])


def test_a_stream_is_told_as_it_was_compiled(world):
    found = report("--stream", "shared_lists")

    (variant,) = found["variants"]
    assert found["subscribed"] == "by default"
    assert variant["lookups"] == [
        {
            "reads": ["SELECT todolist_id FROM public.lists_members WHERE CAST(user_id AS TEXT) = key 1"],
            "key": ["auth.user_id()"],
        }
    ]
    assert variant["parameters"] == ["lookup 1's todolist_id"]
    assert variant["rows"] == [
        "SELECT * FROM public.lists WHERE id = parameter 1",
        "SELECT id, list_id, title, priority FROM public.todos WHERE NOT done AND list_id = parameter 1",
    ]


def test_an_estimate_counts_every_active_user_and_every_bucket(world):
    world.his.members.add(world.alice)
    User.objects.create_user("gone", is_active=False)
    Todo.objects.bulk_create(Todo(list=world.his, title=str(number)) for number in range(10))

    found = report("--estimate")

    assert found["buckets_per_user"] == {
        "count": 2, "total": 3, "median": 1, "p99": 2, "max": 2, "greatest": str(world.alice.pk)
    }  # fmt: skip
    assert found["rows_per_user"]["max"] == 2 + 12
    shared = found["rows_per_bucket"]["shared_lists|0"]
    assert (shared["count"], shared["median"], shared["max"]) == (2, 2, 12)
    assert shared["greatest"] == f'shared_lists|0["{world.his.pk}"]'
    assert found["beyond_limit"] == 0


def test_an_estimate_names_how_many_users_the_server_would_refuse(world, settings):
    settings.LOCALSYNC = {"RULES": RULES, "MAX_BUCKETS": 1}
    world.his.members.add(world.alice)

    assert report("--estimate")["beyond_limit"] == 1
    assert "the server refuses 1 user" in explain("--estimate")


def test_an_estimate_of_many_buckets_agrees_with_postgres_in_bounded_memory(db, monkeypatch):
    monkeypatch.setattr("django_localsync.evaluation.estimate.BATCH", 2000)
    rows = 20_000
    with connection.cursor() as cursor:
        cursor.execute("CREATE TABLE many (id bigint PRIMARY KEY, owner text)")
        cursor.execute(
            "INSERT INTO many SELECT n, 'u' || (n * n %% 15013) FROM generate_series(1::bigint, %s) n", [rows]
        )
        cursor.execute("SELECT count(*), max(n), percentile_disc(0.5) WITHIN GROUP (ORDER BY n),"
                       " percentile_disc(0.99) WITHIN GROUP (ORDER BY n)"
                       " FROM (SELECT count(*) AS n FROM many GROUP BY owner) AS o")  # fmt: skip
        wanted = cursor.fetchone()
    rules = {"config": {"edition": 3}, "streams": {"s": {"query": "SELECT * FROM many WHERE owner = auth.user_id()"}}}
    evaluator = Evaluator(compile_rules(rules).plan, ["default"], 1000)
    read: list[int] = []
    evaluator.on_rows = lambda table, count: read.append(count)

    tracemalloc.start()
    found = estimate(evaluator, lambda: [RequestParameters({"sub": f"u{n}"}) for n in range(3)])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    spread = found.rows_per_bucket["s|0"]
    assert (spread.count, spread.max, spread.median, spread.p99) == wanted
    assert (spread.total, sum(read)) == (rows, rows)
    assert peak < 1_500_000  # that of 2,000 buckets, not of all


def test_what_storage_would_answer_otherwise_is_mentioned(world):
    assert report("--user", "1")["storage"] == ["nothing is served yet; start `manage.py run_replicator`"]

    RuleSet.objects.create(identity="other", rules="{}", state="active")
    assert "other rules" in report("--user", "1")["storage"][0]

    RuleSet.objects.update(identity=compile_project_rules().plan.identity)
    (line,) = report("--user", str(world.alice.pk))["storage"]
    assert f'["{world.alice.pk}"] gives nothing there, and ["{world.hers.pk}"] in the live tables' in line


@pytest.mark.parametrize("question", ["--user", "--row", "--stream", "--estimate"])
def test_every_question_is_answered_in_text(world, question):
    values = {"--user": world.alice.pk, "--row": f"testapp.Todo:{world.milk.pk}", "--stream": "shared_lists"}
    text = explain(question, *([str(values[question])] if question in values else []))

    assert "shared_lists|0" in text
    assert {"--user": "lists_members id=", "--row": "alice", "--stream": "lookup 1", "--estimate": "p99"}[
        question
    ] in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "ask one question"),
        (["--user", "1", "--estimate"], "ask one question"),
        (["--stream", "absent"], "the rules have shared_lists"),
        (["--row", "testapp.Todo"], r"write app\.Model:primary-key"),
        (["--row", "testapp.Nothing:1"], r"write app\.Model:primary-key"),
        (["--row", "testapp.Todo:seven"], "'seven' is no primary key"),
        (["--user", "1", "--subscribe", "tags:{"], "not JSON"),
        (["--user", "1", "--subscribe", "tags:[]"], "must be a JSON object"),
        (["--user", "1", "--subscribe", "tag"], "there is no stream"),
        (["--user", "1", "--param", "x"], "write name=value"),
    ],
)
def test_a_question_that_cannot_be_answered_says_what_to_write(world, arguments, message):
    with pytest.raises(CommandError, match=message):
        explain(*arguments)


def test_rules_that_do_not_compile_are_told(settings):
    settings.LOCALSYNC = {"RULES": {"streams": {"s": {"query": "SELECT"}}}}
    with pytest.raises(CommandError, match=r"manage\.py check"):
        explain("--estimate")
