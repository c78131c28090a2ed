"""The query of a stream, read into one condition over all its tables, and what is selected.

Common table expressions and subqueries are put in where they are used, each use with tables of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .expressions import (
    REQUEST,
    Call,
    Column,
    Element,
    Expr,
    Metadata,
    MetadataKind,
    Present,
    conjunction,
    parties,
    renumbered,
    walk,
)
from .plan import TablePattern
from .queries import Every, Item, Selection
from .syntax import FunctionCall, Identifier, Items, Name, Node, Operation, Select, Source, SqlError, Star, Subquery
from .syntax import Output as SelectOutput
from .tables import table_pattern
from .translate import Language, Notes, Translator, suggestion

MAX_TABLES = 50
"""Most tables one query may read, each use counted."""

MAX_ARRAYS = 20
"""Most arrays one query may go through."""


@dataclass(frozen=True, slots=True)
class _Table:
    number: int
    pattern: TablePattern


@dataclass(frozen=True, slots=True)
class _Derived:
    """The columns of a subquery or common table expression."""

    columns: Mapping[str, Expr]


_Relation = _Table | _Derived | Element


@dataclass(slots=True)
class _Scope:
    """The relations of one SELECT by name; a subquery sees those around it."""

    query: StreamQuery
    around: _Scope | None = None
    relations: dict[str, _Relation] = field(default_factory=dict)

    def add(self, name: str, relation: _Relation, at: int) -> None:
        if name in self.relations:
            raise SqlError(f"the name {name!a} stands twice in FROM", at, "give one of them an alias")
        self.relations[name] = relation

    def column(self, name: Name) -> Expr:
        if name.qualifier is not None:
            return self.query.column_of(self.relation(name.qualifier), name)
        if len(self.relations) != 1:
            if not self.relations and self.around is not None:
                return self.around.column(name)
            raise SqlError(
                f"the column {name.name.name!a} is ambiguous" if self.relations else "there is no FROM",
                name.at,
                "write table.column",
            )
        (relation,) = self.relations.values()
        return self.query.column_of(relation, name)

    def relation(self, qualifier: Identifier) -> _Relation:
        scope: _Scope | None = self
        known: list[str] = []
        while scope is not None:
            if qualifier.name in scope.relations:
                return scope.relations[qualifier.name]
            known.extend(scope.relations)
            scope = scope.around
        raise SqlError(f"there is no table {qualifier.name!a} in FROM", qualifier.at, suggestion(qualifier.name, known))

    def row_function(self, call: FunctionCall) -> Expr | None:
        kinds: dict[str, MetadataKind] = {"schema": "schema", "table_name": "table", "table_suffix": "suffix"}
        if call.qualifier is None or call.name.name not in kinds:
            return None
        relation = self.relation(call.qualifier)
        if not isinstance(relation, _Table) or call.arguments:
            raise SqlError(f"{call.name.name}() is for tables, without arguments", call.at)
        return Metadata(relation.number, kinds[call.name.name])


class StreamQuery(Translator):
    """Compiles one query with everything put in."""

    def __init__(self, language: Language, notes: Notes, tables: Mapping[str, Select], default_schema: str) -> None:
        super().__init__(language, notes)
        self.patterns: list[TablePattern] = []
        self.used: set[str] = set()
        self._expressions, self._default_schema = tables, default_schema
        self._iterations = 0
        self._open: list[str] = []

    # FROM

    def sources(self, select: Select, around: _Scope | None) -> tuple[_Scope, list[Expr]]:
        """The scope of a SELECT, and all its conditions: ON, WHERE, and those of what it reads."""
        scope, conditions = _Scope(self, around), list[Expr]()
        for source in select.sources:
            name, relation, found = self._source(source, scope)
            scope.add(name, relation, source.at)
            conditions.extend(found)
        for source in select.sources:
            if source.condition is not None:
                conditions.append(self.predicate(source.condition, scope))
        if select.where is not None:
            conditions.append(self.predicate(select.where, scope))
        return scope, conditions

    def _source(self, source: Source, scope: _Scope) -> tuple[str, _Relation, list[Expr]]:
        alias = source.alias.name if source.alias else None
        if source.columns and not self._has_named_columns(source):
            raise SqlError("only the columns of a subquery can be renamed here", source.columns[0].at)
        match source.relation:
            case FunctionCall() as call:
                element = self._each(call, scope)
                return alias or call.name.name, element, [Present(element)]
            case Subquery(select):
                if alias is None:
                    raise SqlError("a subquery in FROM needs a name", source.at, "(SELECT …) AS name")
                derived, conditions = self._derived(select, scope, source.columns)
                return alias, derived, conditions
            case names:
                if self._is_common(names):
                    derived, conditions = self._common(names[0], source.columns)
                    return alias or names[0].name, derived, conditions
                table = self._table(names)
                return alias or names[-1].name, table, [Present(table.number)]

    def _has_named_columns(self, source: Source) -> bool:
        """Whether it is a subquery or a common table expression."""
        relation = source.relation
        return isinstance(relation, Subquery) or (isinstance(relation, tuple) and self._is_common(relation))

    def _is_common(self, names: tuple[Identifier, ...]) -> bool:
        """Whether it is a common table expression; inside of itself its name is that of a table."""
        return len(names) == 1 and names[0].name in self._expressions and names[0].name not in self._open

    def _table(self, names: tuple[Identifier, ...]) -> _Table:
        for name in names:
            self._warn_folded(name)
        if len(self.patterns) == MAX_TABLES:
            raise SqlError(f"the query reads more than {MAX_TABLES} tables", names[0].at)
        self.patterns.append(table_pattern(names, self._default_schema))
        return _Table(len(self.patterns) - 1, self.patterns[-1])

    def _each(self, call: FunctionCall, scope: _Scope) -> Element:
        if call.name.name != "json_each" or call.qualifier is not None:
            raise SqlError(f"{call.name.name!a} is not possible in FROM", call.at, "tables and json_each(…) are")
        if len(call.arguments) != 1:
            raise SqlError("json_each takes 1 argument", call.at)
        return self._iterate(self.expression(call.arguments[0], scope), call.at)

    def _iterate(self, array: Expr, at: int) -> Element:
        if len(parties(array)) > 1:
            raise SqlError("json_each cannot mix columns with another table or with the request", at)
        self._iterations += 1
        if self._iterations > MAX_ARRAYS:
            raise SqlError(f"the query goes through more than {MAX_ARRAYS} arrays", at, "split it into several queries")
        return Element(array, self._iterations, "value")

    def _derived(
        self, select: Select, around: _Scope | None, names: tuple[Identifier, ...]
    ) -> tuple[_Derived, list[Expr]]:
        scope, conditions = self.sources(select, around)
        columns: dict[str, Expr] = {}
        for position, output in enumerate(select.outputs):
            if isinstance(output.expression, Star):
                raise SqlError(
                    "* is only possible in the select list of a stream", output.expression.at, "name the columns"
                )
            # An expression without name is known by its text, which nothing but `IN (SELECT …)` can ask for.
            name = names[position].name if position < len(names) else output.name or output.text
            columns[name] = self.expression(output.expression, scope)
        if len(names) > len(select.outputs):
            raise SqlError("more names than columns", names[0].at)
        return _Derived(columns), conditions

    def _common(self, name: Identifier, names: tuple[Identifier, ...] = ()) -> tuple[_Derived, list[Expr]]:
        """A use of a common table expression."""
        self.used.add(name.name)
        self._open.append(name.name)
        outer, self.notes.origin = self.notes.origin, name.name
        try:
            derived = self._derived(self._expressions[name.name], None, names)
        except SqlError as error:
            error.origin = error.origin or name.name
            raise
        self.notes.origin = outer
        self._open.pop()
        return derived

    def column_of(self, relation: _Relation, name: Name) -> Expr:
        """A column of a relation."""
        column = name.name.name
        match relation:
            case _Table(number, pattern):
                self.notes.column(pattern, column, name.at)
                return Column(number, column)
            case Element(argument, number):
                if column == "value" or column == "key":
                    return Element(argument, number, "value" if column == "value" else "key")
                raise SqlError("json_each has the columns key and value", name.at)
            case _Derived(columns):
                if column in columns:
                    return columns[column]
                raise SqlError(f"there is no column {column!a}", name.at, suggestion(column, list(columns)))

    # Conditions

    def predicate(self, node: Node, scope: _Scope, negated: bool = False) -> Expr:
        """A condition, in which IN may have a subquery or an array of another party."""
        if isinstance(node, Operation):
            match node.operator:
                case "AND" | "OR":
                    return Call(
                        node.operator.lower(), tuple(self.predicate(item, scope, negated) for item in node.operands)
                    )
                case "NOT":
                    return Call("not", (self.predicate(node.operands[0], scope, not negated),))
                case "IN" if not isinstance(node.operands[1], Items):
                    return self._membership(node, scope, negated)
                case "&&":
                    return self._overlap(node, scope, negated)
        return self.expression(node, scope)

    def _membership(self, node: Operation, scope: _Scope, negated: bool) -> Expr:
        value = self.expression(node.operands[0], scope)
        array = self._array(node.operands[1], scope)
        if not isinstance(array, tuple) and len(parties(value) | parties(array)) <= 1:
            return Call("in", (value, array))
        if negated:
            raise SqlError(
                "NOT IN is only supported with an array of the same row", node.at, "state what is to be synced instead"
            )
        element, conditions = self._joined(array, node.at)
        return conjunction((self.equality(value, element, node.at), *conditions))

    def _overlap(self, node: Operation, scope: _Scope, negated: bool) -> Expr:
        left, right = (self._array(operand, scope) for operand in node.operands)
        if not isinstance(left, tuple) and not isinstance(right, tuple) and len(parties(left) | parties(right)) <= 1:
            return Call("&&", (left, right))
        if negated:
            raise SqlError("NOT && is only supported with arrays of the same row", node.at)
        first, conditions = self._joined(left, node.at)
        second, more = self._joined(right, node.at)
        return conjunction((self.equality(first, second, node.at), *conditions, *more))

    def _array(self, node: Node, scope: _Scope) -> Expr | tuple[Expr, list[Expr]]:
        """The right side of IN: an array, or the column of a subquery with its conditions."""
        if isinstance(node, Subquery):
            return self._one_column(*self._derived(node.select, scope, ()), node.at)
        if isinstance(node, Name) and node.qualifier is None and self._is_common((node.name,)):
            return self._one_column(*self._common(node.name), node.at)
        return self.expression(node, scope)

    def _one_column(self, derived: _Derived, conditions: list[Expr], at: int) -> tuple[Expr, list[Expr]]:
        if len(derived.columns) != 1:
            raise SqlError("a subquery after IN must have exactly one column", at)
        (column,) = derived.columns.values()
        return column, conditions

    def _joined(self, array: Expr | tuple[Expr, list[Expr]], at: int) -> tuple[Expr, list[Expr]]:
        return array if isinstance(array, tuple) else (self._iterate(array, at), [])

    def note_user_id(self, column: Column, at: int) -> None:
        """Remember that a column is compared with the user's id."""
        self.notes.column(self.patterns[column.source], column.name, at, equals_user_id=True)

    # SELECT

    def selection(self, select: Select, scope: _Scope) -> tuple[int, Selection]:
        """The number of the synced table, and what is synced of it."""
        items: list[Every | Item] = []
        tables: dict[int, int] = {}
        for output in select.outputs:
            found = self._items(output, scope, tables)
            self._warn_overwritten(items, found, output.expression.at)
            items.extend(found)
        if not items:
            raise SqlError("the select list is empty", select.at, "name the columns to sync")
        if (
            not tables
            and len(scope.relations) == 1
            and isinstance(only := next(iter(scope.relations.values())), _Table)
        ):
            tables[only.number] = select.at
        if len(tables) != 1:
            raise SqlError(
                "the select list must be of exactly one table",
                list(tables.values())[-1] if tables else select.at,
                "write one query for each table",
            )
        (table,) = tables
        return table, Selection(renumbered_items(items), self._row_type(select, scope, table), named_first=False)

    def _items(self, output: SelectOutput, scope: _Scope, tables: dict[int, int]) -> list[Every | Item]:
        at = output.expression.at
        if isinstance(output.expression, Star):
            match self._starred(output.expression, scope):
                case _Table(number):
                    tables[number] = at
                    return [Every()]
                case _Derived(columns):
                    return [self._item(name, value, at, tables) for name, value in columns.items()]
        if output.name is None:
            self.notes.warn(f"the column is named {output.text[:100]!a}", at, "write … AS name")
        return [self._item(output.name or output.text, self.expression(output.expression, scope), at, tables)]

    def _item(self, name: str, expression: Expr, at: int, tables: dict[int, int]) -> Item:
        for node in walk(expression):
            if isinstance(node, Element):
                raise SqlError("elements of json_each cannot be selected", at)
        involved = parties(expression)
        if REQUEST in involved:
            raise SqlError(
                "values of the request cannot be selected: buckets are shared between users",
                at,
                "the device knows them itself",
            )
        tables.update(dict.fromkeys(involved, at))
        return Item(name, expression)

    def _starred(self, star: Star, scope: _Scope) -> _Table | _Derived:
        if star.qualifier is None and len(scope.relations) != 1:
            raise SqlError("* is of several tables", star.at, "write table.*")
        relation = scope.relation(star.qualifier) if star.qualifier else next(iter(scope.relations.values()))
        if isinstance(relation, Element):
            raise SqlError("* is only possible for tables", star.at, "name the columns")
        return relation

    def _warn_overwritten(self, items: list[Every | Item], found: list[Every | Item], at: int) -> None:
        if Every() in found and any(isinstance(earlier, Item) for earlier in items):
            hint = "write *, … AS id: of two columns of one name the last counts"
            self.notes.warn("a column of * may replace one named before it", at, hint)

    def _row_type(self, select: Select, scope: _Scope, table: int) -> str | None:
        for source in select.sources:
            if source.alias is None:
                continue
            relation = scope.relations.get(source.alias.name)
            if isinstance(relation, _Table) and relation.number == table:
                if len(select.sources) > 1:
                    message = f"the rows are synced as the table {source.alias.name!a}"
                    hint = "the alias of the synced table is its name on the device"
                    self.notes.warn(message, source.alias.at, hint)
                return source.alias.name
        return None


def renumbered_items(items: list[Every | Item]) -> tuple[Every | Item, ...]:
    """Items whose expressions know their table as number 0."""
    return tuple(item if isinstance(item, Every) else Item(item.name, renumbered((item.value,))[0]) for item in items)
