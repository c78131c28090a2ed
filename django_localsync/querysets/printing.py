"""Values and conditions as the SQL of streams, edition 3, written as a person would."""

from __future__ import annotations

import re
from functools import lru_cache

from ..sync_rules.sql import parse_select
from ..sync_rules.syntax import Name, SqlError
from .errors import NotExpressible
from .terms import (
    REQUEST,
    TRUE,
    AllOf,
    Among,
    AnyOf,
    Choice,
    Column,
    Compare,
    Condition,
    Constant,
    Function,
    IsNotNull,
    IsNull,
    RequestValue,
    Some,
    Value,
    Within,
    all_of,
    conjuncts,
    mentions,
)

_OPERATORS = ("+", "-", "*", "/", "||")
_QUALIFIED = re.compile(r'"((?:[^"]|"")+)"\."((?:[^"]|"")+)"')


def table_name(db_table: str) -> str:
    """A model's table without its schema: the row type on devices."""
    return _names(db_table)[-1]


def _names(db_table: str) -> tuple[str, ...]:
    """Schema, if it is given as in '"warehouse"."crates"', and name. Raises NotExpressible."""
    match = _QUALIFIED.fullmatch(db_table)
    names = tuple(part.replace('""', '"') for part in match.groups()) if match else (db_table.strip('"'),)
    if any("%" in name for name in names) or (len(names) > 1 and "." in names[0]):
        raise NotExpressible(f"the name {db_table} has another meaning in streams", "rename the table or its schema")
    return names


@lru_cache(maxsize=4096)
def quoted(name: str) -> str:
    """A name, in quotes where it needs them."""
    try:
        plain = name == name.lower() and parse_select(f"SELECT {name} FROM {name}").outputs[0].expression
    except SqlError:
        plain = False
    is_name = isinstance(plain, Name) and plain.qualifier is None and plain.name.name == name and name.isidentifier()
    return name if is_name else '"' + name.replace('"', '""') + '"'


class Printer:
    """Writes what is said of one table; `names` are those of the tables around it, by alias."""

    def __init__(self, alias: str, db_table: str, names: dict[str, str], row_type: str | None = None) -> None:
        own = row_type or table_name(db_table)
        taken, number = set(names.values()), 2
        while own in taken:
            own, number = f"{table_name(db_table)}_{number}", number + 1
        self._alias, self._names = alias, {**names, alias: own}
        written = ".".join(quoted(part) for part in _names(db_table))
        self.source = written if own == _names(db_table)[-1] else f"{written} AS {quoted(own)}"

    def select(self, outputs: list[str], condition: Condition) -> str:
        """A whole SELECT."""
        where = "" if condition == TRUE else f" WHERE {self.condition(condition)}"
        return f"SELECT {', '.join(outputs)} FROM {self.source}{where}"

    # Conditions

    def condition(self, condition: Condition) -> str:
        """A condition. An OR stands in parentheses inside of an AND."""
        match condition:
            case AllOf(()):
                return "TRUE"
            case AnyOf(()):
                return "FALSE"
            case AllOf(parts):
                texts = (
                    f"({self.condition(part)})" if isinstance(part, AnyOf) else self.condition(part) for part in parts
                )
                return " AND ".join(texts)
            case AnyOf(parts):
                return " OR ".join(self.condition(part) for part in parts)
            case Compare(operator, left, right):
                return f"{self.value(left)} {operator} {self.value(right)}"
            case IsNull(value):
                return f"{self.value(value)} IS NULL"
            case IsNotNull(value):
                return f"{self.value(value)} IS NOT NULL"
            case Among(value, constants, negated):
                listed = ", ".join(self.value(item) for item in constants)
                return f"{self.value(value)} {'NOT ' if negated else ''}IN ({listed})"
            case Within(value, array, as_text):
                elements = self.value(array)
                if as_text:
                    elements = f"(SELECT CAST(value AS TEXT) AS value FROM json_each({elements}))"
                return f"{self.value(value)} IN {elements}"
            case Some():
                return self._some(condition)

    def _some(self, some: Some) -> str:
        """`outer IN (SELECT inner FROM …)`, by the equality that reads best."""
        parts = conjuncts(some.condition)
        links = [(part, *sides) for part in parts if (sides := _sides(part, some.alias))]
        if not links:
            return f"TRUE IN ({self._inside(some, some.condition).select(['TRUE AS found'], some.condition)})"
        link, inner, outer = min(links, key=lambda found: self._rank(found[2]))
        rest = all_of(*(part for part in parts if part is not link))
        inside = self._inside(some, rest)
        return f"{self.value(outer)} IN ({inside.select([inside._output(inner)], rest)})"

    def _inside(self, some: Some, condition: Condition) -> Printer:
        """For the table of a subquery. A name around it that nothing inside asks for may be used again."""
        asked = mentions(condition)
        return Printer(some.alias, some.table, {alias: name for alias, name in self._names.items() if alias in asked})

    def _rank(self, outer: Value) -> int:
        about = mentions(outer)
        return 0 if about == {self._alias} else 2 if REQUEST in about else 1

    def _output(self, value: Value) -> str:
        return self.value(value) if isinstance(value, Column) else f"{self.value(value)} AS value"

    # Values

    def value(self, value: Value) -> str:
        """A value. Columns of tables around are written with their table."""
        match value:
            case Column(alias, name):
                return quoted(name) if alias == self._alias else f"{quoted(self._names[alias])}.{quoted(name)}"
            case Constant(known):
                return _constant(known)
            case RequestValue(_, None):
                return "auth.user_id()"
            case RequestValue(part, str(name)):
                return f"{part}.parameter({_text(name)})"
            case Function(name, arguments) if name in _OPERATORS:
                return f"({f' {name} '.join(self.value(argument) for argument in arguments)})"
            case Function("cast as text", (argument,)):
                return f"CAST({self.value(argument)} AS TEXT)"
            case Function("cast as numeric", (argument,)):
                return f"CAST({self.value(argument)} AS NUMERIC)"
            case Function(name, arguments):
                return f"{name}({', '.join(self.value(argument) for argument in arguments)})"
            case Choice(branches, default):
                whens = " ".join(f"WHEN {self.condition(test)} THEN {self.value(item)}" for test, item in branches)
                return f"CASE {whens} ELSE {self.value(default)} END"
        raise AssertionError(value)


def _sides(condition: Condition, alias: str) -> tuple[Value, Value] | None:
    """The side of an equality that is about a table, and the one that is not, but about something."""
    if isinstance(condition, Compare) and condition.operator == "=":
        for inner, outer in ((condition.left, condition.right), (condition.right, condition.left)):
            if mentions(inner) == {alias} and mentions(outer) and alias not in mentions(outer):
                return inner, outer
    return None


def _constant(value: float | str | bool | None) -> str:
    match value:
        case None:
            return "NULL"
        case bool():
            return "TRUE" if value else "FALSE"
        case str():
            return _text(value)
        case int():
            return str(value)
        case float():
            return repr(value)


def _text(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
