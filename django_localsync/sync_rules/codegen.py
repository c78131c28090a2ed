"""From expressions to Python source, once per plan and table, since functions of rows run for every replicated row.

What is known of a value's kind decides how little code it needs: a text column against a text constant is `c3 == 'x'`.
Names in the source: implementations of functions by `f<n>`, constants that have no literal by `k<n>`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import Enum
from typing import Any, NamedTuple

from .expressions import Call, Column, Element, Expr, Literal, Metadata, Parameter, Present, Request, SqliteValue
from .functions import IMPLEMENTATIONS
from .values import truth


class ValueKind(Enum):
    """What is known of a value before it is there; each may be NULL."""

    INTEGER = "integer"
    REAL = "real"
    TEXT = "text"
    BLOB = "blob"
    NOT_BLOB = "anything but a blob"
    ANY = "anything"


class Code(NamedTuple):
    """Source of an expression; `simple` if it is a name or constant, so that it may be repeated."""

    source: str
    kind: ValueKind
    simple: bool = False


_INTEGERS = {"=", "!=", "<", ">", "<=", ">=", "between", "in", "among", "&&", "is null", "is true", "is false",
             "length", "instr", "cast as integer", "json_array_length", "json_valid"}  # fmt: skip
_TEXTS = {"||", "upper", "lower", "substring", "hex", "base64", "typeof", "json_keys", "datetime", "cast as text",
          "->", "-> of edition 1", "st_asgeojson", "st_astext"}  # fmt: skip
_REALS = {"cast as real", "st_x", "st_y"}
_BLOBS = {"uuid_blob", "cast as blob"}
_MIRRORED = {"=": "=", "<": ">", ">": "<", "<=": ">=", ">=": "<="}
_NUMBERS = (ValueKind.INTEGER, ValueKind.REAL)


class Writer:
    """Writes source for expressions; a subclass knows what columns, elements and request values are called."""

    def __init__(self) -> None:
        self.names: dict[str, Any] = {"truth": truth}

    def bind(self, value: object, prefix: str) -> str:
        """A name for a value that the source needs."""
        for name, bound in self.names.items():
            if bound is value and name.startswith(prefix):
                return name
        name = f"{prefix}{len(self.names)}"
        self.names[name] = value
        return name

    def column(self, column: Column) -> Code:
        """The value of a column."""
        raise NotImplementedError(f"no columns here: {column}")

    def metadata(self, metadata: Metadata) -> Code:
        """Schema or name of the table."""
        raise NotImplementedError(f"no tables here: {metadata}")

    def element(self, element: Element) -> Code:
        """Key or value of the current element."""
        raise NotImplementedError(f"no elements here: {element}")

    def request(self, request: Request) -> Code:
        """A JSON object of the request."""
        raise NotImplementedError(f"no request here: {request}")

    def special(self, call: Call) -> Code | None:
        """Shorter source for a call, if there is one."""
        return None

    def value(self, expr: Expr) -> Code:
        """Source of an expression's value."""
        match expr:
            case Literal(value):
                return self._literal(value)
            case Column():
                return self.column(expr)
            case Metadata():
                return self.metadata(expr)
            case Element():
                return self.element(expr)
            case Request():
                return self.request(expr)
            case Present():
                return Code("1", ValueKind.INTEGER, simple=True)
            case Parameter(name):
                raise NotImplementedError(f"the bucket parameter {name} has no value in a row")
            case Call():
                return self.special(expr) or self._call(expr)

    def condition(self, expr: Expr) -> str:
        """Source of an expression that Python takes as true exactly if the rules do."""
        match expr:
            case Present():
                return "True"
            case Literal(value):
                return str(truth(value))
            case Call("and" | "or" as name, arguments):
                return "(" + f" {name} ".join(self.condition(argument) for argument in arguments) + ")"
            case Call("not", (argument,)):
                return f"(not {self.condition(argument)})"
            case Call("is null", (argument,)):
                return f"({self.value(argument).source} is None)"
            case Call("=" | "<" | ">" | "<=" | ">=" as name, (left, right)):
                return self._comparison(name, self.value(left), self.value(right), left, right)
            case Call("between", (value, low, high)):
                return self.condition(Call("and", (Call(">=", (value, low)), Call("<=", (value, high)))))
        code = self.value(expr)
        return code.source if code.kind is ValueKind.INTEGER else f"truth({code.source})"

    def _comparison(self, name: str, left: Code, right: Code, left_expr: Expr, right_expr: Expr) -> str:
        if isinstance(left_expr, Literal):
            return (
                self._comparison(_MIRRORED[name], right, left, right_expr, left_expr)
                if not isinstance(right_expr, Literal)
                else self._generic(name, left, right)
            )
        kinds = {left.kind, right.kind}
        same = kinds == {ValueKind.TEXT} if name == "=" else False
        if not (same or kinds <= {*_NUMBERS}) or not (left.simple and right.simple):
            return self._generic(name, left, right)
        operator = "==" if name == "=" else name
        if isinstance(right_expr, Literal):
            guard = "" if name == "=" else f"{left.source} is not None and "
            return f"({guard}{left.source} {operator} {right.source})"
        return f"({left.source} is not None and {right.source} is not None and {left.source} {operator} {right.source})"

    def _generic(self, name: str, left: Code, right: Code) -> str:
        return f"{self.bind(IMPLEMENTATIONS[name], 'f')}({left.source}, {right.source})"

    def _literal(self, value: SqliteValue) -> Code:
        match value:
            case None:
                return Code("None", ValueKind.NOT_BLOB, simple=True)
            case str():
                return Code(repr(value), ValueKind.TEXT, simple=True)
            case bytes():
                return Code(repr(value), ValueKind.BLOB, simple=True)
            case float():
                source = repr(value) if math.isfinite(value) else self.bind(value, "k")
                return Code(source, ValueKind.REAL, simple=True)
            case int():
                return Code(repr(value), ValueKind.INTEGER, simple=True)

    def _call(self, call: Call) -> Code:
        name, arguments = call.name, call.arguments
        match name:
            case "and" | "or" | "not":
                return Code(f"(1 if {self.condition(call)} else 0)", ValueKind.INTEGER)
            case "case":
                return self._case(arguments)
            case "iif":
                return self._case(arguments)
        codes = [self.value(argument) for argument in arguments]
        function = self.bind(IMPLEMENTATIONS[name], "f")
        return Code(f"{function}({', '.join(code.source for code in codes)})", _kind(name, codes))

    def _case(self, arguments: tuple[Expr, ...]) -> Code:
        *branches, default = arguments
        kinds = [self.value(value).kind for value in (*branches[1::2], default)]
        source = self.value(default).source
        for condition, value in reversed(list(zip(branches[::2], branches[1::2], strict=True))):
            source = f"{self.value(value).source} if {self.condition(condition)} else {source}"
        return Code(f"({source})", _common(kinds))


def _kind(name: str, arguments: list[Code]) -> ValueKind:
    for names, kind in (
        (_INTEGERS, ValueKind.INTEGER),
        (_TEXTS, ValueKind.TEXT),
        (_REALS, ValueKind.REAL),
        (_BLOBS, ValueKind.BLOB),
    ):
        if name in names:
            return kind
    return _common([code.kind for code in arguments]) if name == "ifnull" else ValueKind.NOT_BLOB


def _common(kinds: list[ValueKind]) -> ValueKind:
    distinct = {*kinds}
    if len(distinct) == 1:
        return kinds[0]
    return ValueKind.ANY if distinct & {ValueKind.BLOB, ValueKind.ANY} else ValueKind.NOT_BLOB


def may_be_blob(code: Code) -> bool:
    """Whether a value must be tested for being a blob."""
    return code.kind in (ValueKind.BLOB, ValueKind.ANY)


def build(lines: list[str], name: str, names: dict[str, Any]) -> Callable[..., Any]:
    """The function of that name that the source defines. The source is made of checked parts alone."""
    namespace = dict(names)
    exec(compile("\n".join(lines), f"<sync rules: {name}>", "exec"), namespace)
    function: Callable[..., Any] = namespace[name]
    return function
