"""Which queries let a client alone decide what it gets, so that nothing its token says restricts it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .bucket_definitions import ParameterQuery
from .expressions import Expr, Request, walk
from .queries import Output, Position
from .streams import VariantQuery

_CLIENT, _TOKEN = frozenset(("subscription", "connection")), frozenset(("auth", "token"))


def is_dangerous_variant(variant: VariantQuery) -> bool:
    """Whether bucket parameters come from what the client says of itself, and none from its token.

    A condition on the token, such as `auth.parameter('role') = 'admin'`, does not make them safe: it says who may ask,
    not for what. Without parameters of the request the conditions decide.
    """
    sources = _sources(variant, variant.parameters)
    return _client_alone(sources) if sources else _client_alone(_parts(variant.filters))


def is_dangerous_parameter_query(query: ParameterQuery) -> bool:
    """The same of a parameter query. Of one that reads no table, only the outputs count."""
    used = _parts(query.expressions)
    if not query.rows and not _parts(_expressions([tuple(query.outputs.values())])) & _TOKEN:
        return bool(used & _CLIENT)
    return _client_alone(used)


def _client_alone(parts: frozenset[str]) -> bool:
    return bool(parts & _CLIENT) and not parts & _TOKEN


def _sources(variant: VariantQuery, positions: Sequence[Position]) -> frozenset[str]:
    """Parts of the request from which the values come, through all lookups."""
    found = _parts(_expressions(positions))
    for step in {operand.step for position in positions for operand in position if isinstance(operand, Output)}:
        found |= _sources(variant, variant.keys[step])
    return found


def _expressions(positions: Iterable[Position]) -> list[Expr]:
    return [operand for position in positions for operand in position if not isinstance(operand, Output)]


def _parts(exprs: Iterable[Expr]) -> frozenset[str]:
    return frozenset(node.part for expr in exprs for node in walk(expr) if isinstance(node, Request))
