"""Rule sets in storage: begun, activated, retired, deleted; and the storage's own identity.

A rule set is copied beside the one that is served and takes its place in one transaction. Everything it owns
(sources, definitions, tables, buckets, rows) hangs on its id, so a copy that a crash cut short is deleted whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from secrets import token_hex
from typing import Any, LiteralString

from ..exceptions import ConfigurationError
from ..sync_rules.plan import Plan, TableName
from .connections import Connection

LEADER_LOCK = 0x6C6F63616C73796E  # "localsyn": an advisory lock of the storage's database

DELETE_BATCH = 50_000  # operations a transaction: some 100 ms, so that nothing waits long


@dataclass(frozen=True, slots=True)
class StoredSource:
    """A source as storage knows it: where its slot stands, and of which server."""

    id: int
    alias: str
    slot: str
    lsn: int
    system_identifier: str
    timeline: int


@dataclass(frozen=True, slots=True)
class StoredTable:
    """A source table whose rows were copied. `identity` is "key" (of these columns), "row" or "none"."""

    id: int
    relation_oid: int
    name: TableName
    identity: str
    key_columns: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Generation:
    """A rule set in storage. Definition ids stand in the order of the plan's sources."""

    id: int
    identity: str
    source: StoredSource
    bucket_definitions: tuple[int, ...]
    lookup_definitions: tuple[int, ...]
    tables: tuple[StoredTable, ...]


def try_lead(connection: Connection) -> bool:
    """Become the one replicator of this storage, for as long as the connection lives."""
    row = connection.execute("SELECT pg_try_advisory_lock(%s)", (LEADER_LOCK,)).fetchone()
    return bool(row and row[0])


def prepare_storage(connection: Connection) -> None:
    """Make the checkpoint row, or renew the incarnation where op ids may have been set back.

    A restored or failed-over storage server has another system identifier or timeline; devices may then be ahead of
    it, so every bucket gets a new name and no name ever has two histories.
    """
    if connection.execute("SELECT to_regclass('localsync_checkpoint')").fetchone() == (None,):
        raise ConfigurationError("the tables of django_localsync do not exist; run: manage.py migrate")
    connection.execute(
        """
        INSERT INTO localsync_checkpoint AS checkpoint
               (id, op_id, written_op_id, incarnation, system_identifier, timeline)
        SELECT 1, 0, 0, %s, system_identifier::text, timeline_id FROM pg_control_system(), pg_control_checkpoint()
            ON CONFLICT (id) DO UPDATE
           SET incarnation = excluded.incarnation, system_identifier = excluded.system_identifier,
               timeline = excluded.timeline
         WHERE (checkpoint.system_identifier, checkpoint.timeline)
               IS DISTINCT FROM (excluded.system_identifier, excluded.timeline)
        """,
        (token_hex(4),),
    )


def load_generation(connection: Connection, state: str, plan: Plan | None = None) -> Generation | None:
    """The rule set in this state (None: there is none). With a plan of another identity: None, too."""
    row = connection.execute("SELECT id, identity FROM localsync_rule_set WHERE state = %s", (state,)).fetchone()
    if row is None or (plan is not None and row[1] != plan.identity):
        return None
    rule_set, identity = row
    source = connection.execute(
        "SELECT id, alias, slot, lsn, system_identifier, timeline FROM localsync_source WHERE rule_set_id = %s",
        (rule_set,),
    ).fetchone()
    assert source is not None, "a rule set is made with its source"
    tables = connection.execute(
        "SELECT id, relation_oid, schema, name, identity, key_columns FROM localsync_source_table WHERE source_id = %s",
        (source[0],),
    )
    return Generation(
        rule_set,
        identity,
        StoredSource(*source),
        _definitions(connection, rule_set, "bucket", plan.bucket_sources if plan else ()),
        _definitions(connection, rule_set, "lookup", plan.lookup_sources if plan else ()),
        tuple(StoredTable(row[0], row[1], TableName(row[2], row[3]), row[4], tuple(row[5])) for row in tables),
    )


def begin_generation(
    connection: Connection, plan: Plan, rules: str, alias: str, slot_prefix: str, system: tuple[str, int]
) -> Generation:
    """Record a rule set that is about to be copied, and the name of its slot before the slot exists."""
    with connection.transaction():
        (rule_set,) = _one(
            connection,
            "INSERT INTO localsync_rule_set (identity, rules, state, created_at)"
            " VALUES (%s, %s, 'processing', now()) RETURNING id",
            (plan.identity, rules),
        )
        connection.execute(
            "INSERT INTO localsync_source (rule_set_id, alias, slot, lsn, system_identifier, timeline)"
            " VALUES (%s, %s, %s, 0, %s, %s)",
            (rule_set, alias, f"{slot_prefix}_{rule_set}", *system),
        )
        for kind, sources in (("bucket", plan.bucket_sources), ("lookup", plan.lookup_sources)):
            connection.cursor().executemany(
                "INSERT INTO localsync_definition (rule_set_id, kind, name, identity) VALUES (%s, %s, %s, %s)",
                [(rule_set, kind, source.name, source.identity) for source in sources],
            )
    generation = load_generation(connection, "processing", plan)
    assert generation is not None
    return generation


def add_table(
    connection: Connection, source: int, oid: int, name: TableName, identity: str, key_columns: Sequence[str]
) -> StoredTable:
    """Record a table that is about to be copied."""
    (table,) = _one(
        connection,
        "INSERT INTO localsync_source_table (source_id, relation_oid, schema, name, identity, key_columns)"
        " VALUES (%s, %s, %s, %s, %s, to_jsonb(%s::text[])) RETURNING id",
        (source, oid, name.schema, name.name, identity, list(key_columns)),
    )
    return StoredTable(table, oid, name, identity, tuple(key_columns))


def activate(connection: Connection, generation: Generation) -> None:
    """Serve this rule set from now on. Belongs in the transaction that publishes its first checkpoint."""
    connection.execute("UPDATE localsync_rule_set SET state = 'retired' WHERE state = 'active'")
    connection.execute("UPDATE localsync_rule_set SET state = 'active' WHERE id = %s", (generation.id,))


def abandon_unfinished(connection: Connection) -> None:
    """Retire a rule set whose copy was cut short; a copy by snapshot cannot be resumed."""
    connection.execute("UPDATE localsync_rule_set SET state = 'retired' WHERE state = 'processing'")


def retired_slots(connection: Connection) -> list[tuple[int, str, str]]:
    """Slots of retired rule sets: rule set id, source alias, slot name."""
    query = """
        SELECT rule_set.id, source.alias, source.slot
          FROM localsync_rule_set AS rule_set JOIN localsync_source AS source ON source.rule_set_id = rule_set.id
         WHERE rule_set.state = 'retired'
    """
    return [(row[0], row[1], row[2]) for row in connection.execute(query)]


def delete_some_retired(connection: Connection) -> bool:
    """Delete a batch of what retired rule sets own; answers whether there may be more."""
    with connection.transaction():
        row = connection.execute("SELECT id FROM localsync_rule_set WHERE state = 'retired' LIMIT 1").fetchone()
        if row is None:
            return False
        for statement in _DELETIONS:
            if connection.execute(statement, {"rule_set": row[0], "limit": DELETE_BATCH}).rowcount:
                return True
        return False


_OWN_TABLES = """
    SELECT source_table.id FROM localsync_source_table AS source_table
      JOIN localsync_source AS source ON source.id = source_table.source_id
     WHERE source.rule_set_id = %(rule_set)s
"""
# In this order, a batch at a time: what hangs on a row goes before the row.
_DELETIONS = (
    """
    DELETE FROM localsync_bucket_operation WHERE ctid = ANY(ARRAY(
        SELECT operation.ctid FROM localsync_bucket_operation AS operation
         WHERE operation.bucket_id IN (
               SELECT bucket.id FROM localsync_bucket AS bucket
                 JOIN localsync_definition AS definition ON definition.id = bucket.definition_id
                WHERE definition.rule_set_id = %(rule_set)s)
         LIMIT %(limit)s))
    """,
    f"""
    DELETE FROM localsync_current_row WHERE ctid = ANY(ARRAY(
        SELECT ctid FROM localsync_current_row WHERE table_id IN ({_OWN_TABLES}) LIMIT %(limit)s))
    """,
    """
    DELETE FROM localsync_parameter_lookup WHERE ctid = ANY(ARRAY(
        SELECT ctid FROM localsync_parameter_lookup WHERE definition_id IN (
               SELECT id FROM localsync_definition WHERE rule_set_id = %(rule_set)s)
         LIMIT %(limit)s))
    """,
    """
    DELETE FROM localsync_bucket WHERE ctid = ANY(ARRAY(
        SELECT ctid FROM localsync_bucket WHERE definition_id IN (
               SELECT id FROM localsync_definition WHERE rule_set_id = %(rule_set)s)
         LIMIT %(limit)s))
    """,
    f"DELETE FROM localsync_source_table WHERE id IN ({_OWN_TABLES})",
    "DELETE FROM localsync_definition WHERE rule_set_id = %(rule_set)s",
    "DELETE FROM localsync_source WHERE rule_set_id = %(rule_set)s",
    "DELETE FROM localsync_rule_set WHERE id = %(rule_set)s",
)


def _definitions(connection: Connection, rule_set: int, kind: str, sources: Sequence[Any]) -> tuple[int, ...]:
    rows = connection.execute(
        "SELECT identity, id FROM localsync_definition WHERE rule_set_id = %s AND kind = %s", (rule_set, kind)
    )
    ids = {row[0]: row[1] for row in rows}
    return tuple(ids[source.identity] for source in sources)


def _one(connection: Connection, query: LiteralString, parameters: Sequence[Any]) -> tuple[Any, ...]:
    row = connection.execute(query, parameters).fetchone()
    assert row is not None
    return row
