"""Streams in Python: what `RULES` may hold beside YAML, and the document of SQL that it becomes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from django.db import connections, models
from django.db.models.sql import Query
from django.utils.module_loading import import_string

from ..exceptions import ConfigurationError, RulesError
from .conditions import QueryTranslator
from .errors import NotExpressible
from .kinds import final_target
from .printing import Printer
from .scopes import Scope
from .selections import Loaded, loaded, outputs, refuse_sensitive
from .terms import Column, Compare

_HOW = 'RULES may be a Stream, a list of them, or a dict {"streams": {name: Stream(…) or {"query": …}}}'


@dataclass(frozen=True, init=False, eq=False, repr=False)
class Stream:
    """Rows that devices may subscribe to, as QuerySets (or as the SQL of streams).

        Stream(Todo.objects.filter(list__members=auth.user()), name="todos", auto_subscribe=True)

    Rows of any of the QuerySets are synced, each under the name of its table, or the one that `tables` gives for
    its model. The other options are those of streams in YAML; docs/howto/querysets.md tells what QuerySets can say.
    """

    queries: tuple[models.QuerySet[Any] | str, ...]
    name: str | None
    auto_subscribe: bool
    priority: int
    tables: Mapping[type[models.Model], str]
    accept_potentially_dangerous_queries: bool

    def __init__(
        self,
        *queries: models.QuerySet[Any] | models.Manager[Any] | str,
        name: str | None = None,
        auto_subscribe: bool = False,
        priority: int = 3,
        tables: Mapping[type[models.Model], str] | None = None,
        accept_potentially_dangerous_queries: bool = False,
    ) -> None:
        for query in queries:
            if not isinstance(query, models.QuerySet | models.Manager | str):
                raise TypeError(f"a Stream is made of QuerySets (or SQL texts), not of {type(query).__name__}")
        found = tuple(query.all() if isinstance(query, models.Manager) else query for query in queries)
        values = {
            "queries": found,
            "name": name,
            "auto_subscribe": auto_subscribe,
            "priority": priority,
            "tables": dict(tables or {}),
            "accept_potentially_dangerous_queries": accept_potentially_dangerous_queries,
        }
        for key, value in values.items():
            object.__setattr__(self, key, value)

    def __repr__(self) -> str:
        return f"<Stream {self.name!r}>"  # that of a QuerySet would run it

    def sql(self, *, using: str = "default", sensitive: Sequence[str] = ()) -> list[str]:
        """The queries of streams (edition 3) that this one means.

        `using` is the alias of the database that is synced, `sensitive` what the setting SENSITIVE_COLUMNS has.
        Raises RulesError for what cannot be expressed: the first, with all of them in `all`.
        """
        found, errors = [], []
        for query in self.queries:
            try:
                found += [query] if isinstance(query, str) else translate(query.query, self.tables, using, sensitive)
            except NotExpressible as error:
                model = "" if isinstance(query, str) else f"QuerySet of {query.model.__name__}: "
                errors.append(RulesError(f"{model}{error.message}", definition=self.name, hint=error.hint))
        if errors:
            raise RulesError.of(errors)
        return found

    def definition(self, queries: list[str]) -> dict[str, Any]:
        """The stream as a document of rules has it."""
        return {
            "auto_subscribe": self.auto_subscribe,
            "priority": self.priority,
            "accept_potentially_dangerous_queries": self.accept_potentially_dangerous_queries,
            **({"query": queries[0]} if len(queries) == 1 else {"queries": queries}),
        }


def translate(
    query: Query, tables: Mapping[type[models.Model], str], using: str, sensitive: Sequence[str] = ()
) -> list[str]:
    """The SQL of a QuerySet: one query, and one for each parent of a model that inherits tables.

    Raises NotExpressible.
    """
    found = loaded(query)
    refuse_sensitive(found, sensitive)
    model = cast("type[models.Model]", query.get_meta().concrete_model)
    texts = [_select(query, found, model, tables, using)]
    asked = {field.model for field in found.fields if not field.primary_key}
    parents = (parent for parent in model._meta.all_parents if parent in asked)
    return [*texts, *(_select_parent(query, found, model, parent, tables, using) for parent in parents)]


def _select(query: Query, found: Loaded, model: type[models.Model], tables: Any, using: str) -> str:
    translator = QueryTranslator(Scope(query, connections[using]))
    condition = translator.condition()
    printer = Printer(translator.scope.base, model._meta.db_table, {}, _row_type(model, tables))
    return printer.select(outputs(found, model, translator, printer, annotated=True), condition)


def _select_parent(
    query: Query, found: Loaded, model: type[models.Model], parent: type[models.Model], tables: Any, using: str
) -> str:
    """The parent's rows of which the QuerySet gives the child."""
    around, inner = (QueryTranslator(Scope(item, connections[using])) for item in (Query(parent), query))
    link, key = model._meta.get_ancestor_link(parent), parent._meta.pk
    if link is None or final_target(link) is not final_target(key):
        hint = f"leave its columns out with only() or defer(), and give a QuerySet of {parent.__name__} as well"
        raise NotExpressible(f"the rows of {parent.__name__} have other keys than those of {model.__name__}", hint)
    of_child = Column(inner.scope.base, str(link.column), False)
    same = Compare("=", of_child, Column(around.scope.base, str(key.column), False))
    printer = Printer(around.scope.base, parent._meta.db_table, {}, _row_type(parent, tables))
    return printer.select(outputs(found, parent, around, printer, annotated=False), inner.exists(same))


def _row_type(model: type[models.Model], tables: Mapping[type[models.Model], str]) -> str | None:
    return next((name for of, name in tables.items() if of._meta.concrete_model is model), None)


# RULES


def is_dotted_path(rules: str) -> bool:
    """Whether a text is the path of a Python object rather than of a file."""
    parts = rules.strip().split(".")
    return len(parts) > 1 and all(part.isidentifier() for part in parts) and parts[-1] not in ("yaml", "yml", "json")


def rules_document(rules: object, *, using: str, sensitive: Sequence[str]) -> Mapping[str, Any]:
    """Rules that hold streams in Python, as a dict of SQL: what `sync_rules.compile_rules` takes.

    A Stream, a list of them, a dict in which streams may be Streams, a callable that gives one of these, or the dotted
    path of one. Dicts without Streams are given back as they are. Raises ConfigurationError, of which RulesError (for
    what a QuerySet cannot say) is one.
    """
    found = _resolved(rules)
    if isinstance(found, Mapping):
        streams = _resolved(found.get("streams"))
        if streams is None or (isinstance(streams, Mapping) and not _has_streams(streams)):
            return found
        document = {"config": {"edition": 3}, **found}
    else:
        streams, document = found, {"config": {"edition": 3}}
    return {**document, "streams": _definitions(_by_name(streams), using, sensitive)}


def _resolved(value: Any) -> Any:
    """What a dotted path or a callable stands for."""
    while isinstance(value, str) or callable(value):
        if isinstance(value, str):
            try:
                value = import_string(value)
            except ImportError as error:
                message = f"LOCALSYNC's RULES name {value!r}, which cannot be imported: {error}"
                raise ConfigurationError(message) from error
        else:
            value = value()
    return value


def _has_streams(streams: Mapping[str, Any]) -> bool:
    return any(isinstance(item, Stream | str) or callable(item) for item in streams.values())


def _by_name(streams: Any) -> list[tuple[str, Any]]:
    """Definitions with their names, in order; names may repeat."""
    if isinstance(streams, Stream):
        streams = [streams]
    if isinstance(streams, Mapping):
        named = [(str(name), _resolved(item)) for name, item in streams.items()]
        return [(name, _under(item, name) if isinstance(item, Stream) else item) for name, item in named]
    if not isinstance(streams, Iterable):
        raise ConfigurationError(f"{_HOW}, not {type(streams).__name__}")
    found = [_resolved(item) for item in streams]
    for item in found:
        if not isinstance(item, Stream):
            raise ConfigurationError(f"{_HOW}; the list holds {type(item).__name__}")
        if not item.name:
            raise ConfigurationError('a Stream has no name: Stream(…, name="todos")')
    return [(str(item.name), item) for item in found]


def _under(stream: Stream, name: str) -> Stream:
    """The stream under the name that it has in a dict. Raises ConfigurationError if it has another one of its own."""
    if stream.name not in (None, name):
        raise ConfigurationError(f"the stream {stream.name!r} stands under the name {name!r}")
    options = {key: getattr(stream, key) for key in Stream.__annotations__ if key not in ("queries", "name")}
    return Stream(*stream.queries, name=name, **options)


def _definitions(named: list[tuple[str, Any]], using: str, sensitive: Sequence[str]) -> dict[str, Any]:
    definitions: dict[str, Any] = {}
    errors: list[RulesError] = []
    for name, item in named:
        if name in definitions:
            errors.append(RulesError("the name stands twice", definition=name, hint="rename one of the streams"))
        try:
            found = item.definition(item.sql(using=using, sensitive=sensitive)) if isinstance(item, Stream) else item
        except RulesError as error:
            errors.extend(error.all)
            found = None
        definitions[name] = found
    if errors:
        raise RulesError.of(errors)
    return definitions
