"""Writes reference/rule-functions.md from the tables of the rule language: `python docs/functions.py`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path

from django_localsync.sync_rules.functions import FUNCTIONS, OPERATORS, Function

PAGE = Path(__file__).parent / "reference" / "rule-functions.md"
HEAD = """\
# Functions and operators of sync rules

This page is written from the code (`python docs/functions.py`). Values are those of SQLite: NULL, INTEGER (64 bits),
REAL, TEXT, BLOB; see [sync rules](sync-rules.md#expressions). NULL as an argument gives NULL unless it says otherwise.
An error leaves the row out of the query, or fails the subscription.
"""
WRITTEN = {
    **{sign: f"a {sign} b" for sign in ("=", "!=", "<", ">", "<=", ">=", "+", "-", "*", "/", "||", "&&")},
    "between": "a [NOT] BETWEEN low AND high",
    "in": "a [NOT] IN array",
    "among": "a [NOT] IN (b, …), ARRAY[b, …], ROW(b, …)",
    "->": "a -> 'key'",
    "->>": "a ->> 'key'",
    "-> of edition 1": "a -> 'key'",
    "->> of edition 1": "a ->> 'key'",
    "json_extract of edition 1": "json_extract(value, path)",
    "is null": "a IS [NOT] NULL",
    "is true": "a IS [NOT] TRUE",
    "is false": "a IS [NOT] FALSE",
    **{f"cast as {name}": f"CAST(a AS {name})" for name in ("text", "integer", "real", "numeric", "blob")},
}
"""How each operator of the tables is written; those that nobody can write are left out."""
LOGIC = (
    ("`a AND b`, `a OR b`, `NOT a`", "1 or 0, also for NULL, which counts as false: `NOT NULL` is 1"),
    ("`CASE WHEN a THEN b … [ELSE c] END`", "the first value whose condition is true (streams)"),
    ("`CASE a WHEN b THEN c … [ELSE d] END`", "the first value whose operand equals `a` (streams)"),
)


def page() -> str:
    """The whole page."""
    return "\n".join([HEAD, "## Functions\n", *_functions(), "", "## Operators\n", *_operators(), ""])


def _functions() -> Iterator[str]:
    yield "| Function | Value | Editions |"
    yield "|---|---|---|"
    for name, function in FUNCTIONS.items():
        yield f"| `{name}({_arguments(function)})` | {_meaning(function.implementation)} | {_editions(function)} |"
    yield "| `json_each(value)` | in FROM: columns `key` and `value` of each element of an array or object | 1–3 |"


def _operators() -> Iterator[str]:
    yield "| Operator | Value |"
    yield "|---|---|"
    for name, written in WRITTEN.items():
        yield f"| `{written}` | {_meaning(OPERATORS[name])} |".replace("||`", "\\|\\|`").replace(" || ", " \\|\\| ")
    for written, meaning in LOGIC:
        yield f"| {written} | {meaning} |"


def _arguments(function: Function) -> str:
    """Names of the arguments; those that may be left out in brackets."""
    names = []
    for parameter in inspect.signature(function.implementation).parameters.values():
        many = parameter.kind is parameter.VAR_POSITIONAL
        names += [f"{parameter.name.removesuffix('s')}"] * (function.most - len(names) if many else 1)
    needed, optional = names[: function.least], names[function.least :]
    return ", ".join(needed) + "".join(f" [, {name}" for name in optional) + "]" * len(optional)


def _meaning(implementation: Callable[..., object]) -> str:
    """The docstring's first paragraph, as the cell of a table."""
    text = inspect.getdoc(implementation) or ""
    paragraph = " ".join(text.partition("\n\n")[0].split())
    first = paragraph.partition(" ")[0]
    begin = first.lower() if first.rstrip(",:;").istitle() else first
    return begin + paragraph[len(first) :].removesuffix(".").replace("|", "\\|")


def _editions(function: Function) -> str:
    first, last = function.editions[0], function.editions[-1]
    return f"{first}–{last}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
