"""Postgres text → SQLite values, and those → the JSON of a row.

The texts are as our connections make Postgres print them (UTC, ISO dates, hex bytea, floats in full).
docs/reference/wire-protocol.md, "Postgres values", has the table of all types.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import orjson

from . import containers, timestamps
from .lsn import Lsn
from .types import DEFAULT_DELIMITER, Member, PgType, TypeKind

__all__ = [
    "Converter",
    "Member",
    "PgType",
    "SqliteValue",
    "TypeKind",
    "ValueOptions",
    "converter",
    "value_json",
]

SqliteValue = None | int | float | str | bytes

Converter = Callable[[str], SqliteValue]


@dataclass(frozen=True, slots=True)
class ValueOptions:
    """What the rules' `config` says of values; the defaults are those of editions 2 and 3.

    `timestamp_max_precision` is the number of digits of a second's fraction (0 … 6; more than 6 counts as 6) and
    means something only with `timestamps_iso8601`.
    """

    timestamps_iso8601: bool = True
    custom_postgres_types: bool = True
    timestamp_max_precision: int = timestamps.MAX_DIGITS

    @classmethod
    def of_edition(cls, edition: int) -> ValueOptions:
        """The defaults of an edition (1, 2 or 3) of the rules."""
        return cls(timestamps_iso8601=edition > 1, custom_postgres_types=edition > 1)


def converter(pg_type: PgType, options: ValueOptions) -> Converter | None:
    """The function from a value's text to its SQLite value; None means that the text itself is the value.

    Made once a column, called once a value. The function raises ValueError for what Postgres never prints.

    >>> converter(PgType.named("int4[]"), ValueOptions())("{1,NULL,-3}")
    '[1,null,-3]'
    """
    match pg_type.kind:
        case TypeKind.BASE:
            return _base_converter(pg_type, options)
        case TypeKind.ENUM:
            return None
        case TypeKind.ARRAY if pg_type.is_built_in or options.custom_postgres_types:
            return _json_converter(pg_type, options)
        case _ if not options.custom_postgres_types:
            return None
        case TypeKind.DOMAIN:
            return converter(_element(pg_type), options)
        case TypeKind.RANGE:
            convert = _json_converter(pg_type, options)
            return lambda text: text if text == containers.EMPTY_RANGE else convert(text)
        case _:
            return _json_converter(pg_type, options)


def value_json(value: SqliteValue) -> str | None:
    """The JSON of one SQLite value in a row; None: it cannot be in a row, and is left out.

    Integers keep all 64 bits, reals are recognisable (`5.0`, `1e21`), NaN and infinities are null.
    """
    return None if isinstance(value, bytes) else orjson.dumps(value).decode()


def _base_converter(pg_type: PgType, options: ValueOptions) -> Converter | None:
    if not pg_type.is_built_in:
        return None
    if pg_type.name in _MOMENTS:
        return _moment_converter(pg_type.name, options)
    return _BASE_CONVERTERS.get(pg_type.name)


def _moment_converter(name: str, options: ValueOptions) -> Converter | None:
    digits = min(options.timestamp_max_precision, timestamps.MAX_DIGITS) if options.timestamps_iso8601 else None
    match name:
        case "timestamp":
            return timestamps.timestamp_converter(digits)
        case "timestamptz":
            return timestamps.timestamptz_converter(digits)
        case _:
            return None if digits is None else timestamps.time_converter(digits)


def _json_converter(pg_type: PgType, options: ValueOptions) -> Callable[[str], str]:
    if pg_type.kind is TypeKind.ARRAY and _converts_by(_element(pg_type), int):
        return containers.integer_array_json
    decode = _decoder(pg_type, options)
    return lambda text: orjson.dumps(decode(text)).decode()


def _decoder(pg_type: PgType, options: ValueOptions) -> containers.Decoder:
    """The function from a value's text to what stands for it inside of an array, composite or range."""
    match pg_type.kind:
        case TypeKind.ARRAY:
            # Rules of edition 1 split boxes at commas, too; clients know them in that form.
            element = _element(pg_type)
            delimiter = element.delimiter if options.custom_postgres_types else DEFAULT_DELIMITER
            return containers.array_decoder(_decoder(element, options), delimiter)
        case TypeKind.DOMAIN if options.custom_postgres_types:
            return _decoder(_element(pg_type), options)
        case TypeKind.COMPOSITE if options.custom_postgres_types:
            return containers.composite_decoder((name, _decoder(part, options)) for name, part in pg_type.members)
        case TypeKind.RANGE if options.custom_postgres_types:
            return containers.range_decoder(_decoder(_element(pg_type), options))
        case TypeKind.MULTIRANGE if options.custom_postgres_types:
            return containers.multirange_decoder(_decoder(_element(_element(pg_type)), options))
        case _:
            return _scalar_decoder(pg_type, options)


def _scalar_decoder(pg_type: PgType, options: ValueOptions) -> containers.Decoder:
    if pg_type.is_built_in and pg_type.name in _JSON:
        return orjson.Fragment
    if _converts_by(pg_type, _bytea):
        return lambda text: None
    return converter(pg_type, options) or str


def _converts_by(pg_type: PgType, convert: Converter) -> bool:
    return pg_type.kind is TypeKind.BASE and pg_type.is_built_in and _BASE_CONVERTERS.get(pg_type.name) is convert


def _element(pg_type: PgType) -> PgType:
    if pg_type.element is None:
        raise ValueError(f"the {pg_type.kind} type {pg_type.name} has no element")
    return pg_type.element


def _bool(text: str) -> int:
    return 1 if text == "t" else 0


def _bytea(text: str) -> bytes:
    return bytes.fromhex(text.removeprefix("\\x"))


def _pg_lsn(text: str) -> str:
    return Lsn.parse(text).padded()


_BASE_CONVERTERS: Mapping[str, Converter] = {
    "bool": _bool,
    "int2": int,
    "int4": int,
    "int8": int,
    "oid": int,
    "float4": float,
    "float8": float,
    "bytea": _bytea,
    "date": timestamps.convert_date,
    "pg_lsn": _pg_lsn,
}
_MOMENTS = frozenset({"time", "timestamp", "timestamptz"})
_JSON = frozenset({"json", "jsonb"})
