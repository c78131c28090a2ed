"""The body of an error, and what browsers must be told about the endpoints that take a bearer token.

The shapes are PowerSync's (docs/reference/wire-protocol.md §1.5). Clients act on the status alone.
"""

from __future__ import annotations

import orjson

from ..exceptions import RequestError

NO_SUCH_PATH = "PSYNC_S2002"
UNSUPPORTED_MEDIA_TYPE = "PSYNC_S2004"
TOO_MANY_REQUESTS = "PSYNC_S2304"

# Any origin, never with credentials: the token is in a header that no browser adds by itself.
CORS_HEADERS = {"Access-Control-Allow-Origin": "*", "Access-Control-Expose-Headers": "Content-Type"}
CORS_PREFLIGHT_HEADERS = {
    "Access-Control-Allow-Methods": "GET, POST",
    "Access-Control-Allow-Headers": "Content-Type, Authorization, User-Agent, X-User-Agent",
    "Access-Control-Max-Age": "3600",
}


def encode_error(error: RequestError) -> bytes:
    """The JSON body that tells a client why its request is refused."""
    document = {
        "name": type(error).__name__,
        "code": error.code,
        "status": error.status,
        "description": error.description,
        **({} if error.details is None else {"details": error.details}),
    }
    return orjson.dumps({"error": document})
