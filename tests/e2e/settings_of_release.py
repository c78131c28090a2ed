"""The example project with another release of the package: one that fills FORMAT and knows formats up to KNOWN_TO.

In its format 2 every `title` ends with a mark, so that a row shows which format it was made in.
"""

import json
import os
from typing import Any

from django_localsync.sync_rules import formats
from django_localsync.sync_rules.compiled import CompiledPlan
from django_localsync.sync_rules.plan import BucketRow
from example_project.settings import *  # noqa: F403

MARK = " (2)"

formats.FORMAT = int(os.environ["FORMAT"])
formats.KNOWN_FORMATS = range(1, int(os.environ["KNOWN_TO"]) + 1)

_evaluator_of_format_1 = CompiledPlan.row_evaluator


def _row_evaluator(plan: CompiledPlan, *arguments: Any, **options: Any) -> Any:
    evaluate = _evaluator_of_format_1(plan, *arguments, **options)

    def evaluate_as_2(values: Any) -> Any:
        buckets, lookups = evaluate(values)
        return [row._replace(data=_mark(row.data)) for row in (BucketRow(*item) for item in buckets)], lookups

    return evaluate if plan.format == 1 else evaluate_as_2


def _mark(data: str) -> str:
    row = json.loads(data)
    return json.dumps({**row, "title": row["title"] + MARK} if "title" in row else row)


CompiledPlan.row_evaluator = _row_evaluator  # type: ignore[method-assign]
