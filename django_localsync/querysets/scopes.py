"""The tables of one query of Django, and what its columns are."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from django.db import models
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models.expressions import Col
from django.db.models.sql import Query
from django.db.models.sql.constants import LOUTER
from django.db.models.sql.datastructures import BaseTable, Join

from .errors import NotExpressible
from .joins import Joined
from .kinds import Typed, kind_of
from .terms import Column

if TYPE_CHECKING:
    AnyField = models.Field[Any, Any]
else:
    AnyField = models.Field


class Scope:
    """The tables of a query. Inside a subquery, those `around` it are known too.

    Tables get names of their own (`name_of`), since Django uses an alias again in another subquery.
    Raises NotExpressible for what no stream can do.
    """

    def __init__(self, query: Query, connection: BaseDatabaseWrapper, around: Scope | None = None) -> None:
        _refuse_clauses(query, is_subquery=around is not None)
        self.query, self.connection, self.around = query.clone(), connection, around
        self.numbers: Iterator[int] = around.numbers if around else itertools.count()
        if not any(self.query.alias_refcount[alias] for alias in self.query.alias_map):
            self.query.get_initial_alias()
        self._names = {
            alias: f"{alias}.{next(self.numbers)}" for alias in self.query.alias_map if self.query.alias_refcount[alias]
        }
        bases = [alias for alias in self._names if not isinstance(self._join(alias), Join)]
        if len(bases) != 1:
            raise NotExpressible("it reads several tables side by side", "join them by a relation, or use Exists")
        self.base = self._names[bases[0]]

    def _join(self, alias: str) -> BaseTable | Join:
        return self.query.alias_map[alias]

    @property
    def table(self) -> str:
        """The table (`db_table`) whose rows the query gives."""
        return next(self._join(alias).table_name for alias, name in self._names.items() if name == self.base)

    def joined(self) -> list[Joined]:
        """The joined tables, each after those that it hangs on."""
        return [self._joined(alias, join) for alias in self._names if isinstance(join := self._join(alias), Join)]

    def _joined(self, alias: str, join: Join) -> Joined:
        path, field = self.path(alias), cast_any(join.join_field)
        if join.filtered_relation is not None:
            raise NotExpressible("FilteredRelation is not known to streams", "use Exists(…)", path)
        if field.get_extra_restriction(alias, join.parent_alias) is not None:
            hint = "use Exists(…) with the content type's id and object id"
            raise NotExpressible("it is a generic relation, which no key of the database tells", hint, path)
        pairs = field.get_joining_fields()
        if len(pairs) != 1:
            raise NotExpressible("it joins by several columns", "use Exists(…) with one equality for each", path)
        ((outer, key),) = pairs
        return Joined(
            self._names[alias],
            join.table_name,
            self._column(alias, key),
            self._column(join.parent_alias, outer),
            self._is_optional(alias),
            path,
        )

    def _is_optional(self, alias: str) -> bool:
        join = self._join(alias)
        return isinstance(join, Join) and join.join_type == LOUTER

    def _column(self, alias: str, field: AnyField) -> Column:
        # What the database enforces, only the tables that Django makes are known to have.
        nullable = field.null or not field.model._meta.managed
        optional = self._is_optional(alias)
        return Column(self._names[alias], str(field.column), nullable, enforced_reference(field), optional)

    def column(self, col: Col) -> Typed:
        """A column of this query or of one around it."""
        if col.alias in self._names:
            field = col.target
            if self._join(col.alias).table_name != field.model._meta.db_table:
                hint = "state it in another way, for instance with Exists(…)"
                raise NotExpressible("Django takes a column of another table for it, which Postgres refuses too", hint)
            if getattr(field, "generated", False):
                hint = "write its expression instead; in a select list leave it out with defer()"
                raise NotExpressible(
                    "generated columns are not replicated", hint, f"{field.model.__name__}.{field.name}"
                )
            return Typed(self._column(col.alias, field), *_kind(field, self.connection))
        if self.around is None:
            raise NotExpressible(f"the table {col.alias} is not part of the query", "join it by a relation")
        return self.around.column(col)

    def describe(self, col: Col) -> str:
        """A column as it is written in a lookup."""
        if col.alias not in self._names and self.around is not None:
            return f"OuterRef({self.around.describe(col)!r})"
        return "__".join(part for part in (self.path(col.alias), col.target.name) if part)

    def path(self, alias: str) -> str:
        """The relations that lead to a table, as they are written in a lookup; empty for the query's own table."""
        join = self.query.alias_map.get(alias)
        if not isinstance(join, Join):
            return ""
        return "__".join(part for part in (self.path(join.parent_alias), _step(cast_any(join.join_field))) if part)


def _step(field: Any) -> str:
    """One relation as it is written in a lookup; the table of a many-to-many relation is written with the relation."""
    if not field.name.endswith("+"):
        return "" if field.model._meta.auto_created else str(field.name)
    return str(field.name.removesuffix("+").partition("_")[2])


def cast_any(value: object) -> Any:
    """For attributes that the type stubs of Django do not have."""
    return value


def _kind(field: AnyField, connection: BaseDatabaseWrapper) -> tuple[Any, Any, Any]:
    kind, why_not = kind_of(field, connection)
    return kind, field, why_not


def enforced_reference(field: AnyField) -> tuple[str, str] | None:
    """Table and column that a foreign key points to, if the database guarantees that the row is there."""
    if not isinstance(field, models.ForeignKey) or not cast_any(field).db_constraint or not field.model._meta.managed:
        return None
    target = field.target_field
    return target.model._meta.db_table, str(target.column)


def _refuse_clauses(query: Query, *, is_subquery: bool) -> None:
    refused = [
        (query.combinator, f"{(query.combinator or '').upper()} is not supported", "give several QuerySets to Stream"),
        (query.group_by is not None, "aggregates are not supported", "aggregate on the device, or keep a column"),
        (query.distinct_fields, "distinct() of columns is not supported", "sync all rows"),
        (query.extra or query.extra_tables or query.extra_order_by, "extra() is not supported", "use expressions"),
        (_is_cut(query, is_subquery), "a slice is not supported", "sync all rows, and sort and limit on the device"),
    ]
    for applies, reason, hint in refused:
        if applies:
            raise NotExpressible(reason, hint)


def _is_cut(query: Query, is_subquery: bool) -> bool:
    """Exists() limits its query to one row, which changes nothing."""
    return bool(query.low_mark) or (query.high_mark is not None and not (is_subquery and query.high_mark == 1))
