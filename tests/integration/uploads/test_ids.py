"""Rows made offline where the server counts: the device's id, the key that the row got, and keys of several columns."""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib.auth.models import User
from rest_framework.permissions import AllowAny

from django_localsync.upload import RejectionScope
from django_localsync.upload_models import UploadedId
from tests.integration.uploads.operations import (
    codes,
    delete,
    handler_of,
    patch,
    put,
    send,
    table,
    transaction_of,
    upload_of,
)
from tests.testapp.models import Project, Seat, Task, TodoList

pytestmark = pytest.mark.django_db

TABLES = {
    "projects": table(queryset=Project.objects.all(), fields=["name"], permission_classes=[AllowAny]),
    "tasks": table(queryset=Task.objects.all(), fields=["project", "title", "blockers"], permission_classes=[AllowAny]),
    "seats": table(queryset=Seat.objects.all(), fields=["list", "number", "label"], permission_classes=[AllowAny]),
}
HANDLER = handler_of(**TABLES)


@pytest.mark.parametrize("made", ["2f7c0a54-8d2b-4d2e-9c1a-6a7d1f0b3e95", "-1", "0", "draft 7", "00", "²"])
def test_a_row_made_offline_gets_a_key_of_the_server(alice: User, made: str) -> None:
    result = send(HANDLER, alice, put("projects", made, name="Boat"))

    project = Project.objects.get()
    assert (result.status, result.operations[0].row_id) == ("applied", str(project.pk))
    assert project.name == "Boat"


def test_later_transactions_may_go_on_with_the_devices_id(alice: User) -> None:
    send(HANDLER, alice, put("projects", "p", name="Boat"))
    patched = send(HANDLER, alice, patch("projects", "p", name="Big boat"))
    replaced = send(HANDLER, alice, put("projects", "p", name="Ship"))

    assert (codes(patched), codes(replaced)) == ([None], [None])
    assert [project.name for project in Project.objects.all()] == ["Ship"]
    assert codes(send(HANDLER, alice, delete("projects", "p"))) == [None]
    assert not Project.objects.exists()


def test_foreign_keys_are_rewritten_within_and_across_transactions(alice: User) -> None:
    send(HANDLER, alice, put("projects", -1, name="Boat"), put("tasks", -1, project_id=-1, title="Saw"))
    send(HANDLER, alice, put("tasks", -2, project_id=-1, title="Glue", blockers="[-1]"))
    send(HANDLER, alice, put("projects", -2, name="Ship"), patch("tasks", -2, project=-2))

    boat, ship = Project.objects.order_by("pk")
    saw, glue = Task.objects.order_by("pk")
    assert (saw.project, glue.project) == (boat, ship)
    assert list(glue.blockers.all()) == [saw]


def test_a_task_may_also_be_known_by_the_servers_key(alice: User) -> None:
    send(HANDLER, alice, put("projects", "p", name="Boat"))
    key = Project.objects.get().pk

    send(HANDLER, alice, patch("projects", key, name="Ship"), put("tasks", "t", project_id=key, title="Saw"))

    assert Task.objects.get().project.name == "Ship"


def test_devices_and_users_do_not_share_ids(alice: User, bob: User) -> None:
    for user, client_id in [(alice, "phone"), (alice, "tablet"), (bob, "phone")]:
        send(HANDLER, user, put("projects", -1, name=f"{user.username}'s {client_id}"), client_id=client_id)

    assert Project.objects.count() == 3
    assert codes(send(HANDLER, bob, patch("projects", -1, name="mine"), client_id="tablet")) == ["missing_row"]
    assert not Project.objects.filter(name="mine").exists()


def test_an_id_of_a_rejected_transaction_means_nothing(alice: User) -> None:
    send(HANDLER, alice, put("projects", "p", name="Boat"), put("tasks", "t", project_id="nowhere", title="Saw"))
    later = send(HANDLER, alice, put("tasks", "t", project_id="p", title="Saw"))

    assert codes(later) == ["invalid"]
    assert "project_id" in (later.operations[0].errors or {})
    assert not Project.objects.exists()
    assert not UploadedId.objects.exists()


def test_an_id_of_a_rejected_operation_means_nothing(alice: User) -> None:
    class Careless(type(TABLES["projects"])):  # type: ignore[misc]
        queryset, fields, permission_classes = Project.objects.all(), ["name"], [AllowAny]

        def perform_create(self, serializer: Any) -> None:
            super().perform_create(serializer)
            self._remember_key(serializer.instance)  # so that the map, too, is written before the operation fails
            raise PermissionError

    handler = handler_of({"rejection_scope": RejectionScope.OPERATION}, **{**TABLES, "projects": Careless})
    with pytest.raises(PermissionError):
        send(handler, alice, put("projects", "p", name="Boat"))

    assert codes(send(handler, alice, put("tasks", "t", project_id="p", title="x"))) == ["invalid"]
    assert not UploadedId.objects.exists()


def test_a_key_that_the_server_may_give_out_is_not_taken(alice: User) -> None:
    """The next key might be somebody else's row tomorrow."""
    result = send(HANDLER, alice, put("projects", 12345, name="Boat"))

    assert codes(result) == ["invalid_id"]
    assert not Project.objects.exists()


@pytest.mark.parametrize("made", ["x" * 201, "a\0b", "9" * 30, "1.5e3\0"])
def test_an_impossible_id_is_rejected(alice: User, made: str) -> None:
    assert codes(send(HANDLER, alice, put("projects", made, name="Boat"))) == ["invalid_id"]


def test_a_repeat_gets_the_key_that_the_row_got(alice: User) -> None:
    body = upload_of(transaction_of(put("projects", "p", name="Boat")))

    (first,), (second,) = HANDLER.handle(body, alice), HANDLER.handle(body, alice)

    assert second.repeated
    assert first.operations == second.operations
    assert Project.objects.count() == 1


# Keys of several columns.


def test_a_row_with_a_key_of_two_columns_is_made_changed_and_deleted(alice: User, groceries: TodoList) -> None:
    row = f"{groceries.pk}/7"

    made = send(HANDLER, alice, put("seats", row, list_id=str(groceries.pk), number=7, label="a"))
    assert (codes(made), Seat.objects.get().pk) == ([None], (groceries.pk, 7))
    assert codes(send(HANDLER, alice, put("seats", f"{groceries.pk}/8", label="b"))) == [None]
    assert codes(send(HANDLER, alice, patch("seats", row, label="c"))) == [None]
    assert codes(send(HANDLER, alice, put("seats", row, label="d"))) == [None]
    assert sorted(Seat.objects.values_list("number", "label")) == [(7, "d"), (8, "b")]
    assert codes(send(HANDLER, alice, delete("seats", row))) == [None]
    assert list(Seat.objects.values_list("number")) == [(8,)]


@pytest.mark.parametrize("row", ["7", "a/7", "{list}/x", "{list}/7/7", "{list}/", "/7", "{list}/99999999999999999999"])
def test_an_impossible_key_of_two_columns_is_rejected(alice: User, groceries: TodoList, row: str) -> None:
    result = send(HANDLER, alice, put("seats", row.format(list=groceries.pk), label="a"))

    assert codes(result)[0] in ("invalid_id", "invalid")
    assert not Seat.objects.exists()


def test_the_columns_of_a_key_are_not_changed(alice: User, groceries: TodoList) -> None:
    seat = Seat.objects.create(list=groceries, number=7)

    result = send(HANDLER, alice, patch("seats", f"{groceries.pk}/7", number=8))

    assert codes(result) == ["unknown_column"]
    assert Seat.objects.get().pk == seat.pk


def test_a_row_may_be_known_by_another_unique_field(alice: User) -> None:
    """Such as an integer key inside, and a name or UUID outside."""
    by_name = table(
        queryset=Project.objects.all(), fields=["owner"], lookup_field="name", permission_classes=[AllowAny]
    )
    handler = handler_of(projects=by_name)

    send(handler, alice, put("projects", "Boat", owner_id=alice.pk), put("projects", "Ship"))
    send(handler, alice, patch("projects", "Ship", owner_id=alice.pk), delete("projects", "Boat"))

    assert list(Project.objects.values_list("name", "owner")) == [("Ship", alice.pk)]
