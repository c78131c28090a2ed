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


class Project(models.Model):
    """A row whose key the server gives, and that other rows refer to."""

    id = models.BigAutoField(primary_key=True)
    name = models.CharField(max_length=50)
    owner = models.ForeignKey(settings.AUTH_USER_MODEL, models.CASCADE, null=True)

    class Meta:
        db_table = "projects"


class Task(models.Model):
    """A row that refers to rows whose keys the server gives."""

    id = models.BigAutoField(primary_key=True)
    project = models.ForeignKey(Project, models.CASCADE, related_name="tasks")
    title = models.CharField(max_length=50)
    blockers = models.ManyToManyField("self", symmetrical=False, blank=True)

    class Meta:
        db_table = "tasks"


class Seat(models.Model):
    """A row whose key has two columns."""

    pk = models.CompositePrimaryKey("list_id", "number")
    list = models.ForeignKey(TodoList, models.CASCADE)
    number = models.IntegerField()
    label = models.CharField(max_length=50, blank=True)

    class Meta:
        db_table = "seats"


class Document(models.Model):
    """A row that several people edit."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    title = models.CharField(max_length=50)
    body = models.TextField(blank=True)
    owner = models.ForeignKey(settings.AUTH_USER_MODEL, models.CASCADE, null=True)
    version = models.IntegerField(default=1)
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        db_table = "documents"


class Specimen(models.Model):
    """A column of every kind."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    flag = models.BooleanField(null=True)
    small = models.SmallIntegerField(null=True)
    big = models.BigIntegerField(null=True)
    real = models.FloatField(null=True)
    amount = models.DecimalField(max_digits=20, decimal_places=6, null=True)
    day = models.DateField(null=True)
    moment = models.DateTimeField(null=True)
    hour = models.TimeField(null=True)
    span = models.DurationField(null=True)
    token = models.UUIDField(null=True)
    address = models.GenericIPAddressField(null=True)
    text = models.TextField(null=True, blank=True)
    blob = models.BinaryField(null=True, editable=True)
    document = models.JSONField(null=True)
    texts = ArrayField(models.TextField(blank=True), null=True, blank=True)
    numbers = ArrayField(models.IntegerField(), null=True, blank=True)
    amounts = ArrayField(models.DecimalField(max_digits=10, decimal_places=2), null=True, blank=True)
    days = ArrayField(models.DateField(), null=True, blank=True)
    moments = ArrayField(models.DateTimeField(), null=True, blank=True)
    flags = ArrayField(models.BooleanField(), null=True, blank=True)

    class Meta:
        db_table = "specimens"
