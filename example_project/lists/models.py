"""Lists, who shares them, and what is to do.

Keys are UUIDs, because devices make rows while they are offline.
"""

from __future__ import annotations

import uuid

from django.conf import settings
from django.db import models


class List(models.Model):
    """A to-do list."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    name = models.CharField(max_length=100)
    owner = models.ForeignKey(settings.AUTH_USER_MODEL, models.CASCADE, related_name="owned_lists")
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        db_table = "lists"

    def __str__(self) -> str:
        return self.name


class Membership(models.Model):
    """A user who sees a list and may change it."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    list = models.ForeignKey(List, models.CASCADE, related_name="memberships")
    user = models.ForeignKey(settings.AUTH_USER_MODEL, models.CASCADE, related_name="memberships")
    username = models.CharField(max_length=150, help_text="What the other members see of the user.")

    class Meta:
        db_table = "memberships"
        constraints = [models.UniqueConstraint(fields=["list", "user"], name="memberships_once")]

    def __str__(self) -> str:
        return f"{self.username} in {self.list}"


class Todo(models.Model):
    """Something to do. `created_by` and the times are the server's to set."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    list = models.ForeignKey(List, models.CASCADE, related_name="todos")
    title = models.CharField(max_length=200)
    done = models.BooleanField(default=False)
    created_by = models.ForeignKey(settings.AUTH_USER_MODEL, models.SET_NULL, null=True, related_name="todos")
    created_at = models.DateTimeField(auto_now_add=True)
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        db_table = "todos"

    def __str__(self) -> str:
        return self.title
