"""Two people change one row: what counts as a conflict, who wins, and that the loser is kept."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
from django.contrib.auth.models import User
from rest_framework.permissions import AllowAny

from django_localsync.upload import Conflict, OperationRejected, UploadTable
from django_localsync.upload_models import UploadJournal
from tests.integration.uploads.operations import codes, delete, handler_of, patch, put, send
from tests.testapp.models import Document

pytestmark = pytest.mark.django_db


class Documents(UploadTable):
    queryset = Document.objects.all()
    fields = ("title", "body", "owner")
    permission_classes = (AllowAny,)


class Versioned(Documents):
    version_field = "version"


class Timed(Documents):
    version_field = "updated_at"


class Compared(Documents):
    check_previous = True


@pytest.fixture
def document(db: None) -> Document:
    return Document.objects.create(title="Draft", body="Once")


def row(document: Document) -> tuple[str, str, int]:
    document.refresh_from_db()
    return document.title, document.body, document.version


def losers() -> list[dict[str, Any]]:
    found = UploadJournal.objects.exclude(conflicts=None).order_by("pk").values_list("conflicts", flat=True)
    return [conflict for text in found for conflict in json.loads(text)]


def test_by_default_the_last_write_wins_column_by_column(alice: User, document: Document) -> None:
    handler = handler_of(documents=Documents)
    Document.objects.update(body="Twice", version=5)

    result = send(handler, alice, patch("documents", document.pk, old={"title": "Draft", "version": 1}, title="Final"))

    assert (codes(result), row(document)) == ([None], ("Final", "Twice", 5))
    assert losers() == []


def test_a_number_as_version_rises_with_each_upload_and_is_the_servers(alice: User, document: Document) -> None:
    handler = handler_of(documents=Versioned)

    for number in range(3):
        change = patch("documents", document.pk, old={"version": 1 + number}, title=f"Draft {number}", version=99)
        assert codes(send(handler, alice, change)) == [None]

    assert row(document) == ("Draft 2", "Once", 4)


def test_an_older_version_is_a_conflict_only_in_what_both_changed(alice: User, document: Document) -> None:
    handler = handler_of(documents=Versioned)
    Document.objects.update(body="Twice", version=2)
    old = {"title": "Draft", "body": "Once", "version": 1}

    merged = send(handler, alice, patch("documents", document.pk, old=old, title="Final"))
    met = send(handler, alice, patch("documents", document.pk, old=old, body="Thrice"))

    assert (codes(merged), codes(met)) == ([None], ["conflict"])
    assert row(document) == ("Final", "Thrice", 4)
    (loser,) = losers()
    assert (loser["columns"], loser["written"], loser["id"]) == (["body"], "mine", str(document.pk))
    assert (loser["base"]["body"], loser["theirs"]["body"], loser["mine"]["body"]) == ("Once", "Twice", "Thrice")


def test_an_older_version_without_previous_values_conflicts_in_all_that_differs(
    alice: User, document: Document
) -> None:
    Document.objects.update(body="Twice", version=2)

    result = send(
        handler_of(documents=Versioned), alice, patch("documents", document.pk, {"version": 1}, title="Draft", body="X")
    )

    assert codes(result) == ["conflict"]
    assert losers()[0]["columns"] == ["body"]


def test_a_device_that_says_no_version_has_no_conflict(alice: User, document: Document) -> None:
    Document.objects.update(body="Twice", version=2)

    assert codes(send(handler_of(documents=Versioned), alice, patch("documents", document.pk, body="X"))) == [None]


@pytest.mark.parametrize("style", ["%Y-%m-%d %H:%M:%S.%fZ", "%Y-%m-%dT%H:%M:%S.%fZ"])
def test_a_timestamp_may_be_the_version(alice: User, document: Document, style: str) -> None:
    handler, seen = handler_of(documents=Timed), document.updated_at.strftime(style)

    first = send(handler, alice, patch("documents", document.pk, {"updated_at": seen}, title="Final"))
    second = send(handler, alice, patch("documents", document.pk, {"updated_at": seen}, title="Latest"))
    unreadable = send(handler, alice, patch("documents", document.pk, {"updated_at": "once"}, title="X"))

    assert (codes(first), codes(second), codes(unreadable)) == ([None], ["conflict"], ["conflict"])


@pytest.mark.parametrize(
    ("old", "sent", "expected"),
    [
        ({"body": "Once"}, {"body": "X"}, "conflict"),
        ({"body": "Twice"}, {"body": "X"}, None),
        ({"body": "Once"}, {"body": "Twice"}, None),  # both want the same
        ({"title": "Draft"}, {"title": "X"}, None),
        ({}, {"body": "X"}, None),
        ({"body": "Once", "title": "Draft"}, {"body": "X", "title": "Y"}, "conflict"),
        ({"owner_id": 7}, {"owner_id": None}, None),
    ],
)
def test_previous_values_are_compared_column_by_column(
    alice: User, document: Document, old: Mapping[str, Any], sent: Mapping[str, Any], expected: str | None
) -> None:
    Document.objects.update(body="Twice")

    result = send(handler_of(documents=Compared), alice, patch("documents", document.pk, old, **sent))

    assert codes(result) == [expected]


class TheirsWins(Versioned):
    def on_conflict(self, conflict: Conflict) -> None:
        return None


class Merging(Versioned):
    def on_conflict(self, conflict: Conflict) -> dict[str, Any]:
        both = f"{conflict.base['body']}+{conflict.theirs['body']}+{conflict.mine['body']}"
        return {**conflict.mine, "body": both}


class Patient(Versioned):
    async def on_conflict(self, conflict: Conflict) -> Mapping[str, Any]:
        owner = await User.objects.aget(username="alice")
        return {**conflict.mine, "owner": owner}


class Strict(Versioned):
    def on_conflict(self, conflict: Conflict) -> None:
        raise OperationRejected("conflict", {name: ["Somebody was faster."] for name in conflict.columns})


@pytest.mark.parametrize(
    ("documents", "expected", "code", "written"),
    [
        (TheirsWins, ("Draft", "Twice", 2), "conflict", "theirs"),
        (Merging, ("Final", "Once+Twice+Thrice", 3), "conflict", "merged"),
        (Patient, ("Final", "Thrice", 3), "conflict", "merged"),
    ],
)
def test_a_table_decides_from_base_theirs_and_mine(
    alice: User,
    document: Document,
    documents: type[UploadTable],
    expected: tuple[str, str, int],
    code: str,
    written: str,
) -> None:
    Document.objects.update(body="Twice", version=2)
    old = {"title": "Draft", "body": "Once", "version": 1}

    result = send(
        handler_of(documents=documents), alice, patch("documents", document.pk, old, title="Final", body="Thrice")
    )

    assert (codes(result), row(document)) == ([code], expected)
    assert losers()[0]["written"] == written
    assert losers()[0]["mine"]["body"] == "Thrice"


def test_a_table_may_reject_conflicts(alice: User, document: Document) -> None:
    Document.objects.update(body="Twice", version=2)

    result = send(handler_of(documents=Strict), alice, patch("documents", document.pk, {"version": 1}, body="Thrice"))

    assert (result.status, codes(result)) == ("rejected", ["conflict"])
    assert result.operations[0].errors == {"body": ["Somebody was faster."]}
    assert row(document) == ("Draft", "Twice", 2)


@pytest.mark.parametrize(
    ("documents", "old", "code", "remains"),
    [
        (Versioned, {"version": 1}, "conflict", False),
        (Versioned, {"version": 2}, None, False),
        (TheirsWins, {"version": 1}, "conflict", True),
        (TheirsWins, {"version": 2}, None, False),
        (Compared, {"title": "Draft", "body": "Once"}, "conflict", False),
        (Compared, {"title": "Draft", "body": "Twice"}, None, False),
    ],
)
def test_a_delete_may_meet_newer_values(
    alice: User, document: Document, documents: type[UploadTable], old: Mapping[str, Any], code: str, remains: bool
) -> None:
    Document.objects.update(body="Twice", version=2)

    result = send(handler_of(documents=documents), alice, delete("documents", document.pk, old))

    assert codes(result) == [code]
    assert Document.objects.exists() is remains
    assert len(losers()) == (code is not None)


def test_a_put_of_a_new_row_starts_its_version(alice: User, document: Document) -> None:
    import uuid

    made = uuid.uuid4()
    assert codes(send(handler_of(documents=Versioned), alice, put("documents", made, title="New", version=7))) == [None]
    assert Document.objects.get(pk=made).version == 1
