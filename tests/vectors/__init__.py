"""The test vectors; their `conventions` explain the encoding."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest


def vectors(group: str) -> list[Any]:
    """A group's vectors as parameters for `pytest.mark.parametrize`, named by their ids."""
    return [pytest.param(vector, id=vector["id"]) for vector in _groups()[group]]


@cache
def _groups() -> dict[str, list[dict[str, Any]]]:
    document = json.loads((Path(__file__).parent / "vectors.json").read_text())
    groups: dict[str, list[dict[str, Any]]] = document["groups"]
    return groups
