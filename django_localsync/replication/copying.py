"""COPY … TO STDOUT as rows of texts, by psycopg's libpq layer.

One call a row: reading rows of 8 columns takes a third of what `Copy.rows` takes, which fetches, parses and converts
each for itself.
https://www.postgresql.org/docs/current/sql-copy.html, "Text Format"
"""

from __future__ import annotations

import re
from collections.abc import Generator

import psycopg
from psycopg import pq, sql
from psycopg.errors import error_from_result

from ..storage.connections import Connection
from .changes import Row
from .wakeups import wait_readable

LOOK_AGAIN_S = 60.0

_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_CONTROLS = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}


def copy_out(connection: Connection, query: sql.Composable) -> Generator[Row]:
    """The rows of a `COPY … TO STDOUT` in text format; the connection's encoding must be UTF-8.

    Nothing else may use the connection until the rows are read, or the iterator is closed. Raises psycopg.Error.
    """
    pgconn = connection.pgconn
    pgconn.send_query(query.as_bytes(connection))
    is_running = True
    try:
        result = _result(pgconn)
        is_running = result is not None and result.status == pq.ExecStatus.COPY_OUT
        while is_running:
            size, data = pgconn.get_copy_data(1)
            if size > 0:
                yield parse_row(str(data, "utf-8"))
            elif size == 0:
                _wait(pgconn)
            else:
                is_running = False
                result = _result(pgconn)
        if result is None or result.status != pq.ExecStatus.COMMAND_OK:
            raise _error(pgconn, result)
    finally:
        if is_running:
            connection.cancel_safe()
        _finish(pgconn)


def parse_row(line: str) -> Row:
    r"""A row of COPY's text format, with its line feed.

    >>> parse_row("1\t\\N\ta\\tb\n")
    ('1', None, 'a\tb')
    """
    fields = line[:-1].split("\t")
    return (*map(_unescape, fields),) if "\\" in line else (*fields,)


def _unescape(field: str) -> str | None:
    if "\\" not in field:
        return field
    return None if field == r"\N" else _ESCAPE.sub(lambda found: _CONTROLS.get(found[1], found[1]), field)


def _wait(pgconn: pq.abc.PGconn) -> None:
    wait_readable(pgconn.socket, timeout_s=LOOK_AGAIN_S)
    pgconn.consume_input()


def _result(pgconn: pq.abc.PGconn) -> pq.abc.PGresult | None:
    while pgconn.is_busy():  # else get_result() would wait, and hold up every thread of the process
        _wait(pgconn)
    return pgconn.get_result()


def _finish(pgconn: pq.abc.PGconn) -> None:
    """Pass over what was not read, so that the connection is ready for the next statement."""
    while pgconn.status == pq.ConnStatus.OK and (result := _result(pgconn)) is not None:
        while result.status == pq.ExecStatus.COPY_OUT and (size := pgconn.get_copy_data(1)[0]) >= 0:
            if size == 0:
                _wait(pgconn)


def _error(pgconn: pq.abc.PGconn, result: pq.abc.PGresult | None) -> psycopg.Error:
    if result is None:
        return psycopg.OperationalError(pgconn.error_message.decode(errors="replace").strip())
    return error_from_result(result, encoding="utf-8")
