"""Postgres's arrays, composites and ranges → JSON text.

Each function makes an encoder from the encoders of the parts. An encoder takes what Postgres prints for one value and
gives JSON; nested values become nested JSON. Only texts that Postgres itself printed may be passed.
https://www.postgresql.org/docs/current/arrays.html#ARRAYS-IO
https://www.postgresql.org/docs/current/rowtypes.html#ROWTYPES-IO-SYNTAX
https://www.postgresql.org/docs/current/rangetypes.html#RANGETYPES-IO
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from itertools import chain, repeat

import orjson

JsonEncoder = Callable[[str], str]

EMPTY_RANGE = "empty"
NULL = "null"
_NULLS = ("NULL", "null")  # Postgres prints the first and reads either; as a text either is quoted

# Within quotes, a quote or backslash is written with a backslash before it, or twice. Possessive, so that time stays
# linear in the text's length.
_QUOTED = r'"((?:[^"\\]++|\\.|"")*+)"'
_ESCAPE = re.compile(r'\\.|""', re.DOTALL)
_FIELD = re.compile(rf'[(,](?:{_QUOTED}|([^,()"\\]*+))', re.DOTALL)
_BOUND = rf'(?:{_QUOTED}|([^,()\[\]"\\]*+))'
_RANGE = re.compile(rf"([\[(]){_BOUND},{_BOUND}([\])])", re.DOTALL)


def encode_text(text: str) -> str:
    """A JSON string."""
    return orjson.dumps(text).decode()


def array_encoder(element: JsonEncoder, delimiter: str) -> JsonEncoder:
    """`{{1,2},{3,NULL}}` → `[[1,2],[3,null]]`; a prefix that gives the bounds (`[0:1]=`) is dropped."""
    tokens = re.compile(rf'{_QUOTED}|([^{{}}"{re.escape(delimiter)}]++)|(.)', re.DOTALL)
    punctuation = {"{": "[", "}": "]", delimiter: ","}

    def encode_token(match: re.Match[str]) -> str:
        quoted, bare, mark = match.groups()
        if quoted is not None:
            return element(_unescape(quoted))
        if bare is not None:
            return NULL if bare in _NULLS else element(bare)
        return punctuation[mark]

    def encode(text: str) -> str:
        if '"' in text or text.rfind("{") > 0 or text == "{}":
            return tokens.sub(encode_token, text[text.index("{") :])
        # Most arrays are flat and without quotes: four times as fast.
        items = text[1:-1].split(delimiter)
        return f"[{','.join([NULL if item in _NULLS else element(item) for item in items])}]"

    return encode


def composite_encoder(members: Iterable[tuple[str, JsonEncoder]]) -> JsonEncoder:
    """`(a,,"b c")` → `{"x":"a","y":null,"z":"b c"}`; members that the text does not have (yet) are null."""
    parts = [(encode_text(name), encoder) for name, encoder in members]

    def encode(text: str) -> str:
        fields = chain((match.groups() for match in _FIELD.finditer(text)), repeat((None, "")))
        pairs = zip(parts, fields, strict=False)
        return f"{{{','.join([f'{name}:{_encode_optional(part, *field)}' for (name, part), field in pairs])}}}"

    return encode


def range_encoder(bound: JsonEncoder) -> JsonEncoder:
    """`[1,10)` → `{"lower":1,"upper":10,"lower_exclusive":0,"upper_exclusive":1}`; `empty` → `"empty"`."""

    def encode(text: str) -> str:
        if text == EMPTY_RANGE:
            return f'"{EMPTY_RANGE}"'
        match = _RANGE.fullmatch(text)
        if match is None:
            raise ValueError(f"not a range: {text!r}")
        return _encode_range(bound, match)

    return encode


def multirange_encoder(bound: JsonEncoder) -> JsonEncoder:
    """`{[1,3),[5,8)}` → a JSON array of its ranges."""

    def encode(text: str) -> str:
        return f"[{','.join([_encode_range(bound, match) for match in _RANGE.finditer(text)])}]"

    return encode


def _encode_range(bound: JsonEncoder, match: re.Match[str]) -> str:
    opening, *bounds, closing = match.groups()
    lower = _encode_optional(bound, *bounds[:2])
    upper = _encode_optional(bound, *bounds[2:])
    return (
        f'{{"lower":{lower},"upper":{upper},'
        f'"lower_exclusive":{int(opening == "(")},"upper_exclusive":{int(closing == ")")}}}'
    )


def _encode_optional(encoder: JsonEncoder, quoted: str | None, bare: str | None) -> str:
    """A field or bound; nothing at all, not even quotes, means there is none."""
    if quoted is not None:
        return encoder(_unescape(quoted))
    return encoder(bare) if bare else NULL


def _unescape(quoted: str) -> str:
    return _ESCAPE.sub(lambda match: match[0][-1], quoted)
