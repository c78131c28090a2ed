"""What a stream's answer looks like: the format of its lines and its content coding, from a request's headers.

Accept and Accept-Encoding: RFC 9110, 12.4 and 12.5. Nothing is refused: a client that accepts nothing that we have gets
NDJSON as it is.
"""

from __future__ import annotations

from collections.abc import Sequence

from .codings import AVAILABLE, Coding
from .lines import LineFormat

_LOWEST = 0.0005  # below every weight that a client can give, and not refused


def choose_format(accept: str | None) -> LineFormat:
    """NDJSON wherever it is accepted: it costs a sixth of BSON, and its data lines are shared by most clients."""
    weights = _parse_weights(accept)
    return LineFormat.BSON if weights.get(LineFormat.BSON.value) and not _accepts_ndjson(weights) else LineFormat.NDJSON


def choose_coding(accept_encoding: str | None, offered: Sequence[Coding] = AVAILABLE) -> Coding:
    """The coding that the client wants most; among equal ones that which is offered first."""
    weights = _parse_weights(accept_encoding)

    def weigh(coding: Coding) -> float:
        unnamed = _LOWEST if coding is Coding.IDENTITY else weights.get("*", 0.0)
        return weights.get(coding.value, unnamed)

    best = max(offered, key=weigh, default=Coding.IDENTITY)
    return best if weigh(best) > 0 else Coding.IDENTITY


def _accepts_ndjson(weights: dict[str, float]) -> bool:
    names = (LineFormat.NDJSON.value, "application/*", "*/*")
    return next((weights[name] > 0 for name in names if name in weights), False)


def _parse_weights(header: str | None) -> dict[str, float]:
    """The weight, from 0 to 1, of each item of a header, by its name in lower case."""
    weights = {}
    for item in (header or "").split(","):
        name, *parameters = (part.strip().lower() for part in item.split(";"))
        weights[name] = next((_parse_weight(text[2:]) for text in parameters if text.startswith("q=")), 1.0)
    return weights


def _parse_weight(text: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        return 0.0
    return weight if 0 <= weight <= 1 else 0.0  # also NaN
