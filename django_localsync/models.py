"""Bucket storage as Django models; what uploads leave behind is in upload_models.py.

The models define tables and serve the admin; hot paths use the SQL in `storage/`. No foreign key has a database
constraint and operations carry no index but their key: see docs/architecture.md, "Bucket storage". LSNs are
unsigned 64-bit numbers kept in a signed bigint (see pgoutput/lsn.py).
"""

from __future__ import annotations

from django.db import models
from django.db.models.functions import Now
from django.utils import timezone

from .buckets.operation import OpKind
from .protocol.revocations import RevocationKind
from .upload_models import Rejection as Rejection
from .upload_models import UploadedId as UploadedId
from .upload_models import UploadJournal as UploadJournal

# Keys are compared byte by byte: they are looked up, never sorted for people. A language's rules would take up to twice
# as long, and an index that was made by them may be broken by the next release of the C library.
BYTES = "C"


class Checkpoint(models.Model):
    """The one row that says how far storage has come. Locked by whoever gives out op ids (I1)."""

    id = models.SmallIntegerField(primary_key=True, default=1)
    op_id = models.BigIntegerField(default=0, help_text="Readers never look above this (I2).")
    written_op_id = models.BigIntegerField(default=0, help_text="Highest op id given out.")
    withheld = models.BooleanField(
        default=False, help_text="What is written is not shown: a served table is being read again."
    )
    leader = models.BigIntegerField(default=0, help_text="Number of the replicator that may write.")
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


class Compaction(models.Model):
    """The one row that says what compaction has saved since the storage was made."""

    id = models.SmallIntegerField(primary_key=True, default=1)
    rewritten = models.BigIntegerField(default=0, help_text="Buckets that were rewritten.")
    erased = models.BigIntegerField(default=0, help_text="Operations whose row was erased.")
    deleted = models.BigIntegerField(default=0, help_text="Operations that were deleted.")
    bytes = models.BigIntegerField(default=0, help_text="Row data that was erased, uncompressed.")

    class Meta:
        db_table = "localsync_compaction"
        constraints = [models.CheckConstraint(condition=models.Q(id=1), name="localsync_compaction_is_one_row")]


class RuleSet(models.Model):
    """A version of the sync rules: its text, so that every process serves the set that is replicated."""

    class State(models.TextChoices):
        """Where a rule set stands; at most one is processing and one active."""

        PROCESSING = "processing", "being filled"
        ACTIVE = "active", "served"
        RETIRED = "retired", "being deleted"

    identity = models.CharField(max_length=64, help_text="Hash of the compiled plan.")
    rules = models.TextField(help_text="The rules as canonical JSON.")
    format = models.IntegerField(db_default=1, help_text="Of its operations, see sync_rules/formats.py.")
    state = models.CharField(max_length=16, choices=State.choices)
    starts_over = models.BooleanField(
        default=False, help_text="The active set stands still and none of its definitions is kept."
    )
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
    """A replicated database: its slot, how far storage has followed it, and how it fares."""

    alias = models.CharField(max_length=64, unique=True, help_text="Django's alias of the database.")
    slot = models.CharField(max_length=63)
    lsn = models.BigIntegerField(default=0, help_text="End of the last commit that readers see (I3, I7).")
    written_lsn = models.BigIntegerField(default=0, help_text="End of the last commit that storage holds (I3).")
    system_identifier = models.CharField(max_length=32)
    timeline = models.IntegerField()
    prepared_for = models.BigIntegerField(
        default=0, help_text="The rule set whose tables were looked up in this source's catalogue."
    )
    published = models.JSONField(
        default=dict, help_text="By a table's oid: a mark of what is published of it, as of the last look."
    )
    committed_at = models.DateTimeField(null=True, help_text="When the last commit that storage holds was made.")
    error = models.TextField(default="", help_text="What keeps the replicator from following, with the way out.")
    error_at = models.DateTimeField(null=True)

    class Meta:
        db_table = "localsync_source"


class Definition(models.Model):
    """A bucket source or lookup source of a plan, known by the hash of what it computes.

    It outlives the rule set that brought it, for as long as later ones name the same identity.
    """

    class Kind(models.TextChoices):
        """What a definition fills."""

        BUCKET = "bucket", "buckets"
        LOOKUP = "lookup", "parameter index"

    class State(models.TextChoices):
        """Whether readers may see it. A retired one is deleted piece by piece."""

        FILLING = "filling", "being filled"
        SERVED = "served", "served"
        RETIRED = "retired", "being deleted"

    kind = models.CharField(max_length=8, choices=Kind.choices)
    name = models.TextField()
    identity = models.CharField(max_length=64)
    state = models.CharField(max_length=8, choices=State.choices, default=State.FILLING)

    class Meta:
        db_table = "localsync_definition"
        constraints = [
            models.UniqueConstraint(
                fields=["kind", "identity", "state"],
                condition=models.Q(state__in=["filling", "served"]),
                name="localsync_definition_identity",
            )
        ]


class SourceTable(models.Model):
    """A table of a source, as its rows were read. A changed identity is a new row."""

    source = models.ForeignKey(Source, models.CASCADE, db_constraint=False, related_name="tables")
    relation_oid = models.BigIntegerField()
    schema = models.CharField(max_length=63)
    name = models.CharField(max_length=63)
    identity = models.CharField(max_length=8, choices=[("key", "key"), ("row", "whole row"), ("none", "none")])
    key_columns = models.JSONField(help_text="Names of the identity's columns, where it is a key.")
    columns = models.JSONField(default=list, help_text="Name and meaning of each column, as last read.")
    followed = models.BooleanField(default=False, help_text="Whether changes in the stream are applied.")
    retired = models.BooleanField(default=False, help_text="What is remembered of its rows is being deleted.")
    problem = models.TextField(default="", help_text="What cannot be followed, with the way out.")

    class Meta:
        db_table = "localsync_source_table"


class Backfill(models.Model):
    """Rows of a table that are still to be read for some definitions. Gone when it is complete."""

    class Phase(models.TextChoices):
        """How far it is."""

        WAITING = "waiting", "waiting for transactions that began before it"
        SCANNING = "scanning", "reading the table"
        REREADING = "rereading", "reading again what the stream left out"

    table = models.ForeignKey(SourceTable, models.CASCADE, db_constraint=False, related_name="backfills")
    definitions = models.JSONField(help_text="Ids of the definitions to fill.")
    refreshes = models.BooleanField(default=False, help_text="Rows that are stored already are written again.")
    withholds = models.BooleanField(default=False, help_text="Nothing is shown until it is complete (I2).")
    only_with = models.JSONField(
        default=list,
        help_text="Columns that were added: rows where all of them are NULL need no reading. Empty: all do.",
    )
    counts = models.BooleanField(default=False, help_text="A table without a key is read whole, its rows counted.")
    phase = models.CharField(max_length=10, choices=Phase.choices, default=Phase.WAITING)
    file_node = models.BigIntegerField(null=True, help_text="The table's file, which a rewrite replaces.")
    block = models.BigIntegerField(default=0, help_text="The next block to read.")
    blocks = models.BigIntegerField(default=0, help_text="Where the table ended when its reading began.")
    rows = models.BigIntegerField(default=0, help_text="Rows read so far.")
    estimated_rows = models.BigIntegerField(default=0)
    began_at = models.DateTimeField(default=timezone.now)

    class Meta:
        db_table = "localsync_backfill"


class Bucket(models.Model):
    """A bucket with its running totals, which belong to the newest checkpoint.

    Its id begins with its definition's: `definition << 32 | number`, so that a definition's buckets and operations are
    one range. What was written and is withheld waits in the `pending` columns.
    """

    id = models.BigIntegerField(primary_key=True)
    definition = models.ForeignKey(Definition, models.CASCADE, db_constraint=False, db_index=False)
    parameters = models.TextField(db_collation=BYTES, help_text="JSON array.")
    operations = models.BigIntegerField(default=0)
    checksum = models.BigIntegerField(default=0, help_text="Sum of all operations' checksums, modulo 2**32.")
    last_op_id = models.BigIntegerField(default=0)
    pending_operations = models.BigIntegerField(default=0)
    pending_checksum = models.BigIntegerField(default=0)
    pending_last_op_id = models.BigIntegerField(default=0)
    generation = models.IntegerField(db_default=0, help_text="How often it was rewritten, with a new name.")
    compacted_op_id = models.BigIntegerField(db_default=0, help_text="Every operation up to it is compacted.")
    consistent_from = models.BigIntegerField(
        db_default=0, help_text="A checkpoint where the bucket ends before this op id cannot be read any more (I4)."
    )
    compacted_operations = models.BigIntegerField(db_default=0, help_text="How many the last compaction left.")
    compacted_at = models.DateTimeField(db_default=Now(), help_text="When it was compacted last, or made.")

    class Meta:
        db_table = "localsync_bucket"
        constraints = [models.UniqueConstraint(fields=["definition", "parameters"], name="localsync_bucket_name")]
        indexes = [
            models.Index(fields=["id"], condition=models.Q(pending_operations__gt=0), name="localsync_bucket_pending")
        ]


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
    key = models.TextField(db_collation=BYTES, help_text="JSON array.")
    table = models.ForeignKey(SourceTable, models.DO_NOTHING, db_constraint=False, db_index=False)
    row_key = models.TextField(db_collation=BYTES)
    outputs = models.TextField(help_text="JSON array.")
    pending = models.SmallIntegerField(default=0, choices=[(0, "no"), (1, "to be shown"), (2, "to be taken back")])

    class Meta:
        db_table = "localsync_parameter_lookup"
        indexes = [
            models.Index(fields=["definition", "key", "table", "row_key"], name="localsync_lookup_key"),
            models.Index(fields=["id"], condition=models.Q(pending__gt=0), name="localsync_lookup_pending"),
        ]


class CurrentRow(models.Model):
    """What storage remembers of a source row: where it is, and values that a later change may not repeat."""

    pk = models.CompositePrimaryKey("table_id", "key")
    table = models.ForeignKey(SourceTable, models.DO_NOTHING, db_constraint=False, db_index=False)
    key = models.TextField(db_collation=BYTES)
    state = models.TextField(help_text="JSON, see buckets/membership.py.")

    class Meta:
        db_table = "localsync_current_row"


class Revocation(models.Model):
    """Tokens that were given out and are refused; kept for as long as such a token could be valid."""

    key = models.CharField(max_length=32, primary_key=True, help_text="Stands for kind and value.")
    kind = models.CharField(max_length=16, choices=[(kind.value, kind.value) for kind in RevocationKind])
    value = models.TextField(help_text="The user (`sub`), the device, the token (`jti`) or the login (`sid`).")
    revoked_at = models.BigIntegerField(
        db_index=True, help_text="Seconds since the epoch; tokens issued until then are refused."
    )

    class Meta:
        db_table = "localsync_revocation"


class WriteCheckpoint(models.Model):
    """The newest receipt of a client: announced once the source's position has passed `positions` (I7)."""

    pk = models.CompositePrimaryKey("user_key", "client_id")
    user_key = models.TextField(db_collation=BYTES)
    client_id = models.TextField(db_collation=BYTES)
    number = models.BigIntegerField(default=1)
    positions = models.JSONField(help_text="Alias of each source → LSN as a number.")
    requested_at = models.DateTimeField(default=timezone.now)

    class Meta:
        db_table = "localsync_write_checkpoint"
