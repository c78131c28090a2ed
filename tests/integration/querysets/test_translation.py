"""The SQL that QuerySets become, what is refused with which way out, and how RULES hold Streams."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from django.core.checks import run_checks
from django.core.exceptions import ImproperlyConfigured
from django.db import models
from django.db.models import Exists, F, OuterRef, Q, QuerySet, Sum, Value
from django.db.models.functions import Cast, Coalesce, Concat, Lower, Now

from django_localsync.conf import Settings, get_settings, read_rules
from django_localsync.exceptions import ConfigurationError, RulesError
from django_localsync.querysets import Stream, auth, connection, subscription
from django_localsync.sync_rules import compile_rules
from tests.library.models import Crate, Document, Draft, Label, Membership, Pair, Person, Report, Secret, Team
from tests.testapp.models import Todo, TodoList

DOCUMENTS = Document.everything.only("id")
MINE = "SELECT team_id FROM library_membership WHERE CAST(user_id AS TEXT) = auth.user_id()"


def sql(*queries: Any, **options: Any) -> list[str]:
    """The SQL of a stream, which compiles."""
    found = Stream(*queries, name="tested", **options).sql(sensitive=Settings.sensitive_columns)
    compile_rules({"config": {"edition": 3}, "streams": {"tested": {"queries": found}}})
    return found


def where(queryset: QuerySet[Any]) -> str:
    (query,) = sql(queryset)
    return query.partition(" WHERE ")[2]


def refusal(*queries: Any) -> tuple[str, str]:
    """Reason and hint."""
    with pytest.raises(RulesError) as caught:
        sql(*queries)
    return str(caught.value), str(caught.value.hint)


CONDITIONS: dict[str, tuple[Callable[[], QuerySet[Any]], str]] = {
    "a foreign key": (lambda: DOCUMENTS.filter(author=auth.user()), "CAST(author_id AS TEXT) = auth.user_id()"),
    "many to many, without the table between": (
        lambda: DOCUMENTS.filter(team__members=auth.user()),
        f"team_id IN ({MINE})",
    ),
    "soft deletion by the default manager": (
        lambda: Document.objects.only("id").filter(public=True),
        "deleted_at IS NULL AND public = TRUE",
    ),
    "two conditions on one row": (
        lambda: DOCUMENTS.filter(team__memberships__user=auth.user(), team__memberships__role="admin"),
        "team_id IN (SELECT team_id FROM library_membership WHERE role = 'admin' "
        "AND CAST(user_id AS TEXT) = auth.user_id())",
    ),
    "OR across a relation": (
        lambda: DOCUMENTS.filter(Q(public=True) | Q(team__members=auth.user())),
        f"public = TRUE OR team_id IN ({MINE})",
    ),
    "a parent that may be missing": (
        lambda: DOCUMENTS.filter(Q(public=True) | Q(author__username=None)),
        "public = TRUE OR author_id IS NULL",
    ),
    "NOT of a column that may be NULL": (
        lambda: DOCUMENTS.filter(~Q(stars__gt=F("views") + 1)),
        "stars <= (views + 1) OR stars IS NULL",
    ),
    "a QuerySet after IN": (
        lambda: DOCUMENTS.filter(team__in=Team.objects.filter(members=auth.user())),
        f"team_id IN ({MINE})",
    ),
    "Exists of the user alone": (
        lambda: DOCUMENTS.filter(Exists(Membership.objects.filter(user=auth.user(), role="admin"))),
        "auth.user_id() IN (SELECT CAST(user_id AS TEXT) AS value FROM library_membership WHERE role = 'admin')",
    ),
    "Exists with OuterRef": (
        lambda: DOCUMENTS.filter(Exists(Membership.objects.filter(team=OuterRef("team"), user=auth.user()))),
        f"team_id IN ({MINE})",
    ),
    "a list of the client": (
        lambda: DOCUMENTS.filter(team__in=subscription.parameter("teams")),
        "CAST(team_id AS TEXT) IN "
        "(SELECT CAST(value AS TEXT) AS value FROM json_each(subscription.parameter('teams')))",
    ),
    "a claim, and a parameter of the connection": (
        lambda: DOCUMENTS.alias(role=auth.parameter("role")).filter(role="admin", title=connection.parameter("t")),
        "auth.parameter('role') = 'admin' AND title = connection.parameter('t')",
    ),
    "a boolean claim": (
        lambda: DOCUMENTS.filter(auth.parameter("is_admin", models.BooleanField())),
        "auth.parameter('is_admin') = TRUE",
    ),
    "the same table again": (
        lambda: DOCUMENTS.filter(author__documents__stars=F("stars")),
        "author_id IN (SELECT author_id FROM library_document AS library_document_2 "
        "WHERE stars = library_document.stars)",
    ),
    "texts with quotes": (lambda: DOCUMENTS.filter(title__startswith="it's"), "substring(title, 1, 4) = 'it''s'"),
    "a column under another name": (lambda: DOCUMENTS.filter(subtitle="a"), "\"Sub Title\" = 'a'"),
    "nothing": (lambda: DOCUMENTS.none(), "FALSE"),
}


@pytest.mark.parametrize("name", CONDITIONS)
def test_conditions_read_as_a_person_would_write_them(name: str):
    queryset, expected = CONDITIONS[name]

    assert where(queryset()) == expected


def test_a_dotted_or_quoted_name_stays_one():
    assert sql(Crate.objects.filter(keeper=auth.user())) == [
        'SELECT "Crate No", document_id, keeper_id, weight, "Crate No" AS id FROM warehouse.crate '
        "WHERE CAST(keeper_id AS TEXT) = auth.user_id()"
    ]


def test_columns_are_those_that_are_loaded():
    assert sql(Team.objects.only("name")) == ["SELECT id, name FROM library_team"]
    assert sql(Team.objects.defer("name", "archived")) == ["SELECT id, owner_id, parent_id FROM library_team"]
    assert sql(Team.objects.values("name")) == ["SELECT id, name FROM library_team"]
    assert sql(Team.objects.all()) == ["SELECT id, name, owner_id, parent_id, archived FROM library_team"]
    assert sql(Draft.everything.values("title", twice=F("stars") * 2)) == [
        "SELECT id, title, (stars * 2) AS twice FROM library_document"
    ]


def test_bytes_are_synced_as_base64():
    assert sql(Document.everything.only("cover")) == [
        "SELECT id, CASE WHEN cover IS NOT NULL THEN base64(cover) END AS cover FROM library_document"
    ]


def test_a_row_can_have_another_name_on_devices():
    assert sql(Team.objects.only("name"), tables={Team: "teams"}) == ["SELECT id, name FROM library_team AS teams"]


def test_a_model_that_inherits_a_table_gives_rows_of_both():
    own, parent = sql(Report.everything.filter(pages=1).only("pages", "title"))

    assert own == "SELECT document_ptr_id, pages, document_ptr_id AS id FROM library_report WHERE pages = 1"
    assert parent == (
        "SELECT id, title FROM library_document "
        "WHERE id IN (SELECT document_ptr_id FROM library_report WHERE pages = 1)"
    )


def test_rows_without_one_key_need_an_id():
    key = Concat(Cast("left", models.TextField()), Value("-"), Cast("right", models.TextField()))

    assert "annotate(id=" in refusal(Pair.objects.defer("double"))[1]
    assert sql(Pair.objects.defer("double").annotate(id=key))[0].endswith("AS id FROM library_pair")


COST = Value(0, models.DecimalField(max_digits=3, decimal_places=1))
REFUSALS: dict[str, tuple[Callable[[], Any], str, str]] = {
    "case": (
        lambda: DOCUMENTS.filter(title__icontains="x"),
        "title__icontains='x': streams have no icontains",
        "one case",
    ),
    "a date": (lambda: DOCUMENTS.filter(seen__date="2024-01-01"), "seen__date", "gte and lt"),
    "an order of texts": (lambda: DOCUMENTS.filter(title__gt="m"), "title__gt='m': the order of texts", "__startswith"),
    "all but mine": (lambda: DOCUMENTS.exclude(author=auth.user()), "~Q(author=auth.user())", "what is to be synced"),
    "no row": (lambda: DOCUMENTS.exclude(labels__slug="x"), "no row exists in another table", "keep the outcome"),
    "no relation": (
        lambda: DOCUMENTS.filter(labels=None),
        "labels: it holds for rows that have no labels",
        "labels__isnull",
    ),
    "less than the request": (
        lambda: DOCUMENTS.filter(stars__lt=auth.parameter("stars")),
        "it compares a row with the request",
        "= or __in",
    ),
    "two tables by order": (
        lambda: DOCUMENTS.filter(stars__lt=F("team__owner__id")),
        "rows of two tables",
        "= or __in",
    ),
    "other kinds": (lambda: DOCUMENTS.filter(token=F("stars")), "a UUID never equals an integer", "same type"),
    "another key than the user's": (
        lambda: DOCUMENTS.filter(account=auth.user()),
        "Document.account holds Account.handle, not the primary key of User",
        "follow the relations",
    ),
    "JSON": (lambda: DOCUMENTS.filter(meta__kind="x"), "meta__kind", "keep the outcome in a column"),
    "time": (lambda: DOCUMENTS.filter(seen__lt=Now()), "time passes", "device"),
    "a function of the locale": (lambda: DOCUMENTS.alias(t=Lower("title")).filter(t="a"), "locale", "lower case"),
    "a slice": (lambda: DOCUMENTS[:3], "a slice is not supported", "on the device"),
    "a union": (lambda: DOCUMENTS.union(DOCUMENTS), "UNION", "several QuerySets"),
    "an aggregate": (lambda: Team.objects.annotate(n=Sum("documents__stars")), "aggregates", "device"),
    "XOR": (lambda: DOCUMENTS.filter(Q(stars=1) ^ Q(public=True)), "XOR", "&, | and ~"),
    "a column of another table": (lambda: Document.everything.values("team__name"), "Team.name", "as well"),
    "a value of another table": (
        lambda: DOCUMENTS.annotate(team_name=Coalesce("team__name", Value(""))),
        "comes from its own table",
        "alias()",
    ),
    "a generated column": (lambda: Pair.objects.annotate(id=Value("x")), "generated column", "defer('double')"),
    "computed decimals": (
        lambda: DOCUMENTS.annotate(cost=Coalesce("price", COST)),
        "mixes",
        "same type",
    ),
    "a sensitive column": (
        lambda: Secret.objects.all(),
        "the column 'password' of library.Secret is sensitive",
        "defer",
    ),
    "every value": (lambda: Secret.objects.values(), "is sensitive", "only() or values()"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_cannot_be_said_is_refused_with_the_way_out(name: str):
    queryset, reason, hint = REFUSALS[name]

    said, way_out = refusal(queryset())

    assert reason in said
    assert hint in way_out


def test_a_sensitive_column_is_synced_where_it_is_named():
    assert sql(Secret.objects.only("password")) == ["SELECT id, password FROM library_secret"]
    assert sql(Secret.objects.values("note", "api_token")) == ["SELECT id, note, api_token FROM library_secret"]
    assert sql(Secret.objects.defer("password", "api_token")) == ["SELECT id, owner_id, note FROM library_secret"]


def test_all_that_cannot_be_said_is_told_at_once():
    with pytest.raises(RulesError) as caught:
        sql(DOCUMENTS[:1], Secret.objects.all())

    assert len(caught.value.all) == 2


def test_a_foreign_key_to_another_column_of_the_user_is_not_the_user(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("django_localsync.querysets.expressions.get_user_model", lambda: Person)

    assert where(DOCUMENTS.filter(person=auth.user())) == "person_id = auth.user_id()"
    assert refusal(DOCUMENTS.filter(by_number=auth.user()))[1] == "write by_number__pk=auth.user()"
    assert where(DOCUMENTS.filter(by_number__pk=auth.user())) == (
        "person_number IN (SELECT number FROM library_person WHERE id = auth.user_id())"
    )


def test_a_queryset_of_a_stream_is_not_run_by_mistake():
    with pytest.raises(ImproperlyConfigured, match=r"auth\.user\(\) is known only while a device syncs"):
        str(DOCUMENTS.filter(author=auth.user()).query)


GUIDE = (Path(__file__).parents[3] / "docs/howto/querysets.md").read_text()
SIDE_BY_SIDE = re.findall(
    r"^\| [^|`]+ \| ((?:`\w+\(.*?\)`(?:, )?)+) \| `", GUIDE.partition("## What works")[0], re.MULTILINE
)
NAMES = {
    name: value
    for name, value in globals().items()
    if name in ("auth", "subscription", "Exists", "Q", "Concat", "Value")
}


@pytest.mark.parametrize("calls", SIDE_BY_SIDE)
def test_the_querysets_of_the_guide_are_streams(calls: str):
    for call in re.findall("`(.*?)`", calls):
        queryset = eval("Todo.objects." + call.replace("\\|", "|"), {**NAMES, "Todo": Todo, "Admin": Membership})

        assert sql(queryset)


def test_the_first_example_of_the_guide_is_what_it_says(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "shop.models", SimpleNamespace(Todo=Todo, TodoList=TodoList))
    names: dict[str, Any] = {}

    exec(re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)[0], names)

    said = " ".join(re.findall(r"```sql\n(.*?)```", GUIDE, re.DOTALL)[0].split())
    lists, todos = names["streams"][0].sql()
    assert said.startswith(f"{lists} SELECT id, list_id, title, … FROM todos ")
    assert said.endswith(todos.partition(" FROM todos ")[2])


# RULES

labels = Stream(Label.objects.all(), name="labels", auto_subscribe=True, priority=1)
teams = Stream(Team.objects.filter(members=auth.user()), "SELECT id FROM things", name="teams")
unnamed = Stream(Label.objects.only("weight"))


def every_stream() -> list[Stream]:
    return [labels, teams]


HERE = "tests.integration.querysets.test_translation"
LABELS = 'SELECT "Label Slug", team_id, weight, "Label Slug" AS id FROM library_label'


@pytest.fixture
def rules_of(settings: Any) -> Iterator[Callable[[Any], Any]]:
    """The rules that the setting RULES means."""

    def read(rules: Any) -> Any:
        settings.LOCALSYNC = {"RULES": rules}
        return read_rules(get_settings())

    yield read
    settings.LOCALSYNC = {}


@pytest.mark.parametrize("rules", [labels, [labels], f"{HERE}.labels", {"streams": {"labels": labels}}])
def test_rules_may_be_streams(rules_of: Callable[[Any], Any], rules: Any):
    stream = {"auto_subscribe": True, "priority": 1, "accept_potentially_dangerous_queries": False, "query": LABELS}

    assert rules_of(rules) == {"config": {"edition": 3}, "streams": {"labels": stream}}


def test_rules_may_be_the_path_of_a_function_and_mix_sql_with_querysets(rules_of: Callable[[Any], Any]):
    streams = rules_of(f"{HERE}.every_stream")["streams"]

    assert list(streams) == ["labels", "teams"]
    assert streams["teams"]["queries"] == [
        f"SELECT id, name, owner_id, parent_id, archived FROM library_team WHERE id IN ({MINE})",
        "SELECT id FROM things",
    ]


def test_a_dict_mixes_streams_of_all_kinds(rules_of: Callable[[Any], Any]):
    rules = rules_of(
        {
            "config": {"edition": 3, "timestamp_max_precision": "seconds"},
            "streams": {"small": f"{HERE}.unnamed", "sql": {"query": "SELECT id FROM things"}},
        }
    )

    assert rules["config"]["timestamp_max_precision"] == "seconds"
    assert rules["streams"]["small"]["query"] == 'SELECT "Label Slug", weight, "Label Slug" AS id FROM library_label'
    assert rules["streams"]["sql"] == {"query": "SELECT id FROM things"}


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (f"{HERE}.nothing_here", "cannot be imported"),
        ([unnamed], "has no name"),
        ([labels, labels], "stands twice"),
        ({"streams": {"other": labels}}, "stands under the name 'other'"),
        ([5], "the list holds int"),
        (5, "not int"),
    ],
)
def test_rules_that_are_no_streams_are_refused(rules_of: Callable[[Any], Any], rules: Any, message: str):
    with pytest.raises(ConfigurationError, match=message):
        rules_of(rules)


def test_a_stream_is_made_of_querysets():
    with pytest.raises(TypeError, match="not of ModelBase"):
        Stream(Label)  # type: ignore[arg-type]


@pytest.mark.django_db  # since Django 6, checks of databases run without being asked for
def test_check_says_which_lookup_of_which_stream_cannot_be(settings: Any):
    settings.LOCALSYNC = {"RULES": [Stream(DOCUMENTS.filter(title__icontains="x"), name="found")]}

    (message,) = [item for item in run_checks(tags=["localsync"]) if item.id == "localsync.E001"]

    assert message.msg == "'found': QuerySet of Document: title__icontains='x': streams have no icontains"
    assert message.hint is not None
    assert "one case" in message.hint
