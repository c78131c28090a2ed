"""What the server that crashes does with uploads: counts how often it was asked, row by row."""

from __future__ import annotations

from typing import Any

from django.db.models import F
from rest_framework.permissions import AllowAny

from django_localsync.protocol.crud import CrudOperation
from django_localsync.upload import UploadHandler, UploadTable
from tests.testapp.models import Counter, Document, Project, Task


def count(operation: CrudOperation, user: Any) -> None:
    """Not idempotent: a second time would show."""
    Counter.objects.get_or_create(pk=operation.id, defaults={"value": 0})
    Counter.objects.filter(pk=operation.id).update(value=F("value") + 1)


class Handler(UploadHandler):
    """Tables of every kind of key, and a function."""

    tables = {
        "counters": count,
        "documents": UploadTable(
            queryset=Document.objects.all(), fields=["title", "body"], permission_classes=[AllowAny]
        ),
        "projects": UploadTable(queryset=Project.objects.all(), fields=["name"], permission_classes=[AllowAny]),
        "tasks": UploadTable(queryset=Task.objects.all(), fields=["project", "title"], permission_classes=[AllowAny]),
    }
