"""The parser of the SQL that rules are written in: one SELECT, with Postgres's syntax and precedence.

A parser of our own rather than a general one: what rules do not know is refused where it stands, with the way
out; calls and JSON paths stay as they were written; nesting is bounded, so that no text can exhaust the stack.
"""

from __future__ import annotations

from collections.abc import Callable

from .lexer import Kind, Token, tokenize
from .syntax import (
    Case,
    Cast,
    Constant,
    FunctionCall,
    Identifier,
    Items,
    Name,
    Node,
    Operation,
    Output,
    Select,
    Source,
    SqlError,
    Star,
    Subquery,
)

MAX_NESTING = 32
"""Deepest nesting of parentheses, subqueries and prefix operators."""

MAX_CHAINED = 60
"""Most operators of a query that stand in chains such as `a + b - c`; AND, OR and || are not counted."""

# https://www.postgresql.org/docs/current/sql-syntax-lexical.html#SQL-PRECEDENCE
_OR, _AND, _NOT, _IS, _COMPARE, _RANGE, _OTHER, _SUM, _PRODUCT = range(1, 10)
_BINARY = {
    "OR": _OR,
    "AND": _AND,
    **dict.fromkeys(("=", "!=", "<", ">", "<=", ">="), _COMPARE),
    **dict.fromkeys(("||", "->", "->>", "&&", "&", "|", "<<", ">>"), _OTHER),
    **dict.fromkeys(("+", "-"), _SUM),
    **dict.fromkeys(("*", "/", "%"), _PRODUCT),
}
_REFUSED_CLAUSES = {
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
_REFUSED_JOINS = ("left", "right", "full", "cross", "natural", "outer")
_RESERVED = {
    *_REFUSED_CLAUSES, *_REFUSED_JOINS, "inner", "join", "on", "using", "select", "from", "where", "as", "and", "or",
    "not", "in", "is", "between", "like", "ilike", "similar", "case", "when", "then", "else", "end", "cast", "array",
    "null", "true", "false", "distinct", "all", "any", "some", "with", "lateral", "collate", "isnull", "notnull",
}  # fmt: skip
# Words that are functions in Postgres, and would be taken for columns.
_VALUE_WORDS = {
    "current_date", "current_time", "current_timestamp", "localtime", "localtimestamp",
    "current_user", "session_user", "current_role", "current_catalog", "current_schema",
}  # fmt: skip


def parse_select(query: str) -> Select:
    """Parse one SELECT (a semicolon may follow). Raises SqlError."""
    return _Parser(query).whole()


class _Parser:
    def __init__(self, query: str) -> None:
        self._query, self._tokens = query, tokenize(query)
        self._position, self._depth, self._chained = 0, 0, 0

    # Tokens

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

    # SELECT

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
        if token.kind is Kind.WORD and token.text in _REFUSED_CLAUSES:
            clause = _REFUSED_CLAUSES[token.text]
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
        if token.kind is Kind.QUOTED or (token.kind is Kind.WORD and token.text not in _RESERVED):
            return self._identifier("an alias")
        return None

    def _identifier(self, what: str, *, any_word: bool = False) -> Identifier:
        token = self._next
        if token.kind is Kind.WORD and (any_word or token.text not in _RESERVED):
            self._take()
            return Identifier(token.text, token.at, token.text != token.source)
        if token.kind is Kind.QUOTED:
            self._take()
            return Identifier(token.text, token.at)
        raise self._unexpected(f"{what} is missing")

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
            elif self._next.kind is Kind.WORD and self._next.text in _REFUSED_JOINS:
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

    # Expressions, by precedence climbing

    def _expression(self, least: int = _OR) -> Node:
        self._enter()
        left = self._prefix()
        while (found := self._infix(left, least)) is not None:
            left = found
        self._leave()
        return left

    def _infix(self, left: Node, least: int) -> Node | None:
        token = self._next
        if token.kind not in (Kind.WORD, Kind.SIGN):
            return None
        operator = token.text.upper()
        precedence = _BINARY.get(operator)
        if precedence is not None:
            if precedence < least:
                return None
            self._take()
            return self._binary(operator, left, self._expression(precedence + 1), token)
        if operator == "::":
            self._take()
            self._chain(left, token)
            return Cast(left, self._type(), token.at)
        if operator in ("IS", "ISNULL", "NOTNULL") and least <= _IS:
            return self._is_test(left)
        if operator in ("NOT", "BETWEEN", "IN", "LIKE", "ILIKE", "SIMILAR") and least <= _RANGE:
            return self._range_test(left)
        return None

    def _binary(self, operator: str, left: Node, right: Node, token: Token) -> Node:
        """Chains of AND, OR and || become one operation, so that they nest no deeper than they read."""
        if isinstance(left, Operation) and left.operator == operator and operator in ("AND", "OR", "||"):
            return Operation(operator, (*left.operands, right), left.at)
        self._chain(left, token)
        return Operation(operator, (left, right), token.at)

    def _chain(self, left: Node, token: Token) -> None:
        """Count an operator that nests another one on its left."""
        self._chained += isinstance(left, Operation | Cast)
        if self._chained > MAX_CHAINED:
            raise SqlError(f"more than {MAX_CHAINED} operators in chains", token.at, "use a generated column")

    def _is_test(self, left: Node) -> Node:
        token = self._take()
        self._chain(left, token)
        if token.text != "is":
            return Operation("IS NULL" if token.text == "isnull" else "IS NOT NULL", (left,), token.at)
        negation = "NOT " if self._accept("not") else ""
        for word in ("null", "true", "false"):
            if self._accept(word):
                return Operation(f"IS {negation}{word.upper()}", (left,), token.at)
        raise self._unexpected("IS is followed by [NOT] NULL, TRUE or FALSE")

    def _range_test(self, left: Node) -> Node:
        at = self._next.at
        self._chain(left, self._next)
        negated = self._accept("not")
        if self._accept("between"):
            low = self._expression(_RANGE + 1)
            self._expect("and")
            test: Node = Operation("BETWEEN", (left, low, self._expression(_RANGE + 1)), at)
        elif self._accept("in"):
            test = Operation("IN", (left, self._in_operand()), at)
        elif self._is("like") or self._is("ilike") or self._is("similar"):
            raise SqlError("LIKE is not supported", self._next.at, "compare with =, or filter on the device")
        else:
            raise self._unexpected("BETWEEN or IN is missing after NOT")
        return Operation("NOT", (test,), at) if negated else test

    def _in_operand(self) -> Node:
        if not self._is("("):
            return self._expression(_RANGE + 1)
        if self._is("select", 1):
            return self._subquery()
        at = self._take().at
        items = self._arguments(")")
        if len(items) == 1 and not isinstance(items[0], Constant):
            return items[0]  # IN (expression): an array in parentheses
        return Items(items, at)

    def _prefix(self) -> Node:
        token = self._next
        match token.kind:
            case Kind.NUMBER:
                return self._number()
            case Kind.TEXT:
                self._take()
                return Constant(token.text, token.at)
            case Kind.SIGN if token.text == "(":
                return self._parenthesised()
            case Kind.SIGN if token.text == "-":
                return self._negative()
            case Kind.WORD if token.text in _WORDS:
                return _WORDS[token.text](self)
            case Kind.WORD | Kind.QUOTED:
                return self._name()
        raise self._unexpected("an expression is missing")

    def _number(self) -> Constant:
        token = self._take()
        if token.text.isdigit():
            if len(token.text) > 20:
                raise SqlError("the number has too many digits", token.at)
            return Constant(int(token.text), token.at)
        return Constant(float(token.text), token.at)

    def _negative(self) -> Node:
        at = self._take().at
        if self._next.kind is not Kind.NUMBER:
            raise SqlError("unary minus is not supported", at, "write 0 - …")
        value = self._number().value
        assert isinstance(value, int | float)
        return Constant(-value, at)

    def _parenthesised(self) -> Node:
        if self._is("select", 1):
            return self._subquery()
        self._expect("(")
        inner = self._expression()
        self._expect(")")
        return inner

    def _not(self) -> Node:
        at = self._take().at
        return Operation("NOT", (self._expression(_NOT),), at)

    def _case(self) -> Node:
        at = self._take().at
        operand = None if self._is("when") else self._expression()
        branches = []
        while self._accept("when"):
            condition = self._expression()
            self._expect("then")
            branches.append((condition, self._expression()))
        default = self._expression() if self._accept("else") else None
        if not branches:
            raise self._unexpected("WHEN is missing")
        self._expect("end")
        return Case(operand, tuple(branches), default, at)

    def _cast(self) -> Node:
        at = self._take().at
        self._expect("(")
        operand = self._expression()
        self._expect("as")
        cast = Cast(operand, self._type(), at)
        self._expect(")")
        return cast

    def _type(self) -> Identifier:
        name = self._identifier("a type", any_word=True)
        if name.name == "double" and self._accept("precision"):
            return Identifier("double precision", name.at)
        return name

    def _array(self) -> Node:
        at = self._take().at
        self._expect("[")
        return Items(self._arguments("]"), at)

    def _constant(self) -> Node:
        token = self._take()
        return Constant({"true": 1, "false": 0, "null": None}[token.text], token.at)

    def _name(self) -> Node:
        if self._next.kind is Kind.WORD and self._next.text in _VALUE_WORDS:
            hint = "rules are evaluated when a row changes: compare with the time or user on the device"
            raise SqlError(f"{self._next.text.upper()} is not supported", self._next.at, hint)
        name = self._identifier("an expression")
        if name.name == "row" and self._is("("):
            self._take()
            return Items(self._arguments(")"), name.at)
        if self._is("("):
            return self._call(None, name)
        if not self._accept("."):
            return Name(None, name, name.at)
        if self._accept("*"):
            return Star(name, name.at)
        member = self._identifier("a name after the dot", any_word=True)
        if self._is("("):
            return self._call(name, member)
        if self._is("."):
            raise SqlError("a column is written column or table.column", self._next.at, "give the table an alias")
        return Name(name, member, name.at)

    def _call(self, qualifier: Identifier | None, name: Identifier) -> FunctionCall:
        self._expect("(")
        arguments = self._arguments(")")
        if self._is("over") or self._is("filter"):
            raise SqlError("window functions and aggregates are not supported", self._next.at)
        return FunctionCall(qualifier, name, arguments, (qualifier or name).at)

    def _arguments(self, end: str) -> tuple[Node, ...]:
        """Expressions between commas, up to the closing sign, which is taken."""
        if self._accept(end):
            return ()
        arguments = [self._expression()]
        while self._accept(","):
            arguments.append(self._expression())
        self._expect(end)
        return tuple(arguments)


_WORDS: dict[str, Callable[[_Parser], Node]] = {
    "not": _Parser._not,
    "case": _Parser._case,
    "cast": _Parser._cast,
    "array": _Parser._array,
    "null": _Parser._constant,
    "true": _Parser._constant,
    "false": _Parser._constant,
}
