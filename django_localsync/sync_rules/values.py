"""SQLite values: truth, comparison, arithmetic and conversions, as rules define them (docs/reference/sync-rules.md).

A value is None, int (64-bit), float, str or bytes. Where the rules differ from SQLite, the function says so.
"""

from __future__ import annotations

import math
import re
from decimal import Decimal

from ..exceptions import EvaluationError
from .expressions import SqliteValue

MIN_INTEGER, MAX_INTEGER = -(1 << 63), (1 << 63) - 1

_MAX_DIGITS = 4000  # Python reads no longer ones
_LEADING_INTEGER = re.compile(r"\s*([+-]?\d+)", re.ASCII)
_LEADING_NUMBER = re.compile(r"\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)", re.ASCII)


def truth(value: SqliteValue) -> bool:
    """Whether a condition with this value holds: NULL and blobs do not, text counts by its leading integer."""
    if value is None or isinstance(value, bytes):
        return False
    if isinstance(value, str):
        match = _LEADING_INTEGER.match(value)
        return match is not None and bool(match.group(1).strip("+-0"))
    return value != 0 and value == value


def to_text(value: SqliteValue) -> str | None:
    """Text form; whole reals without `.0`, blobs as UTF-8."""
    match value:
        case None | str():
            return value
        case int():
            return str(value)
        case float():
            return real_text(value)
        case bytes():
            return value.decode("utf-8", "replace")


def real_text(value: float) -> str:
    """The shortest text that reads back as the real; exponents only below 1e-6 and from 1e21 on."""
    if not math.isfinite(value):
        return "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"
    if value == 0:
        return "0"
    if 1e-6 <= abs(value) < 1e21:
        text = format(Decimal(repr(value)), "f")
        return text.rstrip("0").rstrip(".") if "." in text else text
    mantissa, _, exponent = repr(value).partition("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent):+d}"


def to_number(value: SqliteValue) -> int | float | None:
    """What arithmetic makes of a value: text counts by its numeric prefix, else 0."""
    match value:
        case None | int() | float():
            return value
        case bytes():
            return to_number(to_text(value))
        case str():
            match = _LEADING_NUMBER.match(value)
            if match is None:
                return 0
            text = match.group(1)
            whole = len(text) < _MAX_DIGITS and text.lstrip("+-").isdigit()
            return _integer_or_real(int(text)) if whole else float(text)


def to_integer(value: SqliteValue) -> int | None:
    """Text by its leading integer, else 0; reals are rounded down (−3.9 → −4), NaN is an error."""
    if isinstance(value, bytes):
        value = to_text(value)
    if isinstance(value, str):
        match = _LEADING_INTEGER.match(value)
        value = int(match.group(1)[:_MAX_DIGITS]) if match else 0
    if isinstance(value, float):
        if not math.isfinite(value):
            raise EvaluationError("NaN and infinities are no integers")
        value = math.floor(value)
    return None if value is None else max(MIN_INTEGER, min(MAX_INTEGER, value))


def to_real(value: SqliteValue) -> float | None:
    """As `numeric`, and a real."""
    number = to_number(value)
    return None if number is None else float(number)


def to_blob(value: SqliteValue) -> bytes | None:
    """The bytes of the text form."""
    if value is None or isinstance(value, bytes):
        return value
    text = to_text(value)
    assert text is not None
    return text.encode()


def normalised(value: SqliteValue) -> SqliteValue:
    """A value as bucket parameters and lookup keys write it: whole reals as integers, NaN and infinities NULL."""
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        if value.is_integer() and MIN_INTEGER <= value <= MAX_INTEGER - 1023:
            return int(value)
    return value


def equal(left: SqliteValue, right: SqliteValue) -> int | None:
    """Equal: numbers numerically, text by code units, different kinds never; NULL with NULL."""
    if left is None or right is None:
        return None
    if isinstance(left, bytes) and isinstance(right, bytes):
        raise EvaluationError("two blobs cannot be compared; compare hex(…) of them")
    return int(left == right)


def compare(left: SqliteValue, right: SqliteValue) -> int | None:
    """-1, 0 or 1; numbers come before text, text before blobs; NULL with NULL and with NaN."""
    if left is None or right is None or left != left or right != right:
        return None
    left_rank, right_rank = _rank(left), _rank(right)
    if left_rank != right_rank:
        return -1 if left_rank < right_rank else 1
    if isinstance(left, bytes):
        raise EvaluationError("two blobs cannot be compared; compare hex(…) of them")
    if isinstance(left, str):
        # UTF-16 code units, in which the language is defined: they order surrogates before U+E000 … U+FFFF.
        left, right = left.encode("utf-16-be", "surrogatepass"), str(right).encode("utf-16-be", "surrogatepass")
    return int(left > right) - int(left < right)  # type: ignore[operator]


def _rank(value: SqliteValue) -> int:
    return 2 if isinstance(value, bytes) else 1 if isinstance(value, str) else 0


def less(left: SqliteValue, right: SqliteValue) -> int | None:
    """Less; numbers come before text, text before blobs."""
    order = compare(left, right)
    return None if order is None else int(order < 0)


def less_or_equal(left: SqliteValue, right: SqliteValue) -> int | None:
    """Less or equal."""
    order = compare(left, right)
    return None if order is None else int(order <= 0)


def not_equal(left: SqliteValue, right: SqliteValue) -> int | None:
    """Not equal, NULL with NULL (editions 1 and 2); in edition 3 it is `NOT (a = b)`."""
    same = equal(left, right)
    return None if same is None else 1 - same


def add(left: SqliteValue, right: SqliteValue) -> SqliteValue:
    """Sum; text counts by its numeric prefix."""
    a, b = to_number(left), to_number(right)
    return None if a is None or b is None else _integer_or_real(a + b)


def subtract(left: SqliteValue, right: SqliteValue) -> SqliteValue:
    """Difference."""
    a, b = to_number(left), to_number(right)
    return None if a is None or b is None else _integer_or_real(a - b)


def multiply(left: SqliteValue, right: SqliteValue) -> SqliteValue:
    """Product."""
    a, b = to_number(left), to_number(right)
    return None if a is None or b is None else _integer_or_real(a * b)


def divide(left: SqliteValue, right: SqliteValue) -> SqliteValue:
    """Quotient: integers truncate towards zero, division by zero is NULL."""
    a, b = to_number(left), to_number(right)
    if a is None or b is None or b == 0:
        return None
    if isinstance(a, int) and isinstance(b, int):
        quotient = abs(a) // abs(b)
        return _integer_or_real(quotient if (a < 0) == (b < 0) else -quotient)
    return a / b


def _integer_or_real(number: float) -> int | float:
    """An integer that 64 bits cannot hold becomes a real, as in SQLite."""
    if isinstance(number, int) and not MIN_INTEGER <= number <= MAX_INTEGER:
        return float(number)
    return number


def concat(*values: SqliteValue) -> str | None:
    """Text forms one after another, NULL if any is NULL."""
    texts = [to_text(value) for value in values]
    return None if None in texts else "".join(text for text in texts if text is not None)


def unsupported(sign: str) -> SqliteValue:
    """Operators that can be written but not evaluated."""
    raise EvaluationError(f"the operator {sign} is not supported")
