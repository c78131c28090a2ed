"""Random tables in Postgres with a few rows, and the requests of some users."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from psycopg import pq

from django_localsync.pgoutput.values import PgType
from django_localsync.sync_rules.plan import Column, RequestParameters, Subscription, TableName

# Few values, so that they meet often, also across types: '1' is not 1, but 1.0 is.
NUMBERS = {
    "int2": ["1", "2", "0"],
    "int4": ["1", "2", "3", "-1"],
    "int8": ["1", "2", "4294967296"],
    "float8": ["1", "2", "1.5", "-0.5"],
    "bool": ["t", "f"],
}
TEXTS = {
    "text": ["u1", "u2", "1", "a", ""],
    "varchar": ["u1", "u2", "A"],
    "uuid": ["00000000-0000-0000-0000-00000000000a", "00000000-0000-0000-0000-00000000000b"],
    "numeric": ["1", "2.50", "1.0"],
    "date": ["2024-05-06", "1969-12-31"],
    "timestamptz": ["2024-05-06 07:08:09+00", "1969-12-31 23:59:59.5+00"],
}
ARRAYS = {
    "jsonb": ["[]", '[1,"u1"]', '["u2",null]', '[2,2,"1"]', "[true,1.5]"],
    "text[]": ["{}", "{u1,u2}", "{1,NULL}"],
    "int4[]": ["{1}", "{2,2,NULL}", "{}"],
    "uuid[]": ["{00000000-0000-0000-0000-00000000000a}"],
}
DOCUMENTS = ['{"k":"u1","n":1}', '{"k":2,"o":{"k":"u2"}}', '{"k":null,"n":true}', "{}"]
TABLES = ("docs", "teams", "members")

# The values of a request and of JSON, as rules know them: booleans are numbers, objects are text, null is NULL.
# And what json_each gives for an array or object.
FUNCTIONS = """
CREATE FUNCTION sv(j jsonb) RETURNS jsonb LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE jsonb_typeof(j)
        WHEN 'boolean' THEN CASE WHEN j::bool THEN '1'::jsonb ELSE '0' END
        WHEN 'null' THEN NULL
        WHEN 'array' THEN to_jsonb(j::text)
        WHEN 'object' THEN to_jsonb(j::text)
        ELSE j END
$$;
CREATE FUNCTION each(j jsonb) RETURNS TABLE (value jsonb) LANGUAGE sql IMMUTABLE ROWS 2 AS $$
    SELECT sv(value) FROM jsonb_array_elements(CASE jsonb_typeof(j) WHEN 'array' THEN j ELSE '[]' END)
    UNION ALL
    SELECT sv(value) FROM jsonb_each(CASE jsonb_typeof(j) WHEN 'object' THEN j ELSE '{}' END)
$$;
"""


@dataclass(frozen=True)
class Table:
    """A table's columns by name, each with its type."""

    name: str
    columns: Mapping[str, str]

    def of(self, types: Mapping[str, Any]) -> list[str]:
        """Names of the columns that have one of the types."""
        return [name for name, type_name in self.columns.items() if type_name in types and name not in ("id", "doc")]


@dataclass(frozen=True)
class World:
    """Tables, their rows in Postgres's text form, and requests."""

    tables: Mapping[str, Table]
    rows: Mapping[str, Sequence[Sequence[str | None]]]
    requests: Sequence[RequestParameters]

    def layout(self, table: str) -> list[Column]:
        """The table's columns as the evaluator wants them."""
        return [Column(name, PgType.named(type_name)) for name, type_name in self.tables[table].columns.items()]

    @staticmethod
    def table_name(table: str) -> TableName:
        """Where rules find the table."""
        return TableName("public", table)


def make_tables(rnd: random.Random) -> dict[str, Table]:
    """Three tables with columns of types by chance, at least one number, text and array each."""
    tables = {}
    for name in TABLES:
        columns = {"id": "text"}
        for number in range(2):
            columns[f"n{number}"] = rnd.choice([*NUMBERS])
            columns[f"t{number}"] = rnd.choice([*TEXTS, "text"])
        columns["tags"] = rnd.choice([*ARRAYS, "jsonb"])
        columns["doc"] = "jsonb"
        tables[name] = Table(name, columns)
    return tables


def make_rows(table: Table, rnd: random.Random) -> list[list[str | None]]:
    """A few rows; a fifth of the values are NULL."""
    pools = {**NUMBERS, **TEXTS, **ARRAYS}
    return [
        [
            f"{table.name}{number}" if name == "id" else _value(DOCUMENTS if name == "doc" else pools[type_name], rnd)
            for name, type_name in table.columns.items()
        ]
        for number in range(rnd.randint(3, 5))
    ]


def _value(pool: Sequence[str], rnd: random.Random) -> str | None:
    return None if rnd.random() < 0.2 else rnd.choice(pool)


def make_requests(rnd: random.Random, streams: Sequence[str]) -> list[RequestParameters]:
    """Requests of three users, each subscribed to all streams."""
    requests = []
    for user in ("u1", "u2", TEXTS["uuid"][0]):
        claims = {
            "sub": user,
            "team": rnd.choice([1, 2, "1", "u2", None, True, 1.5]),
            "role": rnd.choice(["admin", "guest"]),
            "flag": rnd.choice([True, False]),
            "list": rnd.choice([[1, "u1"], ["u2", None], [], [True, 1.5], [2, TEXTS["uuid"][1]]]),
            "o": {"k": rnd.choice(["u1", 2])},
        }
        parameters = {"p": rnd.choice([1, "u1", "a"]), "ps": rnd.choice([["u1", 2], [], ["a", 1]])}
        subscriptions = [Subscription(name, parameters) for name in streams]
        requests.append(RequestParameters(claims, {"c": rnd.choice([1, "u2"])}, subscriptions))
    return requests


def build(connection: Any, tables: Mapping[str, Table], rnd: random.Random, requests: Sequence[Any]) -> World:
    """Make tables, rows and requests in Postgres (in a new schema that the search path finds), and read them back."""
    statements = ["DROP SCHEMA IF EXISTS rules_world CASCADE; CREATE SCHEMA rules_world;"]
    statements += ["SET search_path = rules_world; SET TimeZone = 'UTC'; SET jit = off;", FUNCTIONS]
    for table in tables.values():
        columns = ", ".join(f"{name} {type_name}" for name, type_name in table.columns.items())
        rows = ", ".join(f"({', '.join(map(_quoted, row))})" for row in make_rows(table, rnd))
        statements.append(f"CREATE TABLE {table.name} ({columns}); INSERT INTO {table.name} VALUES {rows};")
    statements.append("CREATE TABLE request (n int, auth jsonb, connection jsonb, subscription jsonb);")
    for number, request in enumerate(requests):
        parts = (request.claims, request.connection, request.subscriptions[0].parameters)
        texts = ", ".join(_quoted(json.dumps(part)) for part in parts)
        statements.append(f"INSERT INTO request VALUES ({number}, {texts});")
    execute(connection, "".join(statements))
    read = {name: execute(connection, f"TABLE {name}") for name in tables}
    return World(tables, read, requests)


def execute(connection: Any, sql: str) -> list[tuple[str | None, ...]]:
    """Rows of the (last) statement as the texts that Postgres prints, which is what replication gets."""
    result = connection.pgconn.exec_(sql.encode())
    assert result.status in (pq.ExecStatus.TUPLES_OK, pq.ExecStatus.COMMAND_OK), result.error_message.decode()
    return [
        tuple(
            None if (value := result.get_value(row, column)) is None else value.decode()
            for column in range(result.nfields)
        )
        for row in range(result.ntuples)
    ]


def _quoted(value: str | None) -> str:
    return "NULL" if value is None else "'" + value.replace("'", "''") + "'"
