"""Rows a second through the generated row evaluator: `python benchmarks/evaluate_rows.py`.

Eight columns, `SELECT *` in two definitions, best of five rounds; once with a timestamptz, once with text instead.
"""

from __future__ import annotations

import time

from django_localsync.pgoutput.values import PgType
from django_localsync.sync_rules import compile_rules
from django_localsync.sync_rules.plan import Column, RowEvaluator, TableName

ROUNDS, ROWS = 5, 50_000
RULES = {
    "config": {"edition": 3},
    "streams": {
        "lists": {
            "query": "SELECT * FROM todos WHERE list_id IN (SELECT list_id FROM members WHERE user_id = auth.user_id())"
        },
        "mine": {"query": "SELECT * FROM todos WHERE owner = auth.user_id() AND NOT archived"},
    },
}
LAYOUT = {
    "id": ("uuid", "3f2c9b52-0d4e-4d5c-9a1b-6a7f3c1d2e90"),
    "list_id": ("uuid", "4f2c9b52-0d4e-4d5c-9a1b-6a7f3c1d2e90"),
    "owner": ("text", "user-1"),
    "title": ("text", "Buy some milk and bread, and do not forget the eggs"),
    "done": ("bool", "f"),
    "archived": ("bool", "f"),
    "position": ("int4", "12"),
}
LAST = {"timestamptz": "2024-05-06 07:08:09.123456+00", "text": "a note"}


def main() -> None:
    """Print microseconds a row."""
    plan = compile_rules(RULES).plan
    for kind, value in LAST.items():
        layout = LAYOUT | {"last": (kind, value)}
        columns = [Column(name, PgType.named(type_name)) for name, (type_name, _) in layout.items()]
        evaluate = plan.row_evaluator(TableName("public", "todos"), columns, print)
        print(f"last column {kind}: {microseconds(evaluate, [text for _, text in layout.values()]):.2f} µs a row")


def microseconds(evaluate: RowEvaluator, row: list[str]) -> float:
    """CPU time of one call, in the best round."""
    return min(_round(evaluate, row) for _ in range(ROUNDS)) / ROWS * 1e6


def _round(evaluate: RowEvaluator, row: list[str]) -> float:
    began = time.process_time()
    for _ in range(ROWS):
        evaluate(row)
    return time.process_time() - began


if __name__ == "__main__":
    main()
