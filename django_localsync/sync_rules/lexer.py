"""Tokens of the SQL that rules are written in: Postgres's lexical rules, of which only what rules need is accepted.

https://www.postgresql.org/docs/current/sql-syntax-lexical.html
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

from .syntax import SqlError

MAX_QUERY_LENGTH = 20_000
"""Longest query, in characters."""


class Kind(Enum):
    """What a token is."""

    WORD = "a name or keyword"
    QUOTED = "a quoted name"
    TEXT = "a text"
    NUMBER = "a number"
    SIGN = "an operator or punctuation"
    END = "the end of the query"


@dataclass(frozen=True, slots=True)
class Token:
    """A token: `text` is its meaning (folded name, unescaped text), `source` how it was written."""

    kind: Kind
    text: str
    source: str
    at: int


_TOKEN = re.compile(
    r"""(?P<space>\s+|--[^\n]*)
      | (?P<comment>/\*)
      | (?P<escaped>[eEbBxXnN]'|[uU]&['"])
      | (?P<word>[^\W\d][\w$]*)
      | (?P<quoted>"(?:[^"]|"")*")
      | (?P<text>'(?:[^']|'')*')
      | (?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)
      | (?P<sign>->>|->|\|\||&&|<<|>>|<=|>=|<>|!=|::|[-+*/%&|<>=().,;\[\]])
    """,
    re.VERBOSE,
)


def tokenize(query: str) -> list[Token]:
    """The tokens of a query, an END token last. Raises SqlError for what Postgres or the rules do not know."""
    if len(query) > MAX_QUERY_LENGTH:
        raise SqlError(f"the query is longer than {MAX_QUERY_LENGTH} characters", 0, "split it into several queries")
    tokens, at = [], 0
    while at < len(query):
        match = _TOKEN.match(query, at)
        if match is None or match.lastgroup == "escaped":
            raise _unknown(query, at)
        start, at = at, match.end()
        match match.lastgroup:
            case "space":
                pass
            case "comment":
                at = _end_of_comment(query, start)
            case kind:
                tokens.append(_token(str(kind), match.group(), start))
    tokens.append(Token(Kind.END, "", "", len(query)))
    return tokens


def _token(kind: str, source: str, at: int) -> Token:
    match kind:
        case "word":
            return Token(Kind.WORD, source.lower(), source, at)
        case "quoted":
            name = source[1:-1].replace('""', '"')
            if not name:
                raise SqlError("a quoted name is empty", at)
            return Token(Kind.QUOTED, name, source, at)
        case "text":
            return Token(Kind.TEXT, source[1:-1].replace("''", "'"), source, at)
        case "number":
            return Token(Kind.NUMBER, source, source, at)
        case _:
            return Token(Kind.SIGN, "!=" if source == "<>" else source, source, at)


def _end_of_comment(query: str, start: int) -> int:
    """The offset after a comment; they nest."""
    depth, at = 0, start
    for match in re.compile(r"/\*|\*/").finditer(query, start):
        depth += 1 if match.group() == "/*" else -1
        at = match.end()
        if depth == 0:
            return at
    raise SqlError("a comment is not closed", start, "add */")


def _unknown(query: str, at: int) -> SqlError:
    match query[at]:
        case '"':
            return SqlError("a quoted name is not closed", at, 'add "')
        case "'":
            return SqlError("a text is not closed", at, "add '")
        case "$" | "?" | ":" | "@":
            return SqlError(
                f"{query[at]!r} is not supported",
                at,
                "request values are written auth.user_id(), auth.parameter('name')",
            )
        case sign:
            return SqlError(f"{sign!a} is not supported here", at)
