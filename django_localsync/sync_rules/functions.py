"""The functions and operators of the rules: name, number of arguments, editions, meaning.

The reference of the language is written from these tables.
"""

from __future__ import annotations

import base64 as _base64
import re
from collections.abc import Callable
from dataclasses import dataclass

from ..exceptions import EvaluationError
from . import dates, geometry, json_values, values
from .expressions import SqliteValue
from .values import to_text, truth

Implementation = Callable[..., SqliteValue]

_LAST_OF_ONE_UNIT = "\uffff"  # the language is defined on UTF-16: characters beyond are two code units
_DIGITS = re.compile(r"[0-9]{1,19}", re.ASCII)
_LAST_RECEIPT = (1 << 63) - 1
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", re.ASCII)


def upper(value: SqliteValue) -> str | None:
    """Upper case, by Unicode's rules."""
    text = to_text(value)
    return None if text is None else text.upper()


def lower(value: SqliteValue) -> str | None:
    """Lower case, by Unicode's rules."""
    text = to_text(value)
    return None if text is None else text.lower()


def substring(value: SqliteValue, start: SqliteValue, length: SqliteValue = 1 << 62) -> str | None:
    """A part of a text, in UTF-16 code units counted from 1; from the end if `start` is negative, before `start` if
    `length` is."""
    text, first, count = to_text(value), values.to_integer(start), values.to_integer(length)
    if text is None or first is None or count is None:
        return None
    if max(text, default="") <= _LAST_OF_ONE_UNIT:
        return text[_part(len(text), first, count)]
    units = text.encode("utf-16-be", "surrogatepass")
    part = _part(len(units) // 2, first, count)
    # Half of a character cannot be stored, as with any text that is not Unicode.
    return units[2 * part.start : 2 * part.stop].decode("utf-16-be", "replace")


def _part(size: int, first: int, count: int) -> slice:
    """The units that substring means, of so many; within 0 … size."""
    if first > 0:
        first -= 1
    elif first < 0:
        first = max(first + size, 0)
    else:
        count -= 1  # position 0 stands before the text and costs one character
    start, stop = (first + count, first) if count < 0 else (first, first + count)
    return slice(max(start, 0), max(min(stop, size), 0))


def hexadecimal(value: SqliteValue) -> str:
    """Bytes of a blob or of the text form, in upper-case hex; empty for NULL."""
    return (values.to_blob(value) or b"").hex().upper()


def base64(value: SqliteValue) -> str:
    """Bytes of a blob or of the text form, in base64; empty for NULL."""
    return _base64.b64encode(values.to_blob(value) or b"").decode()


def length(value: SqliteValue) -> int | None:
    """Bytes of a blob, else UTF-16 code units of the text form."""
    if isinstance(value, bytes):
        return len(value)
    text = to_text(value)
    return None if text is None else _units(text)


def _units(text: str) -> int:
    """Length in UTF-16 code units."""
    return len(text) + sum(character > _LAST_OF_ONE_UNIT for character in text)


def typeof(value: SqliteValue) -> str:
    """null, integer, real, text or blob."""
    return {type(None): "null", int: "integer", float: "real", str: "text", bytes: "blob"}[type(value)]


def ifnull(value: SqliteValue, default: SqliteValue) -> SqliteValue:
    """The first argument unless it is NULL."""
    return default if value is None else value


def iif(condition: SqliteValue, then: SqliteValue, otherwise: SqliteValue = None) -> SqliteValue:
    """The second argument if the first is true, else the third."""
    return then if truth(condition) else otherwise


def instr(value: SqliteValue, part: SqliteValue) -> int | None:
    """Position of a part in UTF-16 code units, counted from 1; 0 if it is absent. Bytes if both are blobs."""
    if value is None or part is None:
        return None
    if isinstance(value, bytes) and isinstance(part, bytes):
        return value.find(part) + 1
    text = str(to_text(value))
    found = text.find(str(to_text(part)))
    return 0 if found < 0 else _units(text[:found]) + 1


def uuid_blob(value: SqliteValue) -> bytes | None:
    """The 16 bytes of a UUID."""
    if value is None:
        return None
    text = str(to_text(value))
    if not _UUID.fullmatch(text):
        raise EvaluationError("a value is not a UUID")
    return bytes.fromhex(text.replace("-", ""))


def _is_null(value: SqliteValue) -> int:
    """Whether it is NULL."""
    return int(value is None)


def _is_true(value: SqliteValue) -> int:
    """Whether it is 1, which is what true is."""
    return int(value == 1)


def _is_false(value: SqliteValue) -> int:
    """Whether it is 0, which is what false is."""
    return int(value == 0)


def _between(value: SqliteValue, low: SqliteValue, high: SqliteValue) -> int | None:
    """`low <= value AND value <= high`; NULL if one of the comparisons is."""
    least, most = _greater_or_equal(value, low), values.less_or_equal(value, high)
    return None if least is None or most is None else least & most


def _greater(left: SqliteValue, right: SqliteValue) -> int | None:
    """Greater; numbers come before text, text before blobs."""
    return values.less(right, left)


def _greater_or_equal(left: SqliteValue, right: SqliteValue) -> int | None:
    """Greater or equal."""
    return values.less_or_equal(right, left)


def _text_cast(value: SqliteValue) -> SqliteValue:
    """Text form; whole reals without `.0`, blobs as UTF-8."""
    return to_text(value)


def _receipt_user(value: SqliteValue) -> str:
    """Whom a write checkpoint is for. Raises EvaluationError."""
    text = to_text(value)
    if not text:
        raise EvaluationError("the write checkpoint has no user_id")
    return text


def _receipt_client(value: SqliteValue) -> str:
    """The device that a write checkpoint is for; empty where none is named."""
    return to_text(value) or ""


def _receipt_number(value: SqliteValue) -> int:
    """The number of a write checkpoint, from 1 to 2**63-1. Raises EvaluationError."""
    is_number = isinstance(value, int) or (isinstance(value, str) and _DIGITS.fullmatch(value))
    number = int(value) if is_number and value is not None else 0
    if not 1 <= number <= _LAST_RECEIPT:
        raise EvaluationError(f"the checkpoint of a write checkpoint must be a whole number from 1 to {_LAST_RECEIPT}")
    return number


@dataclass(frozen=True, slots=True)
class Function:
    """A function that queries may call: least and most arguments, and the editions that know it."""

    implementation: Implementation
    least: int
    most: int
    editions: tuple[int, ...] = (1, 2, 3)


FUNCTIONS: dict[str, Function] = {
    "upper": Function(upper, 1, 1),
    "lower": Function(lower, 1, 1),
    "substring": Function(substring, 2, 3),
    "hex": Function(hexadecimal, 1, 1),
    "base64": Function(base64, 1, 1),
    "length": Function(length, 1, 1),
    "typeof": Function(typeof, 1, 1),
    "ifnull": Function(ifnull, 2, 2),
    "iif": Function(iif, 3, 3),
    "instr": Function(instr, 2, 2),
    "json_extract": Function(json_values.json_extract, 2, 2),
    "json_array_length": Function(json_values.json_array_length, 1, 2),
    "json_keys": Function(json_values.json_keys, 1, 1),
    "json_valid": Function(json_values.json_valid, 1, 1, (1, 2)),
    "unixepoch": Function(dates.unixepoch, 1, 3),
    "datetime": Function(dates.date_time, 1, 3),
    "uuid_blob": Function(uuid_blob, 1, 1),
    "st_asgeojson": Function(geometry.st_asgeojson, 1, 1),
    "st_astext": Function(geometry.st_astext, 1, 1),
    "st_x": Function(geometry.st_x, 1, 1),
    "st_y": Function(geometry.st_y, 1, 1),
}
"""What queries call by name."""

OPERATORS: dict[str, Implementation] = {
    "=": values.equal,
    "!=": values.not_equal,
    "<": values.less,
    ">": _greater,
    "<=": values.less_or_equal,
    ">=": _greater_or_equal,
    "between": _between,
    "+": values.add,
    "-": values.subtract,
    "*": values.multiply,
    "/": values.divide,
    "||": values.concat,
    "->": json_values.member_json,
    "->>": json_values.member,
    "-> of edition 1": json_values.member_json_split,
    "->> of edition 1": json_values.member_split,
    "json_extract of edition 1": json_values.json_extract_null_text,
    "in": json_values.is_in,
    "among": json_values.is_among,
    "&&": json_values.overlap,
    "as array": json_values.as_array,
    "as array or null": json_values.as_array_or_null,
    "is null": _is_null,
    "is true": _is_true,
    "is false": _is_false,
    "cast as text": _text_cast,
    "cast as integer": values.to_integer,
    "cast as real": values.to_real,
    "cast as numeric": values.to_number,
    "cast as blob": values.to_blob,
    "unsupported": values.unsupported,
}
"""What operators, casts and the functions that changed between editions are compiled to."""

IMPLEMENTATIONS: dict[str, Implementation] = {
    **{name: function.implementation for name, function in FUNCTIONS.items()},
    **OPERATORS,
    "receipt user_id": _receipt_user,
    "receipt client_id": _receipt_client,
    "receipt checkpoint": _receipt_number,
}
