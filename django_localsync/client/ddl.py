"""SQL of the client's database: internal tables, and the view, indexes and triggers of every table of a schema.

Pure: texts in, texts out. Everything is plain SQL, so a database can be read (and its views written) by any SQLite
of version 3.44 or later. The layout is docs/reference/wire-protocol.md §6.2 and §6.3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from .schema import Column, Index, Schema, Table

LAYOUT_VERSION = 14
VIEW_MARK = "-- powersync-auto-generated"
GATE_CLOSED = 9223372036854775807
"""The apply gate while a local write has no write checkpoint yet: above every checkpoint."""

GATE_KEY = "target_checkpoint_request_id"
SEEN_KEY = "last_seen_checkpoint_request_id"
APPLIED_KEY = "last_applied_checkpoint_request_id"

# Indexes of ps_oplog: a row's versions in all buckets; a bucket's operations in order. There is none on the key: a
# row has few versions, and an index more costs a first download a fifth of its speed. Ids come before types because
# SQLite compares a first column that differs three times as fast as a second one.
INTERNAL_TABLES = """
    CREATE TABLE IF NOT EXISTS ps_migration(id INTEGER PRIMARY KEY, down_migrations TEXT);
    CREATE TABLE IF NOT EXISTS ps_buckets(
        id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE,
        last_applied_op INTEGER NOT NULL DEFAULT 0, last_op INTEGER NOT NULL DEFAULT 0,
        add_checksum INTEGER NOT NULL DEFAULT 0, op_checksum INTEGER NOT NULL DEFAULT 0,
        pending_delete INTEGER NOT NULL DEFAULT 0, count_at_last INTEGER NOT NULL DEFAULT 0,
        count_since_last INTEGER NOT NULL DEFAULT 0, downloaded_size INTEGER NOT NULL DEFAULT 0
    ) STRICT;
    CREATE TABLE IF NOT EXISTS ps_oplog(
        bucket INTEGER NOT NULL, op_id INTEGER NOT NULL, row_type TEXT, row_id TEXT, key TEXT, data TEXT,
        hash INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX IF NOT EXISTS ps_oplog_row ON ps_oplog(row_id, row_type);
    CREATE INDEX IF NOT EXISTS ps_oplog_opid ON ps_oplog(bucket, op_id);
    CREATE TABLE IF NOT EXISTS ps_updated_rows(
        row_type TEXT NOT NULL, row_id TEXT NOT NULL, PRIMARY KEY(row_type, row_id)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS ps_untyped(type TEXT NOT NULL, id TEXT NOT NULL, data TEXT, PRIMARY KEY(type, id));
    CREATE TABLE IF NOT EXISTS ps_crud(id INTEGER PRIMARY KEY AUTOINCREMENT, tx_id INTEGER, data TEXT);
    CREATE TABLE IF NOT EXISTS ps_tx(id INTEGER PRIMARY KEY, current_tx INTEGER, next_tx INTEGER);
    INSERT INTO ps_tx VALUES(1, NULL, 1) ON CONFLICT(id) DO NOTHING;
    CREATE TABLE IF NOT EXISTS ps_kv(key TEXT PRIMARY KEY NOT NULL, value BLOB);
    CREATE TABLE IF NOT EXISTS ps_sync_state(priority INTEGER PRIMARY KEY, last_synced_at INTEGER NOT NULL) STRICT;
    CREATE TABLE IF NOT EXISTS ps_stream_subscriptions(
        id INTEGER PRIMARY KEY, stream_name TEXT NOT NULL, active INTEGER NOT NULL DEFAULT 0,
        is_default INTEGER NOT NULL DEFAULT 0, local_priority INTEGER, local_params TEXT NOT NULL DEFAULT 'null',
        ttl INTEGER, expires_at INTEGER, last_synced_at INTEGER, UNIQUE(stream_name, local_params)
    ) STRICT;
"""


def identifier(name: str) -> str:
    """A name, quoted for SQL."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """A text, quoted for SQL."""
    return "'" + text.replace("'", "''") + "'"


def data_tables(schema: Schema) -> dict[str, str]:
    """CREATE TABLE of each data table, by name."""
    return {
        table.data_table: f"CREATE TABLE {identifier(table.data_table)}(id TEXT PRIMARY KEY NOT NULL, data TEXT)"
        for table in schema.tables
    }


def schema_objects(schema: Schema) -> dict[str, str]:
    """CREATE of each index, view and trigger, by name; views stand before their triggers."""
    return {name: sql for table in schema.tables for name, sql in _table_objects(table)}


def _table_objects(table: Table) -> Iterable[tuple[str, str]]:
    for index in table.indexes:
        yield f"{table.data_table}__{index.name}", _create_index(table, index)
    yield table.view, _create_view(table)
    if table.insert_only and not table.local_only:
        yield _create_trigger(table, "insert", "INSERT", [_CHECK_ID, _queue_insert_only(table)])
        return
    yield _create_trigger(table, "insert", "INSERT", [_CHECK_ID, _insert_row(table), *_queue(table, "PUT")])
    check_same_id = "SELECT RAISE(ABORT, 'the id of a row cannot change') WHERE NEW.id IS NOT OLD.id"
    update = [check_same_id, _update_row(table), *_queue(table, "PATCH")]
    delete = [_delete_row(table), *_queue(table, "DELETE")]
    if table.include_metadata:
        yield _create_trigger(table, "update", "UPDATE", update, when="NEW._deleted IS NOT TRUE")
        yield _create_trigger(table, "delete2", "UPDATE", delete, when="NEW._deleted IS TRUE")
    else:
        yield _create_trigger(table, "update", "UPDATE", update)
    without_metadata = [_delete_row(table), *_queue(table, "DELETE", metadata=False)]
    yield _create_trigger(table, "delete", "DELETE", without_metadata)


def _create_view(table: Table) -> str:
    names = ["id", *(column.name for column in table.columns)]
    values = ["id", *(_cast(column) for column in table.columns)]
    if table.include_metadata:
        names += ["_metadata", "_deleted"]
        values += ["NULL", "NULL"]
    return (
        f"CREATE VIEW {identifier(table.view)}({', '.join(map(identifier, names))}) AS "
        f"SELECT {', '.join(values)} FROM {identifier(table.data_table)} {VIEW_MARK}"
    )


def _create_index(table: Table, index: Index) -> str:
    columns = {column.name: column for column in table.columns}
    terms = [f"{_cast(columns[term.name])} {'ASC' if term.ascending else 'DESC'}" for term in index.columns]
    name = identifier(f"{table.data_table}__{index.name}")
    return f"CREATE INDEX {name} ON {identifier(table.data_table)}({', '.join(terms)})"


def _cast(column: Column) -> str:
    path = literal(f'$."{column.name}"')
    return f"CAST(json_extract(data, {path}) AS {column.type.name})"


def _create_trigger(
    table: Table, name: str, event: str, statements: Sequence[str], when: str | None = None
) -> tuple[str, str]:
    name = f"ps_view_{name}_{table.view}"
    condition = f" WHEN {when}" if when else ""
    body = "".join(f"{statement};\n" for statement in statements)
    return name, (
        f"CREATE TRIGGER {identifier(name)} INSTEAD OF {event} ON {identifier(table.view)} FOR EACH ROW{condition}\n"
        f"BEGIN\n{body}END"
    )


_CHECK_ID = (
    "SELECT CASE WHEN NEW.id IS NULL THEN RAISE(ABORT, 'id is required') "
    "WHEN typeof(NEW.id) != 'text' THEN RAISE(ABORT, 'id should be text') END"
)


# The first write of a transaction takes a number; the store sets current_tx back to NULL before each commit.
_TAKE_TRANSACTION_NUMBER = (
    "UPDATE ps_tx SET next_tx = next_tx + (current_tx IS NULL), current_tx = coalesce(current_tx, next_tx) WHERE id = 1"
)


def _insert_row(table: Table) -> str:
    return f"INSERT INTO {identifier(table.data_table)}(id, data) VALUES(NEW.id, {_row('NEW', table.columns)})"


def _update_row(table: Table) -> str:
    return f"UPDATE {identifier(table.data_table)} SET data = {_row('NEW', table.columns)} WHERE id = OLD.id"


def _delete_row(table: Table) -> str:
    return f"DELETE FROM {identifier(table.data_table)} WHERE id = OLD.id"


def _queue(table: Table, operation: str, *, metadata: bool = True) -> list[str]:
    """Statements that queue the write before them, if it changed a row: INSERT OR IGNORE may have changed none."""
    if table.local_only:
        return []
    row = "OLD" if operation == "DELETE" else "NEW"
    did_change = "changes() > 0"
    if operation == "PATCH" and table.ignore_empty_update:
        did_change += f" AND {_difference(table)} != '{{}}'"
    entry = _entry(table, operation, row, metadata=metadata and table.include_metadata)
    return [
        f"INSERT INTO ps_crud(tx_id, data) SELECT coalesce(current_tx, next_tx), {entry} "
        f"FROM ps_tx WHERE id = 1 AND {did_change}",
        f"INSERT INTO ps_kv(key, value) SELECT '{GATE_KEY}', '{GATE_CLOSED}' WHERE changes() > 0 "
        "ON CONFLICT(key) DO UPDATE SET value = excluded.value",
        _TAKE_TRANSACTION_NUMBER,
        f"DELETE FROM ps_kv WHERE key IN ('{SEEN_KEY}', '{APPLIED_KEY}')",
        f"INSERT INTO ps_updated_rows(row_type, row_id) VALUES({literal(table.name)}, {row}.id) ON CONFLICT DO NOTHING",
    ]


def _queue_insert_only(table: Table) -> str:
    metadata = _metadata() if table.include_metadata else []
    data = _members("NEW", _alphabetical(table), skip=lambda name: f"NEW.{name} IS NULL")
    head = literal(f'{{"op":"PUT","type":{_json_text(table.name)},"id":')
    entry = _concatenate([head, "json_quote(NEW.id)", literal(',"data":'), data, *metadata, "'}'"])
    return (
        f"INSERT INTO ps_crud(tx_id, data) SELECT coalesce(current_tx, next_tx), {entry} FROM ps_tx WHERE id = 1;\n"
        f"{_TAKE_TRANSACTION_NUMBER}"
    )


def _entry(table: Table, operation: str, row: str, *, metadata: bool) -> str:
    """The SQL expression of a queue entry's JSON text; members in the order op, id, type, data, old, metadata."""
    parts = [literal(f'{{"op":"{operation}","id":'), f"json_quote({row}.id)"]
    parts.append(literal(f',"type":{_json_text(table.name)}'))
    if operation == "PUT":
        parts += [literal(',"data":'), _members("NEW", _alphabetical(table), skip=lambda name: f"NEW.{name} IS NULL")]
    elif operation == "PATCH":
        parts += [literal(',"data":'), _difference(table)]
    if table.include_old is not False and operation != "PUT":
        parts += [literal(',"old":'), _old_values(table, operation)]
    if metadata:
        parts += _metadata()
    return _concatenate([*parts, "'}'"])


def _difference(table: Table) -> str:
    return _members("NEW", _alphabetical(table), skip=lambda name: f"NEW.{name} IS OLD.{name}")


def _old_values(table: Table, operation: str) -> str:
    if operation == "PATCH" and table.include_old_only_when_changed:
        return _members("OLD", table.old_columns, skip=lambda name: f"NEW.{name} IS OLD.{name}")
    return _row("OLD", table.old_columns)


def _metadata() -> list[str]:
    text = "json_quote(NEW._metadata || '')"
    return [f"""CASE WHEN NEW._metadata IS NULL THEN '' ELSE ',"metadata":' || {text} END"""]


def _alphabetical(table: Table) -> list[Column]:
    return sorted(table.columns, key=lambda column: column.name)


def _row(row: str, columns: Iterable[Column]) -> str:
    """The SQL expression of a JSON object text with all columns.

    Not json_object(): functions take at most 127 arguments in many builds of SQLite.
    """
    parts: list[str] = []
    for column in columns:
        parts += [literal(f"{',' if parts else ''}{_json_text(column.name)}:"), _json_value(row, column)]
    return _concatenate(["'{'", *parts, "'}'"])


def _members(row: str, columns: Iterable[Column], skip: Callable[[str], str]) -> str:
    """The SQL expression of a JSON object text with the columns for which `skip` (a condition) is not true."""
    members = [
        f"CASE WHEN {skip(identifier(column.name))} THEN '' "
        f"ELSE {literal(f',{_json_text(column.name)}:')} || {_json_value(row, column)} END"
        for column in columns
    ]
    return f"'{{' || substr({_concatenate(members)}, 2) || '}}'" if members else "'{}'"


def _json_value(row: str, column: Column) -> str:
    value = f"{row}.{identifier(column.name)}"
    # Text that came from a JSON function would be embedded as JSON; concatenation makes it plain text. A blob could
    # be taken for binary JSON; x'ff' never is, so that every blob is the error that it should be.
    return f"json_quote(CASE typeof({value}) WHEN 'text' THEN {value} || '' WHEN 'blob' THEN x'ff' ELSE {value} END)"


def _json_text(name: str) -> str:
    return f'"{name}"'  # names hold nothing that JSON escapes


def _concatenate(parts: Sequence[str]) -> str:
    """The parts joined by ||, as a balanced tree: SQLite limits the depth of an expression to 1000."""
    if len(parts) == 1:
        return parts[0]
    middle = len(parts) // 2
    return f"({_concatenate(parts[:middle])} || {_concatenate(parts[middle:])})"
