"""What a compiled plan gives away without any row: mistakes that need at most the types of columns to be seen.

Pure: the system checks bring the tables, and make messages of the findings.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ..sync_rules.codegen import Code, ValueKind, Writer
from ..sync_rules.compiled import CompiledPlan, CompiledSource
from ..sync_rules.compiler import CompiledRules
from ..sync_rules.expressions import USER_ID, Call, Column, Element, Expr, Metadata, Request, walk
from ..sync_rules.plan import RequestParameters, TableName, TablePattern
from ..sync_rules.queries import CompiledDefinition, Every, Operand, Output, Querier, RowQuery
from ..sync_rules.request_values import RequestValues, request_function
from .describe import describe

Tables = Mapping[TableName, Mapping[str, str]]
"""Tables with their columns: name → Postgres's name of the type (a domain's base)."""

_ORDERINGS = ("<", ">", "<=", ">=")
_KINDS = {
    **dict.fromkeys(("bool", "int2", "int4", "int8", "oid"), ValueKind.INTEGER),
    **dict.fromkeys(("float4", "float8"), ValueKind.REAL),
    **dict.fromkeys(
        ("text", "varchar", "bpchar", "name", "uuid", "numeric", "date", "time", "timetz", "timestamp", "timestamptz",
         "interval", "json", "jsonb", "inet", "cidr", "macaddr", "xml", "money"),
        ValueKind.TEXT,
    ),
    "bytea": ValueKind.BLOB,
}  # fmt: skip
_GROUPS = {
    ValueKind.INTEGER: "a number",
    ValueKind.REAL: "a number",
    ValueKind.TEXT: "text",
    ValueKind.BLOB: "a blob",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """A mistake of a definition."""

    definition: str
    message: str
    hint: str | None


def unrestricted(rules: CompiledRules) -> Iterator[Finding]:
    """Definitions that give whole tables to everybody."""
    for definition in rules.plan.definitions:
        if definition.name in rules.accepting:
            continue
        for querier in definition.queriers:
            if not (querier.steps or querier.parameters) and all(map(_is_always_true, querier.filters)):
                whole = [str(query.table) for query in rules.plan.buckets[querier.bucket].queries if not query.filters]
                if whole:
                    yield Finding(
                        definition.name,
                        f"everybody who has a token gets all rows of {', '.join(dict.fromkeys(whole))}",
                        "restrict the rows, for instance by auth.user_id(), or set "
                        "accept_potentially_dangerous_queries: true if anyone may see them",
                    )


def without_id(plan: CompiledPlan, tables: Tables) -> Iterator[Finding]:
    """Queries whose rows have no column `id`, so that they all have the same empty one on the device."""
    for definition, source in _sources(plan):
        for query, table, columns in _matching(source, tables):
            if query.selection is None:
                continue
            items = query.selection.items
            named = {item.name for item in items if not isinstance(item, Every)}
            if "id" not in named and not ("id" in columns and any(isinstance(item, Every) for item in items)):
                example = next((name for name in columns if name != "id"), "key")
                yield Finding(
                    definition.name,
                    f"the rows of {table} have no column id, so that a device keeps only one of them",
                    f"select what tells them apart, for instance {example} AS id",
                )


def repeated_names(plan: CompiledPlan) -> Iterator[Finding]:
    """Columns of one name in a select list; tables that have one name on the device."""
    places: dict[str, dict[TablePattern, str]] = defaultdict(dict)
    for definition, source in _sources(plan):
        for query in source.queries:
            if query.selection is None:
                continue
            names = [item.name for item in query.selection.items if not isinstance(item, Every)]
            for name in dict.fromkeys(name for name in names if names.count(name) > 1):
                message = f"the query of {query.table} has two columns {name!r}, of which the last counts"
                yield Finding(definition.name, message, "name them differently")
            if query.table.is_exact:
                places[query.selection.row_type or query.table.name].setdefault(query.table, definition.name)
    for row_type, patterns in places.items():
        if len(patterns) > 1:
            listed = " and ".join(map(str, patterns))
            message = f"{listed} are one table {row_type!r} on the device, where equal ids overwrite each other"
            yield Finding([*patterns.values()][-1], message, "give one of them an alias: FROM … AS name")


def hopeless(rules: CompiledRules, tables: Tables) -> Iterator[Finding]:
    """Comparisons of values of different kinds: never equal, and always in the same order."""
    yield from dict.fromkeys(_hopeless(rules, tables))


def _hopeless(rules: CompiledRules, tables: Tables) -> Iterator[Finding]:
    known = {(item.definition, item.column) for item in rules.columns if item.equals_user_id}  # E005 names them
    plan = rules.plan
    for definition, source in [*_sources(plan), *_indexes(plan)]:
        for query, table, columns in _matching(source, tables):
            yield from _among_values(definition, query.expressions, f" of {table}", columns)
    for definition in plan.definitions:
        for querier in definition.queriers:
            yield from _among_values(definition, querier.expressions, "", {})
            yield from _between(plan, definition, querier, tables, known)


def _among_values(
    definition: CompiledDefinition, expressions: Sequence[Expr], of_table: str, columns: Mapping[str, str]
) -> Iterator[Finding]:
    """Comparisons inside expressions of one party."""
    kinds = _Kinds(columns)
    for expr in (node for part in expressions for node in walk(part) if isinstance(node, Call)):
        match expr:
            case Call("=" | "<" | ">" | "<=" | ">=" as name, (left, right)):
                pairs = [(left, right)]
            case Call("among", (left, *items)) if items:
                name, pairs = "=", [(left, item) for item in items]
            case _:
                continue
        groups = [(kinds.group(one), kinds.group(other)) for one, other in pairs]
        if all(one and other and one != other for one, other in groups):
            (left, right), (one, other) = pairs[0], groups[0]
            never = "always in the same order" if name in _ORDERINGS else "never equal"
            message = f"{describe(expr)}{of_table}: {describe(left)} is {one}, {describe(right)} is {other}: {never}"
            hint = _cast_hint(left, other) if isinstance(left, Column) else _cast_hint(right, one)
            yield Finding(definition.name, message, hint)


def _between(
    plan: CompiledPlan,
    definition: CompiledDefinition,
    querier: Querier,
    tables: Tables,
    known: set[tuple[str, str]],
) -> Iterator[Finding]:
    """What a querier's values are compared with: columns of the tables that it looks up, and of the synced ones."""
    asked = [(plan.buckets[querier.bucket], querier.parameters)]
    asked += [(plan.indexes[step.source], step.key) for step in querier.steps]
    for source, positions in asked:
        for query, table, columns in _matching(source, tables):
            kinds = _Kinds(columns)
            for value, position in zip(query.values, positions, strict=True):
                if isinstance(value, Column) and (definition.name, value.name) in known:
                    continue
                for operand in position:
                    one = kinds.group(value)
                    for name, other in _groups_of(plan, querier, operand, tables):
                        if one and other and one != other:
                            message = f"{describe(value)} of {table} is {one}, {name} is {other}: never equal"
                            yield Finding(definition.name, message, _cast_hint(value, other))


def _groups_of(
    plan: CompiledPlan, querier: Querier, operand: Operand, tables: Tables
) -> Iterator[tuple[str, str | None]]:
    """What an operand is called, and which kind its values have."""
    if not isinstance(operand, Output):
        yield describe(operand), _Kinds({}).group(operand)
        return
    for query, table, columns in _matching(plan.indexes[querier.steps[operand.step].source], tables):
        expr = query.outputs[operand.index]
        yield f"{describe(expr)} of {table}", _Kinds(columns).group(expr)


def _cast_hint(expr: Expr, other: str | None) -> str:
    if not isinstance(expr, Column):
        return "compare values of one kind"
    return f"write CAST({expr.name} AS {'REAL' if other == 'a number' else 'TEXT'}), or the other side as its kind"


def _is_always_true(condition: Expr) -> bool:
    """Whether a condition on the request holds for every request, because it asks nothing of it."""
    if any(isinstance(node, Request | Element) for node in walk(condition)):
        return False
    return bool(request_function(condition, condition=True).run(RequestValues(RequestParameters({}), {}), ()))


class _Kinds(Writer):
    """What is known of the kind of an expression's values before there are any."""

    def __init__(self, columns: Mapping[str, str]) -> None:
        super().__init__()
        self._columns = columns

    def group(self, expr: Expr) -> str | None:
        """A number, text or a blob; None if that is not known, or NULL."""
        return _GROUPS.get(self.value(expr).kind)

    def column(self, column: Column) -> Code:
        kind = _KINDS.get(self._columns.get(column.name, ""), ValueKind.ANY)
        return Code("", kind, simple=True)

    def metadata(self, metadata: Metadata) -> Code:
        return Code("", ValueKind.TEXT, simple=True)

    def element(self, element: Element) -> Code:
        return Code("", ValueKind.NOT_BLOB, simple=True)

    def request(self, request: Request) -> Code:
        return Code("", ValueKind.TEXT, simple=True)

    def special(self, call: Call) -> Code | None:
        """The user's id is text in our own tokens."""
        return Code("", ValueKind.TEXT, simple=True) if call == USER_ID else None


def _sources(plan: CompiledPlan) -> list[tuple[CompiledDefinition, CompiledSource]]:
    """Each definition with its bucket sources."""
    return [
        (definition, plan.buckets[number])
        for definition in plan.definitions
        for number in dict.fromkeys(querier.bucket for querier in definition.queriers)
    ]


def _indexes(plan: CompiledPlan) -> list[tuple[CompiledDefinition, CompiledSource]]:
    """Each definition with the indexes that it asks."""
    return [
        (definition, plan.indexes[number])
        for definition in plan.definitions
        for number in dict.fromkeys(step.source for querier in definition.queriers for step in querier.steps)
    ]


def _matching(source: CompiledSource, tables: Tables) -> Iterator[tuple[RowQuery, TableName, Mapping[str, str]]]:
    for query in source.queries:
        for table, columns in tables.items():
            if query.table.matches(table):
                yield query, table, columns
