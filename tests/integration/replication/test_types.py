"""Values of every type: copied, streamed and as they ought to be, they are the same."""

from __future__ import annotations

import json
import random
import re
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import Any, NamedTuple

import orjson
import psycopg
import pytest
from django.test import override_settings

from django_localsync.pgoutput import containers, timestamps, values
from django_localsync.pgoutput.messages import UNCHANGED, Insert, Relation, Update
from django_localsync.pgoutput.types import PgType
from django_localsync.pgoutput.values import ValueOptions, converter
from django_localsync.replication.types import read_types
from django_localsync.storage import connections
from django_localsync.storage.connections import connect, connect_for_rows
from tests.conftest import SOAK
from tests.databases import temporary_database
from tests.pgoutput_capture import END, messages, read_frames
from tests.random_values import (
    LATIN1,
    SCHEMA,
    TABLE,
    WORDS,
    Absent,
    RandomType,
    TypeFactory,
    Value,
    create_table,
    exact,
    identifier,
    insert,
    quoted,
)

# What prints or reads values otherwise, where a role or database has it.
HOSTILE_SETTINGS = {
    "DateStyle": "German, DMY",
    "TimeZone": "Asia/Kathmandu",
    "IntervalStyle": "iso_8601",
    "extra_float_digits": "-15",
    "bytea_output": "escape",
    "quote_all_identifiers": "on",
    "search_path": SCHEMA,
    "statement_timeout": "1s",
}


PLAIN = "-c DateStyle=ISO -c TimeZone=UTC -c IntervalStyle=postgres -c lc_monetary=C -c search_path=public"


class Wire(NamedTuple):
    """Rows as texts, by id: as COPY and as the stream gave them; the latter with what updates left out."""

    types: list[PgType]
    copied: dict[str, list[str | None]]
    inserted: dict[str, list[str | None]]
    updated: dict[str, list[str | None]]
    unchanged: int


@contextmanager
def source_session(url: str) -> Iterator[psycopg.Connection[Any]]:
    """A session of a user on the source that replication connects to; its settings are the server's own."""
    with (
        override_settings(LOCALSYNC={"REPLICATION_URL": url}),
        closing(psycopg.connect(url, autocommit=True, options=PLAIN, client_encoding="UTF8")) as session,
    ):
        session.execute(f"CREATE SCHEMA {identifier(SCHEMA)}".encode())
        yield session


@contextmanager
def published(session: psycopg.Connection[Any]) -> Iterator[Any]:
    """Everything that happens in the block can be read from the slot that this gives."""
    slot = f"types_{secrets.token_hex(4)}"
    with closing(connect_for_rows("default", replication="database")) as walsender:
        session.execute(f"CREATE PUBLICATION {slot} FOR TABLE {TABLE}".encode())
        walsender.execute(f"CREATE_REPLICATION_SLOT {slot} TEMPORARY LOGICAL pgoutput (SNAPSHOT 'nothing')".encode())

        def read() -> list[Any]:
            session.execute(f"SELECT pg_logical_emit_message(true, '{END}', '')".encode())
            return messages(read_frames(walsender, slot, slot))

        yield read


def transport(session: psycopg.Connection[Any], rows: Sequence[Sequence[Value]]) -> Wire:
    """Insert rows into the table, update them without their large values, and read them both ways."""
    with published(session) as read:
        with session.transaction():
            for number, row in enumerate(rows):
                session.execute(insert(TABLE, number, row).encode())
        session.execute(f"UPDATE {TABLE} SET note = 'changed'".encode())
        stream = read()
    with closing(connect_for_rows("default")) as reader:
        with reader.cursor().copy(f"COPY {TABLE} TO STDOUT".encode()) as copy:
            copied = {row[0]: list(row) for row in copy.rows()}
        relation = next(message for message in stream if isinstance(message, Relation))
        oids = [column.type_oid for column in relation.columns]
        types = read_types(reader, oids)
    inserted = {message.new[0]: message.new for message in stream if isinstance(message, Insert)}
    updates = {message.new[0]: message.new for message in stream if isinstance(message, Update)}
    updated = {
        key: [old if value is UNCHANGED else value for old, value in zip(inserted[key], new, strict=True)]
        for key, new in updates.items()
    }
    unchanged = sum(new.count(UNCHANGED) for new in updates.values())
    return Wire([types[oid] for oid in oids], copied, inserted, updated, unchanged)


def disagreements(types: Sequence[RandomType], rows: Sequence[Sequence[Value]], wire: Wire) -> list[str]:
    """Where copy, stream and expectation differ, values converted."""
    converters = [converter(pg_type, ValueOptions()) for pg_type in wire.types][2:]
    found = []
    for number, row in enumerate(rows):
        copied, inserted, updated = (texts[str(number)][2:] for texts in (wire.copied, wire.inserted, wire.updated))
        for item, convert, value, *texts in zip(types, converters, row, copied, inserted, updated, strict=True):
            if len(set(texts)) > 1:
                found.append(f"{item.name}: {value.expression} is {texts}")
            elif not is_expected(value, texts[0], convert):
                found.append(f"{item.name}: {value.expression} is {texts[0]!r}, not {value.expected!r}")
    return found


def is_expected(value: Value, text: str | None, convert: Any) -> bool:
    """Whether a text is converted to what it ought to be."""
    try:
        converted = text if text is None or convert is None else convert(text)
        if isinstance(value.expected, Absent):
            return isinstance(converted, bytes)
        return in_row(converted, value) == exact(value.expected, nested=False)
    except Exception:
        return False


def in_row(converted: Any, value: Value) -> Any:
    """What a client reads from the JSON of a row."""
    read = orjson.loads(orjson.dumps(converted))
    if isinstance(value.expected, list | dict) or getattr(value.expected, "as_written", True) is False:
        assert isinstance(read, str)
        return exact(json.loads(read, parse_constant=refuse))
    return exact(read)


def refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def draw_rows(
    session: psycopg.Connection[Any],
    choose: random.Random,
    *,
    types: int,
    rows: int,
    parts_of_all: bool = False,
    **options: Any,
) -> tuple[list[RandomType], list[list[Value]]]:
    """Make a table with random types, and draw its rows."""
    factory = TypeFactory(choose, session, **options)
    drawn = factory.types(types)
    if parts_of_all:
        drawn += [make(scalar) for scalar in factory.scalars() for make in (factory.array, factory.composite)]
    for statement in create_table(TABLE, drawn):
        session.execute(statement.encode())
    return drawn, [factory.row(drawn) for _ in range(rows)]


@pytest.fixture
def seed() -> int:
    """Another one in each run."""
    return random.SystemRandom().randrange(2**32)


def spoil(session: psycopg.Connection[Any], settings: Mapping[str, str] = HOSTILE_SETTINGS) -> None:
    """Settings that print and read values otherwise, for all sessions to come."""
    database = identifier(session.info.dbname)
    for name, value in settings.items():
        session.execute(f"ALTER DATABASE {database} SET {name} TO {quoted(value)}".encode())


@pytest.mark.parametrize("run", range(500 if SOAK else 6))
def test_copy_stream_and_expectation_agree_whatever_the_settings_are(server_url, run, seed):
    with temporary_database(server_url) as url, source_session(url) as session:
        types, rows = draw_rows(session, random.Random(seed), types=25, rows=12)
        spoil(session)

        wire = transport(session, rows)

        assert wire.unchanged, "no value was left out of an update"
        assert disagreements(types, rows, wire)[:3] == [], f"seed {seed}"


FAULTS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "escapes in arrays stay": lambda patch: patch.setattr(containers, "_unquote_element", lambda quoted: quoted[1:-1]),
    "escapes in composites stay": lambda patch: patch.setattr(
        containers, "_unquote_field", lambda quoted: quoted[1:-1]
    ),
    "NULL in arrays is a text": lambda patch: patch.setattr(containers, "_NULL", "no such text"),
    "an array's bounds are taken for an array": lambda patch: patch.setattr(
        containers, "integer_array_json", lambda text: text.replace("{", "[").replace("}", "]").replace("NULL", "null")
    ),
    "every delimiter is a comma": lambda patch: _wrap(patch, "array_decoder", lambda part, _: (part, ",")),
    "members change places": lambda patch: _wrap(patch, "composite_decoder", lambda members: (list(members)[::-1],)),
    "an empty text in a composite is null": lambda patch: patch.setattr(
        containers, "_FIELD", re.compile(containers._FIELD.pattern.replace('"(?:', '"(?!")(?:'), re.DOTALL)
    ),
    "bounds change places": lambda patch: _wrap(
        patch, "_decode_range", lambda bound, parts: (bound, (parts[0], parts[2], parts[1], parts[3]))
    ),
    "exclusive bounds are taken for inclusive": lambda patch: _wrap(
        patch, "_decode_range", lambda bound, parts: (bound, ("[", *parts[1:]))
    ),
    "an empty range is not known": lambda patch: patch.setattr(containers, "EMPTY_RANGE", "void"),
    "booleans are texts": lambda patch: patch.setitem(values._BASE_CONVERTERS, "bool", str),
    "integers pass through floats": lambda patch: patch.setitem(
        values._BASE_CONVERTERS, "int8", lambda text: int(float(text))
    ),
    "floats are texts": lambda patch: patch.setitem(values._BASE_CONVERTERS, "float4", str),
    "infinite dates stay": lambda patch: patch.setitem(values._BASE_CONVERTERS, "date", str),
    "LSNs are not padded": lambda patch: patch.setitem(values._BASE_CONVERTERS, "pg_lsn", str),
    "bytes are texts": lambda patch: patch.setitem(values._BASE_CONVERTERS, "bytea", str),
    "documents in containers are texts": lambda patch: patch.setattr(values, "_JSON", frozenset()),
    "moments before Christ stay": lambda patch: patch.setattr(timestamps, "_BEFORE_CHRIST", "never"),
    "moments after 9999 stay": lambda patch: patch.setattr(timestamps, "_to_utc", lambda text: text[:-3]),
    "infinite moments stay": lambda patch: patch.setattr(timestamps, "_INFINITE_TIMESTAMPS", {}),
    "fractions stay as printed": lambda patch: patch.setattr(timestamps, "_with_digits", lambda text, digits: text),
}


def _wrap(patch: pytest.MonkeyPatch, name: str, arguments: Callable[..., tuple[Any, ...]]) -> None:
    """Let a function of `containers` get other arguments."""
    original = getattr(containers, name)
    patch.setattr(containers, name, lambda *given: original(*arguments(*given)))


@pytest.fixture(scope="module")
def transported(server_url: str) -> tuple[list[RandomType], list[list[Value]], Wire]:
    """Values of every kind that have gone both ways."""
    with temporary_database(server_url) as url, source_session(url) as session:
        types, rows = draw_rows(session, random.Random(1), types=20, rows=20, parts_of_all=True)
        return types, rows, transport(session, rows)


def test_the_property_holds_where_no_fault_is_made(transported):
    assert disagreements(*transported)[:3] == []


@pytest.mark.parametrize("fault", FAULTS)
def test_the_property_finds_a_deliberate_fault(transported, fault, monkeypatch):
    FAULTS[fault](monkeypatch)

    assert disagreements(*transported)


@pytest.mark.parametrize("setting", [name for name in HOSTILE_SETTINGS if name != "statement_timeout"])
def test_the_property_finds_a_setting_that_is_not_fixed(server_url, setting, monkeypatch):
    with temporary_database(server_url) as url, source_session(url) as session:
        types, rows = draw_rows(session, random.Random(1), types=0, rows=20)
        spoil(session)
        monkeypatch.delitem(connections.TEXT_FORMAT, setting)

        assert disagreements(types, rows, transport(session, rows))


def test_neither_environment_nor_parameters_of_the_alias_change_what_is_printed(server_url, monkeypatch):
    monkeypatch.setenv("PGTZ", "Asia/Tokyo")
    monkeypatch.setenv("PGDATESTYLE", "SQL, MDY")
    with temporary_database(server_url) as url, source_session(url + "?client_encoding=latin1") as session:
        types, rows = draw_rows(session, random.Random(1), types=5, rows=10)

        assert disagreements(types, rows, transport(session, rows))[:3] == []


def test_no_timeout_of_a_role_ends_a_long_statement(server_url):
    with temporary_database(server_url) as url, source_session(url) as session:
        spoil(session)
        with closing(connect("default")) as ordinary, closing(connect_for_rows("default")) as ours:
            assert ordinary.execute("SHOW statement_timeout").fetchone() == ("1s",)
            assert ours.execute("SHOW statement_timeout").fetchone() == ("0",)


def test_a_database_in_another_encoding(server_url, seed):
    with temporary_database(server_url, encoding="LATIN1") as url, source_session(url) as session:
        assert session.execute("SHOW server_encoding").fetchone() == ("LATIN1",)
        words = [word for word in WORDS + LATIN1 if word.isprintable() or word.isascii()]
        types, rows = draw_rows(session, random.Random(seed), types=25, rows=12, words=words)
        session.execute(f"ALTER DATABASE {identifier(session.info.dbname)} SET client_encoding TO latin1".encode())

        assert disagreements(types, rows, transport(session, rows))[:3] == [], f"seed {seed}"
