"""What `manage.py check` says of settings and rules."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from threading import Thread
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

import httpx2
import pytest
from django.contrib.auth.models import User
from django.core.checks import CheckMessage, run_checks
from django.core.management import call_command
from django.core.management.base import SystemCheckError
from django.core.wsgi import get_wsgi_application
from django.db import connection
from django.test import override_settings

from django_localsync.checks import TAG
from django_localsync.exceptions import ConfigurationError
from django_localsync.routing import localsync_application
from tests.testapp.models import TodoList

MINE = "SELECT * FROM todos WHERE title = auth.user_id()"
Checked = Callable[..., list[CheckMessage]]

STREAM = """
config: {{edition: 3}}
streams:
  mine:
    auto_subscribe: true
    query: {query}
"""


@pytest.fixture
def checked(settings: Any) -> Iterator[Checked]:
    """Run our checks with some LOCALSYNC; with `database`, those that ask it too."""

    def run(*, database: bool = False, **localsync: Any) -> list[CheckMessage]:
        settings.LOCALSYNC = localsync
        return list(run_checks(tags=[TAG], databases=["default"] if database else []))

    yield run
    settings.LOCALSYNC = {}


def rules(query: str) -> str:
    return STREAM.format(query=query)


def found(messages: list[CheckMessage]) -> list[tuple[str, str]]:
    return [(str(message.id), f"{message.msg} ({message.hint})") for message in messages]


def test_good_rules_give_no_message(checked):
    assert checked(RULES=rules("SELECT * FROM todos WHERE title = auth.user_id()")) == []


def test_rules_that_are_missing_are_reported(checked):
    ((identifier, text),) = found(checked())
    assert identifier == "localsync.E001"
    assert "RULES" in text


def test_a_file_that_cannot_be_read_is_reported(checked, tmp_path):
    ((identifier, text),) = found(checked(RULES=tmp_path / "absent.yaml"))
    assert identifier == "localsync.E001"
    assert "absent.yaml" in text


def test_an_unknown_setting_is_reported_with_the_nearest_known_one(checked):
    messages = found(checked(RULE="x", RULES=rules("SELECT * FROM todos WHERE title = auth.user_id()")))
    assert messages == [("localsync.E002", "LOCALSYNC has no setting 'RULE' (did you mean RULES?)")]


def test_a_key_that_is_too_weak_is_reported_and_keeps_an_asgi_server_from_starting(checked):
    weak = {"kty": "oct", "kid": "a", "alg": "HS256", "k": "c2hvcnQ"}
    rule = rules("SELECT * FROM todos WHERE title = auth.user_id()")

    ((identifier, text),) = found(checked(RULES=rule, KEYS=[weak]))

    assert identifier == "localsync.E010"
    assert "too short for HS256" in text
    assert "c2hvcnQ" not in text
    with override_settings(LOCALSYNC={"KEYS": [weak]}), pytest.raises(ConfigurationError, match="too short"):
        localsync_application(None)


@pytest.mark.parametrize(
    ("path", "reason"),
    [("shop.uploads.Gone", "cannot be imported"), ("django_localsync.upload.UploadTable", "is neither a subclass")],
)
def test_a_wrong_upload_handler_is_named(checked, path, reason):
    messages = found(checked(RULES=rules("SELECT * FROM todos WHERE owner = auth.user_id()"), UPLOAD_HANDLER=path))

    assert [(id_, path in text and reason in text) for id_, text in messages] == [("localsync.E006", True)]


@pytest.mark.parametrize(
    ("path", "reason"),
    [("shop.tokens.gone", "cannot be imported"), ("django_localsync.tokens.EXPIRED", "is not a function")],
)
def test_a_wrong_function_of_claims_is_named(checked, path, reason):
    messages = found(checked(RULES=rules(MINE), TOKEN_CLAIMS=path))

    assert [(id_, path in text and reason in text) for id_, text in messages] == [("localsync.E009", True)]
    assert checked(RULES=rules(MINE), TOKEN_CLAIMS="django_localsync.tokens.user_claims") == []


def test_every_error_of_the_rules_is_reported_with_its_place(checked):
    text = rules("SELECT * FROM todos LIMIT 5") + "  other:\n    query: SELECT frob(id) AS id FROM todos\n"

    first, second = found(checked(RULES=text))

    assert first[0] == second[0] == "localsync.E001"
    assert first[1].startswith("'mine' line 6, column 32: LIMIT is not supported")
    assert second[1].startswith("'other' line 8, column 19: there is no function 'frob'")


def test_rules_as_a_dict_are_checked(checked):
    stream = {"query": "SELECT * FROM todos WHERE"}
    ((identifier, text),) = found(checked(RULES={"config": {"edition": 3}, "streams": {"mine": stream}}))
    assert identifier == "localsync.E001"
    assert text.startswith("'mine': an expression is missing: the query ends")


def test_a_stream_that_the_client_alone_decides_is_warned_of(checked):
    ((identifier, text),) = found(checked(RULES=rules("SELECT * FROM todos WHERE id = connection.parameter('id')")))
    assert identifier == "localsync.W001"
    assert "accept_potentially_dangerous_queries" in text


@pytest.mark.parametrize(
    ("query", "column"),
    [
        ("SELECT * FROM todos WHERE created_by_id = auth.user_id()", "created_by_id"),
        ("SELECT * FROM lists WHERE id IN (SELECT list_id FROM todos WHERE auth.user_id() = priority)", "priority"),
        ("SELECT * FROM todos WHERE auth.user_id() IN (SELECT id FROM auth_user WHERE is_staff)", "id"),
    ],
)
def test_an_integer_compared_with_the_users_id_is_reported_from_models(checked, query, column):
    ((identifier, text),) = found(checked(RULES=rules(query)))
    assert identifier == "localsync.E005"
    assert f"CAST({column} AS TEXT)" in text


def test_a_cast_satisfies_the_check(checked):
    assert checked(RULES=rules("SELECT * FROM todos WHERE CAST(created_by_id AS TEXT) = auth.user_id()")) == []


@pytest.mark.django_db
def test_a_table_that_does_not_exist_is_reported_with_the_nearest_one(checked):
    ((identifier, text),) = found(checked(database=True, RULES=rules("SELECT * FROM todoz WHERE a = auth.user_id()")))
    assert (identifier, text) == (
        "localsync.E003",
        "'mine': there is no table public.todoz (did you mean public.todos?)",
    )


@pytest.mark.django_db
def test_a_column_that_does_not_exist_is_reported_with_its_place(checked):
    query = "SELECT * FROM todos WHERE list_id IN (SELECT todolist_id FROM lists_members WHERE usr_id = auth.user_id())"
    ((identifier, text),) = found(checked(database=True, RULES=rules(query)))
    assert identifier == "localsync.E004"
    assert text.startswith(
        "'mine' line 6, column 94: public.lists_members has no column 'usr_id' (did you mean user_id?"
    )


@pytest.mark.django_db
def test_tables_without_models_are_checked_in_the_database(checked):
    with connection.cursor() as cursor:
        cursor.execute("CREATE DOMAIN user_number AS bigint")
        cursor.execute("CREATE TABLE plain_notes (id text PRIMARY KEY, owner user_number)")
        cursor.execute("CREATE VIEW note_view AS SELECT * FROM plain_notes")

    ((comparison, _),) = found(
        checked(database=True, RULES=rules("SELECT * FROM plain_notes WHERE owner = auth.user_id()"))
    )
    ((view, text),) = found(checked(database=True, RULES=rules("SELECT * FROM note_view WHERE id = auth.user_id()")))

    assert (comparison, view) == ("localsync.E005", "localsync.E003")
    assert "view" in text


@pytest.mark.django_db
def test_a_wildcard_that_matches_nothing_is_warned_of(checked):
    ((identifier, _),) = found(checked(database=True, RULES=rules('SELECT * FROM "absent_%" WHERE a = auth.user_id()')))
    assert identifier == "localsync.W006"


@pytest.mark.django_db
def test_the_check_command_fails_on_a_missing_column(settings):
    settings.LOCALSYNC = {"RULES": rules("SELECT id, titel FROM todos")}
    with pytest.raises(SystemCheckError, match="did you mean title"):
        call_command("check", databases=["default"])


def test_what_is_allowed_and_has_no_effect_is_warned_of(checked):
    text = (
        rules("SELECT id AS id, * FROM Todos WHERE title = auth.user_id()")
        + "with:\n  unused: SELECT id FROM lists\n"
        + "event_definitions:\n  saved:\n    payloads: [SELECT id FROM checkpoints]\n"
    )
    assert [identifier for identifier, _ in found(checked(RULES=text))] == [
        "localsync.W002",
        "localsync.W002",
        "localsync.W003",
        "localsync.W005",
    ]


# What a plan gives away


@pytest.mark.parametrize(
    ("query", "granted"),
    [
        ("SELECT * FROM todos", "public.todos"),
        ("SELECT * FROM todos WHERE 1 = 1", "public.todos"),
        ("SELECT * FROM todos WHERE NOT done", None),
        ("SELECT * FROM todos WHERE auth.parameter('admin') = 1", None),
        ("SELECT * FROM todos WHERE auth.user_id() IN (SELECT CAST(id AS TEXT) FROM auth_user WHERE is_staff)", None),
        ("SELECT * FROM todos WHERE title = auth.user_id()", None),
    ],
)
def test_a_stream_that_gives_everything_to_everybody_is_warned_of(checked, query, granted):
    messages = found(checked(RULES=rules(query)))
    if granted is None:
        assert messages == []
    else:
        ((identifier, text),) = messages
        assert identifier == "localsync.W007"
        assert f"'mine': everybody who has a token gets all rows of {granted}" in text


def test_everything_for_everybody_may_be_accepted(checked):
    assert checked(RULES=rules("SELECT * FROM todos") + "    accept_potentially_dangerous_queries: true\n") == []


def test_a_bucket_definition_without_parameters_is_for_everybody(checked):
    rules_of = {
        "bucket_definitions": {"all": {"data": ["SELECT * FROM todos", "SELECT * FROM lists WHERE name = 'a'"]}}
    }
    ((identifier, text),) = found(checked(RULES=rules_of))
    assert identifier == "localsync.W007"
    assert "all rows of public.todos (" in text


@pytest.mark.parametrize(
    ("query", "example"),
    [
        ("SELECT * FROM tags WHERE code = auth.user_id()", "code AS id"),
        ("SELECT title FROM todos WHERE title = auth.user_id()", None),
        ("SELECT *, code AS id FROM tags WHERE code = auth.user_id()", ""),
    ],
)
def test_rows_without_id_are_reported(checked, query, example):
    messages = found(checked(RULES=rules(query)))
    if example == "":
        assert messages == []
    else:
        ((identifier, text),) = messages
        assert identifier == "localsync.E007"
        assert example is None or example in text


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (f"{MINE} AND '1' = 1", "'1' = 1: '1' is text, 1 is a number: never equal"),
        (f"{MINE} AND priority = '3'", "of public.todos: priority is a number, '3' is text: never equal"),
        (f"{MINE} AND price = 5", "price is text, 5 is a number: never equal (write CAST(price AS REAL)"),
        (f"{MINE} AND price > 5", "always in the same order"),
        (f"{MINE} AND done = 'true'", "done is a number, 'true' is text: never equal"),
        (f"{MINE} AND title IN (1, 2)", "never equal"),
        (f"{MINE} AND iif(done = 'x', 1, 0)", "never equal"),
        (
            "SELECT * FROM todos WHERE priority IN (SELECT name FROM lists WHERE name = auth.user_id())",
            "priority of public.todos is a number, name of public.lists is text: never equal",
        ),
        (
            "SELECT * FROM todos WHERE title IN (SELECT name FROM lists WHERE length(name) = auth.user_id())",
            "length(name) of public.lists is a number, auth.user_id() is text: never equal",
        ),
        (f"{MINE} AND price = '5.00' AND due > '2024-01-01'", None),
        (f"{MINE} AND title IN ('1', 2)", None),
        (f"{MINE} AND done = true AND priority = 3.0", None),
        ("SELECT * FROM todos WHERE priority = auth.parameter('priority')", None),
        ("SELECT * FROM todos WHERE CAST(price AS REAL) > 5 AND title = auth.user_id()", None),
        ("SELECT * FROM todos WHERE list_id IN (SELECT id FROM lists WHERE name = auth.user_id())", None),
    ],
)
def test_a_comparison_that_is_never_true_is_reported(checked, query, message):
    messages = found(checked(RULES=rules(query)))
    if message is None:
        assert messages == []
    else:
        ((identifier, text),) = messages
        assert identifier == "localsync.E008"
        assert message in text


@pytest.mark.django_db
def test_comparisons_of_tables_without_models_are_reported_once(checked):
    with connection.cursor() as cursor:
        cursor.execute("CREATE TABLE plain (id bigint PRIMARY KEY, owner text, price numeric)")
    both = "SELECT * FROM plain WHERE owner = auth.user_id() AND price = 1"
    of_models = f"{MINE} AND price = 1"

    assert [id_ for id_, _ in found(checked(database=True, RULES=rules(both)))] == ["localsync.E008"]
    assert [id_ for id_, _ in found(checked(database=True, RULES=rules(of_models)))] == ["localsync.E008"]


@pytest.mark.parametrize(
    ("queries", "message"),
    [
        (["SELECT id, title, note AS title FROM todos WHERE title = auth.user_id()"], "has two columns 'title'"),
        (
            [
                "SELECT * FROM todos WHERE title = auth.user_id()",
                "SELECT * FROM lists AS todos WHERE name = auth.user_id()",
            ],
            "public.todos and public.lists are one table 'todos' on the device",
        ),
        (["SELECT *, title AS id FROM todos WHERE title = auth.user_id()"], None),
        ([MINE, "SELECT * FROM todos WHERE note = auth.user_id()"], None),
    ],
)
def test_a_name_that_is_used_twice_is_warned_of(checked, queries, message):
    stream = {"auto_subscribe": True, "queries": queries}
    messages = found(checked(RULES={"config": {"edition": 3}, "streams": {"mine": stream}}))
    if message is None:
        assert messages == []
    else:
        assert [(id_, message in text) for id_, text in messages] == [("localsync.W008", True)]


def test_definitions_of_one_name_are_an_error(checked):
    stream = "    query: SELECT * FROM todos WHERE title = auth.user_id()\n"
    ((identifier, text),) = found(checked(RULES=f"config: {{edition: 3}}\nstreams:\n  a:\n{stream}  a:\n{stream}"))
    assert identifier == "localsync.E001"
    assert "'a'" in text


@pytest.mark.django_db
def test_users_whom_the_server_would_refuse_are_warned_of(checked):
    user = User.objects.create_user("alice")
    for number in range(3):
        TodoList.objects.create(name=str(number)).members.add(user)
    members = "SELECT todolist_id FROM lists_members WHERE CAST(user_id AS TEXT) = auth.user_id()"
    text = rules(f"SELECT * FROM lists WHERE id IN ({members})")

    assert checked(database=True, RULES=text, MAX_BUCKETS=3) == []
    ((identifier, message),) = found(checked(database=True, RULES=text, MAX_BUCKETS=2))

    assert identifier == "localsync.W009"
    assert f"refuses 1 of 1 users: user {user.pk} would have 3 buckets" in message


@pytest.mark.django_db
def test_where_counting_takes_long_statistics_tell_who_would_be_refused(checked, monkeypatch):
    monkeypatch.setattr("django_localsync.checks.MAX_ROWS_TO_COUNT", 0)
    user = User.objects.create_user("alice")
    for number in range(40):
        TodoList.objects.create(name=str(number)).members.add(user)
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE lists_members")
    members = "SELECT todolist_id FROM lists_members WHERE CAST(user_id AS TEXT) = auth.user_id()"
    text = rules(f"SELECT * FROM lists WHERE id IN ({members})")

    assert checked(database=True, RULES=text, MAX_BUCKETS=40) == []
    ((identifier, message),) = found(checked(database=True, RULES=text, MAX_BUCKETS=39))

    assert identifier == "localsync.W009"
    assert "about 40 rows of public.lists_members have one user_id" in message


# --- streams under WSGI ---


@pytest.mark.parametrize(
    ("application", "problem"),
    [
        (None, "ASGI_APPLICATION is not set"),
        ("tests.nowhere.application", "cannot be imported"),
        ("django.core.asgi.get_asgi_application", "was not made with localsync_application"),
    ],
)
def test_a_project_whose_streams_are_not_served_is_told_why(checked, settings, monkeypatch, application, problem):
    monkeypatch.setattr("django_localsync.routing.is_routed", False)
    settings.ASGI_APPLICATION = application

    ((identifier, text),) = found(checked(RULES=rules(MINE)))

    assert identifier == "localsync.W020"
    assert problem in text
    assert "localsync_application(" in text


class QuietHandler(WSGIRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def wsgi_address() -> Iterator[str]:
    with make_server("127.0.0.1", 0, get_wsgi_application(), handler_class=QuietHandler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_stream_asked_of_a_wsgi_server_is_refused_with_the_reason(wsgi_address):
    for method, path in (("POST", "sync/stream"), ("GET", "write-checkpoint.json"), ("GET", "probes/readiness")):
        response = httpx2.request(method, f"{wsgi_address}/localsync/{path}", timeout=10)
        assert response.status_code == 501
        assert "need an ASGI server" in response.json()["error"]["description"]
        assert response.headers["Access-Control-Allow-Origin"] == "*"


def test_daphne_is_warned_of_where_it_may_serve_production(settings):
    def warned(*, deploy: bool) -> bool:
        return "localsync.W010" in {
            message.id for message in run_checks(tags=[TAG], include_deployment_checks=deploy, databases=[])
        }

    assert not warned(deploy=True)

    settings.INSTALLED_APPS = ["daphne", *settings.INSTALLED_APPS]

    assert warned(deploy=True)
    assert not warned(deploy=False)


@pytest.mark.django_db
def test_migrations_make_what_the_models_say():
    call_command("makemigrations", "django_localsync", check=True, dry_run=True, skip_checks=True, verbosity=0)
