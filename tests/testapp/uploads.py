"""The upload handler of the test app, as a project would write it."""

from __future__ import annotations

from typing import Any

from rest_framework import serializers
from rest_framework.permissions import BasePermission, IsAuthenticated

from django_localsync.upload import UploadHandler, UploadTable

from .models import Counter, Tag, Todo, TodoList


class TodoListSerializer(serializers.ModelSerializer[TodoList]):
    """Lists."""

    class Meta:
        model = TodoList
        fields = ["id", "name"]


class TodoSerializer(serializers.ModelSerializer[Todo]):
    """Todos; `created_by` and `updated_at` are the server's."""

    class Meta:
        model = Todo
        fields = ["list", "title", "done", "due", "price", "priority", "labels", "sizes", "note", "updated_at"]


class TagSerializer(serializers.ModelSerializer[Tag]):
    """Tags, with the key among the fields."""

    class Meta:
        model = Tag
        fields = ["code", "list"]


class CounterSerializer(serializers.ModelSerializer[Counter]):
    """Counters."""

    class Meta:
        model = Counter
        fields = ["value"]


class NotReadOnly(BasePermission):
    """Refuses users whose name says so, and lists named "archived"."""

    message = "You may only read."

    def has_permission(self, request: Any, view: Any) -> bool:
        return not request.user.username.startswith("reader")

    def has_object_permission(self, request: Any, view: Any, obj: Any) -> bool:
        owner = obj.list if isinstance(obj, Todo) else obj
        return owner.name != "archived"


class TodoTable(UploadTable):
    """Todos of lists that the user is a member of."""

    serializer_class = TodoSerializer
    permission_classes = [IsAuthenticated, NotReadOnly]

    def get_queryset(self) -> Any:
        return Todo.objects.filter(list__members=self.request.user).distinct()

    def perform_create(self, serializer: Any) -> None:
        serializer.save(created_by=self.user)


class TodoListTable(UploadTable):
    """Lists that the user is a member of."""

    queryset = TodoList.objects.all()
    serializer_class = TodoListSerializer
    permission_classes = [IsAuthenticated, NotReadOnly]

    def get_queryset(self) -> Any:
        return super().get_queryset().filter(members=self.user)

    def perform_create(self, serializer: Any) -> None:
        serializer.save().members.add(self.user)


class Handler(UploadHandler):
    """Every table of the test app."""

    tables = {
        "lists": TodoListTable,
        "todos": TodoTable,
        "tags": UploadTable(
            queryset=Tag.objects.all(), serializer_class=TagSerializer, permission_classes=[IsAuthenticated]
        ),
        "counters": UploadTable(
            queryset=Counter.objects.all(), serializer_class=CounterSerializer, permission_classes=[IsAuthenticated]
        ),
    }
