"""Random rules: each part is written twice, in the language of the rules and in Postgres's SQL.

Values whose type only the data tells (of a request, of JSON) are `jsonb` in Postgres: equal there as in the rules, by
kind and value. See test_against_postgres for what else is written differently.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from tests.integration.rules.world import NUMBERS, TABLES, TEXTS, Table

Kind = Literal["number", "text", "any"]


class Both(NamedTuple):
    """A condition or query, for the rules and for Postgres."""

    rule: str
    pg: str


class Value(NamedTuple):
    """An expression, for the rules and for Postgres; `any` is jsonb there."""

    rule: str
    pg: str
    kind: Kind

    @property
    def jsonb(self) -> str:
        """The value as jsonb."""
        if self.kind == "any":
            return self.pg
        return f"to_jsonb({self.pg}{'::text' if self.kind == 'text' else ''})"


@dataclass(frozen=True)
class Relation:
    """A name in FROM: a table, or an array's elements."""

    name: str
    table: Table | None


Scope = Sequence[Relation]


class Grammar:
    """Writes streams over some tables."""

    edition = 3

    def __init__(self, tables: Mapping[str, Table], rnd: random.Random, expressions: Mapping[str, Both]) -> None:
        self._tables, self._rnd, self._expressions = tables, rnd, expressions

    # Values

    def column(self, relation: Relation, name: str) -> Value:
        """A column as the rules read it from its text form."""
        table = relation.table
        assert table is not None
        rule, type_name = f"{relation.name}.{name}", table.columns[name]
        match type_name:
            case "bool":
                return Value(rule, f"({rule}::int)", "number")
            case "timestamptz":
                return Value(rule, f'to_char({rule}, \'YYYY-MM-DD"T"HH24:MI:SS.US"Z"\')', "text")
            case _ if type_name in NUMBERS:
                return Value(rule, rule, "number")
            case _:
                return Value(rule, f"{rule}::text", "text")

    def array(self, relation: Relation) -> Both:
        """An array of the row."""
        rule = f"{relation.name}.tags"
        return Both(rule, f"to_jsonb({rule})")

    def number(self, relation: Relation, depth: int = 1) -> Value:
        assert relation.table is not None
        column = self.column(relation, self._rnd.choice(relation.table.of(NUMBERS)))
        match self._rnd.randint(0, 9) if depth else 9:
            case 0:
                text = self.text(relation, 0)
                return Value(f"length({text.rule})", f"length({text.pg})", "number")
            case 1:
                return Value(f"{column.rule} + 1", f"({column.pg} + 1)", "number")
            case 2:
                other = self.number(relation, 0)
                return Value(f"({column.rule} - {other.rule})", f"({column.pg} - {other.pg})", "number")
            case 3:
                other = self.number(relation, 0)
                call = f"{column.rule}, {other.rule}"
                return Value(f"ifnull({call})", f"coalesce({column.pg}, {other.pg})", "number")
            case 4:
                array = self.array(relation)
                return Value(f"json_array_length({array.rule})", f"jsonb_array_length({array.pg})", "number")
            case 5:
                text = self.text(relation, 0)
                return Value(f"instr({text.rule}, 'u')", f"strpos({text.pg}, 'u')", "number")
            case 6 if self.edition == 3:
                test = self.alone(relation, 0)
                return Value(
                    f"CASE WHEN {test.rule} THEN {column.rule} ELSE 2 END",
                    f"(CASE WHEN {test.pg} THEN {column.pg} ELSE 2 END)",
                    "number",
                )
            case 7:
                dates = relation.table.of({"date": 1, "timestamptz": 1})
                if not dates:
                    return column
                name = f"{relation.name}.{self._rnd.choice(dates)}"
                return Value(f"unixepoch({name})", f"floor(extract(epoch FROM {name}))::bigint", "number")
        return column

    def text(self, relation: Relation, depth: int = 1) -> Value:
        assert relation.table is not None
        column = self.column(relation, self._rnd.choice(relation.table.of(TEXTS)))
        match self._rnd.randint(0, 8) if depth else 9:
            case 0:
                name = self._rnd.choice(["upper", "lower"])
                return Value(f"{name}({column.rule})", f"{name}({column.pg})", "text")
            case 1:
                other = self.text(relation, 0)
                return Value(f"({column.rule} || {other.rule})", f"({column.pg} || {other.pg})", "text")
            case 2:
                start, length = self._rnd.randint(1, 3), self._rnd.randint(0, 2)
                arguments = f", {start}, {length})"
                return Value(f"substring({column.rule}{arguments}", f"substr({column.pg}{arguments}", "text")
            case 3:
                whole = relation.table.of({"int2": 1, "int4": 1, "int8": 1})
                if not whole:
                    return column
                name = f"{relation.name}.{self._rnd.choice(whole)}"
                return Value(f"CAST({name} AS TEXT)", f"({name}::text)", "text")
            case 4:  # NULL is as an empty blob
                digits = f"upper(encode(convert_to({column.pg}, 'UTF8'), 'hex'))"
                return Value(f"hex({column.rule})", f"coalesce({digits}, '')", "text")
        return column

    def document(self, relation: Relation) -> Value:
        """A member of a JSON document."""
        path = self._rnd.choice(["k", "n", "$.o.k"])
        steps = path.removeprefix("$.").replace(".", ",")
        call = self._rnd.choice(["->>", "extract"]) if path.startswith("$") else "->>"
        name = f"{relation.name}.doc"
        rule = f"json_extract({name}, '{path}')" if call == "extract" else f"{name} ->> '{path}'"
        return Value(rule, f"sv({name} #> '{{{steps}}}')", "any")

    def value(self, relation: Relation) -> Value:
        """Any value of one row."""
        if relation.table is None:
            return Value(f"{relation.name}.value", f"{relation.name}.value", "any")
        return self._rnd.choice([self.number, self.number, self.text, self.text, self.document])(relation)

    def request(self) -> Value:
        """A value of the request."""
        part, key, call = self._rnd.choice(
            [
                ("auth", "sub", "auth.user_id()"),
                ("auth", "sub", "auth.user_id()"),
                ("auth", "team", "auth.parameter('team')"),
                ("auth", "o,k", "auth.parameter('$.o.k')"),
                ("auth", "team", "auth.parameters() ->> 'team'"),
                ("subscription", "p", "subscription.parameter('p')"),
                ("connection", "c", "connection.parameter('c')"),
                ("subscription", "absent", "subscription.parameter('absent')"),
            ]
        )
        return Value(call, f"sv(r.{part} #> '{{{key}}}')", "any")

    def request_list(self) -> Both:
        return self._rnd.choice(
            [
                Both("auth.parameter('list')", "(r.auth -> 'list')"),
                Both("subscription.parameter('ps')", "(r.subscription -> 'ps')"),
            ]
        )

    def literal(self, kind: Kind) -> Value:
        if kind == "number":
            text = self._rnd.choice(["1", "2", "0", "1.5", "-1"])
            return Value(text, text, "number")
        text = self._rnd.choice(["'u1'", "'u2'", "'1'", "'A'", "''"])
        return Value(text, f"{text}::text", "text")

    # Conditions

    def equal(self, left: Value, right: Value) -> Both:
        """Different kinds are never equal; Postgres must be asked by kind and value."""
        rule = f"{left.rule} = {right.rule}"
        if left.kind == right.kind != "any":
            return Both(rule, f"({left.pg} = {right.pg})")
        return Both(rule, f"({left.jsonb} = {right.jsonb})")

    def negated(self, test: Both) -> Both:
        """NOT NULL is true."""
        return Both(f"NOT ({test.rule})", f"({test.pg} IS NOT TRUE)")

    def combined(self, tests: Sequence[Both]) -> Both:
        word = self._rnd.choice([" AND ", " OR "])
        return Both(f"({word.join(test.rule for test in tests)})", f"({word.join(test.pg for test in tests)})")

    def alone(self, relation: Relation, depth: int = 1) -> Both:
        """A condition on one row."""
        if depth and self._rnd.random() < 0.3:
            found = self.combined([self.alone(relation, depth - 1) for _ in range(2)])
            return self.negated(found) if self._rnd.random() < 0.4 else found
        if relation.table is None:
            return self.equal(self.value(relation), self.literal(self._rnd.choice(["number", "text"])))
        match self._rnd.randint(0, 9):
            case 0 | 1:
                value = self.value(relation)
                return self.equal(value, self.literal("number" if value.kind == "number" else "text"))
            case 2:  # `!=` is NOT (… = …)
                value = self.value(relation)
                other = self.literal("number" if value.kind == "number" else "text")
                test = self.equal(value, other)
                pg = f"({test.pg} IS NOT TRUE)" if self.edition == 3 else f"(NOT {test.pg})"
                return Both(f"{value.rule} != {other.rule}", pg)
            case 3:
                number, sign = self.number(relation), self._rnd.choice(["<", ">", "<=", ">="])
                other = self._rnd.choice([self.number(relation, 0), self.literal("number")])
                return Both(f"{number.rule} {sign} {other.rule}", f"({number.pg} {sign} {other.pg})")
            case 4:
                text, sign = self.text(relation), self._rnd.choice(["<", ">", "<=", ">="])
                other = self._rnd.choice([self.text(relation, 0), self.literal("text")])
                return Both(f"{text.rule} {sign} {other.rule}", f'({text.pg} {sign} {other.pg} COLLATE "C")')
            case 5:
                value, word = self.value(relation), self._rnd.choice(["IS NULL", "IS NOT NULL"])
                return Both(f"{value.rule} {word}", f"({value.pg} {word})")
            case 6 if self.edition == 3:
                number, word = self.number(relation), self._rnd.choice(["BETWEEN", "NOT BETWEEN"])
                test = Both(f"{number.rule} {word} 1 AND 2", f"({number.pg} BETWEEN 1 AND 2)")
                return test if word == "BETWEEN" else Both(test.rule, f"({test.pg} IS NOT TRUE)")
            case 7:
                value = self.value(relation)
                form = self._rnd.choice(["('u1', 1, 'a')", "ARRAY['u1', 1, 'a']", """'["u1", 1, "a"]'"""])
                test = Both(f"{value.rule} IN {form}", f"""({value.jsonb} IN ('"u1"', '1', '"a"'))""")
                if self._rnd.random() < 0.3:
                    return Both(f"{value.rule} NOT IN {form}", f"({test.pg} IS NOT TRUE)")
                return test
            case 8:
                number = self.number(relation, 0)
                return Both(number.rule, f"({number.pg} <> 0)")
            case _:
                number, word = self.number(relation, 0), self._rnd.choice(["IS TRUE", "IS NOT TRUE", "IS FALSE"])
                truth = f"(({number.pg} = {'0' if word == 'IS FALSE' else '1'}) IS TRUE)"
                return Both(f"{number.rule} {word}", f"(NOT {truth})" if "NOT" in word else truth)

    def of_request(self) -> Both:
        """A condition on the request alone."""
        match self._rnd.randint(0, 4):
            case 0:
                return Both("auth.parameter('role') = 'admin'", "(r.auth ->> 'role' = 'admin')")
            case 1:
                return Both("auth.parameter('flag')", "(r.auth ->> 'flag')::bool")
            case 2:
                return Both("auth.parameter('role') != 'admin'", "((r.auth ->> 'role' = 'admin') IS NOT TRUE)")
            case 3:
                value, listed = self.request(), self.request_list()
                return Both(f"{value.rule} IN {listed.rule}", f"({value.pg} IN (SELECT value FROM each({listed.pg})))")
            case _:
                return self.equal(self.request(), self._rnd.choice([self.request(), self.literal("text")]))

    def condition(self, scope: Scope, depth: int = 2) -> Both:
        """A condition over some tables and the request."""
        if depth and self._rnd.random() < 0.45:
            return self.combined([self.condition(scope, depth - 1) for _ in range(self._rnd.randint(2, 3))])
        relation = self._rnd.choice(scope)
        match self._rnd.randint(0, 11 + 4 * bool(depth)):
            case 0 | 1 | 2 | 3:
                sides = [self.value(relation), self.request()]
                return self.equal(*(sides if self._rnd.random() < 0.7 else reversed(sides)))
            case 4:
                return self.equal(self.value(relation), self.value(self._rnd.choice(scope)))
            case 5:
                return self.of_request()
            case 6 if relation.table is not None:
                value, array = self.request(), self.array(relation)
                return Both(f"{value.rule} IN {array.rule}", f"({value.pg} IN (SELECT value FROM each({array.pg})))")
            case 7:
                value, listed = self.value(relation), self.request_list()
                test = f"({value.jsonb} IN (SELECT value FROM each({listed.pg})))"
                return Both(f"{value.rule} IN {listed.rule}", test)
            case 8 if relation.table is not None:
                array, listed = self.array(relation), self.request_list()
                test = f"EXISTS (SELECT FROM each({array.pg}) x, each({listed.pg}) y WHERE x.value = y.value)"
                return Both(f"{array.rule} && {listed.rule}", test)
            case 12 | 13 | 14 | 15:
                value = self._rnd.choice([self.value(relation), self.value(relation), self.request()])
                return self.among(value, self.subquery(scope, depth - 1))
            case _:
                return self.alone(relation)

    def among(self, value: Value, query: Both) -> Both:
        return Both(f"{value.rule} IN {query.rule}", f"({value.jsonb} IN {query.pg})")

    # Queries

    def subquery(self, scope: Scope, depth: int) -> Both:
        """One column, in parentheses, or a common table expression."""
        if self._expressions and self._rnd.random() < 0.2:
            name = self._rnd.choice([*self._expressions])
            return Both(name, f"({self._expressions[name].pg})")
        if self._rnd.random() < 0.1:
            listed = self.request_list()
            return Both(f"(SELECT value FROM json_each({listed.rule}))", f"(SELECT value FROM each({listed.pg}))")
        return Both(*(f"({text})" for text in self.column_query(scope, depth)))

    def column_query(self, around: Scope, depth: int) -> Both:
        relation = self._relation({item.name for item in around})
        scope = [relation, *(around if self._rnd.random() < 0.2 else ())]
        column = self.value(relation)
        end = Both("", "")
        if self._rnd.random() < 0.8:
            where = self.condition(scope, depth)
            end = Both(f" WHERE {where.rule}", f" WHERE {where.pg}")
        source = _source(relation)
        return Both(
            f"SELECT {column.rule} AS v FROM {source}{end.rule}", f"SELECT {column.jsonb} FROM {source}{end.pg}"
        )

    def _joined(self, left: Relation, right: Relation) -> Both:
        """What two tables have in common: any condition, or two columns, which must then come from one row."""
        if self._rnd.random() < 0.5:
            return self.condition([left, right], 0)
        numbers = self.equal(self.number(left, 0), self.number(right, 0))
        texts = self.equal(self.text(left, 0), self.text(right, 0))
        return Both(f"{numbers.rule} AND {texts.rule}", f"({numbers.pg} AND {texts.pg})")

    def _relation(self, taken: set[str]) -> Relation:
        table = self._rnd.choice(TABLES)
        name = next(f"{table[0]}{number}" for number in range(100) if f"{table[0]}{number}" not in taken)
        return Relation(name, self._tables[table])

    def query(self, number: int = 0) -> Both:
        """A stream's query; in Postgres it gives ids and the value of the column `v`.

        Queries of one stream have numbers, so that their rows are of different tables on the device.
        """
        table = self._rnd.choice(TABLES)
        synced = Relation(f"{table}_{number}", self._tables[table])
        others, joins = [], Both("", "")
        match self._rnd.randint(0, 7):
            case 0 | 1:
                other = self._relation({synced.name})
                on, comma = self._joined(synced, other), self._rnd.random() < 0.3
                source = _source(other)
                joins = Both(
                    f", {source}" if comma else f" JOIN {source} ON {on.rule}",
                    f", {source}" if comma else f" JOIN {source} ON {on.pg}",
                )
                others = [other]
            case 2:
                array = self._rnd.choice([self.array(synced), Both(f"{synced.name}.doc", f"{synced.name}.doc")])
                joins = Both(f", json_each({array.rule}) AS e", f", each({array.pg}) AS e")
                others = [Relation("e", None)]
            case 3:
                listed = self.request_list()
                joins = Both(f" JOIN json_each({listed.rule}) AS e", f" CROSS JOIN each({listed.pg}) AS e")
                others = [Relation("e", None)]
            case 4:
                inner = self.column_query([], 1)
                joins = Both(f", ({inner.rule}) AS e (value)", f", ({inner.pg}) AS e (value)")
                others = [Relation("e", None)]
        where = self.condition([synced, *others])
        value = self.value(synced)
        source = _source(synced)
        rule = f"SELECT {synced.name}.id, {value.rule} AS v FROM {source}{joins.rule} WHERE {where.rule}"
        return Both(rule, f"SELECT {synced.name}.id, {value.jsonb} FROM {source}{joins.pg} WHERE {where.pg}")


class DefinitionGrammar(Grammar):
    """Writes old-style bucket definitions (edition 2)."""

    edition = 2

    def request(self) -> Value:
        part, key, call = self._rnd.choice(
            [
                ("auth", "sub", "request.user_id()"),
                ("auth", "sub", "token_parameters.user_id"),
                ("auth", "team", "request.jwt() ->> 'team'"),
                ("auth", "o,k", "request.jwt() ->> '$.o.k'"),
                ("connection", "c", "request.parameters() ->> 'c'"),
                ("connection", "c", "user_parameters.c"),
            ]
        )
        return Value(call, f"sv(r.{part} #> '{{{key}}}')", "any")

    def definition(self) -> tuple[Both, Both]:
        """A parameter query and a data query; in Postgres the second one knows the first as `bucket`."""
        names = self._rnd.choice(["p", "p", "pq"])
        parameters = self._rnd.choice([self._static, self._indexed, self._indexed, self._of_array])(names)
        synced = self._relation(set())
        inputs = [Value(f"bucket.{name}", f"bucket.{name}", "any") for name in names]
        where, value, source = self._ways(synced, inputs), self.value(synced), _source(synced)
        rule = f"SELECT {synced.name}.id, {value.rule} AS v FROM {source} WHERE {where.rule}"
        listed = ", ".join(names)
        pg = (
            f"SELECT {synced.name}.id, {value.jsonb} FROM ({parameters.pg}) AS bucket ({listed}), {source}"
            f" WHERE {where.pg}"
        )
        return parameters, Both(rule, pg)

    def _static(self, names: str) -> Both:
        values = [self.request() for _ in names]
        where = self._rnd.choice(
            [
                Both("", ""),
                Both(" WHERE request.jwt() ->> 'role' = 'admin'", " WHERE r.auth ->> 'role' = 'admin'"),
                Both(" WHERE request.jwt() ->> 'flag'", " WHERE (r.auth ->> 'flag')::bool"),
            ]
        )
        listed = ", ".join(f"{value.rule} AS {name}" for value, name in zip(values, names, strict=True))
        return Both(f"SELECT {listed}{where.rule}", f"SELECT {', '.join(value.pg for value in values)}{where.pg}")

    def _of_array(self, names: str) -> Both:
        others = [self.request() for _ in names[1:]]
        listed = "".join(f", {value.rule} AS {name}" for value, name in zip(others, names[1:], strict=True))
        rule = f"SELECT value AS p{listed} FROM json_each(request.jwt() -> 'list')"
        return Both(rule, f"SELECT value{''.join(f', {value.pg}' for value in others)} FROM each(r.auth -> 'list')")

    def _indexed(self, names: str) -> Both:
        """Over a table, which has no alias here."""
        table = self._tables[self._rnd.choice(TABLES)]
        relation = Relation(table.name, table)
        values = [self._rnd.choice([self.value(relation), self.value(relation), self.request()]) for _ in names]
        where = self._ways(relation, [self.request() for _ in range(self._rnd.randint(1, 2))])
        if self._rnd.random() < 0.3:
            value = self.value(relation)
            test = f"({value.jsonb} IN (SELECT value FROM each(r.auth -> 'list')))"
            where = Both(f"({where.rule}) AND {value.rule} IN request.jwt() -> 'list'", f"({where.pg}) AND {test}")
        listed = ", ".join(f"{value.rule} AS {name}" for value, name in zip(values, names, strict=True))
        rule = f"SELECT {listed} FROM {table.name} WHERE {where.rule}"
        return Both(rule, f"SELECT {', '.join(value.jsonb for value in values)} FROM {table.name} WHERE {where.pg}")

    def _ways(self, relation: Relation, inputs: Sequence[Value]) -> Both:
        """Every side of OR compares each input with the row."""
        sides = []
        for _ in range(self._rnd.randint(1, 2)):
            tests = [self._matched(relation, value) for value in inputs]
            tests += [self.alone(relation)] * self._rnd.randint(0, 1)
            sides.append(Both(" AND ".join(test.rule for test in tests), " AND ".join(test.pg for test in tests)))
        return Both(f"({' OR '.join(side.rule for side in sides)})", f"({' OR '.join(side.pg for side in sides)})")

    def _matched(self, relation: Relation, value: Value) -> Both:
        if self._rnd.random() < 0.2:
            array = self.array(relation)
            return Both(f"{value.rule} IN {array.rule}", f"({value.pg} IN (SELECT value FROM each({array.pg})))")
        return self.equal(*self._rnd.choice([(self.value(relation), value), (value, self.value(relation))]))


def _source(relation: Relation) -> str:
    assert relation.table is not None
    return f"{relation.table.name} AS {relation.name}"
