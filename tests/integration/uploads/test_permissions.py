"""A hostile client with a valid token: whatever it sends, nothing of others is read, changed or told apart."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import orjson
import pytest
from django.contrib.auth.models import User
from django.test import Client
from rest_framework.permissions import BasePermission, IsAuthenticated

from django_localsync.models import WriteCheckpoint
from django_localsync.protocol.crud import CrudOperation
from django_localsync.tokens import make_token
from django_localsync.upload import UploadHandler, UploadTable
from django_localsync.upload_models import Rejection, UploadedId, UploadJournal
from tests.integration.uploads.operations import (
    codes,
    delete,
    handler_of,
    patch,
    put,
    send,
    transaction_of,
    upload_of,
)
from tests.testapp.models import Document, Project, Seat, Tag, Task, TodoList

pytestmark = pytest.mark.django_db


class NotFrozen(BasePermission):
    message = "This project is frozen."

    def has_object_permission(self, request: Any, view: Any, obj: Any) -> bool:
        return not (isinstance(obj, Project) and obj.name == "frozen")


class Projects(UploadTable):
    queryset = Project.objects.all()
    fields = ("name",)
    owner_field = "owner"
    permission_classes = (IsAuthenticated, NotFrozen)

    def get_queryset(self) -> Any:
        return super().get_queryset().filter(owner=self.user)


class Tasks(UploadTable):
    """Careless: it shows every task, and says nothing of projects. What the project's table says holds all the same."""

    queryset = Task.objects.all()
    fields = ("project", "title", "blockers")
    permission_classes = (IsAuthenticated,)


class Lists(UploadTable):
    queryset = TodoList.objects.all()
    fields = ("name",)
    permission_classes = (IsAuthenticated,)

    def get_queryset(self) -> Any:
        return super().get_queryset().filter(members=self.user)


class Seats(UploadTable):
    queryset = Seat.objects.all()
    fields = ("label",)
    permission_classes = (IsAuthenticated,)

    def get_queryset(self) -> Any:
        return super().get_queryset().filter(list__members=self.user)


class Documents(UploadTable):
    queryset = Document.objects.all()
    fields = ("title", "body")
    owner_field = "owner"
    permission_classes = (IsAuthenticated,)

    def get_queryset(self) -> Any:
        return super().get_queryset().filter(owner=self.user)


class Handler(UploadHandler):
    tables = {"projects": Projects, "tasks": Tasks, "lists": Lists, "seats": Seats, "documents": Documents}


class World:
    """What alice has, and mallory wants."""

    def __init__(self, alice: User) -> None:
        self.alice, self.mallory = alice, User.objects.create_user("mallory")
        self.project = Project.objects.create(name="Alice's", owner=alice)
        self.task = Task.objects.create(project=self.project, title="Secret")
        self.list = TodoList.objects.create(name="Alice's")
        self.list.members.add(alice)
        self.seat = Seat.objects.create(list=self.list, number=1, label="Alice")
        self.document = Document.objects.create(title="Diary", owner=alice)
        self.own = Project.objects.create(name="Mallory's", owner=self.mallory)

    def of_others(self) -> Any:
        """Every row that is not mallory's."""
        projects = Project.objects.exclude(owner=self.mallory)
        return [
            list(rows.order_by("pk").values())
            for rows in (
                projects,
                Task.objects.filter(project__in=projects),
                TodoList.objects.exclude(members=self.mallory),
                Seat.objects.exclude(list__members=self.mallory),
                Document.objects.exclude(owner=self.mallory),
                User.objects.all(),
                Tag.objects.all(),
                TodoList.members.through.objects.all(),
            )
        ]


@pytest.fixture
def world(alice: User) -> World:
    return World(alice)


FORGERIES: dict[str, Callable[[World], CrudOperation]] = {
    "change a row": lambda w: patch("projects", w.project.pk, name="mine"),
    "replace a row": lambda w: put("projects", w.project.pk, name="mine"),
    "delete a row": lambda w: delete("projects", w.project.pk),
    "replace a row under a UUID": lambda w: put("documents", w.document.pk, title="mine"),
    "take a row by its key of two columns": lambda w: put("seats", f"{w.list.pk}/1", label="mine"),
    "make a row with somebody else's key": lambda w: put("seats", f"{w.list.pk}/2", label="mine"),
    "change the owner to oneself": lambda w: patch("projects", w.project.pk, owner_id=w.mallory.pk),
    "put a row into another's project": lambda w: put("tasks", "t", project_id=w.project.pk, title="x"),
    "by the field's name": lambda w: put("tasks", "t", project=w.project.pk, title="x"),
    "many to many": lambda w: put("tasks", "t", project=w.own.pk, title="x", blockers=f"[{w.task.pk}, 99999]"),
    "a column of the model": lambda w: patch("projects", w.own.pk, id=w.project.pk, owner=w.alice.pk, tasks="[]"),
    "a relation": lambda w: patch("projects", w.own.pk, owner__username="root"),
    "a private attribute": lambda w: patch("projects", w.own.pk, _state="x"),
    "another table": lambda w: put("auth_user", 1, is_superuser=1, username="root", password="x"),
    "a table of the package": lambda w: put("localsync_uploaded_id", 1, user_key="1", key=w.project.pk),
    "the journal": lambda w: delete("localsync_upload_journal", 1),
    "a table with its schema": lambda w: put("public.projects", w.project.pk, name="x"),
    "SQL as a table": lambda w: delete('projects"; DROP TABLE projects; --', 1),
    "SQL as an id": lambda w: delete("projects", "1 OR 1=1"),
    "SQL as a column": lambda w: patch("projects", w.own.pk, **{'name" = (SELECT 1) --': "x"}),
    "a list as an id": lambda w: delete("documents", str([str(w.document.pk)])),
    "a row of the auth tables": lambda w: patch("lists", w.list.pk, name="mine"),
    "members of a list": lambda w: put("lists", w.list.pk, name="mine", members=f"[{w.mallory.pk}]"),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forgery_changes_nothing_of_others(world: World, name: str) -> None:
    before = world.of_others()

    result = send(Handler(), world.mallory, FORGERIES[name](world))

    assert result.status == "rejected" or codes(result) == ["missing_row"]
    assert world.of_others() == before
    assert not Project.objects.filter(owner=world.mallory).exclude(name="Mallory's").exists()
    assert not Task.objects.filter(project=world.own).exists()


def test_a_careless_tables_rows_still_need_a_permitted_parent(world: World) -> None:
    """Tasks shows every task, so a task itself may be changed; but not into, or made in, a project of others."""
    own = Task.objects.create(project=world.own, title="Own")

    results = [
        send(Handler(), world.mallory, patch("tasks", own.pk, project_id=world.project.pk)),
        send(Handler(), world.mallory, put("tasks", own.pk, project_id=world.project.pk, title="x")),
    ]

    assert [codes(result) for result in results] == [["invalid"], ["invalid"]]
    own.refresh_from_db()
    assert own.project == world.own


def test_a_parents_object_permissions_are_asked(world: World) -> None:
    frozen = Project.objects.create(name="frozen", owner=world.mallory)

    result = send(Handler(), world.mallory, put("tasks", "t", project_id=frozen.pk, title="x"))

    assert codes(result) == ["permission_denied"]
    assert result.operations[0].errors == {"non_field_errors": ["This project is frozen."]}


def test_rows_of_others_and_rows_that_do_not_exist_are_not_told_apart_as_parents(world: World) -> None:
    answers = [
        send(Handler(), world.mallory, put("tasks", "t", project_id=key, title="x")).operations[0]
        for key in (world.project.pk, 10**9)
    ]

    texts = [str(answer.errors).replace(str(world.project.pk), "?").replace(str(10**9), "?") for answer in answers]
    assert answers[0].code == answers[1].code
    assert texts[0] == texts[1]


class Loose(Tasks):
    parents = ()


class Strict(Tasks):
    parents = ("project", "blockers")


def test_a_table_may_say_which_fields_are_parents(world: World) -> None:
    tables = dict(Handler.tables)
    loose, strict = (handler_of(**{**tables, "tasks": choice}) for choice in (Loose, Strict))
    own = Task.objects.create(project=world.own, title="Own")

    assert codes(send(loose, world.mallory, patch("tasks", own.pk, project_id=world.project.pk))) == [None]
    assert codes(send(strict, world.mallory, patch("tasks", own.pk, project_id=world.project.pk))) == ["invalid"]


def test_ids_of_other_devices_and_users_mean_nothing(world: World) -> None:
    send(Handler(), world.alice, put("projects", "draft", name="Draft"), client_id="alices")
    before = world.of_others()

    results = [
        send(Handler(), world.mallory, patch("projects", "draft", name="mine"), client_id="alices"),
        send(Handler(), world.mallory, delete("projects", "draft"), client_id="alices"),
        send(Handler(), world.mallory, put("tasks", "t", project_id="draft", title="x"), client_id="alices"),
    ]

    assert [codes(result) for result in results] == [["missing_row"], ["missing_row"], ["invalid"]]
    assert world.of_others() == before
    assert UploadedId.objects.count() == 1


def test_another_clients_id_gives_neither_its_answers_nor_its_receipts(world: World) -> None:
    secret = transaction_of(put("documents", uuid4(), title="Secret", body="x"))
    Handler().handle(upload_of(secret, client_id="alices"), world.alice)

    (answer,) = Handler().handle(upload_of(secret, client_id="alices"), world.mallory)
    Client().get(
        "/localsync/write-checkpoint2.json?client_id=alices",
        headers={"authorization": f"Bearer {make_token(world.mallory)}"},
    )

    assert not answer.repeated
    assert answer.status == "rejected"  # the row is alice's
    assert list(WriteCheckpoint.objects.values_list("user_key", flat=True)) == [str(world.mallory.pk)]


def test_dead_letters_are_their_users_alone(world: World) -> None:
    for user in (world.alice, world.mallory):
        send(Handler(), user, put("documents", uuid4(), title=""))

    for row in Rejection.objects.filter(user_key=world.alice.pk):
        send(Handler(), world.mallory, delete("localsync_rejection", row.pk))

    assert Rejection.objects.filter(user_key=world.alice.pk).count() == 1


# What is too much.


@pytest.fixture
def post(world: World, settings: Any) -> Callable[[Any], Any]:
    settings.LOCALSYNC = {"UPLOAD_HANDLER": f"{__name__}.Handler", "MAX_UPLOAD_BYTES": 5_000_000}
    token = make_token(world.mallory)

    def send_body(body: Any) -> Any:
        content = body if isinstance(body, bytes) else orjson.dumps(body)
        headers = {"authorization": f"Bearer {token}"}
        return Client(raise_request_exception=False).post(
            "/localsync/upload", content, content_type="application/json", headers=headers
        )

    return send_body


def body_of(operations: list[dict[str, Any]]) -> dict[str, Any]:
    return {"client_id": "phone", "transactions": [{"id": 1, "operations": operations}]}


def operation(number: int = 1, **changes: Any) -> dict[str, Any]:
    base = {"op_id": number, "op": "PUT", "type": "documents", "id": str(UUID(int=number)), "data": {"title": "x"}}
    return base | changes


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (lambda: b"[" * 100_000, 400),
        (lambda: b'{"client_id":' + b"9" * 1_000_000 + b"}", 400),
        (lambda: b" " * 5_000_001, 413),
        (lambda: body_of([operation(number) for number in range(1, 50_002)]), 413),
        (lambda: body_of([{"op_id": n, "op": "DELETE", "type": "", "id": ""} for n in range(50_001)]), 413),
        (lambda: body_of([operation(data={f"c{number}": 1 for number in range(2_001)})]), 400),
        (lambda: body_of([operation(data={"title": {"$ne": None}})]), 400),
        (lambda: body_of([operation(op="put; DROP TABLE")]), 400),
        (lambda: body_of([operation(op_id=-1)]), 400),
        (lambda: body_of([operation(1), operation(1)]), 400),
        (lambda: {"client_id": "\0", "transactions": []}, 400),
        (lambda: {"client_id": "c" * 201, "transactions": []}, 400),
    ],
    ids=["nesting", "number", "bytes", "batch", "count", "columns", "object", "op", "op_id", "twice", "nul", "client"],
)
def test_what_is_too_much_or_malformed_is_refused_at_the_door(
    world: World, post: Callable[[Any], Any], body: Callable[[], Any], status: int
) -> None:
    response = post(body())

    assert response.status_code == status
    assert not UploadJournal.objects.exists()


@pytest.mark.parametrize("seed", range(5))
def test_random_garbage_of_the_right_shape_never_fails_and_never_harms(
    world: World, post: Callable[[Any], Any], seed: int
) -> None:
    dice = random.Random(seed)
    before = world.of_others()
    for _ in range(30):
        operations = [_garbage(dice, world, number) for number in range(1, dice.randint(2, 6))]
        response = post(
            {"client_id": "phone", "transactions": [{"id": dice.randrange(10**9), "operations": operations}]}
        )
        assert response.status_code == 200, response.content

    assert world.of_others() == before


def _garbage(dice: random.Random, world: World, number: int) -> dict[str, Any]:
    ids = [
        world.project.pk,
        world.document.pk,
        f"{world.list.pk}/1",
        world.own.pk,
        "",
        "-1",
        "x",
        "\0",
        "9" * 30,
        "1e5",
    ]
    values = [None, True, 0, -1, 2**63 - 1, 1.5, "", "\0", "x" * 5000, "[]", "[1]", "{}", "null", world.project.pk]
    columns = ["name", "title", "project", "project_id", "owner", "owner_id", "id", "pk", "label", "blockers", "", "\0"]
    op = dice.choice(["PUT", "PATCH", "DELETE"])
    chosen = dice.sample(columns, dice.randint(0, 3))
    return {
        "op_id": number,
        "op": op,
        "type": dice.choice(["projects", "documents", "seats", "lists", "localsync_rejection", "nonsense", ""]),
        "id": str(dice.choice(ids)),
        **({} if op == "DELETE" else {"data": {column: dice.choice(values) for column in chosen}}),
        **({"old": {column: dice.choice(values) for column in chosen}} if dice.random() < 0.3 else {}),
    }
