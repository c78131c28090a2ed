"""System checks: what a developer misconfigured shows at start, with an id and the way out.

docs/reference/checks.md has a section for each id. Checks that ask the database run with
`manage.py check --database default`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from django.apps import apps
from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.checks import CheckMessage, Error, Tags, register
from django.core.checks import Warning as CheckWarning
from django.db import DatabaseError, connections
from django.db.migrations.executor import MigrationExecutor
from django.utils.module_loading import import_string

from . import routing, tokens
from .conf import Settings, get_settings, read_written_rules
from .evaluation import Evaluator, compile_cached
from .evaluation.estimate import estimate, most_common_keys
from .evaluation.findings import Finding, Tables, hopeless, repeated_names, unrestricted, without_id
from .exceptions import ConfigurationError, RulesError
from .models import RuleSet
from .sync_rules import CompiledRules
from .sync_rules.formats import unknown_format
from .sync_rules.plan import RequestParameters, TableName, TablePattern
from .tokens import user_claims
from .upload import UploadHandler

TAG = "localsync"

_WARNING_IDS = {"danger": "W001", "query": "W002", "unused": "W003", "alpha": "W004"}
# Types whose values are numbers or bytes in the rules; text such as `sub` never equals them.
_NEVER_TEXT = frozenset({"int2", "int4", "int8", "oid", "float4", "float8", "bool", "bytea"})
_MODEL_TYPES = {
    "smallint": "int2",
    "integer": "int4",
    "bigint": "int8",
    "serial": "int4",
    "bigserial": "int8",
    "smallserial": "int2",
    "real": "float4",
    "double": "float8",
    "boolean": "bool",
    "char": "bpchar",
}

# A check must not take long: more rows are left to `localsync_explain --estimate`.
MAX_ROWS_TO_COUNT = 20_000
MAX_USERS_TO_COUNT = 1000


@register(TAG)
def check_settings(**_: Any) -> list[CheckMessage]:
    """LOCALSYNC is a dict of known keys."""
    try:
        unknown = get_settings().unknown
    except (ConfigurationError, TypeError, ValueError) as error:
        return [Error(str(error), hint="see docs/reference/settings.md", id="localsync.E002")]
    known = [item.name.upper() for item in fields(Settings) if item.name != "unknown"]
    return [
        Error(f"LOCALSYNC has no setting {key!r}", hint=_did_you_mean(key, known), id="localsync.E002")
        for key in unknown
    ]


@register(TAG)
def check_upload_handler(**_: Any) -> list[CheckMessage]:
    """UPLOAD_HANDLER names an UploadHandler."""
    try:
        path = get_settings().upload_handler
    except ConfigurationError:
        return []  # check_settings tells
    if path is None:
        return []
    try:
        handler = import_string(path)
    except ImportError as error:
        problem = f"cannot be imported: {error}"
    else:
        is_class = isinstance(handler, type)
        if issubclass(handler, UploadHandler) if is_class else callable(handler):
            return []
        problem = "is neither a subclass of django_localsync.upload.UploadHandler nor a function"
    hint = "give the dotted path of a subclass of django_localsync.upload.UploadHandler"
    return [Error(f"LOCALSYNC's UPLOAD_HANDLER {path!r} {problem}", hint=hint, id="localsync.E006")]


@register(TAG)
def check_token_claims(**_: Any) -> list[CheckMessage]:
    """TOKEN_CLAIMS names a function."""
    try:
        path = get_settings().token_claims
    except ConfigurationError:
        return []  # check_settings tells
    if path is None:
        return []
    try:
        problem = None if callable(import_string(path)) else "is not a function"
    except ImportError as error:
        problem = f"cannot be imported: {error}"
    hint = "give the dotted path of a function from a user to a dict of claims; until then nobody gets a token"
    message = f"LOCALSYNC's TOKEN_CLAIMS {path!r} {problem}"
    return [Error(message, hint=hint, id="localsync.E009")] if problem else []


@register(TAG)
def check_keys(**_: Any) -> list[CheckMessage]:
    """KEYS can be read, and none is weaker than its algorithm."""
    try:
        tokens.check_keys()
    except ConfigurationError as error:
        hint = "give JSON Web Keys (RFC 7517); a secret has 32 bytes or more for HS256, an RSA key 2048 bits or more"
        return [Error(f"LOCALSYNC's keys: {error}", hint=hint, id="localsync.E010")]
    return []


@register(TAG)
def check_rules(**_: Any) -> list[CheckMessage]:
    """The rules compile; what they warn of; comparisons with the user's id that models show to be hopeless."""
    try:
        rules = _compiled()
    except RulesError as error:
        return [_rules_error(item) for item in error.all]
    except ConfigurationError as error:
        return [Error(str(error), hint="see docs/reference/sync-rules.md", id="localsync.E001")]
    found = [*_warnings(rules)]
    found += [_warning(finding, "W007") for finding in unrestricted(rules)]
    found += [_warning(finding, "W008") for finding in repeated_names(rules.plan)]
    for table in _model_tables():
        found += _hopeless_comparisons(rules, table)
    return [*found, *_of_layout(rules, _layout(_model_tables()))]


@register(TAG, Tags.database)
def check_rules_against_database(databases: Sequence[str] | None = None, **_: Any) -> list[CheckMessage]:
    """Tables and columns that the rules name exist, and can match what they are compared with.

    `manage.py migrate` runs this too, and an error would keep it from making what is missing: while migrations wait
    to be applied, nothing is said.
    """
    try:
        sources, rules = get_settings().sources, _compiled()
    except ConfigurationError:
        return []  # check_rules tells
    if any(alias not in (databases or ()) or _migrations_wait(alias) for alias in sources):
        return []
    tables = _database_tables(sources)
    of_models = _model_tables()
    unknown_to_models = [table for table in tables if table.name not in {table.name for table in of_models}]
    said = {message.msg for message in _of_layout(rules, _layout(of_models))}
    return [
        *_missing_tables(rules, tables),
        *_missing_columns(rules, tables),
        *(message for table in unknown_to_models for message in _hopeless_comparisons(rules, table)),
        *(message for message in _of_layout(rules, _layout(tables)) if message.msg not in said),
        *_beyond_limits(),
    ]


@register(TAG)
def check_streams_are_routed(**_: Any) -> list[CheckMessage]:
    """The project's ASGI application serves streams: a response that stays open for hours is not for WSGI."""
    path = getattr(settings, "ASGI_APPLICATION", None)
    if path is None:
        problem = "ASGI_APPLICATION is not set, and no WSGI server can serve them"
    else:
        try:
            import_string(path)
        except Exception as error:
            problem = f"ASGI_APPLICATION {path!r} cannot be imported: {error}"
        else:
            if routing.is_routed:
                return []
            problem = f"ASGI_APPLICATION {path!r} was not made with localsync_application"
    hint = (
        "write application = localsync_application(get_asgi_application(), prefix=…) in asgi.py, name it in "
        "ASGI_APPLICATION, and run it with uvicorn or another ASGI server; see docs/reference/checks.md"
    )
    return [CheckWarning(f"devices get no streams: {problem}", hint=hint, id="localsync.W020")]


@register(TAG, deploy=True)
def check_server(**_: Any) -> list[CheckMessage]:
    """Daphne among the apps is what serves `runserver`, and then mostly production, too."""
    if not apps.is_installed("daphne"):
        return []
    hint = "serve streams by uvicorn, granian or hypercorn; see docs/howto/deployment.md"
    message = "daphne is installed as an app; it buffers responses without bound for clients that do not read"
    return [CheckWarning(message, hint=hint, id="localsync.W010")]


@register(TAG, Tags.database)
def check_format(databases: Sequence[str] | None = None, **_: Any) -> list[CheckMessage]:
    """This release knows the format of what is stored."""
    try:
        alias = get_settings().storage
    except ConfigurationError:
        return []  # check_settings tells
    if alias not in (databases or ()) or _migrations_wait(alias):
        return []
    found = RuleSet.objects.using(alias).filter(state=RuleSet.State.ACTIVE).values_list("format", flat=True)
    problems = filter(None, map(unknown_format, found))
    return [Error(problem, hint="see docs/howto/upgrading.md", id="localsync.E020") for problem in problems]


def _compiled() -> CompiledRules:
    """The project's own rules, whose lines a developer knows."""
    return compile_cached(read_written_rules(get_settings()))


def _rules_error(error: RulesError) -> Error:
    return Error(str(error), hint=error.hint, id="localsync.E001")


def _warnings(rules: CompiledRules) -> Iterator[CheckMessage]:
    for warning in rules.warnings:
        message = f"{_where(warning.definition, warning.line, warning.column)}: {warning.message}"
        yield CheckWarning(message, hint=warning.hint, id=f"localsync.{_WARNING_IDS[warning.kind]}")
    for event in rules.events:
        hint = "only the event write_checkpoints has one; remove this one from event_definitions"
        yield CheckWarning(f"the event {event!r} has no effect", hint=hint, id="localsync.W005")


def _warning(finding: Finding, identifier: str) -> CheckMessage:
    return CheckWarning(f"'{finding.definition}': {finding.message}", hint=finding.hint, id=f"localsync.{identifier}")


def _where(definition: str | None, line: int | None, column: int | None) -> str:
    """A place in the rules, as RulesError writes it."""
    parts = [repr(definition)] if definition else ["sync rules"]
    if line is not None:
        parts.append(f"line {line}, column {column}")
    return " ".join(parts)


def _did_you_mean(name: str, known: Iterable[str]) -> str | None:
    near = difflib.get_close_matches(name, list(known), 1)
    return f"did you mean {near[0]}?" if near else None


def _migrations_wait(alias: str) -> bool:
    executor = MigrationExecutor(connections[alias])
    return bool(executor.migration_plan(executor.loader.graph.leaf_nodes()))


# Tables, of models or of the database


@dataclass(frozen=True, slots=True)
class _Table:
    """A table with its columns: name → Postgres's name of the type (a domain's base)."""

    name: TableName
    columns: Mapping[str, str]
    is_ordinary: bool = True


def _model_tables() -> list[_Table]:
    """The tables of all models, as far as their names tell the schema."""
    connection = connections[get_settings().source]
    found = []
    for model in apps.get_models(include_auto_created=True):
        if '"' in model._meta.db_table:
            continue
        types = {str(field.column): field.db_type(connection) or "" for field in model._meta.local_concrete_fields}
        columns = {name: _type_name(kind) for name, kind in types.items()}
        found.append(_Table(TableName("public", model._meta.db_table), columns))
    return found


def _type_name(kind: str) -> str:
    """The catalogue's name of a type that a field gives: `varchar(50)` is varchar, `timestamp with time zone` …tz."""
    if kind.endswith("[]"):
        return kind
    first = re.split(r"[ (]", kind, maxsplit=1)[0]
    zoned = "tz" if kind.endswith("with time zone") else ""
    return _MODEL_TYPES.get(first, first) + zoned


def _layout(tables: Iterable[_Table]) -> Tables:
    return {table.name: table.columns for table in tables if table.is_ordinary}


_COLUMNS = """
    SELECT namespace.nspname, class.relname, class.relkind IN ('r', 'p'), attribute.attname,
           COALESCE(base.typname, type.typname)
      FROM pg_catalog.pg_class AS class
      JOIN pg_catalog.pg_namespace AS namespace ON namespace.oid = class.relnamespace
      JOIN pg_catalog.pg_attribute AS attribute ON attribute.attrelid = class.oid
      JOIN pg_catalog.pg_type AS type ON type.oid = attribute.atttypid
      LEFT JOIN pg_catalog.pg_type AS base ON base.oid = NULLIF(type.typbasetype, 0)
     WHERE class.relkind IN ('r', 'p', 'v', 'm', 'f') AND attribute.attnum > 0 AND NOT attribute.attisdropped
       AND namespace.nspname NOT LIKE 'pg\\_%' AND namespace.nspname <> 'information_schema'
     ORDER BY 1, 2, attribute.attnum
"""


def _database_tables(aliases: Iterable[str]) -> list[_Table]:
    """Every table and view of the sources; those of one name in several sources are one."""
    found: dict[tuple[str, str, bool], dict[str, str]] = {}
    for alias in aliases:
        with connections[alias].cursor() as cursor:
            cursor.execute(_COLUMNS)
            for schema, table, is_ordinary, column, kind in cursor.fetchall():
                found.setdefault((schema, table, is_ordinary), {})[column] = kind
    return [_Table(TableName(schema, name), columns, ordinary) for (schema, name, ordinary), columns in found.items()]


def _missing_tables(rules: CompiledRules, tables: Sequence[_Table]) -> Iterator[CheckMessage]:
    for named in rules.tables:
        matching = [table for table in tables if named.table.matches(table.name)]
        if any(table.is_ordinary for table in matching):
            continue
        if not named.table.is_exact:
            message = f"'{named.definition}': no table matches {named.table}"
            yield CheckWarning(message, hint="tables made later are read as they come", id="localsync.W006")
        elif matching:
            message = f"'{named.definition}': {named.table} is a view or foreign table, which cannot be replicated"
            yield Error(message, hint="name the tables that it reads", id="localsync.E003")
        else:
            hint = _did_you_mean(str(named.table), [str(table.name) for table in tables]) or "run the migrations first"
            yield Error(f"'{named.definition}': there is no table {named.table}", hint=hint, id="localsync.E003")


def _missing_columns(rules: CompiledRules, tables: Sequence[_Table]) -> Iterator[CheckMessage]:
    seen: set[tuple[str, TablePattern, str]] = set()
    for named in rules.columns:
        matching = [table for table in tables if table.is_ordinary and named.table.matches(table.name)]
        key = (named.definition, named.table, named.column)
        if key in seen or not matching or any(named.column in table.columns for table in matching):
            continue
        seen.add(key)
        known = [column for table in matching for column in table.columns]
        where = _where(named.definition, named.line, named.column_number)
        hint = _did_you_mean(named.column, known) or f"it has {', '.join(known)}"
        yield Error(f"{where}: {named.table} has no column {named.column!r}", hint=hint, id="localsync.E004")


def _hopeless_comparisons(rules: CompiledRules, table: _Table) -> Iterator[CheckMessage]:
    """Columns that are compared with the user's id, which is text, and can never equal it."""
    for named in rules.columns:
        kind = table.columns.get(named.column)
        if not named.equals_user_id or kind not in _NEVER_TEXT or not named.table.matches(table.name):
            continue
        where = _where(named.definition, named.line, named.column_number)
        yield Error(
            f"{where}: {table.name}.{named.column} ({kind}) is compared with the user's id, which is text, "
            "and never equals it",
            hint=f"write CAST({named.column} AS TEXT); silence this check if your tokens have numbers as sub",
            id="localsync.E005",
        )


def _of_layout(rules: CompiledRules, tables: Tables) -> Iterator[CheckMessage]:
    """What only shows when columns and their types are known."""
    found = [(finding, "E007") for finding in without_id(rules.plan, tables)]
    found += [(finding, "E008") for finding in hopeless(rules, tables)]
    for finding, identifier in found:
        yield Error(f"'{finding.definition}': {finding.message}", hint=finding.hint, id=f"localsync.{identifier}")


def _beyond_limits() -> Iterator[CheckMessage]:
    """Users whom the server would refuse: counted, where that takes a moment, else by Postgres's statistics."""
    try:
        evaluator = Evaluator.of_project()
        looked_up = {table for index in evaluator.plan.indexes for table in evaluator.tables_of(index)}
        users = [*get_user_model()._default_manager.order_by("pk")[: MAX_USERS_TO_COUNT + 1]]
        small = sum(table.estimated_rows for table in looked_up) <= MAX_ROWS_TO_COUNT
        if small and len(users) <= MAX_USERS_TO_COUNT:
            yield from _counted_beyond_limits(evaluator, [user for user in users if user.is_active])
        else:
            yield from _estimated_beyond_limits(evaluator)
    except (DatabaseError, ConfigurationError):
        return  # it cannot be asked now; other checks tell why


def _counted_beyond_limits(evaluator: Evaluator, users: Sequence[Any]) -> Iterator[CheckMessage]:
    found = estimate(evaluator, lambda: [RequestParameters(user_claims(user)) for user in users], rows=False)
    if found.beyond_limit:
        greatest = max(found.buckets_per_user, found.lookups_per_user, key=lambda spread: spread.max)
        message = (
            f"the server refuses {found.beyond_limit} of {len(users)} users: user {greatest.greatest} would have "
            f"{found.buckets_per_user.max} buckets, {found.lookups_per_user.max} results of lookups at most"
        )
        yield _limit_warning(message, found.max_buckets)


def _estimated_beyond_limits(evaluator: Evaluator) -> Iterator[CheckMessage]:
    for common in most_common_keys(evaluator):
        if common.rows > evaluator.max_buckets:
            message = f"'{common.definition}': about {common.rows} rows of {common.table.name} have one {common.column}"
            yield _limit_warning(f"{message}, and a lookup of it would find them all", evaluator.max_buckets)


def _limit_warning(message: str, max_buckets: int) -> CheckMessage:
    hint = "let a bucket hold more rows, or raise MAX_BUCKETS; see manage.py localsync_explain --estimate"
    return CheckWarning(f"{message}; MAX_BUCKETS is {max_buckets}", hint=hint, id="localsync.W009")
