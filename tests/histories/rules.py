"""Random rules over that schema, and what they say of the tables as they are: evaluated here, in Python."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

import orjson
import psycopg
from psycopg.rows import dict_row

Row = Mapping[str, Any]
Contents = dict[str, Counter[tuple[str, str, str]]]
"""Bucket → how many rows of this type, id and JSON (with sorted keys)."""


@dataclass(frozen=True)
class Table:
    """A table as it is."""

    name: str
    rows: list[Row]


Tables = Mapping[str, Table]
Placed = Iterator[tuple[str, str, Row]]
"""Bucket parameters, row type, row."""


def _pick(row: Row, *names: str) -> dict[str, Any]:
    return {name: row.get(name) for name in names}


def _json(*values: Any) -> str:
    return orjson.dumps(values).decode()


def _all(tables: Tables) -> Placed:
    return (("[]", "note", row) for row in tables["note"].rows)


def _mine(tables: Tables) -> Placed:
    rows = (row for row in tables["note"].rows if row.get("owner") is not None)
    return ((_json(row["owner"]), "note", _pick(row, "id", "title")) for row in rows)


def _bodies(tables: Tables) -> Placed:
    return (("[]", "note", _pick(row, "id", "body")) for row in tables["note"].rows)


def _shared(tables: Tables) -> Placed:
    rows = (row for row in tables["note"].rows if row.get("list_id") is not None)
    return ((_json(row["list_id"]), "note", _pick(row, "id", "body", "title")) for row in rows)


def _spare(tables: Tables) -> Placed:
    return (("[]", "spare", row) for row in tables["spare"].rows)


def _lines(tables: Tables) -> Placed:
    for row in tables["line"].rows:
        row_id = None if row["a"] is None or row["b"] is None else f"{row['a']}-{row['b']}"
        yield "[]", "line", {"id": row_id, **_pick(row, "a", "b")}


def _logs(tables: Tables) -> Placed:
    return (("[]", "log", row) for row in tables["log"].rows)


def _events(tables: Tables) -> Placed:
    for name, table in tables.items():
        if name.startswith("event_"):
            yield from (("[]", "event", _pick(row, "id", "day")) for row in table.rows)


def _zones(tables: Tables) -> Placed:
    return (("[]", "zone", row) for row in tables["zone"].rows)


def _zone_ids(tables: Tables) -> Placed:
    return (("[]", "zone", _pick(row, "id")) for row in tables["zone"].rows)


def _accounts(tables: Tables) -> Placed:
    return (("[]", "account", row) for row in tables["account"].rows)


IS_MEMBER = "list_id IN (SELECT list_id FROM member WHERE user_id = auth.user_id())"
STREAMS: Mapping[str, tuple[str, Callable[[Tables], Placed]]] = {
    "all": ("SELECT * FROM note", _all),
    "mine": ("SELECT id, title FROM note WHERE owner = auth.user_id()", _mine),
    "bodies": ("SELECT id, body FROM note", _bodies),
    "shared": (f"SELECT id, title, body FROM note WHERE {IS_MEMBER}", _shared),
    "spare": ("SELECT * FROM spare", _spare),
    "lines": ("SELECT a || '-' || b AS id, a, b FROM line", _lines),
    "logs": ("SELECT * FROM log", _logs),
    "events": ('SELECT id, day FROM "event_%" AS event', _events),
    "zones": ("SELECT * FROM zone", _zones),
    "zone_ids": ("SELECT id FROM zone", _zone_ids),
    "accounts": ("SELECT * FROM account", _accounts),
}


def random_streams(choose: Random) -> tuple[str, ...]:
    """Some of the streams, `accounts` always."""
    names = [name for name in STREAMS if name != "accounts"]
    return (*choose.sample(names, choose.randrange(2, len(names) + 1)), "accounts")


def rules_of(streams: tuple[str, ...]) -> dict[str, Any]:
    """The rules that define these streams."""
    return {"config": {"edition": 3}, "streams": {name: {"query": STREAMS[name][0]} for name in streams}}


# What rows are known by. Equal rows without a key are one row to clients.
KEYS = """
    SELECT relname, EXISTS (SELECT FROM pg_index WHERE indrelid = pg_class.oid AND indisvalid
                               AND CASE relreplident WHEN 'i' THEN indisreplident WHEN 'n' THEN false
                                                     ELSE indisprimary END)
      FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace
"""


def read_tables(session: psycopg.Connection[Any]) -> dict[str, Table]:
    """The source's tables; those that are not there have no rows."""
    tables = {name: Table(name, []) for name in ("note", "spare", "line", "log", "account", "member")}
    for name, has_key in session.execute(KEYS).fetchall():
        rows: list[Row] = session.cursor(row_factory=dict_row).execute(f'SELECT * FROM ONLY "{name}"').fetchall()  # type: ignore[arg-type]
        if not has_key:
            rows = list({tuple(row.items()): row for row in rows}.values())
        tables[name] = Table(name, rows)
    return tables


def expected_contents(streams: tuple[str, ...], sources: list[dict[str, Table]]) -> Contents:
    """What clients of all buckets hold: of every source, without empty buckets."""
    contents: Contents = {}
    for name in streams:
        for tables in sources:
            for parameters, kind, row in STREAMS[name][1](tables):
                row_id = "" if row.get("id") is None else str(row["id"])
                content = contents.setdefault(f"{name}|0{parameters}", Counter())
                content[kind, row_id, canonical(row)] += 1
    return contents


def expected_lookups(streams: tuple[str, ...], sources: list[dict[str, Table]]) -> set[tuple[str, str]]:
    """What the parameter index says: key and outputs."""
    if "shared" not in streams:
        return set()
    return {(_json(row["user_id"]), _json(row["list_id"])) for tables in sources for row in tables["member"].rows}


def canonical(row: Row) -> str:
    """A row's JSON with sorted keys; clients cannot tell a column that is missing from one that is NULL."""
    present = {name: value for name, value in row.items() if value is not None}
    return orjson.dumps(present, option=orjson.OPT_SORT_KEYS).decode()
