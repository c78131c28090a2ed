"""The stream that every project with uploads has: to each user, what became of the user's own rejected writes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ..exceptions import RulesError
from .document import Source, canonical_json

REJECTIONS = "localsync_rejections"
"""The name of the stream, or bucket definition."""

_ROWS = (
    "SELECT id, client_id, transaction_id, op_id, op, type, row_id, data, code, errors, created_at"
    "  FROM localsync_rejection WHERE user_key = "
)
# The journal keeps the token's subject as text, also where it is a number.
_STREAM = {"auto_subscribe": True, "query": f"{_ROWS} CAST(auth.user_id() AS TEXT)"}
_BUCKET_DEFINITION = {
    "parameters": "SELECT CAST(request.user_id() AS TEXT) AS user_key",
    "data": [f"{_ROWS} bucket.user_key"],
}


def with_rejections(rules: Source) -> Source:
    """The rules, and the stream of rejected writes beside theirs; rules that define that name themselves are kept.

    What is wrong with the rules is left to the compiler to say.
    """
    try:
        document: Any = json.loads(canonical_json(rules))
    except RulesError:
        return rules
    config = document.get("config") if isinstance(document, dict) else None
    edition = config.get("edition") if isinstance(config, Mapping) else None
    streams = isinstance(edition, int) and edition >= 3
    section, definition = ("streams", _STREAM) if streams else ("bucket_definitions", _BUCKET_DEFINITION)
    if not isinstance(document, dict) or not isinstance(document.get(section, {}), dict):
        return rules
    return {**document, section: {REJECTIONS: definition, **document.get(section, {})}}
