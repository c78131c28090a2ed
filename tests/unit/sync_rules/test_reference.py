"""The reference of functions and operators says what the code does."""

from __future__ import annotations

import runpy
from pathlib import Path

DOCS = Path(__file__).parents[3] / "docs"
NOT_WRITTEN = {"as array", "as array or null", "unsupported"}


def test_the_page_is_that_of_the_code():
    generator = runpy.run_path(str(DOCS / "functions.py"))
    assert generator["page"]() == generator["PAGE"].read_text(), "run python docs/functions.py"
    assert {*generator["WRITTEN"]} == {*generator["OPERATORS"]} - NOT_WRITTEN


def test_every_function_says_what_it_gives():
    rows = [line for line in (DOCS / "reference" / "rule-functions.md").read_text().splitlines() if line[:2] == "| "]
    assert [row for row in rows if "|  |" in row] == []
