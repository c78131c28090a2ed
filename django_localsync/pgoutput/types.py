"""Postgres types, as far as they decide how a value's text is read.

Built from the system catalogues (https://www.postgresql.org/docs/current/catalog-pg-type.html); a domain over an array
of composites is a small tree of PgTypes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple, Self

CATALOG_SCHEMA = "pg_catalog"
DEFAULT_DELIMITER = ","

_RANGE_SUBTYPES = {
    "int4range": "int4",
    "int8range": "int8",
    "numrange": "numeric",
    "tsrange": "timestamp",
    "tstzrange": "timestamptz",
    "daterange": "date",
}


class TypeKind(StrEnum):
    """How the text of a type's values is built."""

    BASE = "base"
    ENUM = "enum"
    ARRAY = "array"
    DOMAIN = "domain"
    COMPOSITE = "composite"
    RANGE = "range"
    MULTIRANGE = "multirange"


class Member(NamedTuple):
    """An attribute of a composite type."""

    name: str
    type: PgType


@dataclass(frozen=True, slots=True)
class PgType:
    """A Postgres type.

    `name` is the catalogue's (`int4`, not `integer`; `_int4` for its array); `element` is an array's element, a
    domain's base, a range's subtype or a multirange's range; `members` are a composite's attributes in order;
    `delimiter` stands between elements of an array of this type (`;` for box, else `,`); `facts` say what of its own
    definition shows in values: each label of an enum, all attributes of a composite.
    """

    name: str
    kind: TypeKind = TypeKind.BASE
    schema: str = CATALOG_SCHEMA
    oid: int = 0
    element: PgType | None = None
    members: tuple[Member, ...] = ()
    delimiter: str = DEFAULT_DELIMITER
    facts: tuple[str, ...] = ()

    @classmethod
    def named(cls, name: str) -> Self:
        """A built-in type by its catalogue name, without a database.

        >>> PgType.named("int4[]").element.name
        'int4'
        """
        if name.endswith("[]"):
            return cls(f"_{name[:-2]}", TypeKind.ARRAY, element=cls.named(name[:-2]))
        if name in _RANGE_SUBTYPES:
            return cls(name, TypeKind.RANGE, element=cls.named(_RANGE_SUBTYPES[name]))
        range_name = name.replace("multirange", "range")
        if range_name != name and range_name in _RANGE_SUBTYPES:
            return cls(name, TypeKind.MULTIRANGE, element=cls.named(range_name))
        return cls(name, delimiter=";" if name == "box" else DEFAULT_DELIMITER)

    @classmethod
    def unknown(cls, oid: int) -> Self:
        """A type of which the catalogue no longer tells anything; its values stay texts."""
        return cls("unknown", schema="", oid=oid)

    @property
    def is_built_in(self) -> bool:
        """Whether Postgres brings this type itself, as against one that a user or an extension made."""
        return self.schema == CATALOG_SCHEMA

    def all_facts(self) -> frozenset[str]:
        """The facts of the type and of its parts.

        Values converted before stay as they would be now while no fact is gone: a new label only adds one, whereas a
        renamed one, or any change of attributes, takes one away. No fact holds a line break.
        """
        parts = [self.element] if self.element else [member.type for member in self.members]
        return frozenset(self.facts).union(*(part.all_facts() for part in parts))


class PgTypeRow(NamedTuple):
    """What the catalogue says of one type; parts are named by oid (see `replication/types.py` for the query).

    `element` is None for kinds without one; `members` are names and type oids of a composite's attributes; `facts` are
    those of `PgType`.
    """

    oid: int
    schema: str
    name: str
    kind: str
    element: int | None
    delimiter: str
    members: Sequence[tuple[str, int]]
    facts: Sequence[str] = ()


def types_from_rows(rows: Iterable[PgTypeRow]) -> dict[int, PgType]:
    """The types by oid, put together from rows that hold all of their parts, too; a missing part is `unknown`."""
    by_oid = {row.oid: row for row in rows}
    types: dict[int, PgType] = {}

    def resolve(oid: int) -> PgType:
        if oid not in types:
            types[oid] = build(by_oid[oid]) if oid in by_oid else PgType.unknown(oid)
        return types[oid]

    def build(row: PgTypeRow) -> PgType:
        return PgType(
            name=row.name,
            kind=TypeKind(row.kind),
            schema=row.schema,
            oid=row.oid,
            element=None if row.element is None else resolve(row.element),
            members=tuple(Member(name, resolve(oid)) for name, oid in row.members),
            delimiter=row.delimiter,
            facts=tuple(row.facts),
        )

    return {oid: resolve(oid) for oid in by_oid}
