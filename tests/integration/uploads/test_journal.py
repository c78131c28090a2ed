"""The journal: repeats, collisions, bugs that last, and how long it is kept."""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from django.contrib.auth.models import User
from django.db import OperationalError, connection, connections
from django.utils import timezone
from rest_framework.permissions import AllowAny

from django_localsync.models import WriteCheckpoint
from django_localsync.protocol.crud import CrudOperation
from django_localsync.upload import UploadHandler, retention
from django_localsync.upload_models import Rejection, UploadedId, UploadJournal
from tests.integration.uploads.operations import (
    codes,
    handler_of,
    patch,
    put,
    send,
    table,
    transaction_of,
    upload_of,
)
from tests.testapp.models import Counter, Document, Project

DOCUMENTS = table(queryset=Document.objects.all(), fields=["title", "body"], permission_classes=[AllowAny])
PROJECTS = table(queryset=Project.objects.all(), fields=["name"], permission_classes=[AllowAny])


class Broken(UploadHandler):
    """Has a bug in one table, and takes the rest."""

    tables = {"documents": DOCUMENTS}
    give_up_after = timedelta(minutes=10)

    def perform_put(self, operation: CrudOperation, user: Any) -> Any:
        result = super().perform_put(operation, user)
        if operation.data and operation.data.get("title") == "poison":
            raise KeyError("a bug")
        return result


@pytest.mark.django_db(transaction=True)
def test_a_bug_that_lasts_does_not_block_the_queue_for_ever(alice: User) -> None:
    poisonous, later = (transaction_of(put("documents", uuid4(), title=title)) for title in ("poison", "later"))
    body = upload_of(poisonous, later)
    for _ in range(3):
        with pytest.raises(KeyError):
            Broken().handle(body, alice)
    failed = UploadJournal.objects.get()
    assert (failed.state, failed.failures, failed.answer) == ("failed", 3, None)

    UploadJournal.objects.update(created_at=timezone.now() - timedelta(minutes=11))
    given_up, applied = Broken().handle(body, alice)

    assert (given_up.status, codes(given_up), applied.status) == ("rejected", ["failed"], "applied")
    assert [document.title for document in Document.objects.all()] == ["later"]
    assert (UploadJournal.objects.get(pk=failed.pk).state, Rejection.objects.get().code) == ("rejected", "failed")
    assert Broken().handle(body, alice)[0].repeated


@pytest.mark.django_db(transaction=True)
def test_a_bug_that_is_mended_in_time_leaves_nothing(alice: User) -> None:
    body = upload_of(transaction_of(put("documents", uuid4(), title="poison")))
    with pytest.raises(KeyError):
        Broken().handle(body, alice)

    (result,) = handler_of(documents=DOCUMENTS).handle(body, alice)

    assert (result.status, result.repeated) == ("applied", False)
    assert UploadJournal.objects.get().state == "applied"
    assert UploadJournal.objects.get().operations is None


class Unlucky(UploadHandler):
    """Is a deadlock's victim as often as it is told to."""

    collisions = 0
    calls = 0

    def perform_put(self, operation: CrudOperation, user: Any) -> None:
        Counter.objects.create(value=1)
        type(self).calls += 1
        if type(self).calls <= self.collisions:
            with connection.cursor() as cursor:
                cursor.execute("DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = 'deadlock_detected'; END $$")


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(("collisions", "calls"), [(0, 1), (2, 3)])
def test_a_transaction_that_gave_way_to_another_is_tried_again(alice: User, collisions: int, calls: int) -> None:
    class Handler(Unlucky):
        pass

    Handler.collisions = collisions

    assert send(Handler(), alice, put("any", 1)).status == "applied"
    assert (Handler.calls, Counter.objects.count()) == (calls, 1)


@pytest.mark.django_db(transaction=True)
def test_one_that_always_gives_way_is_an_error_that_is_not_counted(alice: User) -> None:
    class Handler(Unlucky):
        collisions = 99

    with pytest.raises(OperationalError):
        send(Handler(), alice, put("any", 1))

    assert not UploadJournal.objects.exists()
    assert not Counter.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_repeats_in_any_order_and_mixture_apply_each_transaction_once(alice: User) -> None:
    """A device's requests that were given up, still running, overlapping and late."""
    made = [transaction_of(put("documents", uuid4(), title=f"Draft {number}")) for number in range(6)]
    bodies = [made[:3], made, made[:1], made[2:], made[:5], made]
    barrier = threading.Barrier(len(bodies))
    errors: list[BaseException] = []

    def run(part: Any) -> None:
        try:
            connection.ensure_connection()
            barrier.wait(10)
            handler_of(documents=DOCUMENTS).handle(upload_of(*part), alice)
        except BaseException as error:
            errors.append(error)
        finally:
            connections.close_all()

    threads = [threading.Thread(target=run, args=[body]) for body in bodies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    assert errors == []
    assert sorted(Document.objects.values_list("title", flat=True)) == [f"Draft {number}" for number in range(6)]
    assert UploadJournal.objects.count() == 6


# Retention.


@pytest.fixture
def due(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "_next_round", {})


@pytest.mark.django_db
def test_what_is_too_old_is_pruned_after_an_upload(alice: User, due: None, settings: Any) -> None:
    settings.LOCALSYNC = {"JOURNAL_RETENTION_DAYS": 7}
    handler = handler_of(documents=DOCUMENTS, projects=PROJECTS)
    old, young = timezone.now() - timedelta(days=8), timezone.now() - timedelta(days=6)
    for number, when in enumerate([old, young]):
        send(handler, alice, put("projects", f"p{number}", name="Boat"), put("documents", uuid4(), title="x"))
        send(handler, alice, put("documents", uuid4(), title=""))
        UploadJournal.objects.filter(created_at__gt=timezone.now() - timedelta(days=1)).update(created_at=when)
        UploadedId.objects.filter(created_at__gt=timezone.now() - timedelta(days=1)).update(created_at=when)
        WriteCheckpoint.objects.create(user_key=f"{number}", client_id="c", positions={}, requested_at=when)
    retention._next_round.clear()

    send(handler, alice, put("documents", uuid4(), title="new"))

    assert UploadJournal.objects.filter(created_at__lt=young - timedelta(hours=1)).count() == 0
    assert UploadJournal.objects.count() == 3
    assert (Rejection.objects.count(), UploadedId.objects.count(), WriteCheckpoint.objects.count()) == (1, 1, 1)


@pytest.mark.django_db
def test_pruning_is_done_in_rounds_that_are_small_and_far_apart(
    alice: User, due: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "MOST_LINES", 2)
    handler = handler_of(documents=DOCUMENTS)
    for _ in range(5):
        send(handler, alice, put("documents", uuid4(), title="x"))
    UploadJournal.objects.update(created_at=timezone.now() - timedelta(days=365))

    assert retention.prune_if_due("default") == 0
    retention._next_round.clear()
    assert (retention.prune_if_due("default"), UploadJournal.objects.count()) == (2, 3)


@pytest.mark.django_db(transaction=True)
def test_trouble_with_pruning_does_not_spoil_an_upload(
    alice: User, due: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("django_localsync.upload.journal.PRUNE", "SELECT nonsense")

    assert send(handler_of(documents=DOCUMENTS), alice, patch("documents", uuid4(), title="x")).status == "applied"
    assert "could not be pruned" in caplog.text
