"""Postgres's dates and times → the texts that clients get.

Texts are as printed under DateStyle ISO. Precision is cut off, never rounded, so that a moment never moves forward.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime

MAX_DIGITS = 6  # Postgres keeps microseconds

_INFINITE_DATES = {"infinity": "9999-12-31", "-infinity": "0000-01-01"}
_INFINITE_TIMESTAMPS = {"infinity": "9999-12-31 23:59:59", "-infinity": "0000-01-01 00:00:00"}
_BEFORE_CHRIST = " BC"
_TIMESTAMPTZ = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)(\.\d+)?([+-]\d\d(?::\d\d){0,2})")

Style = Callable[[str], str]
"""From `2024-05-06 07:08:09.1` (date, time and fraction each optional) to the form that the client gets."""


def as_printed(text: str) -> str:
    """The style of rules without `timestamps_iso8601`."""
    return text


def iso8601_style(digits: int) -> Style:
    """`T` between date and time, always `digits` (0 … 6) digits of a second's fraction."""

    absent = "." + "0" * digits if digits else ""

    def style(text: str) -> str:
        text = text.replace(" ", "T")
        point = text.find(".")
        if point < 0:
            return text + absent
        end = point + len(absent)
        return text[:end].ljust(end, "0")

    return style


def convert_date(text: str) -> str:
    """Infinite dates become the outermost that four digits can say; others stay, also those before Christ."""
    return _INFINITE_DATES.get(text, text)


def timestamp_converter(style: Style) -> Callable[[str], str | None]:
    """For `timestamp`. Moments before Christ become None."""

    def convert(text: str) -> str | None:
        text = _INFINITE_TIMESTAMPS.get(text, text)
        return None if text.endswith(_BEFORE_CHRIST) else style(text)

    return convert


def timestamptz_converter(style: Style) -> Callable[[str], str | None]:
    """For `timestamptz`, in UTC with `Z`. Moments before Christ or after the year 9999 become None."""

    def convert(text: str) -> str | None:
        # Our connections ask for UTC; years of five digits have their first hyphen later.
        if text.endswith("+00") and text[4] == "-":
            return style(text[:-3]) + "Z"
        utc = _INFINITE_TIMESTAMPS.get(text) or _to_utc(text)
        return None if utc is None else style(utc) + "Z"

    return convert


def _to_utc(text: str) -> str | None:
    """The same moment at offset zero, with the fraction as printed; None outside of the years 1 … 9999."""
    match = _TIMESTAMPTZ.fullmatch(text)
    if match is None:
        return None
    seconds, fraction, offset = match.groups(default="")
    try:
        moment = datetime.fromisoformat(seconds + offset).astimezone(UTC)
    except OverflowError:
        return None
    return moment.replace(tzinfo=None).isoformat(" ") + fraction
