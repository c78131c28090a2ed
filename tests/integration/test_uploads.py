"""Uploads on real Postgres: what is applied, what is rejected and why, and that each happens once."""

from __future__ import annotations

import json
import logging
import threading
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import pytest
from django.contrib.auth.models import AbstractUser, User
from django.db import OperationalError, connection, connections, transaction
from rest_framework.permissions import AllowAny, DjangoModelPermissions

from django_localsync.exceptions import ConfigurationError
from django_localsync.models import UploadJournal
from django_localsync.protocol.crud import (
    CrudOperation,
    CrudTransaction,
    Op,
    Status,
    TransactionResult,
    UploadRequest,
)
from django_localsync.upload import MISSING_ROW, OperationRejected, UploadHandler, UploadTable
from django_localsync.upload.context import UploadContext
from tests.testapp.models import Counter, Tag, Todo, TodoList
from tests.testapp.uploads import Handler, TagSerializer

pytestmark = pytest.mark.django_db

GROCERIES, TODO = UUID(int=1), UUID(int=2)
op_ids = iter(range(1, 1_000_000))


@pytest.fixture
def alice() -> User:
    return User.objects.create_user("alice")


@pytest.fixture
def groceries(alice: User) -> TodoList:
    created = TodoList.objects.create(id=GROCERIES, name="Groceries")
    created.members.add(alice)
    return created


@pytest.fixture
def todo(groceries: TodoList) -> Todo:
    return Todo.objects.create(id=TODO, list=groceries, title="Milk", done=True, priority=1, note="2 l")


@pytest.fixture
def private() -> TodoList:
    return TodoList.objects.create(name="Somebody else's")


def put(table: str, row: object, **data: Any) -> CrudOperation:
    return CrudOperation(next(op_ids), Op.PUT, table, str(row), data)


def patch(table: str, row: object, **data: Any) -> CrudOperation:
    return CrudOperation(next(op_ids), Op.PATCH, table, str(row), data)


def delete(table: str, row: object) -> CrudOperation:
    return CrudOperation(next(op_ids), Op.DELETE, table, str(row))


def request(*transactions: list[CrudOperation], client_id: str = "phone", first_id: int = 1) -> UploadRequest:
    numbered = enumerate(transactions, first_id)
    return UploadRequest(client_id, tuple(CrudTransaction(number, tuple(item)) for number, item in numbered))


def upload(user: AbstractUser, *operations: CrudOperation, **options: Any) -> TransactionResult:
    (result,) = Handler().handle(request(list(operations), **options), user)
    return result


def codes(result: TransactionResult) -> list[str | None]:
    return [operation.code for operation in result.operations]


def errors(result: TransactionResult) -> Any:
    return result.operations[0].errors


# What is applied.


def test_a_put_creates_the_row_under_the_devices_id(alice: User, groceries: TodoList) -> None:
    result = upload(alice, put("todos", TODO, list_id=str(GROCERIES), title="Milk"))

    created = Todo.objects.get(pk=TODO)
    assert (result.status, codes(result)) == (Status.APPLIED, [None])
    assert (created.title, created.list_id, created.created_by) == ("Milk", GROCERIES, alice)


@pytest.mark.parametrize(
    ("column", "sent", "stored"),
    [
        ("done", 1, True),
        ("done", 0, False),
        ("done", 1.0, True),
        ("due", "2024-05-06 07:08:09.123456Z", datetime(2024, 5, 6, 7, 8, 9, 123456, UTC)),
        ("due", "2024-05-06T09:08:09+02:00", datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)),
        ("due", "2024-05-06 07:08:09", datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)),
        ("due", None, None),
        ("price", "12.50", Decimal("12.50")),
        ("price", 12.5, Decimal("12.50")),
        ("price", 12, Decimal(12)),
        ("priority", 5, 5),
        ("priority", 5.0, 5),
        ("priority", "5", 5),
        ("labels", '{"colour":["red"]}', {"colour": ["red"]}),
        ("labels", '"red"', "red"),
        ("labels", "[1.5, null]", [1.5, None]),
        ("sizes", "[1,2]", [1, 2]),
        ("note", "", ""),
        ("note", "naïve ✓", "naïve ✓"),
    ],
)
def test_values_of_sqlite_become_values_of_the_column(
    alice: User, todo: Todo, settings: Any, column: str, sent: Any, stored: Any
) -> None:
    settings.TIME_ZONE = "Asia/Tokyo"

    result = upload(alice, patch("todos", TODO, **{column: sent}))

    todo.refresh_from_db()
    assert result.status is Status.APPLIED
    assert getattr(todo, column) == stored


def test_a_patch_leaves_other_columns_alone(alice: User, todo: Todo) -> None:
    upload(alice, patch("todos", TODO, title="Oat milk"))

    todo.refresh_from_db()
    assert (todo.title, todo.done, todo.priority, todo.note) == ("Oat milk", True, 1, "2 l")


def test_a_put_sets_absent_columns_to_null_or_their_default(alice: User, todo: Todo) -> None:
    Todo.objects.filter(pk=TODO).update(price=1, labels=[1], due=datetime.now(UTC), created_by=alice)

    upload(alice, put("todos", TODO, list_id=str(GROCERIES), title="Milk"))

    todo.refresh_from_db()
    assert (todo.done, todo.priority, todo.note) == (False, 3, "")
    assert (todo.price, todo.labels, todo.due) == (None, None, None)
    assert todo.created_by == alice  # the device has no say in it


def test_a_delete_deletes(alice: User, todo: Todo) -> None:
    assert upload(alice, delete("todos", TODO)).status is Status.APPLIED
    assert not Todo.objects.exists()


@pytest.mark.parametrize("operation", [patch("todos", TODO, title="x"), delete("todos", TODO)], ids=lambda o: o.op)
def test_a_row_that_is_gone_does_not_stop_its_transaction(
    alice: User, groceries: TodoList, operation: CrudOperation
) -> None:
    result = upload(alice, operation, patch("lists", GROCERIES, name="Shopping"))

    groceries.refresh_from_db()
    assert (result.status, codes(result)) == (Status.APPLIED, [MISSING_ROW, None])
    assert groceries.name == "Shopping"
    assert not Todo.objects.exists()


def test_a_key_may_be_a_text_and_a_field(alice: User) -> None:
    result = upload(alice, put("tags", "red"), patch("tags", "red", code="red"), put("tags", "red", code="red"))

    assert result.status is Status.APPLIED
    assert [tag.code for tag in Tag.objects.all()] == ["red"]


def test_read_only_fields_are_ignored(alice: User, todo: Todo) -> None:
    before = todo.updated_at

    result = upload(alice, patch("todos", TODO, updated_at="1999-01-01 00:00:00Z"))

    todo.refresh_from_db()
    assert result.status is Status.APPLIED
    assert todo.updated_at >= before


def test_a_list_made_offline_takes_todos_in_the_same_transaction(alice: User) -> None:
    result = upload(
        alice,
        put("lists", GROCERIES, name="Groceries"),
        put("todos", TODO, list_id=str(GROCERIES), title="Milk"),
        patch("todos", TODO, done=1),
    )

    assert result.status is Status.APPLIED
    assert Todo.objects.get(pk=TODO).done


# What is rejected.


@pytest.mark.parametrize(
    ("operation", "code", "message"),
    [
        (put("nonsense", TODO), "unknown_table", {"non_field_errors": ["Table “nonsense” cannot be written."]}),
        (put("auth_user", 1, is_superuser=1), "unknown_table", None),
        (patch("todos", TODO, titel="x"), "unknown_column", {"titel": ["This column cannot be written."]}),
        (patch("todos", TODO, created_by_id=1), "unknown_column", None),
        (patch("todos", TODO, id=str(UUID(int=9))), "unknown_column", None),
        (put("tags", "red", code="blue"), "unknown_column", None),
        (patch("todos", TODO, list=str(GROCERIES), list_id=str(GROCERIES)), "unknown_column", None),
        (patch("todos", TODO, title="t" * 51), "invalid", {"title": None}),
        (patch("todos", TODO, title=None), "invalid", {"title": ["This field may not be null."]}),
        (patch("todos", TODO, title=""), "invalid", {"title": ["This field may not be blank."]}),
        (patch("todos", TODO, title="a\0b"), "invalid", {"title": ["Null characters are not allowed."]}),
        (patch("todos", TODO, done="perhaps"), "invalid", {"done": ["Must be a valid boolean."]}),
        (patch("todos", TODO, due="tomorrow"), "invalid", {"due": None}),
        (patch("todos", TODO, price="1e99"), "invalid", {"price": None}),
        (patch("todos", TODO, priority=2**40), "invalid", {"priority": None}),
        (patch("todos", TODO, priority=1.5), "invalid", {"priority": None}),
        (patch("todos", TODO, labels="{"), "invalid", {"labels": ["Value must be valid JSON."]}),
        (patch("todos", TODO, labels=r'"\u0000"'), "invalid", {"non_field_errors": None}),
        (patch("todos", TODO, sizes="many"), "invalid", {"sizes": None}),
        (patch("todos", TODO, list_id="nonsense"), "invalid", {"list_id": None}),
        (patch("todos", TODO, list_id="a\0b"), "invalid", {"list_id": None}),
        (patch("todos", TODO, list_id=str(uuid4())), "invalid", {"list_id": None}),
        (put("todos", UUID(int=3), title="x"), "invalid", {"list_id": ["This field is required."]}),
        (put("todos", "nonsense", title="x"), "invalid_id", {"id": None}),
        (delete("todos", "nonsense"), "invalid_id", {"id": None}),
        (put("tags", "a\0b"), "invalid_id", {"id": ["Null characters are not allowed."]}),
        (put("tags", "t" * 21), "invalid_id", {"id": None}),
        (put("counters", 1, value=1), "invalid_id", {"id": None}),
        (patch("counters", 2**70, value=1), "invalid_id", {"id": None}),
        (patch("todos", TODO, note="forbidden"), "constraint_violated", {"non_field_errors": None}),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_cannot_be_written_is_rejected_with_its_reason(
    alice: User, todo: Todo, operation: CrudOperation, code: str, message: dict[str, Any] | None
) -> None:
    before = rows()

    result = upload(alice, operation)

    assert (result.status, codes(result)) == (Status.REJECTED, [code])
    for column, texts in (message or {}).items():
        assert errors(result)[column] == texts if texts else errors(result)[column]
    assert rows() == before


def test_a_protected_row_is_not_deleted(alice: User, groceries: TodoList) -> None:
    Tag.objects.create(code="red", list=groceries)

    assert codes(upload(alice, delete("lists", GROCERIES))) == ["constraint_violated"]
    assert TodoList.objects.filter(pk=GROCERIES).exists()


def test_a_rule_that_a_trigger_enforces_rejects(alice: User, todo: Todo) -> None:
    with connection.cursor() as cursor:
        cursor.execute("""
            CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'not now'; END $$;
            CREATE TRIGGER refuse BEFORE UPDATE ON todos FOR EACH ROW EXECUTE FUNCTION refuse();
        """)

    assert codes(upload(alice, patch("todos", TODO, title="x"))) == ["constraint_violated"]


class Dangling(UploadHandler):
    def perform_put(self, operation: CrudOperation, user: Any) -> None:
        Todo.objects.create(id=operation.id, list_id=uuid4(), title="an orphan")


def test_a_foreign_key_that_only_the_commit_would_check_rejects(alice: User) -> None:
    (result, after) = Dangling().handle(request([put("todos", TODO)], [delete("todos", TODO)]), alice)

    assert (result.status, codes(result)) == (Status.REJECTED, ["constraint_violated"])
    assert (after.status, codes(after)) == (Status.REJECTED, ["unknown_table"])
    assert UploadJournal.objects.count() == 2


def test_one_rejected_operation_rejects_its_local_transaction_whole(alice: User, todo: Todo) -> None:
    before = rows()

    result = upload(
        alice, patch("todos", TODO, title="x"), patch("todos", TODO, done="?"), put("lists", uuid4(), name="y")
    )

    assert result.status is Status.REJECTED
    assert [item.status for item in result.operations] == [Status.REJECTED] * 3
    assert codes(result) == ["transaction_rejected", "invalid", "transaction_rejected"]
    assert rows() == before


def test_the_queue_goes_on_after_a_rejection(alice: User, todo: Todo) -> None:
    results = Handler().handle(
        request([patch("todos", TODO, title="")], [patch("todos", TODO, title="Oat milk")]), alice
    )

    todo.refresh_from_db()
    assert [result.status for result in results] == [Status.REJECTED, Status.APPLIED]
    assert todo.title == "Oat milk"


def test_a_rejection_is_kept_with_what_was_sent(alice: User, todo: Todo) -> None:
    upload(alice, patch("todos", TODO, title="a\0b"))
    upload(alice, patch("todos", TODO, title="fine"), first_id=2)

    rejected, applied = UploadJournal.objects.order_by("transaction_id")
    assert json.loads(rejected.operations or "")[0]["data"] == {"title": "a\0b"}
    assert json.loads(rejected.answer)["operations"][0]["code"] == "invalid"
    assert applied.operations is None


# Who may write.


@pytest.mark.parametrize("name", ["reader-bob", "bob"])
def test_a_stranger_writes_nothing(todo: Todo, name: str) -> None:
    stranger, before = User.objects.create_user(name), rows()

    operations = [
        put("todos", TODO, list_id=str(GROCERIES), title="x"),
        patch("todos", TODO, title="x"),
        delete("todos", TODO),
        put("lists", GROCERIES, name="x"),
    ]
    for number, operation in enumerate(operations):
        assert codes(upload(stranger, operation, first_id=number)) == ["permission_denied"]
    assert rows() == before


def test_a_list_of_others_seems_not_to_exist(todo: Todo) -> None:
    stranger = User.objects.create_user("bob")

    forged, invented = (
        upload(stranger, put("todos", uuid4(), list_id=str(list_id), title="x"), first_id=number)
        for number, list_id in enumerate([GROCERIES, UUID(int=99)])
    )

    assert codes(forged) == codes(invented) == ["invalid"]
    assert str(errors(forged)).replace(str(GROCERIES), "…") == str(errors(invented)).replace(str(UUID(int=99)), "…")


def test_a_row_is_not_moved_to_where_its_writer_may_not_write(alice: User, todo: Todo, private: TodoList) -> None:
    result = upload(alice, patch("todos", TODO, list_id=str(private.pk)))

    todo.refresh_from_db()
    assert codes(result) == ["invalid"]
    assert todo.list_id == GROCERIES


def test_object_permissions_see_the_row_before_and_after_a_write(alice: User, todo: Todo) -> None:
    archived = TodoList.objects.create(name="archived")
    archived.members.add(alice)
    moved = upload(alice, patch("todos", TODO, list_id=str(archived.pk)))
    Todo.objects.filter(pk=TODO).update(list=archived)
    rescued = upload(alice, patch("todos", TODO, list_id=str(GROCERIES)), first_id=2)

    assert codes(moved) == codes(rescued) == ["permission_denied"]
    assert errors(moved) == {"non_field_errors": ["You may only read."]}


class ModelPermissions(UploadHandler):
    tables = {
        "tags": UploadTable(
            queryset=Tag.objects.all(), serializer_class=TagSerializer, permission_classes=[DjangoModelPermissions]
        )
    }


@pytest.mark.parametrize(
    ("permission", "operation"),
    [("add_tag", put("tags", "new")), ("change_tag", put("tags", "old")), ("delete_tag", delete("tags", "old"))],
)
def test_djangos_own_permissions_are_asked_by_operation(alice: User, permission: str, operation: CrudOperation) -> None:
    from django.contrib.auth.models import Permission

    Tag.objects.create(code="old")
    (refused,) = ModelPermissions().handle(request([operation]), alice)
    alice.user_permissions.add(Permission.objects.get(codename=permission))
    allowed_user = User.objects.get(pk=alice.pk)
    (allowed,) = ModelPermissions().handle(request([operation], first_id=2), allowed_user)

    assert (codes(refused), allowed.status) == (["permission_denied"], Status.APPLIED)


def test_a_table_must_name_its_permissions() -> None:
    with pytest.raises(ConfigurationError, match="permission_classes"):
        UploadTable(queryset=Tag.objects.all(), serializer_class=TagSerializer)


def test_a_handler_writes_to_one_database_only(alice: User) -> None:
    table = UploadTable(queryset=Tag.objects.all(), serializer_class=TagSerializer, permission_classes=[AllowAny])

    with pytest.raises(ConfigurationError, match="one database"):
        table.bind(put("tags", "red"), UploadContext.of(alice, "1", "phone", "elsewhere"))


# Once.


class Counting(UploadHandler):
    """Counts what it is asked to do, in the database and outside of it."""

    calls = 0

    def perform_put(self, operation: CrudOperation, user: Any) -> None:
        type(self).calls += 1
        counter, _ = Counter.objects.get_or_create(pk=int(operation.id), defaults={"value": 0})
        counter.value += 1
        counter.save()

    def perform_patch(self, operation: CrudOperation, user: Any) -> str:
        type(self).calls += 1
        raise OperationRejected(f"refusal_{self.calls}", "never")

    def perform_delete(self, operation: CrudOperation, user: Any) -> None:
        raise RuntimeError("a bug")


@pytest.fixture
def counting() -> Counting:
    Counting.calls = 0
    return Counting()


def value(pk: int = 1) -> int:
    return sum(Counter.objects.filter(pk=pk).values_list("value", flat=True))


def test_a_repeat_gets_the_first_answer_and_writes_nothing(alice: User, counting: Counting) -> None:
    body = request([put("counters", 1)], [patch("counters", 1)])

    first = counting.handle(body, alice)
    second = counting.handle(body, alice)

    assert [result.repeated for result in first + second] == [False, False, True, True]
    assert [codes(result) for result in first] == [codes(result) for result in second] == [[None], ["refusal_2"]]
    assert (value(), counting.calls) == (1, 2)


def test_a_repeat_does_not_overwrite_newer_values(alice: User, todo: Todo) -> None:
    body = request([patch("todos", TODO, title="Oat milk")])
    Handler().handle(body, alice)
    Todo.objects.filter(pk=TODO).update(title="Soy milk")

    Handler().handle(body, alice)

    todo.refresh_from_db()
    assert todo.title == "Soy milk"


def test_the_same_ids_with_other_content_are_another_write(alice: User, counting: Counting) -> None:
    first, second = (CrudOperation(1, Op.PUT, "counters", "1", {"note": note}) for note in ("a", "b"))

    results = [counting.handle(request([operation]), alice)[0] for operation in (first, second)]

    assert [result.repeated for result in results] == [False, False]
    assert value() == 2


def test_other_users_and_other_devices_have_their_own_journal(alice: User, counting: Counting) -> None:
    bob, operation = User.objects.create_user("bob"), put("counters", 1)

    for user, device in [(alice, "phone"), (alice, "tablet"), (bob, "phone")]:
        assert not counting.handle(request([operation], client_id=device), user)[0].repeated
    assert value() == 3


def test_the_journal_is_kept_by_the_tokens_subject(alice: User, counting: Counting) -> None:
    body = request([put("counters", 1)])

    results = [counting.handle(body, alice, user_key)[0].repeated for user_key in ("x", "y", "x")]

    assert results == [False, False, True]


@pytest.mark.django_db(transaction=True)
def test_a_bug_undoes_its_transaction_and_keeps_the_ones_before(alice: User, counting: Counting) -> None:
    body = request([put("counters", 1)], [put("counters", 2), delete("counters", 1)], [put("counters", 3)])

    with pytest.raises(RuntimeError):
        counting.handle(body, alice)

    assert (value(1), value(2), value(3)) == (1, 0, 0)
    journal = UploadJournal.objects.order_by("transaction_id").values_list("transaction_id", "state", "failures")
    assert list(journal) == [(1, "applied", 0), (2, "failed", 1)]


@pytest.mark.django_db(transaction=True)
def test_a_retry_after_a_bug_goes_on_where_it_ended(
    alice: User, counting: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = request([put("counters", 1)], [put("counters", 2), delete("counters", 1)], [put("counters", 3)])
    with pytest.raises(RuntimeError):
        counting.handle(body, alice)
    monkeypatch.setattr(Counting, "perform_delete", Counting.perform_put)

    results = counting.handle(body, alice)

    assert [result.repeated for result in results] == [True, False, False]
    assert (value(1), value(2), value(3)) == (2, 1, 1)


class Unlucky(Counting):
    def perform_put(self, operation: CrudOperation, user: Any) -> None:
        raise OperationalError("deadlock detected")


@pytest.mark.django_db(transaction=True)
def test_trouble_that_may_pass_is_an_error_and_no_rejection(alice: User) -> None:
    with pytest.raises(OperationalError):
        Unlucky().handle(request([put("counters", 1)]), alice)

    assert not UploadJournal.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_an_upload_refuses_to_run_inside_a_transaction(alice: User, counting: Counting) -> None:
    with pytest.raises(RuntimeError, match="durable"), transaction.atomic():
        counting.handle(request([put("counters", 1)]), alice)


@pytest.mark.django_db(transaction=True)
def test_concurrent_duplicates_are_applied_once(alice: User, counting: Counting) -> None:
    Counter.objects.create(pk=1, value=0)
    body = request([put("counters", 1)], [patch("counters", 1)], [put("counters", 1)])

    answers = at_once(6, lambda: counting.handle(body, alice))

    assert value() == 2
    assert sorted(result.repeated for answer in answers for result in answer) == [False] * 3 + [True] * 15
    assert len({tuple(codes(result)[0] for result in answer) for answer in answers}) == 1
    assert UploadJournal.objects.count() == 3


@pytest.mark.django_db(transaction=True)
def test_concurrent_patches_of_other_columns_lose_nothing(alice: User, todo: Todo) -> None:
    columns = [{"title": "Oat milk"}, {"priority": 7}, {"done": 0}, {"note": "3 l"}, {"price": "1.99"}]
    bodies = iter([request([patch("todos", TODO, **column)], client_id=f"{column}") for column in columns])
    lock = threading.Lock()

    def send() -> list[TransactionResult]:
        with lock:
            body = next(bodies)
        return Handler().handle(body, alice)

    at_once(len(columns), send)

    todo.refresh_from_db()
    assert (todo.title, todo.priority, todo.done, todo.note, todo.price) == (
        "Oat milk",
        7,
        False,
        "3 l",
        Decimal("1.99"),
    )


def test_what_is_rejected_is_logged_without_its_values(
    alice: User, todo: Todo, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "django_localsync.upload"):
        upload(alice, patch("todos", TODO, due="a secret"))

    assert "transaction 1 rejected (invalid)" in caplog.text
    assert "secret" not in caplog.text


def at_once(number: int, work: Any) -> list[Any]:
    """Run `work` in threads with connections of their own, all starting together."""
    results, barrier = [], threading.Barrier(number)

    def run() -> None:
        try:
            connection.ensure_connection()
            barrier.wait(10)
            results.append(work())
        finally:
            connections.close_all()

    threads = [threading.Thread(target=run) for _ in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(results) == number
    return results


def rows() -> list[Any]:
    return [list(model.objects.order_by("pk").values()) for model in (TodoList, Todo, Tag, Counter)]
