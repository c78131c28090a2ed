"""Shared to-do lists, with a column of every kind that uploads convert."""

from __future__ import annotations

import uuid

from django.conf import settings
from django.contrib.postgres.fields import ArrayField
from django.db import models


class TodoList(models.Model):
    """A list and who may write to it."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4)
    name = models.CharField(max_length=50)
    members = models.ManyToManyField(settings.AUTH_USER_MODEL, related_name="lists")

    class Meta:
        db_table = "lists"


class Todo(models.Model):
    """An item of a list."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    list = models.ForeignKey(TodoList, models.CASCADE, related_name="todos")
    title = models.CharField(max_length=50)
    done = models.BooleanField(default=False)
    due = models.DateTimeField(null=True)
    price = models.DecimalField(max_digits=8, decimal_places=2, null=True)
    priority = models.IntegerField(default=3)
    labels = models.JSONField(null=True)
    sizes = ArrayField(models.IntegerField(), null=True)
    note = models.TextField(blank=True)
    created_by = models.ForeignKey(settings.AUTH_USER_MODEL, models.PROTECT, null=True, editable=False)
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        db_table = "todos"
        constraints = [models.CheckConstraint(condition=~models.Q(note="forbidden"), name="todo_note_allowed")]


class Tag(models.Model):
    """A row whose key is a text, and which keeps its list from being deleted."""

    code = models.CharField(primary_key=True, max_length=20)
    list = models.ForeignKey(TodoList, models.PROTECT, null=True)

    class Meta:
        db_table = "tags"


class Counter(models.Model):
    """A row whose key the server gives."""

    id = models.BigAutoField(primary_key=True)
    value = models.IntegerField()

    class Meta:
        db_table = "counters"
