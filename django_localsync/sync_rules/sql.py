"""The parser of the SQL that rules are written in: one SELECT, with Postgres's syntax.

A parser of our own rather than a general one: what rules do not know is refused where it stands, with the way
out; calls and JSON paths stay as they were written; nesting is bounded, so that no text can exhaust the stack.
"""

from __future__ import annotations

from .expression_parser import ExpressionParser
from .lexer import Kind
from .syntax import FunctionCall, Identifier, Output, Select, Source, SqlError, Star, Subquery
from .token_reader import REFUSED_CLAUSES, REFUSED_JOINS, RESERVED


def parse_select(query: str) -> Select:
    """Parse one SELECT (a semicolon may follow). Raises SqlError."""
    return _SelectParser(query).whole()


class _SelectParser(ExpressionParser):
    """Parses a query."""

    def whole(self) -> Select:
        if not self._is("select"):
            raise self._unexpected("a query begins with SELECT")
        select = self._select()
        self._accept(";")
        if self._next.kind is not Kind.END:
            raise self._unexpected("the query should end here")
        return select

    def _select(self) -> Select:
        self._enter()
        at = self._expect("select").at
        if self._is("distinct"):
            raise SqlError("DISTINCT is not supported", self._next.at, "rows are synced once anyway; remove it")
        outputs = self._outputs()
        sources = self._sources() if self._accept("from") else ()
        where = self._expression() if self._accept("where") else None
        self._refuse_clauses()
        self._leave()
        return Select(outputs, sources, where, at)

    def _refuse_clauses(self) -> None:
        token = self._next
        if token.kind is Kind.WORD and token.text in REFUSED_CLAUSES:
            clause = REFUSED_CLAUSES[token.text]
            hint = (
                "write one query each, under `queries` or `data`"
                if clause == "UNION"
                else "every matching row is synced; sort and limit on the device"
            )
            raise SqlError(f"{clause} is not supported", token.at, hint)

    def _outputs(self) -> tuple[Output, ...]:
        if self._is("from") or self._is("where") or self._is(")") or self._next.kind is Kind.END:
            return ()
        outputs = [self._output()]
        while self._accept(","):
            outputs.append(self._output())
        return tuple(outputs)

    def _output(self) -> Output:
        if self._is("*"):
            return Output(Star(None, self._take().at), None, "*")
        start = self._next.at
        expression = self._expression()
        last = self._tokens[self._position - 1]
        text = self._query[start : last.at + len(last.source)]
        return Output(expression, None if isinstance(expression, Star) else self._alias(), text)

    def _alias(self) -> Identifier | None:
        if self._accept("as"):
            return self._identifier("a name after AS", any_word=True)
        token = self._next
        if token.kind is Kind.QUOTED or (token.kind is Kind.WORD and token.text not in RESERVED):
            return self._identifier("an alias")
        return None

    # FROM

    def _sources(self) -> tuple[Source, ...]:
        sources = [self._source()]
        while True:
            if self._accept(","):
                sources.append(self._source())
            elif self._is("join") or self._is("inner"):
                self._accept("inner")
                self._expect("join")
                sources.append(self._joined())
            elif self._next.kind is Kind.WORD and self._next.text in REFUSED_JOINS:
                raise SqlError(
                    f"{self._next.text.upper()} JOIN is not supported",
                    self._next.at,
                    "only inner joins: sync the other table by a query of its own",
                )
            else:
                return tuple(sources)

    def _joined(self) -> Source:
        source = self._source()
        if self._is("using"):
            raise SqlError("USING is not supported", self._next.at, "write ON a.column = b.column")
        condition = self._expression() if self._accept("on") else None
        return Source(source.relation, source.alias, source.columns, condition, source.at)

    def _source(self) -> Source:
        at = self._next.at
        relation = self._subquery() if self._is("(") else self._relation()
        alias = self._alias()
        columns = self._column_aliases() if alias is not None and self._accept("(") else ()
        return Source(relation, alias, columns, None, at)

    def _relation(self) -> tuple[Identifier, ...] | FunctionCall:
        names = [self._identifier("a table")]
        if self._is("("):
            return self._call(None, names[0])
        while self._accept("."):
            names.append(self._identifier("a name after the dot", any_word=True))
        if len(names) > 2:
            raise SqlError("a table is written table or schema.table", names[2].at)
        return tuple(names)

    def _column_aliases(self) -> tuple[Identifier, ...]:
        names = [self._identifier("a column's name")]
        while self._accept(","):
            names.append(self._identifier("a column's name"))
        self._expect(")")
        return tuple(names)

    def _subquery(self) -> Subquery:
        at = self._expect("(").at
        select = self._select()
        self._expect(")")
        return Subquery(select, at)
