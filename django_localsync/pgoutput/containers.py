"""Postgres's arrays, composites and ranges → values that JSON can say.

Each function makes a decoder from the decoders of the parts. A decoder takes what Postgres prints for one value; the
whole is encoded as JSON once, at the outside. Only texts that Postgres itself printed may be passed.
https://www.postgresql.org/docs/current/arrays.html#ARRAYS-IO
https://www.postgresql.org/docs/current/rowtypes.html#ROWTYPES-IO-SYNTAX
https://www.postgresql.org/docs/current/rangetypes.html#RANGETYPES-IO
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

JsonValue = Any
"""None, int, float, str, orjson.Fragment, or lists and dicts of these."""

Decoder = Callable[[str], JsonValue]

EMPTY_RANGE = "empty"
_NULL = "NULL"  # in an array; the text of that name is quoted

# Within quotes, a quote or backslash is written with a backslash before it, or twice. Possessive, so that time stays
# linear in the text's length.
_QUOTED = r'"(?:[^"\\]++|\\.|"")*+"'
_ESCAPE = re.compile(r'[\\"](.)', re.DOTALL)
_FIELD = re.compile(rf'[(,]({_QUOTED}|[^,()"\\]*+)', re.DOTALL)
_BOUND = rf'({_QUOTED}|[^,()\[\]"\\]*+)'
_RANGE = re.compile(rf"([\[(]){_BOUND},{_BOUND}([\])])", re.DOTALL)


def array_decoder(element: Decoder, delimiter: str) -> Decoder:
    """`{{1,2},{3,NULL}}` → `[[1, 2], [3, None]]`; a prefix that gives the bounds (`[0:1]=`) is dropped."""
    tokens = re.compile(rf'{_QUOTED}|[^{{}}"{re.escape(delimiter)}]++|[{{}}]', re.DOTALL).findall

    def decode(text: str) -> JsonValue:
        if '"' in text or text.rfind("{") > 0 or text == "{}":
            return decode_tokens(text)
        # Most arrays are flat and without quotes: three times as fast.
        items = text[1:-1].split(delimiter)
        if _NULL in items:
            return [None if item == _NULL else element(item) for item in items]
        return list(map(element, items))

    def decode_tokens(text: str) -> JsonValue:
        root: list[JsonValue] = []
        arrays = [root]
        for token in tokens(text, text.index("{")):
            mark = token[0]
            if mark == '"':
                arrays[-1].append(element(_unquote_element(token)))
            elif mark == "{":
                inner: list[JsonValue] = []
                arrays[-1].append(inner)
                arrays.append(inner)
            elif mark == "}":
                arrays.pop()
            else:
                arrays[-1].append(None if token == _NULL else element(token))
        return root[0]

    return decode


def integer_array_json(text: str) -> str:
    """The JSON of an array of integers, four times as fast: Postgres prints it but for brackets and NULL."""
    return text[text.index("{") :].replace("{", "[").replace("}", "]").replace(_NULL, "null")


def composite_decoder(members: Iterable[tuple[str, Decoder]]) -> Decoder:
    """`(a,,"b c")` → `{"x": "a", "y": None, "z": "b c"}`; members that the text does not have (yet) are None.

    So are those that cannot be read: the text may be older than the latest ALTER TYPE, and nothing in it says so.
    """
    members = tuple(members)
    nothing = dict.fromkeys(name for name, _ in members)

    def decode(text: str) -> JsonValue:
        values = nothing.copy()
        for (name, member), field in zip(members, _FIELD.findall(text), strict=False):
            try:
                values[name] = _decode_optional(member, field)
            except (ValueError, LookupError):
                continue
        return values

    return decode


def range_decoder(bound: Decoder) -> Decoder:
    """`[1,10)` → its bounds and whether they are exclusive; `empty` → `"empty"`."""

    def decode(text: str) -> JsonValue:
        if text == EMPTY_RANGE:
            return EMPTY_RANGE
        match = _RANGE.fullmatch(text)
        if match is None:
            raise ValueError(f"not a range: {text!r}")
        return _decode_range(bound, match.groups())

    return decode


def multirange_decoder(bound: Decoder) -> Decoder:
    """`{[1,3),[5,8)}` → a list of its ranges."""
    return lambda text: [_decode_range(bound, parts) for parts in _RANGE.findall(text)]


def _decode_range(bound: Decoder, parts: tuple[str, ...]) -> JsonValue:
    opening, lower, upper, closing = parts
    return {
        "lower": _decode_optional(bound, lower),
        "upper": _decode_optional(bound, upper),
        "lower_exclusive": int(opening == "("),
        "upper_exclusive": int(closing == ")"),
    }


def _decode_optional(decode: Decoder, field: str) -> JsonValue:
    """A field or bound; nothing at all, not even quotes, means there is none."""
    if not field:
        return None
    return decode(_unquote_field(field) if field[0] == '"' else field)


def _unquote_element(quoted: str) -> str:
    text = quoted[1:-1]
    if "\\" not in text:
        return text
    # Three passes in C; a zero, which no text of Postgres holds, stands for a backslash meanwhile.
    return text.replace("\\\\", "\0").replace("\\", "").replace("\0", "\\")


def _unquote_field(quoted: str) -> str:
    text = quoted[1:-1]
    if "\\" not in text:
        return text.replace('""', '"')
    return _ESCAPE.sub(r"\1", text)
