"""From a table's columns and the rules to the functions that replicate its rows."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Iterable, Sequence

from ..pgoutput.messages import Relation, ReplicaIdentity
from ..pgoutput.types import PgType
from ..storage.connections import Connection
from ..storage.rule_sets import Feed
from ..storage.sources import StoredTable
from ..sync_rules.plan import Column, TableName
from .changes import Evaluation, ReplicatedTable, evaluation_of_all
from .tables import CatalogColumn, CatalogTable, key_function, read_table, read_tables
from .types import read_types

logger = logging.getLogger(__name__)

Identity = tuple[str, tuple[str, ...]]
"""What identifies a table's rows: "key" and its columns, "row" or "none"."""


class LayoutBuilder:
    """Makes ReplicatedTables for the definitions that are fed; asks the catalogue over its own connection."""

    def __init__(self, reader: Connection, feeds: Sequence[Feed]) -> None:
        self._reader, self.feeds = reader, feeds
        self._errors: Counter[str] = Counter()

    def uses(self, table: TableName) -> bool:
        """Whether anything that is fed reads this table."""
        return any(self._identities(feed, table) for feed in self.feeds)

    def definitions_of(self, table: TableName) -> frozenset[int]:
        """Definitions that read this table."""
        found: set[int] = set()
        for feed in self.feeds:
            identities = self._identities(feed, table)
            found.update(definition for identity, definition in feed.definitions() if identity in identities)
        return frozenset(found)

    def catalog(self) -> list[CatalogTable]:
        """The tables that are used, as they are now."""
        return read_tables(self._reader, self.uses)

    def read_table(self, oid: int) -> CatalogTable | None:
        """A table as the catalogue has it now, or None where it is gone."""
        return read_table(self._reader, oid)

    def used_names(self, table: TableName, names: Iterable[str]) -> frozenset[str]:
        """Of the columns of these names, those that are read."""
        columns = [Column(name, PgType.unknown(0)) for name in names]
        return frozenset(
            columns[position].name
            for feed in self.feeds
            for position in feed.plan.used_columns(table, columns, only=feed.only)
        )

    def missing_names(self, table: TableName, names: Iterable[str]) -> frozenset[str]:
        """What rules name that a table with these columns lacks: they leave its rows out."""
        columns = [Column(name, PgType.unknown(0)) for name in names]
        return frozenset(
            name
            for feed in self.feeds
            for names in feed.plan.missing_columns(table, columns).values()
            for name in names
        )

    def from_catalog(
        self, stored: StoredTable, table: CatalogTable, definitions: Collection[int] | None = None
    ) -> ReplicatedTable:
        """The table in the layout the catalogue shows; with `definitions`, evaluated for these alone."""
        feeds = self.feeds if definitions is None else [feed.restricted_to(definitions) for feed in self.feeds]
        return self._build(stored, table.columns, table.toast_target, feeds)

    def from_relation(self, stored: StoredTable, relation: Relation) -> ReplicatedTable:
        """The table in the layout that a Relation message announces: the one at that place in the stream."""
        now = read_table(self._reader, relation.oid)
        toastable = {column.name: column.toastable for column in now.columns} if now else {}
        columns = [
            CatalogColumn(column.name, column.type_oid, toastable.get(column.name, True)) for column in relation.columns
        ]
        return self._build(stored, columns, now.toast_target if now else 0, self.feeds)

    def _build(
        self, stored: StoredTable, columns: Iterable[CatalogColumn], toast_target: int, feeds: Iterable[Feed]
    ) -> ReplicatedTable:
        columns = tuple(columns)
        typed = self._typed(columns)
        names = [column.name for column in columns]
        toastable = [(position, column.name) for position, column in enumerate(columns) if column.toastable]
        evaluations = [
            self._evaluation(feed, stored.name, typed, toastable)
            for feed in feeds
            if self._identities(feed, stored.name)
        ]
        remembered = {item for evaluation in evaluations for item in evaluation.toastable}
        return ReplicatedTable(
            id=stored.id,
            name=stored.name,
            identity=stored.identity,
            key_of=key_function([names.index(name) for name in stored.key_columns]),
            evaluations=tuple(evaluations),
            evaluate=evaluation_of_all(evaluations),
            toastable=tuple(item for item in toastable if item in remembered),
            toast_target=toast_target,
        )

    def _evaluation(
        self, feed: Feed, table: TableName, columns: Sequence[Column], toastable: Iterable[tuple[int, str]]
    ) -> Evaluation:
        used = feed.plan.used_columns(table, columns, only=feed.only)
        return Evaluation(
            evaluate=feed.plan.row_evaluator(
                table, columns, self._report(table), only=feed.only, numbers=dict(feed.definitions())
            ),
            definitions=feed.definition_ids(),
            toastable=tuple(item for item in toastable if item[0] in used),
        )

    def _identities(self, feed: Feed, table: TableName) -> frozenset[str]:
        identities = feed.plan.sources_of(table)
        return identities if feed.only is None else identities & feed.only

    def _typed(self, columns: Sequence[CatalogColumn]) -> list[Column]:
        types = read_types(self._reader, [column.type_oid for column in columns])
        return [Column(column.name, types[column.type_oid]) for column in columns]

    def _report(self, table: TableName):  # type: ignore[no-untyped-def]
        def on_error(definition: str, message: str) -> None:
            self._errors[definition] += 1
            count = self._errors[definition]
            if count & (count - 1) == 0:  # the first, second, fourth, …: a bad column must not fill the log
                logger.warning("%s left out a row of %s: %s (%d so far)", definition, table, message, count)

        return on_error


def identity_at(relation: Relation, stored: StoredTable, now: CatalogTable | None) -> Identity:
    """What identifies rows at this place in the stream.

    Under FULL every column is flagged, so the key that the catalogue has now, or else the stored one, is taken while
    its columns exist.
    """
    match relation.replica_identity:
        case ReplicaIdentity.DEFAULT | ReplicaIdentity.INDEX:
            key = tuple(column.name for column in relation.columns if column.is_key)
            if key and set(key) == set(stored.key_columns):
                return stored.identity, stored.key_columns  # the message has them in the table's order
            return ("key", key) if key else ("none", ())
        case ReplicaIdentity.FULL:
            names = {column.name for column in relation.columns}
            known = stored if now is None or now.identity == "none" else now
            if known.identity == "key" and names.issuperset(known.key_columns):
                return "key", known.key_columns
            return "row", ()
        case _:
            return "none", ()
