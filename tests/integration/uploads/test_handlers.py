"""What a project may put into a handler: functions, ViewSets, hooks, coroutines, whole transactions, policies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID, uuid4

import pytest
from django.contrib.auth.models import User
from django.core.exceptions import ValidationError
from rest_framework import filters, mixins, serializers, viewsets
from rest_framework.permissions import AllowAny, BasePermission, IsAuthenticated

from django_localsync.exceptions import ConfigurationError
from django_localsync.protocol.crud import CrudOperation, CrudTransaction, OperationResult, Status
from django_localsync.upload import (
    OperationDeferred,
    OperationRejected,
    RejectionScope,
    UploadHandler,
    UploadTable,
    ViewSetTable,
    get_handler,
)
from django_localsync.upload_models import UploadJournal
from tests.integration.uploads.operations import (
    codes,
    delete,
    handler_of,
    patch,
    put,
    send,
    statuses,
    table,
    transaction_of,
    upload_of,
)
from tests.testapp.models import Counter, Document, Tag, TodoList

pytestmark = pytest.mark.django_db

DOCUMENTS = table(queryset=Document.objects.all(), fields=["title", "body"], permission_classes=[AllowAny])
DOCUMENT = UUID(int=5)


def titles() -> list[str]:
    return sorted(Document.objects.values_list("title", flat=True))


# Functions and coroutines.


def count(operation: CrudOperation, user: Any) -> str:
    if operation.id == "0":
        raise ValidationError("not zero")
    Counter.objects.update_or_create(pk=operation.id, defaults={"value": user.pk})
    return "counted"


async def count_later(operation: CrudOperation, user: Any) -> str:
    await Counter.objects.aupdate_or_create(pk=operation.id, defaults={"value": user.pk})
    if operation.data and "broken" in operation.data:
        raise OperationRejected("broken", "as asked")
    return "counted"


@pytest.mark.parametrize("function", [count, count_later])
def test_a_function_may_be_a_table(alice: User, function: Any) -> None:
    result = send(handler_of(counters=function), alice, put("counters", 1), delete("counters", 2))

    assert (result.status, codes(result)) == ("applied", ["counted", "counted"])
    assert sorted(Counter.objects.values_list("pk", "value")) == [(1, alice.pk), (2, alice.pk)]


def test_what_a_function_raises_rejects(alice: User) -> None:
    result = send(handler_of(counters=count), alice, put("counters", 1), put("counters", 0))

    assert codes(result) == ["transaction_rejected", "invalid"]
    assert not Counter.objects.exists()


def test_what_a_coroutine_wrote_is_undone_with_its_transaction(alice: User) -> None:
    result = send(handler_of(counters=count_later), alice, put("counters", 1), put("counters", 2, broken=1))

    assert codes(result) == ["transaction_rejected", "broken"]
    assert not Counter.objects.exists()


class Async(UploadHandler):
    """Every hook a coroutine function."""

    tables = {"documents": DOCUMENTS}

    async def before_transaction(self, transaction: CrudTransaction, user: Any) -> None:
        await Counter.objects.acreate(value=len(transaction.operations))

    async def after_transaction(self, transaction: CrudTransaction, user: Any, results: Sequence[Any]) -> None:
        await Counter.objects.acreate(value=await Document.objects.acount())

    async def perform_patch(self, operation: CrudOperation, user: Any) -> str:
        return f"patched for {(await User.objects.aget(pk=user.pk)).username}"


def test_every_hook_may_be_a_coroutine_function(alice: User) -> None:
    result = send(Async(), alice, put("documents", DOCUMENT, title="a"), patch("documents", DOCUMENT, title="b"))

    assert codes(result) == [None, "patched for alice"]
    assert [counter.value for counter in Counter.objects.order_by("pk")] == [2, 1]


class AsyncTable(UploadTable):
    queryset = Document.objects.all()
    fields = ("title",)
    permission_classes = (AllowAny,)

    async def perform_create(self, serializer: Any) -> None:
        await Document.objects.acreate(**serializer.validated_data, owner=self.user)


def test_a_tables_hooks_may_be_coroutine_functions(alice: User) -> None:
    assert codes(send(handler_of(documents=AsyncTable), alice, put("documents", DOCUMENT, title="a"))) == [None]
    assert Document.objects.get(pk=DOCUMENT).owner == alice


# Whole transactions.


class Whole(UploadHandler):
    def apply_transaction(self, transaction: CrudTransaction, user: Any) -> list[OperationResult] | None:
        names = [operation.id for operation in transaction.operations]
        Document.objects.bulk_create(Document(title=name) for name in names)
        if "bad" in names:
            raise OperationRejected("bad", "no", op_id=transaction.operations[names.index("bad")].op_id)
        if "all" in names:
            raise OperationRejected("all", "no")
        if "some" not in names:
            return None
        first = transaction.operations[0]
        return [OperationResult(first.op_id, Status.REJECTED, "some", {"x": ["no"]})]


@pytest.mark.parametrize(
    ("rows", "expected", "written"),
    [
        (("a", "b"), ["applied", "applied"], ["a", "b"]),
        (("a", "bad"), ["transaction_rejected", "bad"], []),
        (("a", "all"), ["all", "all"], []),
        (("a", "some"), ["some", "applied"], ["a", "some"]),
    ],
)
def test_a_handler_may_take_a_transaction_as_a_whole(
    alice: User, rows: Sequence[str], expected: list[str], written: list[str]
) -> None:
    result = send(Whole(), alice, *(put("any", row) for row in rows))

    assert [item.code or item.status for item in result.operations] == expected
    assert titles() == written


def whole_function(transaction: CrudTransaction, user: Any) -> None:
    Document.objects.create(title=f"{user.username} {len(transaction.operations)}")


def test_the_setting_may_name_a_function(alice: User, settings: Any) -> None:
    settings.LOCALSYNC = {"UPLOAD_HANDLER": f"{__name__}.whole_function"}

    assert send(get_handler(), alice, put("any", 1), delete("any", 2)).status == "applied"
    assert titles() == ["alice 2"]


@pytest.mark.parametrize("name", ["DOCUMENT", "UUID"])
def test_the_setting_must_name_a_handler(settings: Any, name: str) -> None:
    settings.LOCALSYNC = {"UPLOAD_HANDLER": f"{__name__}.{name}"}

    with pytest.raises(ConfigurationError, match="UPLOAD_HANDLER must be"):
        get_handler()


# Hooks around a transaction.


class Watching(UploadHandler):
    tables = {"documents": DOCUMENTS}

    def before_transaction(self, transaction: CrudTransaction, user: Any) -> None:
        Document.objects.create(title=f"before {len(transaction.operations)} of {self.context.client_id}")

    def after_transaction(self, transaction: CrudTransaction, user: Any, results: Sequence[OperationResult]) -> None:
        if Document.objects.filter(title="too much").exists():
            raise OperationRejected("over_quota", {"title": ["Enough."]})


def test_hooks_run_within_the_transaction(alice: User) -> None:
    fine = send(Watching(), alice, put("documents", uuid4(), title="fine"))
    refused = send(Watching(), alice, put("documents", uuid4(), title="x"), put("documents", uuid4(), title="too much"))

    assert (fine.status, codes(refused)) == ("applied", ["over_quota", "over_quota"])
    assert titles() == ["before 1 of phone", "fine"]


# What a rejection takes with it.


def mixed() -> list[CrudOperation]:
    values = ["a", "", "b"]
    return [put("documents", uuid4(), title=value) for value in values]


def test_only_the_operation_is_rejected_if_the_handler_says_so(alice: User) -> None:
    handler = handler_of({"rejection_scope": RejectionScope.OPERATION}, documents=DOCUMENTS, tags=dangling)

    result = send(handler, alice, *mixed(), put("tags", "t"), put("documents", uuid4(), title="c"))

    assert result.status == "rejected"
    assert codes(result) == [None, "invalid", None, "constraint_violated", None]
    assert statuses(result) == ["applied", "rejected", "applied", "rejected", "applied"]
    assert titles() == ["a", "b", "c"]


def dangling(operation: CrudOperation, user: Any) -> None:
    Tag.objects.create(code=operation.id, list_id=uuid4())


def test_the_queue_stops_if_the_handler_says_so(alice: User) -> None:
    handler = handler_of({"rejection_scope": RejectionScope.QUEUE}, documents=DOCUMENTS)
    body = upload_of(
        transaction_of(put("documents", uuid4(), title="first")),
        transaction_of(*mixed()),
        transaction_of(put("documents", uuid4(), title="later")),
    )

    results = handler.handle(body, alice)

    assert [result.status for result in results] == ["applied", "deferred", "deferred"]
    assert codes(results[1]) == [None, "invalid", None]
    assert results[1].operations[1].errors == {"title": ["This field may not be blank."]}
    assert titles() == ["first"]
    assert UploadJournal.objects.count() == 1


def test_a_deferred_transaction_is_applied_when_its_time_has_come(alice: User) -> None:
    ready = False

    class Waiting(UploadHandler):
        def perform_put(self, operation: CrudOperation, user: Any) -> None:
            Document.objects.create(title=operation.id)
            if operation.id == "second" and not ready:
                raise OperationDeferred("not_ready", "The import runs.")

    body = upload_of(*(transaction_of(put("any", name)) for name in ("first", "second", "third")))
    before = Waiting().handle(body, alice)
    written = titles()
    ready = True
    after = Waiting().handle(body, alice)

    assert [result.status for result in before] == ["applied", "deferred", "deferred"]
    assert (codes(before[1]), written) == (["not_ready"], ["first"])
    assert [(result.status, result.repeated) for result in after] == [
        ("applied", True),
        ("applied", False),
        ("applied", False),
    ]
    assert titles() == ["first", "second", "third"]


# Fields of the server.


class OwnedTable(UploadTable):
    queryset = Document.objects.all()
    fields = ("title", "body")
    owner_field = "owner"
    permission_classes = (IsAuthenticated,)

    def get_queryset(self) -> Any:
        return super().get_queryset().filter(owner=self.user)


class OwnedSerializer(serializers.ModelSerializer[Document]):
    class Meta:
        model = Document
        fields = ["title", "body", "owner", "updated_at"]


@pytest.mark.parametrize("serializer", [None, OwnedSerializer])
@pytest.mark.parametrize("column", ["owner", "owner_id"])
def test_what_a_device_says_of_a_servers_column_is_left_out(
    alice: User, bob: User, serializer: Any, column: str
) -> None:
    owned = OwnedTable(serializer_class=serializer)
    handler = handler_of(documents=owned)

    made = send(handler, alice, put("documents", DOCUMENT, title="a", **{column: bob.pk}))
    changed = send(handler, alice, patch("documents", DOCUMENT, title="b", **{column: bob.pk}))
    replaced = send(handler, alice, put("documents", DOCUMENT, title="c", **{column: bob.pk}))

    assert [codes(made), codes(changed), codes(replaced)] == [[None]] * 3
    assert (Document.objects.get().owner, Document.objects.get().title) == (alice, "c")


@pytest.mark.parametrize("column", ["owner", "owner_id", "updated_at"])
def test_or_it_is_refused(alice: User, bob: User, column: str) -> None:
    strict = OwnedTable(serializer_class=OwnedSerializer, refuse_server_columns=True)

    result = send(handler_of(documents=strict), alice, put("documents", DOCUMENT, title="a", **{column: bob.pk}))

    assert codes(result) == ["server_column"]
    assert result.operations[0].errors == {column: ["This column is set by the server."]}


def test_fields_that_are_not_listed_are_not_the_devices(alice: User) -> None:
    narrow = UploadTable(
        queryset=Document.objects.all(),
        serializer_class=OwnedSerializer,
        fields=["title"],
        permission_classes=[AllowAny],
    )
    Document.objects.create(pk=DOCUMENT, title="a", body="kept", owner=alice)

    send(handler_of(documents=narrow), alice, put("documents", DOCUMENT, title="b", body="forged", owner=None))

    found = Document.objects.get()
    assert (found.title, found.body, found.owner) == ("b", "kept", alice)


def test_a_table_without_fields_or_serializer_is_a_mistake(alice: User) -> None:
    bare = UploadTable(queryset=Document.objects.all(), permission_classes=[AllowAny])

    with pytest.raises(ConfigurationError, match="serializer_class, or the fields"):
        send(handler_of({"give_up_after": None}, documents=bare), alice, put("documents", DOCUMENT, title="a"))


# ViewSets.


class NotArchived(BasePermission):
    message = "This is archived."

    def has_object_permission(self, request: Any, view: Any, obj: Any) -> bool:
        return not (obj.body == "archived" and request.method not in ("GET", "HEAD"))


class WriteSerializer(serializers.ModelSerializer[Document]):
    class Meta:
        model = Document
        fields = ["id", "title", "body"]

    def validate_title(self, value: str) -> str:
        if value == self.context["request"].user.username:
            raise serializers.ValidationError("Vanity.")
        return value


class PatchSerializer(WriteSerializer):
    class Meta(WriteSerializer.Meta):
        fields = ["title"]


class OnlyOwn(filters.BaseFilterBackend):
    def filter_queryset(self, request: Any, queryset: Any, view: Any) -> Any:
        return queryset.filter(owner=request.user)


class DocumentViewSet(viewsets.ModelViewSet[Document]):
    """As a project has it for its online API."""

    queryset = Document.objects.all()
    permission_classes = [IsAuthenticated, NotArchived]
    filter_backends = [OnlyOwn, filters.SearchFilter]

    def get_serializer_class(self) -> Any:
        return PatchSerializer if self.action == "partial_update" else WriteSerializer

    def perform_create(self, serializer: Any) -> None:
        serializer.save(owner=self.request.user, version=len(self.request.data))

    def perform_destroy(self, instance: Document) -> None:
        instance.body = "archived"
        instance.save()


VIEWSET = handler_of(documents=DocumentViewSet)


def test_a_viewset_is_a_table(alice: User, bob: User) -> None:
    made = send(VIEWSET, alice, put("documents", DOCUMENT, title="a", body="b"))
    changed = send(VIEWSET, alice, patch("documents", DOCUMENT, title="c"))
    found = Document.objects.get()

    assert (codes(made), codes(changed)) == ([None], [None])
    assert (found.pk, found.title, found.body, found.owner, found.version) == (DOCUMENT, "c", "b", alice, 2)
    assert codes(send(VIEWSET, alice, patch("documents", DOCUMENT, body="x"))) == ["unknown_column"]
    assert codes(send(VIEWSET, alice, patch("documents", DOCUMENT, title="alice"))) == ["invalid"]
    assert codes(send(VIEWSET, bob, patch("documents", DOCUMENT, title="x"))) == ["permission_denied"]
    assert codes(send(VIEWSET, alice, delete("documents", DOCUMENT))) == [None]
    assert Document.objects.get().body == "archived"
    assert codes(send(VIEWSET, alice, patch("documents", DOCUMENT, title="x"))) == ["permission_denied"]
    assert codes(send(VIEWSET, alice, put("documents", DOCUMENT, title="x"))) == ["permission_denied"]


class NoDeletes(mixins.CreateModelMixin, mixins.UpdateModelMixin, viewsets.GenericViewSet[Document]):
    queryset = Document.objects.all()
    serializer_class = WriteSerializer
    permission_classes = [AllowAny]
    http_method_names = ["get", "post", "patch"]


def test_what_a_viewset_does_not_do_online_is_not_done(alice: User) -> None:
    handler = handler_of(documents=NoDeletes)

    assert codes(send(handler, alice, put("documents", DOCUMENT, title="a"))) == [None]
    assert codes(send(handler, alice, patch("documents", DOCUMENT, title="b"))) == [None]
    assert codes(send(handler, alice, put("documents", DOCUMENT, title="c"))) == ["method_not_allowed"]
    assert codes(send(handler, alice, delete("documents", DOCUMENT))) == ["method_not_allowed"]
    assert titles() == ["b"]


class ByName(viewsets.ModelViewSet[TodoList]):
    queryset = TodoList.objects.all()
    serializer_class = type(
        "S", (serializers.ModelSerializer,), {"Meta": type("Meta", (), {"model": TodoList, "fields": ["name"]})}
    )
    permission_classes = [AllowAny]
    lookup_field = "name"


def test_a_viewset_finds_rows_by_its_lookup_field(alice: User) -> None:
    send(handler_of(lists=ByName), alice, put("lists", "a"), put("lists", "b"), delete("lists", "b"))

    assert list(TodoList.objects.values_list("name", flat=True)) == ["a"]


class Overriding(DocumentViewSet):
    def create(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        raise AssertionError


def test_a_viewset_that_overrides_an_action_cannot_be_used(alice: User) -> None:
    with pytest.raises(ConfigurationError, match=r"overrides create\(\)"):
        ViewSetTable(Overriding)


def test_what_a_device_is_told_is_in_its_language(alice: User, client: Any, settings: Any) -> None:
    from django_localsync.tokens import make_token

    settings.LOCALSYNC = {"UPLOAD_HANDLER": f"{__name__}.Configured"}
    operation = {"op_id": 1, "op": "PUT", "type": "documents", "id": str(uuid4()), "data": {"title": ""}}
    body = {"client_id": "phone", "transactions": [{"id": 1, "operations": [operation]}]}
    headers = {"authorization": f"Bearer {make_token(alice)}", "accept-language": "de-CH,de;q=0.9,en;q=0.5"}

    response = client.post("/localsync/upload", body, content_type="application/json", headers=headers)

    (result,) = response.json()["data"]["transactions"][0]["operations"]
    assert result["errors"] == {"title": ["Dieses Feld darf nicht leer sein."]}


class Configured(UploadHandler):
    tables = {"documents": DOCUMENTS}
