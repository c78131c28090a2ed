"""Reads the tokens of a query one by one; what both parsers, of SELECT and of expressions, stand on."""

from __future__ import annotations

from .lexer import Kind, Token, tokenize
from .syntax import Identifier, SqlError

MAX_NESTING = 32
"""Deepest nesting of parentheses, subqueries and prefix operators."""

REFUSED_CLAUSES = {
    "group": "GROUP BY",
    "having": "HAVING",
    "order": "ORDER BY",
    "limit": "LIMIT",
    "offset": "OFFSET",
    "fetch": "FETCH",
    "union": "UNION",
    "intersect": "INTERSECT",
    "except": "EXCEPT",
    "for": "FOR",
    "window": "WINDOW",
}
REFUSED_JOINS = ("left", "right", "full", "cross", "natural", "outer")
RESERVED = {
    *REFUSED_CLAUSES, *REFUSED_JOINS, "inner", "join", "on", "using", "select", "from", "where", "as", "and", "or",
    "not", "in", "is", "between", "like", "ilike", "similar", "case", "when", "then", "else", "end", "cast", "array",
    "null", "true", "false", "distinct", "all", "any", "some", "with", "lateral", "collate", "isnull", "notnull",
}  # fmt: skip


class TokenReader:
    """The tokens of a query, and how deep the parser is in it."""

    def __init__(self, query: str) -> None:
        self._query, self._tokens = query, tokenize(query)
        self._position, self._depth = 0, 0

    @property
    def _next(self) -> Token:
        return self._tokens[self._position]

    def _take(self) -> Token:
        token = self._next
        if token.kind is not Kind.END:
            self._position += 1
        return token

    def _is(self, text: str, ahead: int = 0) -> bool:
        token = self._tokens[min(self._position + ahead, len(self._tokens) - 1)]
        return token.kind in (Kind.WORD, Kind.SIGN) and token.text == text

    def _accept(self, *texts: str) -> bool:
        """Take these words or signs, if they are what comes next."""
        if not all(self._is(text, ahead) for ahead, text in enumerate(texts)):
            return False
        self._position += len(texts)
        return True

    def _expect(self, text: str) -> Token:
        if not self._is(text):
            raise self._unexpected(f"{text.upper()} is missing")
        return self._take()

    def _unexpected(self, message: str, hint: str | None = None) -> SqlError:
        token = self._next
        found = "the query ends" if token.kind is Kind.END else f"found {token.source[:40]!a}"
        return SqlError(f"{message}: {found}", token.at, hint)

    def _enter(self) -> None:
        self._depth += 1
        if self._depth > MAX_NESTING:
            raise SqlError(f"nested deeper than {MAX_NESTING} levels", self._next.at, "use a common table expression")

    def _leave(self) -> None:
        self._depth -= 1

    def _identifier(self, what: str, *, any_word: bool = False) -> Identifier:
        token = self._next
        if token.kind is Kind.WORD and (any_word or token.text not in RESERVED):
            self._take()
            return Identifier(token.text, token.at, token.text != token.source)
        if token.kind is Kind.QUOTED:
            self._take()
            return Identifier(token.text, token.at)
        raise self._unexpected(f"{what} is missing")
