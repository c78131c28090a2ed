"""What rules may ask of a request: claims of the token, connection and subscription parameters, as SQLite values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from ..exceptions import EvaluationError
from .codegen import Code, ValueKind, Writer, build
from .expressions import Call, Element, Expr, Literal, Request, RequestPart, SqliteValue, walk
from .json_values import MISSING, follow, member_steps, to_sqlite
from .plan import RequestParameters

_EXACT = 1 << 53  # integers that a real holds exactly


class RequestValues:
    """The values of one request, or of one of its subscriptions.

    Numbers are reals, as JSON has no others; integers that a real cannot hold stay integers.
    """

    def __init__(self, request: RequestParameters, subscription: Mapping[str, Any]) -> None:
        claims = request.claims
        legacy = claims.get("parameters")
        token = {**(legacy if isinstance(legacy, Mapping) else {}), "user_id": claims.get("sub")}
        self._parts: dict[RequestPart, dict[str, Any]] = {
            "auth": dict(claims),
            "connection": dict(request.connection),
            "subscription": dict(subscription),
            "token": token,
        }

    def text(self, part: RequestPart) -> str:
        """One of the objects as JSON text. Raises EvaluationError."""
        return _json(self._parts[part])

    def member(self, part: RequestPart, steps: list[str]) -> SqliteValue:
        """A member of one of the objects, NULL if it is absent. Raises EvaluationError."""
        found = follow(self._parts[part], steps)
        if isinstance(found, Mapping | list | tuple):
            return _json(found)
        return to_sqlite(MISSING if found is MISSING else _with_reals(found))


def _json(value: Any) -> str:
    try:
        return orjson.dumps(_with_reals(value)).decode()
    except (TypeError, RecursionError):
        raise EvaluationError("the parameters cannot be written as JSON") from None


def _with_reals(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _with_reals(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_with_reals(item) for item in value]
    if isinstance(value, int) and not isinstance(value, bool) and -_EXACT <= value <= _EXACT:
        return float(value)
    return value


@dataclass(frozen=True, slots=True)
class RequestFunction:
    """An expression over a request, and over key and value of the elements with these numbers, in this order."""

    run: Callable[[RequestValues, tuple[SqliteValue, ...]], Any]
    elements: tuple[int, ...]


def request_function(expr: Expr, *, condition: bool = False) -> RequestFunction:
    """Compile an expression; with `condition` it answers whether it is true."""
    numbers = tuple(dict.fromkeys(_own_elements(expr)))
    writer = _RequestWriter(numbers)
    source = writer.condition(expr) if condition else writer.value(expr).source
    return RequestFunction(build([f"def run(request, elements): return {source}"], "run", writer.names), numbers)


def _own_elements(expr: Expr) -> list[int]:
    """Elements that the expression itself speaks of, not those their arrays came from."""
    return [node.number for node in walk(expr, into_elements=False) if isinstance(node, Element)]


class _RequestWriter(Writer):
    def __init__(self, elements: tuple[int, ...]) -> None:
        super().__init__()
        self._positions = {number: 2 * index for index, number in enumerate(elements)}

    def request(self, request: Request) -> Code:
        return Code(f"request.text({request.part!r})", ValueKind.TEXT)

    def element(self, element: Element) -> Code:
        position = self._positions[element.number] + (element.part == "value")
        return Code(f"elements[{position}]", ValueKind.NOT_BLOB, simple=True)

    def special(self, call: Call) -> Code | None:
        """A member of one of the objects, without writing and parsing its JSON."""
        match call:
            case Call("->>", (Request(part), Literal(str(key)))):
                return Code(f"request.member({part!r}, {member_steps(key)!r})", ValueKind.NOT_BLOB)
        return None
