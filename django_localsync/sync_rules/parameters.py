"""Bucket parameters and lookup keys as text, the same for rows and for requests."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import orjson

from .expressions import SqliteValue
from .plan import MAX_PARAMETERS_LENGTH
from .values import normalised


def parameters_text(values: Sequence[SqliteValue]) -> str:
    """Compact JSON array of the values, whole reals as integers.

    A longer text than MAX_PARAMETERS_LENGTH becomes `[{"sha256":"…"}]`, which no values can give: they hold no
    objects.

    >>> parameters_text(["u1", 2.0])
    '["u1",2]'
    """
    text = orjson.dumps([normalised(value) for value in values]).decode()
    return text if len(text) <= MAX_PARAMETERS_LENGTH else _hashed(text)


def text_parameters(value: str) -> str:
    """`parameters_text` of one text, which is the usual case."""
    text = orjson.dumps((value,)).decode()
    return text if len(text) <= MAX_PARAMETERS_LENGTH else _hashed(text)


def outputs_text(values: Sequence[SqliteValue]) -> str:
    """Compact JSON array of what a lookup answers, whole reals as integers."""
    return orjson.dumps([normalised(value) for value in values]).decode()


def _hashed(text: str) -> str:
    return f'[{{"sha256":"{hashlib.sha256(text.encode()).hexdigest()}"}}]'
