"""Postgres's dates and times → the texts that clients get.

Texts are as printed under DateStyle ISO. `digits` is how many digits of a second's fraction ISO 8601's form has, always
(0 … 6), with `T` between date and time; None: the form as printed. Precision is cut off, never rounded, so that a
moment never moves forward.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime

MAX_DIGITS = 6  # Postgres keeps microseconds

_INFINITE_DATES = {"infinity": "9999-12-31", "-infinity": "0000-01-01"}
_INFINITE_TIMESTAMPS = {"infinity": "9999-12-31 23:59:59", "-infinity": "0000-01-01 00:00:00"}
_BEFORE_CHRIST = " BC"
_UTC_OFFSET = "+00"
_TIMESTAMPTZ = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)(\.\d+)?([+-]\d\d(?::\d\d){0,2})")
_TIME_LENGTH, _TIMESTAMP_LENGTH = len("07:08:09"), len("2024-05-06 07:08:09")

_Cuts = dict[int, tuple[int, str]]
"""By the length of a printed text: where it is cut off, and the zeros that are then added."""


def convert_date(text: str) -> str:
    """Infinite dates become the outermost that four digits can say; others stay, also those before Christ."""
    return _INFINITE_DATES.get(text, text)


def time_converter(digits: int) -> Callable[[str], str]:
    """For `time`: `07:08:09.1` → `07:08:09.100000`."""
    cuts = _cuts(_TIME_LENGTH, digits)

    def convert(text: str) -> str:
        end, zeros = cuts[len(text)]
        return text[:end] + zeros

    return convert


def timestamp_converter(digits: int | None) -> Callable[[str], str | None]:
    """For `timestamp`. Moments before Christ become None."""
    cuts = {} if digits is None else _cuts(_TIMESTAMP_LENGTH, digits)

    def convert(text: str) -> str | None:
        cut = cuts.get(len(text))
        if cut and text[10] == " " and text[-1] != "C":  # neither a year of five digits nor BC
            return f"{text[:10]}T{text[11 : cut[0]]}{cut[1]}"
        text = _INFINITE_TIMESTAMPS.get(text, text)
        return None if text.endswith(_BEFORE_CHRIST) else _in_style(text, digits)

    return convert


def timestamptz_converter(digits: int | None) -> Callable[[str], str | None]:
    """For `timestamptz`, in UTC with `Z`. Moments before Christ or after the year 9999 become None."""
    cuts = {} if digits is None else _cuts(_TIMESTAMP_LENGTH, digits, _UTC_OFFSET)

    def convert(text: str) -> str | None:
        if text.endswith(_UTC_OFFSET) and text[10] == " ":  # our connections ask for UTC
            if digits is None:
                return text[:-3] + "Z"
            end, zeros = cuts[len(text)]
            return f"{text[:10]}T{text[11:end]}{zeros}Z"
        utc = _INFINITE_TIMESTAMPS.get(text) or _to_utc(text)
        return None if utc is None else _in_style(utc, digits) + "Z"

    return convert


def _cuts(length: int, digits: int, suffix: str = "") -> _Cuts:
    """For texts of this length without fraction and suffix, and as Postgres prints them with either."""
    cuts = {}
    for fraction in ["", *("." + "1" * count for count in range(1, MAX_DIGITS + 1))]:
        wanted = _with_digits(fraction, digits)
        kept = min(len(fraction), len(wanted))
        cuts[length + len(fraction + suffix)] = length + kept, wanted[kept:]
    return cuts


def _in_style(text: str, digits: int | None) -> str:
    return text if digits is None else _with_digits(text.replace(" ", "T"), digits)


def _with_digits(text: str, digits: int) -> str:
    absent = "." + "0" * digits if digits else ""
    point = text.find(".")
    if point < 0:
        return text + absent
    end = point + len(absent)
    return text[:end].ljust(end, "0")


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
