"""JSON inside SQLite values: paths, arrays and objects, as rules define them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson

from ..exceptions import EvaluationError
from .expressions import SqliteValue

MISSING = object()
"""What a path answers that leads nowhere, unlike JSON null."""


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
    """The member that a path of keys leads to, or MISSING."""
    for step in steps:
        if not isinstance(document, dict) or step not in document:
            return MISSING
        document = document[step]
    return document


def _steps(path: SqliteValue, *, split: bool) -> list[str]:
    """The keys of a `->` operand: a plain key, or a path when it begins with `$.` (or with dots, if split)."""
    text = path if isinstance(path, str) else json_text(path)
    if text.startswith("$."):
        return text[2:].split(".")
    return text.split(".") if split else [text]


def _document(value: SqliteValue) -> Any:
    return parse_json(value) if isinstance(value, str) else MISSING


def member(value: SqliteValue, key: SqliteValue) -> SqliteValue:
    """`->>` from edition 2 on: a plain key, or a path if it begins with `$.`."""
    if key is None:
        return None
    return to_sqlite(follow(_document(value), _steps(key, split=False)))


def member_split(value: SqliteValue, key: SqliteValue) -> SqliteValue:
    """`->>` of edition 1, where `a.b` is a path too."""
    if key is None:
        return None
    return to_sqlite(follow(_document(value), _steps(key, split=True)))


def member_json(value: SqliteValue, key: SqliteValue) -> SqliteValue:
    """`->` from edition 2 on: JSON text, `null` for JSON null, NULL where nothing is."""
    if key is None:
        return None
    found = follow(_document(value), _steps(key, split=False))
    return None if found is MISSING else json_text(found)


def member_json_split(value: SqliteValue, key: SqliteValue) -> SqliteValue:
    """`->` of edition 1: NULL for JSON null."""
    if key is None:
        return None
    found = follow(_document(value), _steps(key, split=True))
    return None if found is MISSING or found is None else json_text(found)


def _path_steps(path: SqliteValue) -> list[str]:
    if not isinstance(path, str) or not path.startswith("$"):
        raise EvaluationError("a JSON path must begin with $")
    if path == "$":
        return []
    if not path.startswith("$."):
        raise EvaluationError("a JSON path consists of $ and .keys")
    return path[2:].split(".")


def json_extract(value: SqliteValue, path: SqliteValue) -> SqliteValue:
    """`json_extract` from edition 2 on."""
    steps = _path_steps(path)
    return to_sqlite(follow(_document(value), steps))


def json_extract_null_text(value: SqliteValue, path: SqliteValue) -> SqliteValue:
    """`json_extract` of edition 1: JSON null is the text `null`."""
    found = follow(_document(value), _path_steps(path))
    return "null" if found is None else to_sqlite(found)


def json_array_length(value: SqliteValue, path: SqliteValue = "$") -> int | None:
    """Length of an array, 0 for anything else, NULL for NULL."""
    if value is None or path is None:
        return None
    found = follow(_document(value), _path_steps(path))
    if found is MISSING and path != "$":
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
    """Whether a value is JSON text."""
    try:
        return int(value is not None and _document(value) is not MISSING)
    except EvaluationError:
        return 0


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
    """The elements of a JSON array, None for NULL and anything else."""
    if not isinstance(value, str):
        return None
    document = parse_json(value)
    return [to_sqlite(item) for item in document] if isinstance(document, list) else None


def is_in(value: SqliteValue, array: SqliteValue) -> int | None:
    """`value IN array`, the array being JSON text; NULL with NULL."""
    if value is None:
        return None
    items = _array(array)
    return None if items is None else is_among(value, *items)


def is_among(value: SqliteValue, *items: SqliteValue) -> int | None:
    """`value IN ARRAY[…]`."""
    if value is None:
        return None
    return int(any(item is not None and type(item) is not bytes and item == value for item in items))


def overlap(left: SqliteValue, right: SqliteValue) -> int | None:
    """`left && right`: whether two JSON arrays have an element in common."""
    lefts, rights = _array(left), _array(right)
    if lefts is None or rights is None:
        return None
    return int(any(is_among(item, *rights) for item in lefts))


def as_array(value: SqliteValue) -> SqliteValue:
    """The value if it is the text of a JSON array, else NULL. Raises EvaluationError for text that is not JSON."""
    return value if _array(value) is not None else None


def as_array_or_null(value: SqliteValue) -> SqliteValue:
    """The value if it is the text of a JSON array, else NULL."""
    try:
        return as_array(value)
    except EvaluationError:
        return None
