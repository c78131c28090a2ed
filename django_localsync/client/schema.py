"""The client's schema: which tables an app sees as views, and how its writes to them are queued.

The synced rows themselves have no schema (each is a JSON text), so that changing this one never needs a download.
`Schema.from_json` reads the description that the official SDKs use (docs/reference/wire-protocol.md §6.1).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Self

from ..exceptions import ConfigurationError

MAX_COLUMNS = 1999  # SQLite's limit of 2000, less the id


class ColumnType(Enum):
    """What a view casts the JSON value to."""

    TEXT = "text"
    INTEGER = "integer"
    REAL = "real"


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a view. `id` is there by itself and always text."""

    name: str
    type: ColumnType = ColumnType.TEXT

    def __post_init__(self) -> None:
        _check_name(self.name, "column")

    @classmethod
    def text(cls, name: str) -> Self:
        """A column of texts: also dates, UUIDs, decimals and JSON."""
        return cls(name, ColumnType.TEXT)

    @classmethod
    def integer(cls, name: str) -> Self:
        """A column of integers: also booleans, as 0 and 1."""
        return cls(name, ColumnType.INTEGER)

    @classmethod
    def real(cls, name: str) -> Self:
        """A column of floating-point numbers."""
        return cls(name, ColumnType.REAL)


@dataclass(frozen=True, slots=True)
class IndexColumn:
    """One column of an index, with its direction."""

    name: str
    ascending: bool = True


@dataclass(frozen=True, slots=True, init=False)
class Index:
    """An index over columns of one table, given as names or `IndexColumn`s."""

    name: str
    columns: tuple[IndexColumn, ...]

    def __init__(self, name: str, columns: Iterable[str | IndexColumn]) -> None:
        object.__setattr__(self, "name", _check_name(name, "index"))
        listed = tuple(IndexColumn(column) if isinstance(column, str) else column for column in columns)
        object.__setattr__(self, "columns", listed)


@dataclass(frozen=True)
class Table:
    """A table as the app sees it.

    `local_only`: never synced, never uploaded. `insert_only`: writes are queued for upload but not kept (logs).
    `include_old`: send values before a change along with it: all columns, or those listed;
    `include_old_only_when_changed` restricts them to what changed. `include_metadata` adds a `_metadata` column whose
    text is uploaded with the write. `ignore_empty_update` queues nothing when an update changed no value.
    Raises ConfigurationError for names that cannot be, or are there twice.
    """

    name: str
    columns: Sequence[Column]
    indexes: Sequence[Index] = ()
    view_name: str | None = None
    local_only: bool = False
    insert_only: bool = False
    include_metadata: bool = False
    include_old: bool | Sequence[str] = False
    include_old_only_when_changed: bool = False
    ignore_empty_update: bool = False

    def __post_init__(self) -> None:
        for name in (self.name, self.view):
            _check_name(name, "table")
            if name.lower().startswith(("ps_", "sqlite_")):
                raise ConfigurationError(f"table {name!r}: names that begin with ps_ or sqlite_ are taken")
        names = ["id", *(column.name for column in self.columns)]
        if self.include_metadata:
            names += ["_metadata", "_deleted"]
        _check_unique(names, f"table {self.name!r} has the column")
        if len(self.columns) > MAX_COLUMNS:
            raise ConfigurationError(f"table {self.name!r} has {len(self.columns)} columns; at most {MAX_COLUMNS}")
        self._check_mentioned(column.name for index in self.indexes for column in index.columns)
        if not isinstance(self.include_old, bool):
            self._check_mentioned(self.include_old)

    @property
    def view(self) -> str:
        """The name under which SQL sees the table."""
        return self.view_name or self.name

    @property
    def data_table(self) -> str:
        """The SQLite table that holds the rows as JSON."""
        return f"ps_data_local__{self.name}" if self.local_only else f"ps_data__{self.name}"

    @property
    def old_columns(self) -> tuple[Column, ...]:
        """The columns whose previous values are uploaded."""
        if isinstance(self.include_old, bool):
            return tuple(self.columns) if self.include_old else ()
        return tuple(column for column in self.columns if column.name in self.include_old)

    def _check_mentioned(self, names: Iterable[str]) -> None:
        for name in names:
            if name not in {column.name for column in self.columns}:
                raise ConfigurationError(f"table {self.name!r} has no column {name!r}; add it to columns")


@dataclass(frozen=True, init=False)
class Schema:
    """All tables of an app. Raises ConfigurationError when two share a name.

    >>> Schema([Table("todos", [Column.text("title"), Column.integer("done")])]).tables[0].data_table
    'ps_data__todos'
    """

    tables: tuple[Table, ...]

    def __init__(self, tables: Iterable[Table]) -> None:
        object.__setattr__(self, "tables", tuple(tables))
        _check_unique([table.name for table in self.tables], "the schema has the table")
        _check_unique([table.view for table in self.tables], "the schema has the view")

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """Read the SDKs' schema description. Raises ConfigurationError for what it cannot be."""
        if document.get("raw_tables"):
            raise ConfigurationError("raw_tables are not supported; describe them as tables")
        try:
            return cls(_table(table) for table in document["tables"])
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigurationError(f"not a schema description: {error!r}") from None


_FLAGS = (
    "view_name",
    "local_only",
    "insert_only",
    "include_metadata",
    "include_old",
    "include_old_only_when_changed",
    "ignore_empty_update",
)


def _table(document: Mapping[str, Any]) -> Table:
    return Table(
        name=document["name"],
        columns=[Column(column["name"], ColumnType(column["type"].lower())) for column in document["columns"]],
        indexes=[_index(index) for index in document.get("indexes") or ()],
        **{flag: document[flag] for flag in _FLAGS if document.get(flag) is not None},
    )


def _index(document: Mapping[str, Any]) -> Index:
    columns = (IndexColumn(column["name"], column.get("ascending", True)) for column in document["columns"])
    return Index(document["name"], columns)


def _check_name(name: str, what: str) -> str:
    if not name or not name.isprintable() or '"' in name or "\\" in name:  # JSON would have to escape them
        raise ConfigurationError(
            f"{name!r} cannot be the name of a {what}: it is empty, or holds a quotation mark, a backslash or a "
            "control character; give it another name in the sync rules with AS"
        )
    return name


def _check_unique(names: Sequence[str], message: str) -> None:
    seen = set()
    for name in names:
        if name.lower() in seen:  # SQLite compares names without case
            raise ConfigurationError(f"{message} {name!r} twice")
        seen.add(name.lower())
