"""From the syntax of an expression to its intermediate form: names, request values, functions, operators.

What differs between editions and between streams and old-style definitions is decided here.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from typing import Protocol

from .expressions import USER_ID, Call, Column, Expr, Literal, Request, walk
from .functions import FUNCTIONS
from .plan import TablePattern
from .syntax import (
    Case,
    Cast,
    Constant,
    FunctionCall,
    Identifier,
    Items,
    Name,
    Node,
    Operation,
    SqlError,
    Star,
    Subquery,
)

_CASTS = {
    **dict.fromkeys(("text", "varchar", "char", "character", "string"), "cast as text"),
    **dict.fromkeys(("integer", "int", "int2", "int4", "int8", "smallint", "bigint"), "cast as integer"),
    **dict.fromkeys(("real", "float", "float4", "float8", "double", "double precision"), "cast as real"),
    **dict.fromkeys(("numeric", "decimal"), "cast as numeric"),
    **dict.fromkeys(("blob", "bytea"), "cast as blob"),
}
_AGGREGATES = {"count", "sum", "avg", "min", "max", "array_agg", "string_agg", "json_agg", "jsonb_agg"}
_NOT_IN_DEFINITIONS = {"BETWEEN", "&&", "%", "&", "|", "<<", ">>"}


@dataclass(frozen=True, slots=True)
class Language:
    """Which language a query is written in."""

    edition: int
    fixed_json_extract: bool
    streams: bool

    @property
    def request_names(self) -> dict[str, Expr]:
        """The objects that a query may ask of a request, by the function that gives them, e.g. `auth.parameters`."""
        definitions: dict[str, Expr] = {
            "request.jwt": Request("auth"),
            "request.parameters": Request("connection"),
            "request.user_id": USER_ID,
        }
        streams: dict[str, Expr] = {
            "auth.parameters": Request("auth"),
            "connection.parameters": Request("connection"),
            "subscription.parameters": Request("subscription"),
            "auth.user_id": USER_ID,
        }
        if not self.streams:
            return definitions
        return streams if self.edition >= 3 else definitions | streams

    @property
    def member_names(self) -> dict[str, Request]:
        """The objects of which a query may ask one member, e.g. `auth.parameter('x')`."""
        definitions = {"request.parameter": Request("connection")}
        streams = {f"{part}.parameter": Request(part) for part in ("auth", "connection", "subscription")}
        if not self.streams:
            return definitions
        return streams if self.edition >= 3 else definitions | streams


class Scope(Protocol):
    """What names mean in a query."""

    def column(self, name: Name) -> Expr:
        """Resolve a column. Raises SqlError."""

    def row_function(self, call: FunctionCall) -> Expr | None:
        """Resolve `table.schema()` and the like; None if the qualifier is no table. Raises SqlError."""


@dataclass(frozen=True, slots=True)
class ColumnUse:
    """A column that a query names, for checks against the database."""

    table: TablePattern
    column: str
    at: int
    equals_user_id: bool = False
    origin: str | None = None


@dataclass(frozen=True, slots=True)
class QueryWarning:
    """Something in a query that is allowed and probably not meant."""

    message: str
    at: int
    hint: str | None
    origin: str | None


@dataclass(slots=True)
class Notes:
    """What is remarkable in a query. `origin` is the common table expression that is being read, if any: offsets
    are in its text then."""

    columns: list[ColumnUse] = field(default_factory=list)
    warnings: list[QueryWarning] = field(default_factory=list)
    origin: str | None = None
    places: dict[Expr, tuple[int, str | None]] = field(default_factory=dict)

    def column(self, table: TablePattern, column: str, at: int, *, equals_user_id: bool = False) -> None:
        """Note a column."""
        self.columns.append(ColumnUse(table, column, at, equals_user_id, self.origin))

    def error(self, message: str, expr: Expr, hint: str) -> SqlError:
        """An error about an expression, where that was written."""
        at, origin = next((self.places[node] for node in walk(expr) if node in self.places), (0, None))
        return SqlError(message, at, hint, origin)

    def warn(self, message: str, at: int, hint: str | None) -> None:
        """Note a warning."""
        self.warnings.append(QueryWarning(message, at, hint, self.origin))


class Translator:
    """Translates expressions of one query. Subclasses give subqueries a meaning."""

    def __init__(self, language: Language, notes: Notes) -> None:
        self.language, self.notes = language, notes

    def expression(self, node: Node, scope: Scope) -> Expr:
        """The intermediate form of an expression. Raises SqlError for what the language does not know."""
        match node:
            case Constant(value):
                return Literal(self._constant(value))
            case Name():
                self._warn_folded(node.name)
                return scope.column(node)
            case FunctionCall():
                return self._call(node, scope)
            case Operation():
                found = self._operation(node, scope)
                self.notes.places.setdefault(found, (node.at, self.notes.origin))
                return found
            case Case():
                return self._case(node, scope)
            case Cast(operand, type_name, at):
                if type_name.name not in _CASTS:
                    raise SqlError(
                        f"a cast to {type_name.name} is not supported", at, "use text, integer, real, numeric or blob"
                    )
                return Call(_CASTS[type_name.name], (self.expression(operand, scope),))
            case Items():
                raise SqlError("a list is only possible after IN", node.at)
            case Subquery():
                raise SqlError("a subquery is only possible after IN, in WHERE or ON", node.at)
            case Star():
                raise SqlError("* is only possible in a select list", node.at)

    def _constant(self, value: float | str | None) -> int | float | str | None:
        if isinstance(value, int) and (self.language.edition < 3 or not -(1 << 63) <= value < 1 << 63):
            number = float(value)  # editions 1 and 2 read numbers as doubles
            return int(number) if abs(number) < 1 << 63 else number
        return value

    def _operation(self, node: Operation, scope: Scope) -> Expr:
        operator, at = node.operator, node.at
        if not self.language.streams and operator in _NOT_IN_DEFINITIONS:
            raise SqlError(f"{operator} is not supported in bucket definitions", at, "use a stream (edition 3)")
        if operator == "IN":
            return self._in(node, scope)
        operands = tuple(self.expression(operand, scope) for operand in node.operands)
        match operator:
            case "AND" | "OR" | "NOT":
                return Call(operator.lower(), operands)
            case "!=" if self.language.edition >= 3:
                return Call("not", (Call("=", operands),))
            case "=":
                return self.equality(operands[0], operands[1], at)
            case "BETWEEN":
                return Call("between", operands)
            case "->" | "->>" if not self.language.fixed_json_extract:
                return Call(f"{operator} of edition 1", operands)
            case "%" | "&" | "|" | "<<" | ">>":
                return Call("unsupported", (Literal(operator),))
            case _ if operator.startswith("IS NOT "):
                return Call("not", (Call(operator.replace(" NOT", "").lower(), operands),))
            case _ if operator.startswith("IS "):
                return Call(operator.lower(), operands)
            case _:
                return Call(operator, operands)

    def equality(self, left: Expr, right: Expr, at: int) -> Expr:
        """`left = right`; notes a column that is compared with the user's id."""
        for column, other in ((left, right), (right, left)):
            if isinstance(column, Column) and other == USER_ID:
                self.note_user_id(column, at)
        found = Call("=", (left, right))
        self.notes.places.setdefault(found, (at, self.notes.origin))
        return found

    def note_user_id(self, column: Column, at: int) -> None:
        """Remember that a column is compared with the user's id."""

    def _in(self, node: Operation, scope: Scope) -> Expr:
        value, array = node.operands
        left = self.expression(value, scope)
        if isinstance(array, Items):
            return Call("among", (left, *(self.expression(item, scope) for item in array.items)))
        return Call("in", (left, self.expression(array, scope)))

    def _case(self, node: Case, scope: Scope) -> Expr:
        if not self.language.streams:
            raise SqlError("CASE is not supported in bucket definitions", node.at, "use iif(condition, a, b)")
        operand = None if node.operand is None else self.expression(node.operand, scope)
        arguments: list[Expr] = []
        for condition, value in node.branches:
            test = self.expression(condition, scope)
            arguments.append(test if operand is None else Call("=", (operand, test)))
            arguments.append(self.expression(value, scope))
        default = Literal(None) if node.default is None else self.expression(node.default, scope)
        return Call("case", (*arguments, default))

    def _call(self, node: FunctionCall, scope: Scope) -> Expr:
        if node.qualifier is not None:
            return self._qualified_call(node, node.qualifier, scope)
        name = node.name.name
        function = FUNCTIONS.get(name)
        if function is None or self.language.edition not in function.editions:
            raise self._unknown_function(node)
        if not function.least <= len(node.arguments) <= function.most:
            wanted = str(function.least) if function.least == function.most else f"{function.least} to {function.most}"
            raise SqlError(f"{name} takes {wanted} arguments, not {len(node.arguments)}", node.at)
        arguments = tuple(self.expression(argument, scope) for argument in node.arguments)
        if name == "json_extract" and not self.language.fixed_json_extract:
            name = "json_extract of edition 1"
        return Call(name, arguments)

    def _unknown_function(self, node: FunctionCall) -> SqlError:
        name = node.name.name
        if name in _AGGREGATES:
            return SqlError("aggregates are not supported", node.at, "aggregate on the device, or keep a column")
        if name == "json_each":
            return SqlError("json_each is only possible in FROM", node.at)
        known = [item for item, function in FUNCTIONS.items() if self.language.edition in function.editions]
        return SqlError(f"there is no function {name!a}", node.at, suggestion(name, known))

    def _qualified_call(self, node: FunctionCall, qualifier: Identifier, scope: Scope) -> Expr:
        called = f"{qualifier.name}.{node.name.name}"
        whole, member = self.language.request_names, self.language.member_names
        if called in whole:
            if node.arguments:
                raise SqlError(f"{called}() takes no arguments", node.at)
            return whole[called]
        if called in member:
            if len(node.arguments) != 1 or not isinstance(node.arguments[0], Constant):
                raise SqlError(f"{called} takes one name in quotes", node.at, f"{called}('name')")
            return Call("->>", (member[called], Literal(str(node.arguments[0].value))))
        found = scope.row_function(node)
        if found is not None:
            return found
        known = [f"{name}()" for name in (*whole, *member)]
        raise SqlError(f"there is no function {called!a}", node.at, suggestion(f"{called}()", known))

    def _warn_folded(self, name: Identifier) -> None:
        if name.folded:
            hint = "write it in double quotes to keep its case"
            self.notes.warn(f"the name is read as {name.name!a}", name.at, hint)


def suggestion(name: str, known: list[str]) -> str | None:
    """A hint with the nearest known name, if one is near."""
    near = difflib.get_close_matches(name[:100], known, 1)
    return f"did you mean {near[0]}?" if near else None
