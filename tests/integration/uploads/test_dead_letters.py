"""What was refused: kept, shown to its user, retried or dismissed in code, in the admin and on the device."""

from __future__ import annotations

import json
from typing import Any
from uuid import uuid4

import pytest
from django.contrib.admin.sites import AdminSite
from django.contrib.auth.models import Permission, User
from django.contrib.messages.storage.base import BaseStorage
from django.test import RequestFactory
from rest_framework import serializers
from rest_framework.permissions import AllowAny

from django_localsync.admin import UploadAdmin
from django_localsync.upload import (
    OperationDeferred,
    OperationRejected,
    RejectionScope,
    UploadHandler,
    dismiss,
    journal,
    retry,
)
from django_localsync.upload.journal import MAX_REJECTIONS
from django_localsync.upload_models import Rejection, UploadJournal
from tests.integration.uploads.operations import codes, delete, handler_of, patch, put, send, statuses, table
from tests.testapp.models import Document, Project

pytestmark = pytest.mark.django_db

TABLES = {
    "documents": table(queryset=Document.objects.all(), fields=["title", "body"], permission_classes=[AllowAny]),
    "projects": table(queryset=Project.objects.all(), fields=["name"], permission_classes=[AllowAny]),
}
HANDLER = handler_of(**TABLES)
DOCUMENT = uuid4()


class Lenient(serializers.ModelSerializer[Document]):
    title = serializers.CharField(allow_blank=True)

    class Meta:
        model = Document
        fields = ["title", "body"]


class Configured(UploadHandler):
    tables = TABLES


class Buggy(UploadHandler):
    def perform_put(self, operation: Any, user: Any) -> None:
        raise ZeroDivisionError


def dead_letter() -> UploadJournal:
    return UploadJournal.objects.get(state="rejected")


def test_a_users_oldest_dead_letters_are_dismissed_when_there_are_too_many(
    alice: User, bob: User, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(journal, "MAX_DEAD_LETTERS", 2)
    send(HANDLER, bob, put("documents", uuid4(), title=""))
    for number in range(1, 5):
        bad = [put("documents", uuid4(), title="", body=f"{number}") for _ in range(2)]
        send(HANDLER, alice, *bad, client_id=f"device {number}")

    letters = UploadJournal.objects.filter(user_id=alice.pk).order_by("id")
    assert [letter.state for letter in letters] == ["dismissed", "dismissed", "rejected", "rejected"]
    assert [letter.operations is None for letter in letters] == [True, True, False, False]
    assert [letter.rejections.count() for letter in letters] == [0, 0, 2, 2]
    assert UploadJournal.objects.get(user_id=bob.pk).rejections.count() == 1


@pytest.fixture
def rejected(alice: User) -> UploadJournal:
    send(HANDLER, alice, put("documents", DOCUMENT, title="Fine"), put("documents", uuid4(), title="", body="kept"))
    return dead_letter()


def test_each_operation_is_shown_to_its_user(alice: User, rejected: UploadJournal) -> None:
    fault, innocent = Rejection.objects.order_by("-op_id")

    assert (fault.user_key, fault.client_id, fault.op, fault.type) == (str(alice.pk), "phone", "PUT", "documents")
    assert (fault.code, json.loads(fault.errors or "")) == ("invalid", {"title": ["This field may not be blank."]})
    assert json.loads(fault.data or "") == {"title": "", "body": "kept"}
    assert (innocent.code, innocent.errors, innocent.row_id) == ("transaction_rejected", None, str(DOCUMENT))


def test_a_huge_rejection_is_shown_in_part_with_its_cause(alice: User) -> None:
    operations = [put("documents", uuid4(), title="Fine") for _ in range(MAX_REJECTIONS)]
    send(HANDLER, alice, *operations, put("documents", uuid4(), title=""))

    assert Rejection.objects.count() == MAX_REJECTIONS
    assert Rejection.objects.filter(code="invalid").count() == 1
    assert len(json.loads(dead_letter().operations or "")) == MAX_REJECTIONS + 1


def test_nul_characters_do_not_stop_a_rejection(alice: User) -> None:
    result = send(HANDLER, alice, put("docu\0ments", "a\0b", title="a\0b"))

    assert codes(result) == ["unknown_table"]
    assert (Rejection.objects.get().type, Rejection.objects.get().row_id) == ("docu\ufffdments", "a\ufffdb")


def test_what_was_refused_is_applied_once_nothing_stands_in_its_way(
    alice: User, rejected: UploadJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TABLES["documents"], "serializer_class", Lenient)
    answer = rejected.answer

    result = retry(rejected, HANDLER)

    rejected.refresh_from_db()
    assert (result.status, rejected.state) == ("applied", "retried")
    assert sorted(Document.objects.values_list("title", flat=True)) == ["", "Fine"]
    assert not Rejection.objects.exists()
    assert rejected.answer == answer
    with pytest.raises(ValueError, match="not a dead letter"):
        retry(rejected, HANDLER)


def test_what_is_refused_again_stays_with_its_new_reason(alice: User, rejected: UploadJournal) -> None:
    class Closed(UploadHandler):
        def perform_put(self, operation: Any, user: Any) -> None:
            raise OperationRejected("closed", "not today")

    result = retry(rejected, Closed())

    rejected.refresh_from_db()
    assert (result.status, rejected.state) == ("rejected", "rejected")
    assert sorted(Rejection.objects.values_list("code", flat=True)) == ["closed", "transaction_rejected"]


def test_a_retry_that_fails_leaves_everything_as_it_was(alice: User, rejected: UploadJournal) -> None:
    class Later(UploadHandler):
        def perform_put(self, operation: Any, user: Any) -> None:
            Document.objects.create(title="half")
            raise OperationDeferred()

    with pytest.raises(OperationDeferred):
        retry(rejected, Later())

    assert (dead_letter().pk, Rejection.objects.count(), Document.objects.count()) == (rejected.pk, 2, 0)


def test_nothing_is_retried_for_a_user_who_is_no_longer_active(alice: User, rejected: UploadJournal) -> None:
    User.objects.update(is_active=False)

    with pytest.raises(ValueError, match="no longer active"):
        retry(rejected, HANDLER)


def test_only_what_was_refused_of_a_transaction_is_retried(alice: User) -> None:
    handler = handler_of({"rejection_scope": RejectionScope.OPERATION}, **TABLES)
    result = send(handler, alice, put("projects", "p", name="Boat"), put("projects", "q", name=""))
    assert statuses(result) == ["applied", "rejected"]

    retry(dead_letter(), handler)

    assert list(Project.objects.values_list("name", flat=True)) == ["Boat"]
    assert Rejection.objects.get().row_id == "q"


def test_changes_to_a_row_whose_creation_was_rejected_are_kept_with_it(
    alice: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(HANDLER, alice, put("documents", DOCUMENT, title=""))
    assert codes(send(HANDLER, alice, patch("documents", DOCUMENT, body="more"))) == ["row_rejected"]
    assert codes(send(HANDLER, alice, delete("documents", DOCUMENT))) == ["missing_row"]
    monkeypatch.setattr(TABLES["documents"], "serializer_class", Lenient)

    for upload in UploadJournal.objects.filter(state="rejected").order_by("pk"):
        retry(upload, HANDLER)

    assert Document.objects.get().body == "more"


def test_dismissing_takes_it_off_the_devices(alice: User, rejected: UploadJournal) -> None:
    dismiss(rejected)

    assert (UploadJournal.objects.get().state, Rejection.objects.count()) == ("dismissed", 0)


def test_a_device_dismisses_by_deleting(alice: User, rejected: UploadJournal) -> None:
    first, second = Rejection.objects.all()

    assert codes(send(HANDLER, alice, delete("localsync_rejection", first.pk))) == [None]
    assert (dead_letter().pk, Rejection.objects.get()) == (rejected.pk, second)
    assert codes(send(HANDLER, alice, delete("localsync_rejection", second.pk))) == [None]
    assert UploadJournal.objects.get(pk=rejected.pk).state == "dismissed"


def test_a_device_dismisses_only_its_users_own(bob: User, rejected: UploadJournal) -> None:
    for row in Rejection.objects.all():
        assert send(HANDLER, bob, delete("localsync_rejection", row.pk)).status == "applied"

    assert Rejection.objects.count() == 2
    assert dead_letter() == rejected


@pytest.mark.parametrize(
    ("operation", "code"),
    [
        (put("localsync_rejection", uuid4(), user_key="1", code="forged"), "permission_denied"),
        (patch("localsync_rejection", uuid4(), code="forged"), "permission_denied"),
        (delete("localsync_rejection", "1 OR 1=1"), "invalid_id"),
        (delete("localsync_upload_journal", "1"), "unknown_table"),
    ],
)
def test_a_device_does_nothing_else_with_dead_letters(
    alice: User, rejected: UploadJournal, operation: Any, code: str
) -> None:
    assert codes(send(HANDLER, alice, operation)) == [code]
    assert Rejection.objects.filter(upload=rejected).count() == 2


# The admin.


@pytest.fixture
def admin_page() -> UploadAdmin:
    return UploadAdmin(UploadJournal, AdminSite())


class Messages(BaseStorage):
    def _get(self, *args: Any, **kwargs: Any) -> Any:
        return [], True

    def _store(self, messages: Any, response: Any, *args: Any, **kwargs: Any) -> Any:
        return []


def request_of(user: User) -> Any:
    request = RequestFactory().post("/")
    request.user = user
    request._messages = Messages(request)  # type: ignore[attr-defined]
    return request


def test_the_admin_retries_and_dismisses(
    settings: Any, alice: User, rejected: UploadJournal, admin_page: UploadAdmin, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.LOCALSYNC = {"UPLOAD_HANDLER": f"{__name__}.Configured"}
    request = request_of(alice)

    admin_page.retry_uploads(request, admin_page.get_queryset(request))
    assert dead_letter() == rejected
    monkeypatch.setattr(TABLES["documents"], "serializer_class", Lenient)
    admin_page.retry_uploads(request, admin_page.get_queryset(request))
    assert UploadJournal.objects.get(pk=rejected.pk).state == "retried"
    send(HANDLER, alice, put("documents", uuid4(), titel="x"))
    admin_page.dismiss_uploads(request, admin_page.get_queryset(request))
    assert not UploadJournal.objects.filter(state="rejected").exists()
    assert [message.message.split(": ")[-1] for message in request._messages._queued_messages] == [
        "rejected again (invalid, transaction_rejected)",
        "applied",
        "1 dismissed",
    ]


def test_the_admin_shows_a_bug_and_goes_on(
    settings: Any, alice: User, rejected: UploadJournal, admin_page: UploadAdmin
) -> None:
    settings.LOCALSYNC = {"UPLOAD_HANDLER": f"{__name__}.Buggy"}
    request = request_of(alice)

    admin_page.retry_uploads(request, admin_page.get_queryset(request))

    assert "ZeroDivisionError" in request._messages._queued_messages[0].message
    assert dead_letter() == rejected


def test_actions_of_the_admin_need_their_permission(alice: User, admin_page: UploadAdmin) -> None:
    request = request_of(alice)
    assert not admin_page.has_retry_permission(request)
    assert not admin_page.has_dismiss_permission(request)

    alice.user_permissions.set(Permission.objects.filter(codename__in=["retry_upload", "dismiss_upload"]))
    request = request_of(User.objects.get(pk=alice.pk))

    assert admin_page.has_retry_permission(request)
    assert admin_page.has_dismiss_permission(request)
    assert not admin_page.has_change_permission(request)
    assert not admin_page.has_delete_permission(request)
    assert "invalid" not in admin_page.get_actions(request)


def test_the_admin_shows_what_was_sent_without_letting_it_act(alice: User, admin_page: UploadAdmin) -> None:
    send(HANDLER, alice, put("documents", uuid4(), title="<script>alert(1)</script>" * 5))

    shown = admin_page.operations_text(dead_letter())

    assert "&lt;script&gt;" in shown
    assert "<script>" not in shown
    assert admin_page.summary(dead_letter()) == "invalid"
