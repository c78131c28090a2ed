"""The rules in the documentation compile, without warnings."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from django_localsync.sync_rules import compile_rules

DOCS = Path(__file__).parents[3] / "docs"
PAGES = ("howto/streams.md", "howto/migrating-from-powersync.md", "reference/sync-rules.md")
EXAMPLES = [
    pytest.param(block, id=f"{page}-{number}")
    for page in PAGES
    for number, block in enumerate(re.findall(r"```yaml\n(.*?)```", (DOCS / page).read_text(), re.DOTALL), 1)
]


@pytest.mark.parametrize("rules", EXAMPLES)
def test_the_rules_of_the_documentation_compile(rules: str) -> None:
    if rules.startswith("event_definitions"):
        rules = f"streams: {{s: {{query: SELECT * FROM notes WHERE user_id = auth.user_id()}}}}\n{rules}"
    if not rules.startswith(("config", "bucket_definitions")):
        rules = "config: {edition: 3}\n" + rules
    assert compile_rules(rules).warnings == ()


def test_the_queries_of_the_reference_compile() -> None:
    (block,) = re.findall(r"```sql\n(.*?)```", (DOCS / "reference/sync-rules.md").read_text(), re.DOTALL)
    queries = [line.partition("--")[0].strip() for line in block.splitlines()]
    stream = {"queries": queries, "accept_potentially_dangerous_queries": True}
    assert compile_rules({"config": {"edition": 3}, "streams": {"s": stream}}).plan.bucket_sources
