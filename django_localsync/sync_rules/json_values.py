"""JSON inside SQLite values: paths, arrays and objects, as rules define them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import orjson

from ..exceptions import EvaluationError
from .expressions import SqliteValue

MISSING = object()
"""What a path answers that leads nowhere, unlike JSON null."""

_INDEX = re.compile(r"0|[1-9][0-9]{0,9}", re.ASCII)


def parse_json(text: str) -> Any:
    """The JSON value of a text. Raises EvaluationError."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        raise EvaluationError("a value is not JSON") from None


def json_text(value: Any) -> str:
    """Compact JSON."""
    try:
        return orjson.dumps(value).decode()
    except (TypeError, RecursionError):
        raise EvaluationError("a value cannot be written as JSON") from None


def to_sqlite(value: Any) -> SqliteValue:
    """A JSON value as SQLite value: booleans 1 and 0, arrays and objects as JSON text, null and MISSING as NULL."""
    if value is None or value is MISSING:
        return None
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, int | float | str):
        return value
    return json_text(value)


def follow(document: Any, steps: list[str]) -> Any:
    """The member that a path of keys leads to, or MISSING. A number is the key of an array's element, from 0."""
    for step in steps:
        if isinstance(document, dict) and step in document:
            document = document[step]
        elif isinstance(document, list) and _INDEX.fullmatch(step) and int(step) < len(document):
            document = document[int(step)]
        else:
            return MISSING
    return document


def member_steps(key: str, *, split: bool = False) -> list[str]:
    """The keys of a `->` operand: a plain key, or a path when it begins with `$` (or with dots, if split)."""
    if key == "$" or key.startswith(("$.", "$[")):
        return key.split(".")[1:]
    return key.split(".") if split else [key]


def _document(value: SqliteValue) -> Any:
    if isinstance(value, bytes):
        raise EvaluationError("a blob is not JSON")
    return parse_json(value) if isinstance(value, str) else value


def _member(value: SqliteValue, key: SqliteValue, *, split: bool) -> Any:
    if value is None or key is None:
        return MISSING
    text = key if isinstance(key, str) else json_text(key)
    return follow(_document(value), member_steps(text, split=split))


def member(value: SqliteValue, key: SqliteValue) -> SqliteValue:
    """A member as value: by a plain key, or by a path if it begins with `$.`."""
    return to_sqlite(_member(value, key, split=False))


def member_split(value: SqliteValue, key: SqliteValue) -> SqliteValue:
    """In edition 1: `a.b` is a path too, and JSON null is the text `null`."""
    found = _member(value, key, split=True)
    return "null" if found is None else to_sqlite(found)


def member_json(value: SqliteValue, key: SqliteValue) -> SqliteValue:
    """A member as JSON text, `null` for JSON null, NULL where nothing is."""
    found = _member(value, key, split=False)
    return None if found is MISSING else json_text(found)


def member_json_split(value: SqliteValue, key: SqliteValue) -> SqliteValue:
    """In edition 1: `a.b` is a path too, and JSON null is NULL."""
    found = _member(value, key, split=True)
    return None if found is MISSING or found is None else json_text(found)


def _at_path(value: SqliteValue, path: SqliteValue) -> Any:
    """What a path of `$` and keys leads to; MISSING for NULL. Raises EvaluationError."""
    if value is None or path is None:
        return MISSING
    if not isinstance(path, str) or not path.startswith("$"):
        raise EvaluationError("a JSON path must begin with $")
    return follow(_document(value), path.split(".")[1:])


def json_extract(value: SqliteValue, path: SqliteValue) -> SqliteValue:
    """A member as value, by a path of `$` and keys."""
    return to_sqlite(_at_path(value, path))


def json_extract_null_text(value: SqliteValue, path: SqliteValue) -> SqliteValue:
    """In edition 1: JSON null is the text `null`."""
    found = _at_path(value, path)
    return "null" if found is None else to_sqlite(found)


def json_array_length(value: SqliteValue, path: SqliteValue = "$") -> int | None:
    """Length of an array, 0 for anything else, NULL for NULL and for what is not there."""
    found = _at_path(value, path)
    if found is MISSING:
        return None
    return len(found) if isinstance(found, list) else 0


def json_keys(value: SqliteValue) -> str | None:
    """JSON array of an object's keys, in order."""
    if value is None:
        return None
    document = _document(value)
    if not isinstance(document, dict):
        raise EvaluationError("json_keys needs a JSON object")
    return json_text(list(document))


def json_valid(value: SqliteValue) -> int:
    """Whether a value is JSON text or a number."""
    try:
        _document(value)
    except EvaluationError:
        return 0
    return int(value is not None)


def json_each(value: SqliteValue) -> Iterator[tuple[SqliteValue, SqliteValue]]:
    """Key and value of each element of an array or object; a scalar is one element, NULL none.

    Raises EvaluationError for text that is not JSON, and for blobs.
    """
    if value is None:
        return iter(())
    if isinstance(value, bytes):
        raise EvaluationError("json_each needs JSON, not a blob")
    document = parse_json(value) if isinstance(value, str) else value
    return iter(each_element(document))


def each_element(document: Any) -> list[tuple[SqliteValue, SqliteValue]]:
    """`json_each` of a parsed document."""
    if isinstance(document, list):
        return [(index, to_sqlite(item)) for index, item in enumerate(document)]
    if isinstance(document, dict):
        return [(key, to_sqlite(item)) for key, item in document.items()]
    return [] if document is None else [(None, to_sqlite(document))]


def _array(value: SqliteValue) -> list[SqliteValue] | None:
    """The elements of a JSON array, None for NULL. Raises EvaluationError for anything else.

    NULL would be taken for "not in" by NOT IN, which must not grant what nobody understands.
    """
    if value is None:
        return None
    document = _document(value)
    if not isinstance(document, list):
        raise EvaluationError("IN and && need a JSON array")
    return [to_sqlite(item) for item in document]


def is_in(value: SqliteValue, array: SqliteValue) -> int | None:
    """Whether a JSON array has the value; NULL with NULL, an error for what is no array."""
    if value is None:
        return None
    items = _array(array)
    return None if items is None else int(_contains(items, value))


def is_among(value: SqliteValue, *items: SqliteValue) -> int | None:
    """Whether a list has the value; NULL if it has not, but has NULL."""
    if value is None:
        return None
    if _contains(items, value):
        return 1
    return None if None in items else 0


def _contains(items: Sequence[SqliteValue], value: SqliteValue) -> bool:
    if isinstance(value, bytes) and any(isinstance(item, bytes) for item in items):
        raise EvaluationError("two blobs cannot be compared; compare hex(…) of them")
    return any(item is not None and item == value for item in items)


def overlap(left: SqliteValue, right: SqliteValue) -> int | None:
    """Whether two JSON arrays have an element in common."""
    lefts, rights = _array(left), _array(right)
    if lefts is None or rights is None:
        return None
    return int(any(_contains(rights, item) for item in lefts if item is not None))


def as_array(value: SqliteValue) -> SqliteValue:
    """The value if it is the text of a JSON array, or NULL. Raises EvaluationError for anything else."""
    _array(value)
    return value


def as_array_or_null(value: SqliteValue) -> SqliteValue:
    """The value if it is the text of a JSON array, else NULL."""
    try:
        return as_array(value)
    except EvaluationError:
        return None
