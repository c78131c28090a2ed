"""System checks: what a developer misconfigured shows at start, with an id and the way out.

docs/reference/checks.md has a section for each id. Checks that ask the database run with
`manage.py check --database default`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

from django.apps import apps
from django.core.checks import CheckMessage, Error, Tags, register
from django.core.checks import Warning as CheckWarning
from django.db import connections
from django.db.migrations.executor import MigrationExecutor
from django.utils.module_loading import import_string

from .conf import Settings, get_settings, read_rules
from .exceptions import ConfigurationError, RulesError
from .sync_rules import CompiledRules, compile_rules
from .sync_rules.plan import TableName, TablePattern
from .upload import UploadHandler

TAG = "localsync"

_WARNING_IDS = {"danger": "W001", "query": "W002", "unused": "W003", "alpha": "W004"}
# Types whose values are numbers or bytes in the rules; text such as `sub` never equals them.
_NEVER_TEXT = frozenset({"int2", "int4", "int8", "oid", "float4", "float8", "bool", "bytea"})
_MODEL_TYPES = {
    "smallint": "int2",
    "integer": "int4",
    "bigint": "int8",
    "double precision": "float8",
    "boolean": "bool",
}


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
        if isinstance(handler, type) and issubclass(handler, UploadHandler):
            return []
        problem = "is not a subclass of django_localsync.upload.UploadHandler"
    hint = "give the dotted path of a subclass of django_localsync.upload.UploadHandler"
    return [Error(f"LOCALSYNC's UPLOAD_HANDLER {path!r} {problem}", hint=hint, id="localsync.E006")]


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
    for tables in _model_tables():
        found += _hopeless_comparisons(rules, tables)
    return found


@register(TAG, Tags.database)
def check_rules_against_database(databases: Sequence[str] | None = None, **_: Any) -> list[CheckMessage]:
    """Tables and columns that the rules name exist, and can match what they are compared with.

    `manage.py migrate` runs this too, and an error would keep it from making what is missing: while migrations wait
    to be applied, nothing is said.
    """
    try:
        alias, rules = get_settings().source, _compiled()
    except ConfigurationError:
        return []  # check_rules tells
    if alias not in (databases or ()) or _migrations_wait(alias):
        return []
    tables = _database_tables(alias)
    known = {table.name for table in _model_tables()}
    unknown_to_models = [table for table in tables if table.name not in known]
    return [
        *_missing_tables(rules, tables),
        *_missing_columns(rules, tables),
        *(message for table in unknown_to_models for message in _hopeless_comparisons(rules, table)),
    ]


def _compiled() -> CompiledRules:
    rules = read_rules(get_settings())
    return _compile_text(rules) if isinstance(rules, str) else compile_rules(rules)


@lru_cache(maxsize=4)
def _compile_text(rules: str) -> CompiledRules:
    """Compile once for all checks of one run."""
    return compile_rules(rules)


def _rules_error(error: RulesError) -> Error:
    return Error(str(error), hint=error.hint, id="localsync.E001")


def _warnings(rules: CompiledRules) -> Iterator[CheckMessage]:
    for warning in rules.warnings:
        message = f"{_where(warning.definition, warning.line, warning.column)}: {warning.message}"
        yield CheckWarning(message, hint=warning.hint, id=f"localsync.{_WARNING_IDS[warning.kind]}")
    for event in rules.events:
        hint = "write checkpoints are kept by the upload view; remove the section event_definitions"
        yield CheckWarning(f"the event {event!r} has no effect", hint=hint, id="localsync.W005")


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
        columns = {name: _MODEL_TYPES.get(kind.partition(" ")[0], kind) for name, kind in types.items()}
        found.append(_Table(TableName("public", model._meta.db_table), columns))
    return found


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


def _database_tables(alias: str) -> list[_Table]:
    """Every table and view of the source."""
    found: dict[tuple[str, str, bool], dict[str, str]] = {}
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
