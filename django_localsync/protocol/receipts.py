"""Requests for write checkpoints: docs/reference/wire-protocol.md, "Write checkpoints"."""

from __future__ import annotations

from typing import Any

import orjson

from ..exceptions import RequestError
from .crud import MAX_CLIENT_ID_CHARACTERS, MAX_ID


def check_client_id(client_id: Any, description: str) -> None:
    """Raise RequestError for what cannot be a client's id."""
    if not isinstance(client_id, str) or len(client_id) > MAX_CLIENT_ID_CHARACTERS or "\0" in client_id:
        problem = f"client_id: must be a text of at most {MAX_CLIENT_ID_CHARACTERS} characters, without NUL"
        raise RequestError(description, details=problem)


def parse_checkpoint_request(body: bytes) -> tuple[str, int]:
    """The client's id and the number it wants (1 … 2**63-1; a text above 2**53). Raises RequestError."""
    description = "the request's body is not valid"
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise RequestError("the body is not JSON", details=str(error)) from None
    if not isinstance(document, dict):
        raise RequestError(description, details="body: must be an object")
    client_id, number = document.get("client_id", ""), document.get("checkpoint_request_id")
    check_client_id(client_id, description)
    if isinstance(number, str) and number.isascii() and number.isdigit() and len(number) <= len(str(MAX_ID)):
        number = int(number)
    if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= MAX_ID:
        raise RequestError(description, details=f"checkpoint_request_id: must be a whole number from 1 to {MAX_ID}")
    return client_id, number
