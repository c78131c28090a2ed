"""From a table's columns and the plan to the functions that replicate its rows."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping

from ..exceptions import ReplicationError
from ..pgoutput.messages import Relation
from ..storage.connections import Connection
from ..storage.generations import StoredTable
from ..sync_rules.plan import Column, Plan
from .changes import ReplicatedTable
from .tables import CatalogColumn, CatalogTable, key_function, read_tables
from .types import read_types

logger = logging.getLogger(__name__)


class CopyNeeded(ReplicationError):
    """What is stored cannot be continued; a new copy, beside the one that is served, heals it."""

    code = "copy_needed"


class LayoutBuilder:
    """Makes ReplicatedTables; asks the catalogue over its own connection."""

    def __init__(self, reader: Connection, plan: Plan) -> None:
        self._reader, self._plan = reader, plan
        self._errors: Counter[str] = Counter()

    def catalog(self) -> list[CatalogTable]:
        """The tables that the rules use, as they are now."""
        return read_tables(self._reader, self._plan.uses)

    def from_catalog(self, stored: StoredTable, table: CatalogTable) -> ReplicatedTable:
        """The table in the layout the catalogue shows."""
        return self._build(stored, table.columns, table.toast_target)

    def from_relation(self, stored: StoredTable, relation: Relation) -> ReplicatedTable:
        """The table in the layout of a Relation message. Raises CopyNeeded where its rows' identity changed."""
        now = {table.oid: table for table in self.catalog()}.get(relation.oid)
        problem = identity_problem(stored, now)
        if problem:
            raise CopyNeeded(problem)
        assert now is not None, "identity_problem names a table that is gone"
        toastable = {column.name: column.toastable for column in now.columns}
        columns = [
            CatalogColumn(column.name, column.type_oid, toastable.get(column.name, True)) for column in relation.columns
        ]
        return self._build(stored, columns, now.toast_target)

    def _build(self, stored: StoredTable, columns: Iterable[CatalogColumn], toast_target: int) -> ReplicatedTable:
        columns = tuple(columns)
        types = read_types(self._reader, [column.type_oid for column in columns])
        typed = [Column(column.name, types[column.type_oid]) for column in columns]
        names = [column.name for column in columns]
        missing = set(stored.key_columns) - set(names)
        if missing:
            raise CopyNeeded(f"{stored.name}: identity column {missing.pop()!r} is gone")
        used = self._plan.used_columns(stored.name, typed)
        return ReplicatedTable(
            id=stored.id,
            name=stored.name,
            identity=stored.identity,
            key_of=key_function([names.index(name) for name in stored.key_columns]),
            toastable=tuple(
                (position, column.name)
                for position, column in enumerate(columns)
                if column.toastable and position in used
            ),
            toast_target=toast_target,
            evaluate=self._plan.row_evaluator(stored.name, typed, self._report(stored)),
        )

    def _report(self, stored: StoredTable):  # type: ignore[no-untyped-def]
        def on_error(definition: str, message: str) -> None:
            self._errors[definition] += 1
            count = self._errors[definition]
            if count & (count - 1) == 0:  # the first, second, fourth, …: a bad column must not fill the log
                logger.warning("%s left out a row of %s: %s (%d so far)", definition, stored.name, message, count)

        return on_error


def identity_problem(stored: StoredTable, now: CatalogTable | None) -> str | None:
    """Why rows stored under a table's former identity cannot be followed, or None."""
    if now is None or now.name != stored.name:
        return f"{stored.name} was dropped or renamed"
    if (now.identity, now.key_columns) != (stored.identity, stored.key_columns):
        return f"the replica identity of {stored.name} changed"
    return None


def tables_problem(stored: Iterable[StoredTable], catalog: Iterable[CatalogTable]) -> str | None:
    """Why the stored tables cannot be continued with what the catalogue shows, or None."""
    now: Mapping[int, CatalogTable] = {table.oid: table for table in catalog}
    known = {table.relation_oid for table in stored}
    for table in stored:
        problem = identity_problem(table, now.get(table.relation_oid))
        if problem:
            return problem
    new = [table for oid, table in now.items() if oid not in known]
    return f"{new[0].name} is new" if new else None
