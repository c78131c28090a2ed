"""Random Postgres types and values, each with what it must become: an oracle that reads no text of Postgres.

A value is drawn as Python data. From there go two ways: an SQL expression that builds it by Postgres's own
constructors (`ARRAY[…]`, `ROW(…)`, `make…`, casts of one scalar), and the JSON that a client must get. Dates are
reckoned by day numbers, not by Python's datetime, which the code under test uses.
"""

from __future__ import annotations

import json
import math
import random
import struct
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import psycopg

SCHEMA = 'odd "Schema" x'
ODD_NAMES = ['a "b"', "Ünïcode", "select", "x.y", "c{d}", "tab\there", "(p)", "semi;colon", "q'uote", "back\\slash"]
WORDS = (
    *("", " ", "NULL", "null", "empty", "infinity", "t", "0", "{}", "()", "[)", '"', '""', "\\", "\\\\", "'", ",", ";"),
    *(":", "=>", "\\N", "\\.", "\t", "\n", "\r\n", "\v\f", "\x01", "\x7f", "\x1c", "$1", "%s", "plain", "Two Words"),
)
BEYOND_LATIN1 = ("漢字", "😀", "\U0010fffd", "\u2028", "\ufeff", "\uffff", "e\u0301", "𝔘𝔫")
LATIN1 = ("æøå", "\xa0", "\x85", "ÿ", "Ünï")

DAYS_BEFORE_2000 = 730_425  # days from 0000-03-01 to 2000-01-01
FIRST_DAY, LAST_DAY = -2_451_545, 2_145_031_948  # 4714-11-24 BC and 5874897-12-31
FIRST_SECOND, LAST_SECOND = FIRST_DAY * 86_400, 9_223_371_331_199  # the last one is 294276-12-31 23:59:59
YEAR_1, YEAR_10000 = -730_119 * 86_400, 2_921_940 * 86_400


def quoted(text: str) -> str:
    """An SQL text literal."""
    return "'" + text.replace("'", "''") + "'"


def identifier(name: str) -> str:
    """A quoted SQL identifier, not qualified."""
    return '"' + name.replace('"', '""') + '"'


TABLE = f"{identifier(SCHEMA)}.t"


class Absent:
    """What cannot be in a row: a blob is left out of it, and is null inside of a container."""


class Raw(NamedTuple):
    """JSON text: embedded in a container; on its own a text, exactly this one if `as_written`."""

    text: str
    as_written: bool


Expected = Any
"""None, int, float, str, Raw, Absent, or lists and dicts of these."""


class Value(NamedTuple):
    """An SQL expression, and what it must become."""

    expression: str
    expected: Expected


@dataclass(frozen=True)
class RandomType:
    """A type: its name in SQL, how to draw a value that is not NULL, and whether Postgres can order its values."""

    name: str
    draw: Callable[[], Value]
    ordered: bool = True


def literal(text: str, type_name: str) -> str:
    """A scalar, as Postgres reads it."""
    return f"{quoted(text)}::{type_name}"


def date_text(day: int) -> str:
    """The date so many days after 2000-01-01, as Postgres prints it: `0044-03-15 BC`, `10000-01-01`."""
    era, day_of_era = divmod(day + DAYS_BEFORE_2000, 146_097)
    year_of_era = (day_of_era - day_of_era // 1460 + day_of_era // 36_524 - day_of_era // 146_096) // 365
    day_of_year = day_of_era - (365 * year_of_era + year_of_era // 4 - year_of_era // 100)
    shifted_month = (5 * day_of_year + 2) // 153
    month = shifted_month + 3 if shifted_month < 10 else shifted_month - 9
    year = year_of_era + era * 400 + (month <= 2)
    rest = f"-{month:02}-{day_of_year - (153 * shifted_month + 2) // 5 + 1:02}"
    return f"{year:04}{rest}" if year > 0 else f"{1 - year:04}{rest} BC"


def exact(value: Expected, *, nested: bool = True) -> Any:
    """A form in which values are equal only if their JSON is: reals by their digits, NaN and infinities as null."""
    match value:
        case float():
            return ("real", repr(value)) if math.isfinite(value) else None
        case bool() | None | str():
            return value
        case int():
            return ("integer", value)
        case list():
            return [exact(item) for item in value]
        case dict():
            return {name: exact(item) for name, item in value.items()}
        case Raw(text, as_written):
            return text if as_written and not nested else exact(json.loads(text))
    return None


@dataclass
class TypeFactory:
    """Draws types and values; `session` is asked only for the order of a range's bounds."""

    choose: random.Random
    session: psycopg.Connection[Any]
    words: Sequence[str] = WORDS + LATIN1 + BEYOND_LATIN1
    _made: int = 0

    def scalars(self) -> list[RandomType]:
        """Every built-in scalar type."""
        types = [RandomType(name, draw, name != "json") for name, draw in self._drawn().items()]
        for name, texts in FIXED.items():
            pairs = [text if isinstance(text, tuple) else (text, text) for text in texts]
            draw = partial(self._fixed, name, pairs)
            types.append(RandomType(name, draw, name not in UNORDERED))
        return types

    def _fixed(self, name: str, pairs: Sequence[tuple[str, str]]) -> Value:
        written, printed = self.choose.choice(pairs)
        return Value(literal(written, name), printed)

    def text(self) -> str:
        """Odd words, one after another; now and then a very long text."""
        parts = self.choose.choices(self.words, k=self.choose.randrange(4))
        return "".join(parts) * self.choose.choice([1] * 30 + [2000])

    def _drawn(self) -> dict[str, Callable[[], Value]]:
        choose = self.choose

        def integers(name: str, bits: int) -> Callable[[], Value]:
            def draw() -> Value:
                number = choose.choice([0, -1, (1 << bits - 1) - 1, -(1 << bits - 1), choose.randrange(1 << bits - 1)])
                return Value(literal(str(number), name), number)

            return draw

        def oid() -> Value:
            number = choose.choice([0, (1 << 32) - 1, choose.randrange(1 << 32)])
            return Value(literal(str(number), "oid"), number)

        def float8() -> Value:
            number = choose.choice([SPECIAL_REALS[choose.randrange(len(SPECIAL_REALS))], _real(">d", 8, choose)])
            return Value(literal(repr(number), "float8"), number)

        def float4() -> Value:
            number = _real(">f", 4, choose)
            return Value(literal(repr(number), "float4"), _shortest(number))

        def numeric() -> Value:
            whole = str(choose.randrange(10 ** choose.choice([1, 5, 40, 300])))
            scale = choose.choice([0, 0, 2, 30, 500])
            text = whole + ("." + "".join(choose.choices("0123456789", k=scale)) if scale else "")
            signed = "-" + text if choose.random() < 0.5 and text.strip("0.") else text
            text = choose.choice([signed, signed, signed, "NaN", "Infinity", "-Infinity"])
            return Value(literal(text, "numeric"), text)

        def money() -> Value:
            cents = choose.randrange(-(10**9), 10**9)
            sign = "-" if cents < 0 else ""
            return Value(f"({cents}::numeric / 100)::money", f"{sign}${abs(cents) // 100:,}.{abs(cents) % 100:02}")

        def boolean() -> Value:
            truth = choose.random() < 0.5
            return Value(str(truth).lower(), int(truth))

        def text_of(name: str, convert: Callable[[str], str] = str) -> Callable[[], Value]:
            def draw() -> Value:
                text = convert(self.text())
                return Value(literal(text, name), text)

            return draw

        def bytea() -> Value:
            return Value(f"decode('{choose.randbytes(choose.randrange(6)).hex()}', 'hex')", Absent())

        def uid() -> Value:
            text = str(uuid.UUID(int=choose.getrandbits(128)))
            return Value(literal(text.upper(), "uuid"), text)

        def lsn() -> Value:
            number = choose.getrandbits(choose.choice([4, 33, 64]))
            high, low = number >> 32, number & 0xFFFFFFFF
            return Value(literal(f"{high:x}/{low:x}", "pg_lsn"), f"{high:08X}/{low:08X}")

        def bits() -> Value:
            text = "".join(choose.choices("01", k=choose.randrange(70)))
            return Value(literal(text, "varbit"), text)

        def document(name: str) -> Callable[[], Value]:
            def draw() -> Value:
                text = json.dumps(self._document(3), ensure_ascii=choose.random() < 0.5)
                return Value(literal(text, name), Raw(text, as_written=name == "json"))

            return draw

        return {
            "int2": integers("int2", 16),
            "int4": integers("int4", 32),
            "int8": integers("int8", 64),
            "oid": oid,
            "float4": float4,
            "float8": float8,
            "numeric": numeric,
            "money": money,
            "bool": boolean,
            "text": text_of("text"),
            "varchar": text_of("varchar"),
            "bpchar(300)": text_of("bpchar(300)", lambda text: text[:200].rstrip(" ").ljust(300)),
            "name": text_of("name", lambda text: text[:15]),
            "bytea": bytea,
            "uuid": uid,
            "pg_lsn": lsn,
            "varbit": bits,
            "json": document("json"),
            "jsonb": document("jsonb"),
            "date": self._date,
            "time": self._time,
            "timestamp": lambda: self._timestamp("timestamp"),
            "timestamptz": lambda: self._timestamp("timestamptz"),
        }

    def _document(self, depth: int) -> Any:
        choose = self.choose
        kind = choose.randrange(7 if depth else 5)
        match kind:
            case 0:
                return None
            case 1:
                return choose.random() < 0.5
            case 2:
                return choose.randrange(-(10 ** choose.choice([1, 30])), 10**18)
            case 3:
                return choose.randrange(10**6) / 8
            case 4:
                return self.text()[:50]
            case 5:
                return [self._document(depth - 1) for _ in range(choose.randrange(3))]
        return {self.text()[:10]: self._document(depth - 1) for _ in range(choose.randrange(3))}

    def _date(self) -> Value:
        kind = self.choose.randrange(8)
        if kind < 2:
            return Value(literal(f"{'-' * kind}infinity", "date"), ["9999-12-31", "0000-01-01"][kind])
        day = self.choose.choice(
            [
                FIRST_DAY,
                LAST_DAY,
                self.choose.randrange(-800_000, 3_000_000),
                self.choose.randrange(FIRST_DAY, LAST_DAY),
            ]
        )
        return Value(f"('2000-01-01'::date + {day})", date_text(day))

    def _time(self) -> Value:
        microseconds = self.choose.choice([0, 86_400 * 10**6, self._microseconds(0, 86_400)])
        seconds, fraction = divmod(microseconds, 10**6)
        text = f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}.{fraction:06}"
        return Value(literal(text, "time"), text)

    def _timestamp(self, name: str) -> Value:
        suffix = "Z" if name == "timestamptz" else ""
        kind = self.choose.randrange(8)
        if kind < 2:
            text = ["9999-12-31T23:59:59.000000", "0000-01-01T00:00:00.000000"][kind]
            return Value(literal(f"{'-' * kind}infinity", name), text + suffix)
        edge = self.choose.choice([YEAR_1, YEAR_10000, FIRST_SECOND, LAST_SECOND])
        microseconds = self.choose.choice(
            [
                min(max(edge * 10**6 + self.choose.choice([-1, 0, 1]), FIRST_SECOND * 10**6), LAST_SECOND * 10**6),
                self._microseconds(YEAR_1, YEAR_10000),
                self._microseconds(FIRST_SECOND, LAST_SECOND),
            ]
        )
        seconds, fraction = divmod(microseconds, 10**6)
        whole, part = (seconds, fraction) if seconds >= 0 or not fraction else (seconds + 1, fraction - 10**6)
        sign = "-" if microseconds < 0 else ""
        start = literal("2000-01-01 00:00:00+00", name)
        expression = f"({start} + '{sign}{abs(whole)}.{abs(part):06} seconds'::interval)"
        day, second = divmod(seconds, 86_400)
        text = f"{date_text(day)}T{second // 3600:02}:{second // 60 % 60:02}:{second % 60:02}.{fraction:06}"
        outside = seconds < YEAR_1 or (suffix and seconds >= YEAR_10000)
        return Value(expression, None if outside else text + suffix)

    def _microseconds(self, first: int, last: int) -> int:
        precision = self.choose.choice([1, 10**3, 10**6, 10])
        return self.choose.randrange(first * 10**6, last * 10**6) // precision * precision

    # Types of one's own

    def types(self, count: int, *, depth: int = 3) -> list[RandomType]:
        """All scalars, some user-defined types over them, and over these."""
        known = self.scalars()
        made = [self.enum(), *self.built_in_ranges()]
        for _ in range(count):
            part = self.choose.choice(self.choose.choice([known, made]))
            kinds = [self.array, self.array, self.composite, self.composite, self.domain, self.range]
            made.append(self.choose.choice(kinds)(part))
        return [*known, *made]

    def _new_name(self) -> str:
        self._made += 1
        return f"{identifier(SCHEMA)}.{identifier(f'{self.choose.choice(ODD_NAMES)} {self._made}')}"

    def _make(self, definition: str) -> None:
        self.session.execute(definition.encode())

    def enum(self) -> RandomType:
        """Labels that want quoting everywhere."""
        name = self._new_name()
        labels = [word for word in dict.fromkeys(self.words) if word and len(word.encode()) < 60]
        self._make(f"CREATE TYPE {name} AS ENUM ({', '.join(map(quoted, labels))})")

        def draw() -> Value:
            label = self.choose.choice(labels)
            return Value(literal(label, name), label)

        return RandomType(name, draw)

    def array(self, element: RandomType) -> RandomType:
        """One to three dimensions, with NULLs, bounds of its own, and empty ones."""
        if element.name.endswith("[]"):
            element = self.domain(element)
        name = f"{element.name}[]"

        def draw() -> Value:
            shape = [self.choose.randrange(1, 3) for _ in range(self.choose.choice([0, 1, 1, 1, 2, 3]))]
            if not shape:
                return Value(literal("{}", name), [])
            expression, expected = grid(shape)
            expression = f"{expression}::{name}"
            if self.choose.random() < 0.3:
                bounds = "".join(
                    f"[{low}:{low + size - 1}]" for size in shape for low in [self.choose.choice([0, -3, 7])]
                )
                expression = f"({quoted(bounds + '=')} || ({expression})::text)::{name}"
            return Value(expression, expected)

        def grid(shape: list[int]) -> tuple[str, list[Expected]]:
            if len(shape) > 1:
                parts = [grid(shape[1:]) for _ in range(shape[0])]
            else:
                parts = [self._nullable(element) for _ in range(shape[0])]
            return f"ARRAY[{', '.join(part[0] for part in parts)}]", [part[1] for part in parts]

        return RandomType(name, draw, element.ordered)

    def composite(self, first: RandomType) -> RandomType:
        """A few attributes, with one that was dropped and one that came later."""
        name = self._new_name()
        others = self.choose.sample(self.scalars(), self.choose.randrange(3))
        members = list(zip(self.choose.sample(ODD_NAMES, 3), [first, *others], strict=False))
        columns = ", ".join(f"{identifier(label)} {member.name}" for label, member in members[:-1])
        self._make(f"CREATE TYPE {name} AS (gone int{columns and ', '}{columns})")
        self._make(f"ALTER TYPE {name} ADD ATTRIBUTE {identifier(members[-1][0])} {members[-1][1].name}")
        self._make(f"ALTER TYPE {name} DROP ATTRIBUTE gone")

        def draw() -> Value:
            values = [self._nullable(member) for _, member in members]
            expression = f"ROW({', '.join(value.expression for value in values)})::{name}"
            return Value(expression, {label: value.expected for (label, _), value in zip(members, values, strict=True)})

        return RandomType(name, draw, all(member.ordered for _, member in members))

    def domain(self, base: RandomType) -> RandomType:
        """A domain, which shows in nothing."""
        name = self._new_name()
        self._make(f"CREATE DOMAIN {name} AS {base.name}")

        def draw() -> Value:
            value = base.draw()
            return Value(f"({value.expression})::{name}", value.expected)

        # Records and ranges have an order that domains over them lack.
        return RandomType(name, draw, base.ordered and base.name in {item.name for item in self.scalars()})

    def range(self, subtype: RandomType) -> RandomType:
        """A range or its multirange; of text where the subtype has no order."""
        if not subtype.ordered:
            subtype = next(item for item in self.scalars() if item.name == "text")
        name, multirange = self._new_name(), self._new_name()
        self._make(f"CREATE TYPE {name} AS RANGE (subtype = {subtype.name}, multirange_type_name = {multirange})")

        def draw() -> Value:
            first, second = subtype.draw(), subtype.draw()
            order = f"SELECT ({first.expression}) < ({second.expression}), ({first.expression}) = ({second.expression})"
            less, equal = self.session.execute(order.encode()).fetchone() or (True, False)
            lower, upper = (first, second) if less or equal else (second, first)
            return self._range_value(name, lower, upper, empties=equal)

        return self._or_multirange(RandomType(name, draw), multirange)

    def built_in_ranges(self) -> list[RandomType]:
        """Ranges of whole numbers and days, whose bounds Postgres makes canonical."""

        def integers() -> Value:
            lower, upper = sorted(self.choose.sample(range(-1000, 1000), 2))
            return self._discrete_range("int8range", lower, upper, lambda number: Value(f"{number}::int8", number))

        def days() -> Value:
            lower, upper = sorted(self.choose.sample(range(-900_000, 3_000_000), 2))
            return self._discrete_range(
                "daterange", lower, upper, lambda day: Value(f"('2000-01-01'::date + {day})", date_text(day))
            )

        return [
            self._or_multirange(RandomType("int8range", integers), "int8multirange"),
            self._or_multirange(RandomType("daterange", days), "datemultirange"),
        ]

    def _discrete_range(self, name: str, lower: int, upper: int, value: Callable[[int], Value]) -> Value:
        ends = self.choose.choice(["[]", "[)", "(]", "()"])
        expression = f"{name}({value(lower).expression}, {value(upper).expression}, '{ends}')"
        lower, upper = lower + (ends[0] == "("), upper + (ends[1] == "]")
        if lower >= upper:
            return Value(expression, "empty")
        bounds = {"lower": value(lower).expected, "upper": value(upper).expected}
        return Value(expression, bounds | {"lower_exclusive": 0, "upper_exclusive": 1})

    def _range_value(self, name: str, lower: Value, upper: Value, *, empties: bool) -> Value:
        ends = self.choose.choice(["[]", "[)", "(]", "()"])
        bounds = [self.choose.choice([bound, bound, bound, Value("NULL", None)]) for bound in (lower, upper)]
        unbounded = [bound.expression == "NULL" for bound in bounds]
        expression = f"{name}({bounds[0].expression}, {bounds[1].expression}, '{ends}')"
        if empties and not any(unbounded) and ends != "[]":
            return Value(expression, "empty")
        return Value(
            expression,
            {
                "lower": bounds[0].expected,
                "upper": bounds[1].expected,
                "lower_exclusive": int(unbounded[0] or ends[0] == "("),
                "upper_exclusive": int(unbounded[1] or ends[1] == ")"),
            },
        )

    def _or_multirange(self, single: RandomType, name: str) -> RandomType:
        if self.choose.random() < 0.5:
            return single

        def draw() -> Value:
            value = single.draw()
            if self.choose.random() < 0.1:
                return Value(f"{name}()", [])
            return Value(f"{name}({value.expression})", [] if value.expected == "empty" else [value.expected])

        return RandomType(name, draw)

    def _nullable(self, member: RandomType) -> Value:
        return Value("NULL", None) if self.choose.random() < 0.15 else member.draw()

    def row(self, types: Sequence[RandomType]) -> list[Value]:
        """A value of each type, now and then NULL."""
        return [self._nullable(member) for member in types]


SPECIAL_REALS = [
    0.0,
    -0.0,
    1.0,
    1e21,
    1e-7,
    0.1,
    5e-324,
    1.7976931348623157e308,
    math.inf,
    -math.inf,
    math.nan,
    2.0**53,
]

# Types that stay as Postgres prints them; a pair is what goes in and what comes out.
FIXED: dict[str, list[str | tuple[str, str]]] = {
    "interval": [
        ("1 year -2 days 03:04:05.6", "1 year -2 days +03:04:05.6"),
        ("-1 second", "-00:00:01"),
        ("0", "00:00:00"),
        ("-1 mon 1 day", "-1 mons +1 day"),
        "178000000 years",
    ],
    "timetz": ["10:00:00+02", "24:00:00-15:59", "23:59:59.999999+05:30"],
    "inet": ["10.0.0.1/8", "::1", "2001:db8::/32"],
    "cidr": ["10.0.0.0/8", "::/0"],
    "macaddr": ["08:00:2b:01:02:03"],
    "macaddr8": ["08:00:2b:01:02:03:04:05"],
    "bit(5)": ["01010"],
    "point": ["(1.5,-2)", "(Infinity,NaN)", "(0.1,1e+300)"],
    "line": ["{1,-1,0}"],
    "lseg": ["[(0,0),(1,1)]"],
    "box": ["(2,2),(1,1)", "(0.5,Infinity),(-1,0)"],
    "path": ["((0,0),(1,1),(2,0))", "[(0,0),(1,1)]"],
    "polygon": ["((0,0),(1,1),(2,0))"],
    "circle": ["<(1,2),3.5>"],
    "tsvector": ["'\\\\':3 'a' 'b''c':1,2A", ""],
    "tsquery": ["'a' & !'b' <-> 'c'"],
    "jsonpath": ['$."a"[*]?(@ > 1)'],
    "int2vector": ["1 2 3", ""],
    "oidvector": ["1 2 4294967295"],
    "xid8": ["18446744073709551615"],
    "pg_snapshot": ["10:20:10,14,15"],
    "tid": ["(4294967295,65535)"],
    '"char"': ["x", '"', "{", ","],
    "regtype": ["integer", ("_text", "text[]")],
    "regclass": ["pg_class", ("pg_catalog.pg_type", "pg_type"), TABLE],
}

UNORDERED = {"point", "line", "lseg", "box", "path", "polygon", "circle", "jsonpath", "int2vector", "pg_snapshot"}


def _real(layout: str, size: int, choose: random.Random) -> float:
    number: float = struct.unpack(layout, choose.randbytes(size))[0]
    return number


def _shortest(number: float) -> float:
    """The real that the shortest digits of a four-byte float say; digits half way to its neighbour do not count."""
    if not math.isfinite(number):
        return number
    bits = struct.pack(">f", number)
    neighbours = [struct.pack(">I", struct.unpack(">I", bits)[0] + step & 0xFFFFFFFF) for step in (-1, 1)]
    halves = [(number + struct.unpack(">f", neighbour)[0]) / 2 for neighbour in neighbours]
    for digits in range(1, 10):
        real = float(f"{number:.{digits}g}")
        with suppress(OverflowError):  # rounded up beyond the largest
            if struct.pack(">f", real) == bits and real not in halves:
                return real
    raise AssertionError(f"nine digits do not say {number!r}")


def create_table(name: str, types: Sequence[RandomType]) -> list[str]:
    """Statements that make a table with a column of each type; short values, too, are stored out of line."""
    columns = ", ".join(f"c{number} {item.name}" for number, item in enumerate(types))
    return [
        f"CREATE TABLE {name} (id int PRIMARY KEY, note text, {columns})",
        f"ALTER TABLE {name} SET (toast_tuple_target = 128)",
    ]


def insert(name: str, number: int, values: Sequence[Value]) -> str:
    """The statement that inserts a row."""
    return f"INSERT INTO {name} VALUES ({', '.join([str(number), 'NULL', *(value.expression for value in values)])})"
