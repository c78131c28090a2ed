"""A library: relations in all directions, keys and columns under other names, soft deletion, inheritance, schemas."""

from __future__ import annotations

import uuid

from django.contrib.auth.models import User
from django.db import models


class Person(models.Model):
    """Somebody whose key is a UUID."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4)
    name = models.CharField(max_length=20)
    number = models.IntegerField(unique=True)

    REQUIRED_FIELDS: list[str] = []
    USERNAME_FIELD = "name"
    is_anonymous, is_authenticated = False, True


class Account(models.Model):
    """Somebody whose key is a text."""

    handle = models.CharField(primary_key=True, max_length=20)
    name = models.CharField(max_length=20, null=True)

    REQUIRED_FIELDS: list[str] = []
    USERNAME_FIELD = "handle"
    is_anonymous, is_authenticated = False, True


class Team(models.Model):
    """A team, which may be part of another one. Its key is a number."""

    name = models.CharField(max_length=20)
    owner = models.ForeignKey(User, models.CASCADE, null=True, related_name="teams_owned")
    parent = models.ForeignKey("self", models.CASCADE, null=True, related_name="parts")
    members = models.ManyToManyField(User, through="Membership", related_name="teams")
    people = models.ManyToManyField(Person, related_name="teams")
    accounts = models.ManyToManyField(Account, related_name="teams", db_table="Team Accounts")
    archived = models.BooleanField(default=False)


class Membership(models.Model):
    """A member of a team, in some role."""

    team = models.ForeignKey(Team, models.CASCADE, related_name="memberships")
    user = models.ForeignKey(User, models.CASCADE, related_name="memberships")
    role = models.CharField(max_length=10)
    rank = models.IntegerField(null=True)


class Label(models.Model):
    """A label, whose key is a text under another name than `id`."""

    slug = models.CharField(primary_key=True, max_length=20, db_column="Label Slug")
    team = models.ForeignKey(Team, models.CASCADE, null=True, related_name="labels")
    weight = models.IntegerField(default=0)


class NotDeleted(models.Manager["Document"]):
    """Rows that are not deleted."""

    def get_queryset(self) -> models.QuerySet[Document]:
        return super().get_queryset().filter(deleted_at__isnull=True)


class Document(models.Model):
    """A row with columns of every type."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4)
    team = models.ForeignKey(Team, models.CASCADE, related_name="documents")
    author = models.ForeignKey(User, models.SET_NULL, null=True, related_name="documents")
    person = models.ForeignKey(Person, models.SET_NULL, null=True, related_name="documents")
    by_number = models.ForeignKey(
        Person, models.SET_NULL, null=True, to_field="number", related_name="numbered", db_column="person_number"
    )
    account = models.ForeignKey(Account, models.SET_NULL, null=True, related_name="documents")
    loose = models.ForeignKey(Team, models.DO_NOTHING, null=True, related_name="+", db_constraint=False)
    labels = models.ManyToManyField(Label, related_name="documents")
    title = models.CharField(max_length=30)
    subtitle = models.TextField(null=True, db_column="Sub Title")
    stars = models.IntegerField(null=True)
    views = models.BigIntegerField(default=0)
    ratio = models.FloatField(null=True)
    price = models.DecimalField(max_digits=8, decimal_places=2, null=True)
    due = models.DateField(null=True)
    seen = models.DateTimeField(null=True)
    at = models.TimeField(null=True)
    token = models.UUIDField(null=True)
    public = models.BooleanField(default=False)
    flag = models.BooleanField(null=True)
    meta = models.JSONField(null=True)
    cover = models.BinaryField(null=True)
    deleted_at = models.DateTimeField(null=True)

    objects = NotDeleted()
    everything = models.Manager()


class Draft(Document):
    """The same rows, another model."""

    class Meta:
        proxy = True


class Report(Document):
    """A document with a table of its own besides."""

    pages = models.IntegerField(null=True)
    reviewer = models.ForeignKey(User, models.SET_NULL, null=True, related_name="reports")


class Crate(models.Model):
    """A row in another schema. Django's flush does not find such a table, so it may not have constraints."""

    number = models.IntegerField(primary_key=True, db_column="Crate No")
    document = models.ForeignKey(Document, models.CASCADE, null=True, related_name="crates", db_constraint=False)
    keeper = models.ForeignKey(User, models.SET_NULL, null=True, related_name="crates", db_constraint=False)
    weight = models.IntegerField(null=True)

    class Meta:
        db_table = '"warehouse"."crate"'


class Secret(models.Model):
    """Columns that should not be on devices."""

    owner = models.ForeignKey(User, models.CASCADE)
    password = models.CharField(max_length=20)
    api_token = models.CharField(max_length=20)
    note = models.CharField(max_length=20)


class Pair(models.Model):
    """A row without a key of one column."""

    pk = models.CompositePrimaryKey("left", "right")
    left = models.IntegerField()
    right = models.IntegerField()
    double = models.GeneratedField(expression=models.F("left") * 2, output_field=models.IntegerField(), db_persist=True)
