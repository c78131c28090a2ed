"""What Postgres should expect of the rows that a statement brings along as JSON."""

from __future__ import annotations

from typing import LiteralString


def sized(statement: LiteralString, rows: int) -> LiteralString:
    """The statement, whose json_to_recordset has `LIMIT ALL`, as it is to be planned for so many rows.

    Postgres takes them for a hundred, whatever they are: rather than look those up in an index, it would read a table
    of ten thousand buckets from one end to the other, and most statements bring one row. The number is written out,
    since a prepared statement whose limit were a parameter would be planned anew each time.
    """
    return statement.replace("LIMIT ALL", "LIMIT 10") if rows <= 10 else statement
