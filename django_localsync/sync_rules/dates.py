"""`unixepoch` and `datetime`: SQLite's date functions, as far as rules know them."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime, timedelta, timezone

from .expressions import SqliteValue

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_JULIAN_DAY_OF_EPOCH = 2440587.5
_YEAR_1 = (datetime(1, 1, 1, tzinfo=UTC) - _EPOCH) // timedelta(milliseconds=1)
_CYCLE = 146_097 * 86_400_000  # 400 years of the Gregorian calendar, in milliseconds
_FARTHEST = 8_640_000_000_000_000  # milliseconds from 1970 that are a date at all
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)", re.ASCII)
_DATE = re.compile(
    r"(?P<year>\d{4})-(?P<month>\d\d)-(?P<day>\d\d)"
    r"(?:[ T](?P<hour>\d\d):(?P<minute>\d\d)(?::(?P<second>\d\d)(?:\.(?P<fraction>\d+))?)?)?"
    r"\s*(?P<zone>Z|[+-]\d\d(?::?\d\d)?)?",
    re.ASCII | re.IGNORECASE,
)


def unixepoch(value: SqliteValue, *modifiers: SqliteValue) -> int | float | None:
    """Seconds since 1970, rounded down, or with the modifier `subsec` a real in milliseconds."""
    parsed = _milliseconds(value, modifiers)
    if parsed is None:
        return None
    milliseconds, subsecond = parsed
    return milliseconds / 1000 if subsecond else milliseconds // 1000


def date_time(value: SqliteValue, *modifiers: SqliteValue) -> str | None:
    """`YYYY-MM-DD HH:MM:SS` in UTC, or with the modifier `subsec` `….mmm`."""
    parsed = _milliseconds(value, modifiers)
    if parsed is None:
        return None
    milliseconds, subsecond = parsed
    # Julian days begin in −4713: dates before the year 1 are found some cycles of the calendar later.
    cycles = max(0, -(milliseconds - _YEAR_1) // _CYCLE + 1) if milliseconds < _YEAR_1 else 0
    try:
        moment = _EPOCH + timedelta(milliseconds=milliseconds + cycles * _CYCLE)
    except OverflowError:
        return None
    year, sign = abs(moment.year - 400 * cycles), "-" if moment.year < 400 * cycles else ""
    date = f"{sign}{year:04d}-{moment.month:02d}-{moment.day:02d}"
    text = moment.strftime("%H:%M:%S")
    return f"{date} {text}.{milliseconds % 1000:03d}" if subsecond else f"{date} {text}"


def _milliseconds(value: SqliteValue, modifiers: tuple[SqliteValue, ...]) -> tuple[int, bool] | None:
    """Milliseconds since 1970 and whether fractions are asked for; None for what cannot be understood."""
    if not {*modifiers} <= {"unixepoch", "subsec", "subsecond"} or value is None or isinstance(value, bytes):
        return None
    subsecond = "subsec" in modifiers or "subsecond" in modifiers
    epoch = "unixepoch" in modifiers
    if not isinstance(value, str):
        milliseconds = _from_number(value, epoch=epoch)
    elif _NUMBER.fullmatch(value.strip()):
        milliseconds = _from_number(float(value), epoch=epoch)
    else:
        milliseconds = None if epoch else _from_text(value)
    return None if milliseconds is None else (milliseconds, subsecond)


def _from_number(number: float, *, epoch: bool) -> int | None:
    if not math.isfinite(number):
        return None
    since_epoch = number * 1000 if epoch else (number - _JULIAN_DAY_OF_EPOCH) * 86_400_000 + 0.5
    return math.floor(since_epoch) if abs(since_epoch) <= _FARTHEST else None


def _from_text(text: str) -> int | None:
    match = _DATE.fullmatch(text.strip())
    if match is None:
        return None
    parts = {name: int(match[name] or 0) for name in ("year", "month", "day", "hour", "minute", "second")}
    try:
        # The 31st of a shorter month is a day of the next one, as in SQLite.
        late = max(parts["day"] - 28, 0) if parts["day"] <= 31 else 0
        moment = datetime(**{**parts, "day": parts["day"] - late}, tzinfo=_zone(match["zone"])) + timedelta(late)
    except (ValueError, OverflowError):
        return None
    seconds = (moment - _EPOCH) // timedelta(seconds=1)
    return seconds * 1000 + int((match["fraction"] or "0").ljust(3, "0")[:3])


def _zone(text: str | None) -> timezone:
    if text is None or text in "Zz":
        return UTC
    hours, minutes = int(text[1:3]), int(text[-2:]) if len(text) > 3 else 0
    offset = timedelta(hours=hours, minutes=minutes)
    return timezone(-offset if text[0] == "-" else offset)
