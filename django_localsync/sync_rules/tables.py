"""How rules name tables: `table`, `schema.table`, `"tag.schema".table`, with `%` as wildcard at the end."""

from __future__ import annotations

from .plan import TablePattern
from .syntax import Identifier, SqlError

_DEFAULT_TAG = "default"


def table_pattern(names: tuple[Identifier, ...], default_schema: str) -> TablePattern:
    """The tables that a name in FROM means. Raises SqlError."""
    table, schema = names[-1], names[0].name if len(names) > 1 else default_schema
    tag, dot, rest = schema.partition(".")
    if dot:
        if tag != _DEFAULT_TAG:
            raise SqlError(f"there is no connection {tag!a}", names[0].at, f"only {_DEFAULT_TAG!r} is known")
        schema = rest
    for part in (schema, table.name):
        if "%" in part[:-1]:
            raise SqlError("the wildcard % must stand at the end of a name", table.at)
    return TablePattern(schema, table.name)
