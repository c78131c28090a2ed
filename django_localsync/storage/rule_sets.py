"""Rule sets and definitions in storage: filled beside what is served, swapped in one transaction, deleted later.

A definition is known by its identity, the hash of what it computes. A rule set that names an identity which is served
already keeps that definition with its buckets, so clients download nothing again; only new ones are filled. A rule
set that *starts over* (there was none, or the source's history broke off) keeps none, and the active one stands
still meanwhile: nothing is shown until the swap (I2).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, LiteralString

from ..sync_rules.plan import BucketSource, LookupSource, Plan
from .connections import Connection

DELETE_BATCH = 50_000  # rows a transaction: some 100 ms, so that nothing waits long


@dataclass(frozen=True, slots=True)
class StoredRuleSet:
    """A rule set of storage."""

    id: int
    identity: str
    rules: str
    starts_over: bool
    format: int


@dataclass(frozen=True, slots=True)
class Feed:
    """Definitions that changed rows are evaluated for, all of one plan; `only` names a part of its identities.

    The ids stand in the order of the plan's sources; a source outside `only` has the id 0.
    """

    plan: Plan
    bucket_definitions: tuple[int, ...]
    lookup_definitions: tuple[int, ...]
    only: frozenset[str] | None

    def definition_ids(self) -> frozenset[int]:
        """Every definition that is fed."""
        only = self.only
        return frozenset(number for identity, number in self.definitions() if only is None or identity in only) - {0}

    def receipts(self) -> frozenset[int]:
        """Definitions whose entries are write checkpoints."""
        sources = zip(self.plan.lookup_sources, self.lookup_definitions, strict=True)
        return frozenset(definition for source, definition in sources if source.gives_receipts) - {0}

    def restricted_to(self, definitions: Iterable[int]) -> Feed:
        """The part of this feed that feeds some definitions."""
        wanted = frozenset(definitions)
        only = frozenset(identity for identity, definition in self.definitions() if definition in wanted)
        return Feed(self.plan, self.bucket_definitions, self.lookup_definitions, only)

    def definitions(self) -> Iterator[tuple[str, int]]:
        """Identity and definition of every source."""
        for buckets, definition in zip(self.plan.bucket_sources, self.bucket_definitions, strict=True):
            yield buckets.identity, definition
        for lookups, definition in zip(self.plan.lookup_sources, self.lookup_definitions, strict=True):
            yield lookups.identity, definition


def load_rule_set(connection: Connection, state: str) -> StoredRuleSet | None:
    """The rule set that is "active" or "processing", or None."""
    row = connection.execute(
        "SELECT id, identity, rules, starts_over, format FROM localsync_rule_set WHERE state = %s", (state,)
    ).fetchone()
    return StoredRuleSet(*row) if row else None


def load_feeds(connection: Connection, plan: Plan, active_plan: Plan | None) -> tuple[Feed, ...]:
    """What changed rows must be evaluated for now.

    `plan` is that of the newest rule set (processing, or active where none is), `active_plan` that of an active one
    which goes on being served while the newest is filled.
    """
    living = _living(connection)
    newest = _feed(plan, {**living["served"], **living["filling"]}, None)
    if active_plan is None:
        return (newest,)
    kept = {source.identity for _, source in _sources(plan)}
    rest = frozenset(source.identity for _, source in _sources(active_plan)) - kept
    return (newest, _feed(active_plan, living["served"], rest)) if rest else (newest,)


def begin_rule_set(connection: Connection, plan: Plan, rules: str, *, starts_over: bool) -> None:
    """Make a rule set the one that is being filled, in place of any other. Belongs in a transaction.

    `starts_over`: nothing that is stored now can be continued. What an unfinished rule set has filled so far is kept
    where this one needs it too.
    """
    unfinished = load_rule_set(connection, "processing")
    if starts_over:
        connection.execute("UPDATE localsync_definition SET state = 'retired' WHERE state = 'filling'")
    starts_over = starts_over or (unfinished is not None and unfinished.starts_over)
    connection.execute("UPDATE localsync_rule_set SET state = 'retired' WHERE state = 'processing'")
    connection.execute(
        "INSERT INTO localsync_rule_set (identity, rules, format, state, starts_over, created_at)"
        " VALUES (%s, %s, %s, 'processing', %s, now())",
        (plan.identity, rules, plan.format, starts_over),
    )
    known = _living(connection)
    usable = known["filling"] if starts_over else {**known["served"], **known["filling"]}
    for kind, source in _sources(plan):
        if (kind, source.identity) not in usable:
            connection.execute(
                "INSERT INTO localsync_definition (kind, name, identity, state) VALUES (%s, %s, %s, 'filling')"
                " ON CONFLICT DO NOTHING",
                (kind, source.name, source.identity),
            )
    _retire(connection, "filling", keep=plan)
    if starts_over:
        connection.execute("UPDATE localsync_checkpoint SET withheld = true")


def cancel_unfinished(connection: Connection) -> None:
    """Give up the rule set that is being filled; the active one stays. Belongs in a transaction."""
    connection.execute("UPDATE localsync_rule_set SET state = 'retired' WHERE state = 'processing'")
    connection.execute("UPDATE localsync_definition SET state = 'retired' WHERE state = 'filling'")


def filling_definitions(connection: Connection) -> frozenset[int]:
    """Definitions that are being filled."""
    return frozenset(
        row[0] for row in connection.execute("SELECT id FROM localsync_definition WHERE state = 'filling'")
    )


def is_filled(connection: Connection, aliases: Sequence[str]) -> bool:
    """Whether everything of the processing rule set was read, from every source."""
    row = connection.execute(
        """
        SELECT (SELECT count(*) FROM localsync_source
                 WHERE alias = ANY(%s) AND prepared_for = rule_set.id) = cardinality(%s::text[])
               AND NOT EXISTS (SELECT FROM localsync_backfill WHERE NOT refreshes)
          FROM localsync_rule_set AS rule_set WHERE state = 'processing'
        """,
        (list(aliases), list(aliases)),
    ).fetchone()
    return bool(row and row[0])


def activate(connection: Connection, plan: Plan) -> None:
    """Serve the processing rule set, of this plan, from now on. Belongs in the transaction that publishes it."""
    connection.execute(
        "UPDATE localsync_definition AS old SET state = 'retired' FROM localsync_definition AS new"
        " WHERE old.state = 'served' AND new.state = 'filling'"
        "   AND (new.kind, new.identity) = (old.kind, old.identity)"
    )
    _retire(connection, "served", keep=plan)
    connection.execute("UPDATE localsync_definition SET state = 'served' WHERE state = 'filling'")
    connection.execute("UPDATE localsync_rule_set SET state = 'retired' WHERE state = 'active'")
    connection.execute("UPDATE localsync_rule_set SET state = 'active' WHERE state = 'processing'")


def living_definitions(connection: Connection) -> frozenset[int]:
    """Definitions that are served or being filled."""
    return frozenset(
        row[0] for row in connection.execute("SELECT id FROM localsync_definition WHERE state <> 'retired'")
    )


def definition_names(connection: Connection) -> Mapping[int, str]:
    """Names of all definitions, for messages."""
    return dict(connection.execute("SELECT id, name FROM localsync_definition").fetchall())


def delete_some_retired(connection: Connection) -> bool:
    """Delete a batch of what retired definitions and tables own; answers whether there may be more."""
    with connection.transaction():
        for owner, statements in _DELETIONS:
            row = connection.execute(owner).fetchone()
            if row is None:
                continue
            for statement in statements:
                if connection.execute(statement, {"owner": row[0], "limit": DELETE_BATCH}).rowcount:
                    return True
        return False


# In this order, a batch at a time: what hangs on a row goes before the row. Each deletion answers rows, or goes on.
_DELETIONS: tuple[tuple[LiteralString, tuple[LiteralString, ...]], ...] = (
    (
        "SELECT id FROM localsync_definition WHERE state = 'retired' LIMIT 1",
        (
            """
            DELETE FROM localsync_bucket_operation WHERE ctid = ANY(ARRAY(
                SELECT ctid FROM localsync_bucket_operation
                 WHERE bucket_id >= %(owner)s::bigint << 32 AND bucket_id < (%(owner)s::bigint + 1) << 32
                 LIMIT %(limit)s))
            """,
            """
            DELETE FROM localsync_bucket WHERE ctid = ANY(ARRAY(
                SELECT ctid FROM localsync_bucket
                 WHERE id >= %(owner)s::bigint << 32 AND id < (%(owner)s::bigint + 1) << 32
                 LIMIT %(limit)s))
            """,
            """
            DELETE FROM localsync_parameter_lookup WHERE ctid = ANY(ARRAY(
                SELECT ctid FROM localsync_parameter_lookup WHERE definition_id = %(owner)s LIMIT %(limit)s))
            """,
            "DELETE FROM localsync_definition WHERE id = %(owner)s",
        ),
    ),
    (
        "SELECT id FROM localsync_source_table WHERE retired LIMIT 1",
        (
            """
            DELETE FROM localsync_current_row WHERE ctid = ANY(ARRAY(
                SELECT ctid FROM localsync_current_row WHERE table_id = %(owner)s LIMIT %(limit)s))
            """,
            "DELETE FROM localsync_backfill WHERE table_id = %(owner)s",
            "DELETE FROM localsync_source_table WHERE id = %(owner)s",
        ),
    ),
    (
        "SELECT id FROM localsync_rule_set WHERE state = 'retired' LIMIT 1",
        ("DELETE FROM localsync_rule_set WHERE id = %(owner)s",),
    ),
)


def _sources(plan: Plan) -> list[tuple[str, BucketSource | LookupSource]]:
    return [
        *(("bucket", source) for source in plan.bucket_sources),
        *(("lookup", source) for source in plan.lookup_sources),
    ]


def _living(connection: Connection) -> dict[str, dict[tuple[str, str], int]]:
    """State → (kind, identity) → definition."""
    found: dict[str, dict[tuple[str, str], int]] = {"filling": {}, "served": {}}
    rows: Iterable[tuple[Any, ...]] = connection.execute(
        "SELECT state, kind, identity, id FROM localsync_definition WHERE state IN ('filling', 'served')"
    )
    for state, kind, identity, definition in rows:
        found[state][kind, identity] = definition
    return found


def _feed(plan: Plan, ids: Mapping[tuple[str, str], int], only: frozenset[str] | None) -> Feed:
    def pick(kind: str, source: BucketSource | LookupSource) -> int:
        return ids[kind, source.identity] if only is None or source.identity in only else 0

    return Feed(
        plan,
        tuple(pick("bucket", source) for source in plan.bucket_sources),
        tuple(pick("lookup", source) for source in plan.lookup_sources),
        only,
    )


def _retire(connection: Connection, state: str, *, keep: Plan) -> None:
    kept = [source.identity for _, source in _sources(keep)]
    connection.execute(
        "UPDATE localsync_definition SET state = 'retired' WHERE state = %s AND NOT (identity = ANY(%s))",
        (state, kept),
    )
