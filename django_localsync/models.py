"""Bucket storage as Django models; what uploads leave behind is in upload_models.py.

The models define tables and serve the admin; hot paths use the SQL in `storage/`. No foreign key has a database
constraint and operations carry no index but their key: see docs/architecture.md, "Bucket storage". LSNs are
unsigned 64-bit numbers kept in a signed bigint (see pgoutput/lsn.py).
"""

from __future__ import annotations

from django.db import models
from django.utils import timezone

from .buckets.operation import OpKind
from .upload_models import Rejection as Rejection
from .upload_models import UploadedId as UploadedId
from .upload_models import UploadJournal as UploadJournal


class Checkpoint(models.Model):
    """The one row that says how far storage has come. Locked by whoever gives out op ids (I1)."""

    id = models.SmallIntegerField(primary_key=True, default=1)
    op_id = models.BigIntegerField(default=0, help_text="Readers never look above this (I2).")
    written_op_id = models.BigIntegerField(default=0, help_text="Highest op id given out.")
    incarnation = models.CharField(
        max_length=32, help_text="Begins every bucket's name; made anew when op ids may have been set back."
    )
    system_identifier = models.CharField(max_length=32, help_text="Of the server that holds this storage.")
    timeline = models.IntegerField(help_text="Of the server that holds this storage.")

    class Meta:
        db_table = "localsync_checkpoint"
        constraints = [
            models.CheckConstraint(condition=models.Q(id=1), name="localsync_checkpoint_is_one_row"),
            models.CheckConstraint(
                condition=models.Q(op_id__lte=models.F("written_op_id")),
                name="localsync_checkpoint_is_written",
            ),
        ]


class RuleSet(models.Model):
    """A version of the sync rules: its text, so that every process serves the set that is replicated."""

    class State(models.TextChoices):
        """Where a rule set stands; at most one is processing and one active."""

        PROCESSING = "processing", "being copied"
        ACTIVE = "active", "served"
        RETIRED = "retired", "being deleted"

    identity = models.CharField(max_length=64, help_text="Hash of the compiled plan.")
    rules = models.TextField(help_text="The rules as canonical JSON.")
    state = models.CharField(max_length=16, choices=State.choices)
    created_at = models.DateTimeField(default=timezone.now)

    class Meta:
        db_table = "localsync_rule_set"
        constraints = [
            models.UniqueConstraint(
                fields=["state"],
                condition=models.Q(state__in=["processing", "active"]),
                name="localsync_rule_set_state",
            )
        ]


class Source(models.Model):
    """A replicated database, as one rule set reads it: its slot and how far storage has followed."""

    rule_set = models.ForeignKey(RuleSet, models.CASCADE, db_constraint=False, related_name="sources")
    alias = models.CharField(max_length=64, help_text="Django's alias of the database.")
    slot = models.CharField(max_length=63)
    lsn = models.BigIntegerField(default=0, help_text="End of the last commit that storage holds (I3).")
    system_identifier = models.CharField(max_length=32)
    timeline = models.IntegerField()

    class Meta:
        db_table = "localsync_source"
        constraints = [models.UniqueConstraint(fields=["rule_set", "alias"], name="localsync_source_alias")]


class Definition(models.Model):
    """A bucket source or lookup source of a plan, known by the hash of what it computes."""

    class Kind(models.TextChoices):
        """What a definition fills."""

        BUCKET = "bucket", "buckets"
        LOOKUP = "lookup", "parameter index"

    rule_set = models.ForeignKey(RuleSet, models.CASCADE, db_constraint=False, related_name="definitions")
    kind = models.CharField(max_length=8, choices=Kind.choices)
    name = models.TextField()
    identity = models.CharField(max_length=64)

    class Meta:
        db_table = "localsync_definition"
        constraints = [
            models.UniqueConstraint(fields=["rule_set", "kind", "identity"], name="localsync_definition_identity")
        ]


class SourceTable(models.Model):
    """A table of a source, as its rows were read. A changed layout or identity is a new row."""

    source = models.ForeignKey(Source, models.CASCADE, db_constraint=False, related_name="tables")
    relation_oid = models.BigIntegerField()
    schema = models.CharField(max_length=63)
    name = models.CharField(max_length=63)
    identity = models.CharField(max_length=8, choices=[("key", "key"), ("row", "whole row"), ("none", "none")])
    key_columns = models.JSONField(help_text="Names of the identity's columns, where it is a key.")

    class Meta:
        db_table = "localsync_source_table"


class Bucket(models.Model):
    """A bucket with its running totals, which belong to the newest checkpoint."""

    definition = models.ForeignKey(Definition, models.CASCADE, db_constraint=False, db_index=False)
    parameters = models.TextField(help_text="JSON array.")
    operations = models.BigIntegerField(default=0)
    checksum = models.BigIntegerField(default=0, help_text="Sum of all operations' checksums, modulo 2**32.")
    last_op_id = models.BigIntegerField(default=0)

    class Meta:
        db_table = "localsync_bucket"
        constraints = [models.UniqueConstraint(fields=["definition", "parameters"], name="localsync_bucket_name")]


class BucketOperation(models.Model):
    """One operation of a bucket's history."""

    pk = models.CompositePrimaryKey("bucket_id", "op_id")
    bucket = models.ForeignKey(Bucket, models.DO_NOTHING, db_constraint=False, db_index=False)
    op_id = models.BigIntegerField()
    kind = models.SmallIntegerField(choices=[(kind.value, kind.name) for kind in OpKind])
    checksum = models.BigIntegerField()
    row_type = models.TextField(null=True)
    row_id = models.TextField(null=True)
    subkey = models.TextField(null=True)
    data = models.TextField(null=True)

    class Meta:
        db_table = "localsync_bucket_operation"


class ParameterLookup(models.Model):
    """An entry of the parameter index, at the newest checkpoint."""

    definition = models.ForeignKey(Definition, models.DO_NOTHING, db_constraint=False, db_index=False)
    key = models.TextField(help_text="JSON array.")
    table = models.ForeignKey(SourceTable, models.DO_NOTHING, db_constraint=False, db_index=False)
    row_key = models.TextField()
    outputs = models.TextField(help_text="JSON array.")

    class Meta:
        db_table = "localsync_parameter_lookup"
        indexes = [models.Index(fields=["definition", "key", "table", "row_key"], name="localsync_lookup_key")]


class CurrentRow(models.Model):
    """What storage remembers of a source row: where it is, and values that a later change may not repeat."""

    pk = models.CompositePrimaryKey("table_id", "key")
    table = models.ForeignKey(SourceTable, models.DO_NOTHING, db_constraint=False, db_index=False)
    key = models.TextField()
    state = models.TextField(help_text="JSON, see buckets/membership.py.")

    class Meta:
        db_table = "localsync_current_row"


class WriteCheckpoint(models.Model):
    """The newest receipt of a client: announced once the source's position has passed `positions` (I7)."""

    pk = models.CompositePrimaryKey("user_key", "client_id")
    user_key = models.TextField()
    client_id = models.TextField()
    number = models.BigIntegerField(default=1)
    positions = models.JSONField(help_text="Alias of each source → LSN as a number.")
    requested_at = models.DateTimeField(default=timezone.now)

    class Meta:
        db_table = "localsync_write_checkpoint"
