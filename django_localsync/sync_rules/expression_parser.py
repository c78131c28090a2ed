"""The parser of expressions, by precedence climbing, with Postgres's syntax and precedence."""

from __future__ import annotations

from collections.abc import Callable

from .lexer import Kind, Token
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
    SqlError,
    Star,
    Subquery,
)
from .token_reader import TokenReader

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
# Words that are functions in Postgres, and would be taken for columns.
_VALUE_WORDS = {
    "current_date", "current_time", "current_timestamp", "localtime", "localtimestamp",
    "current_user", "session_user", "current_role", "current_catalog", "current_schema",
}  # fmt: skip


class ExpressionParser(TokenReader):
    """Parses expressions; a subclass knows what a subquery is."""

    def __init__(self, query: str) -> None:
        super().__init__(query)
        self._chained = 0

    def _subquery(self) -> Subquery:
        raise NotImplementedError("subqueries are for the parser of SELECT")

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


_WORDS: dict[str, Callable[[ExpressionParser], Node]] = {
    "not": ExpressionParser._not,
    "case": ExpressionParser._case,
    "cast": ExpressionParser._cast,
    "array": ExpressionParser._array,
    "null": ExpressionParser._constant,
    "true": ExpressionParser._constant,
    "false": ExpressionParser._constant,
}
