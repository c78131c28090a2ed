"""SQL over downloaded operations: adding data lines to buckets, checking and publishing checkpoints.

Every function runs inside the caller's transaction and works on whole lines and checkpoints at once: SQLite reads
the line's JSON itself, without the interpreter lock, and no Python runs per operation. Rules:
docs/reference/wire-protocol.md §6.4 and §6.5. `PREPARE` must have run on the connection.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import apsw
import orjson

from ..exceptions import ProtocolError
from ..protocol.lines import BucketChecksum
from .ddl import APPLIED_KEY, GATE_KEY, SEEN_KEY
from .engine import (
    FULL_SYNC_PRIORITY,
    CheckpointHeld,
    CheckpointPublished,
    ChecksumsFailed,
    CompleteCheckpoint,
    may_publish,
)
from .schema import Schema

PREPARE = """
    CREATE TEMP TABLE IF NOT EXISTS line_ops(
        position INTEGER PRIMARY KEY, op_id, op, row_type, row_id, subkey, checksum, data, data_type);
    CREATE TEMP TABLE IF NOT EXISTS line_rows(position INTEGER);
    CREATE TEMP TABLE IF NOT EXISTS superseded(oplog_rowid INTEGER, hash INTEGER, row_type, row_id, op);
    CREATE TEMP TABLE IF NOT EXISTS target(
        name TEXT PRIMARY KEY, checksum INTEGER, count INTEGER, bucket INTEGER) WITHOUT ROWID;
    CREATE TEMP TABLE IF NOT EXISTS changed(row_id, row_type, oplog_rowid INTEGER);
"""

_FILL_LINE = """
    INSERT INTO temp.line_ops
    SELECT key, value ->> 'op_id', value ->> 'op', value ->> 'object_type', value ->> 'object_id',
           coalesce(value ->> 'subkey', 'null'), value ->> 'checksum', value ->> 'data', json_type(value, '$.data')
      FROM jsonb_each(?, '$.data.data')
"""

# What clients must refuse (wire-protocol.md §2.7), counted; the last CLEAR; the line's totals.
_SUMMARY = """
    SELECT count(*), sum(CASE WHEN
               typeof(op_id) = 'text' AND op_id != '' AND op_id NOT GLOB '*[^0-9]*' AND length(op_id) <= 19
               AND typeof(checksum) IN ('integer', 'real') AND checksum = CAST(checksum AS INTEGER)
               AND checksum BETWEEN -2147483648 AND 4294967295
               AND CASE WHEN op IN ('PUT', 'REMOVE') THEN typeof(row_type) = 'text' AND typeof(row_id) = 'text'
                        ELSE op IN ('MOVE', 'CLEAR') END
               AND typeof(subkey) = 'text' AND coalesce(data_type, 'null') IN ('text', 'null')
           THEN 0 ELSE 1 END),
           max(CASE WHEN op = 'CLEAR' THEN position END)
      FROM temp.line_ops
"""

# In the order of ids, so that neighbours in the index are looked up, and inserted, one after the other.
_FIND_LINE_ROWS = """
    INSERT INTO temp.line_rows
    SELECT max(position) FROM temp.line_ops
     WHERE op IN ('PUT', 'REMOVE') GROUP BY row_id, row_type, subkey
"""

# Index ps_oplog_row: named, since without statistics SQLite would rather walk through the whole bucket.
_FIND_SUPERSEDED = """
    INSERT INTO temp.superseded
    SELECT old.rowid, old.hash, old.row_type, old.row_id, new.op
      FROM temp.line_rows
     CROSS JOIN temp.line_ops AS new ON new.position = line_rows.position
     CROSS JOIN ps_oplog AS old INDEXED BY ps_oplog_row
        ON old.row_id = new.row_id AND old.row_type = new.row_type AND old.bucket = :bucket
       AND old.key = new.row_type || '/' || new.row_id || '/' || new.subkey
"""

_INSERT_PUTS = """
    INSERT INTO ps_oplog(bucket, op_id, row_type, row_id, key, data, hash)
    SELECT :bucket, CAST(op_id AS INTEGER), row_type, row_id, row_type || '/' || row_id || '/' || subkey, data,
           CAST(checksum AS INTEGER) - CASE WHEN checksum > 2147483647 THEN 4294967296 ELSE 0 END
      FROM temp.line_rows
     CROSS JOIN temp.line_ops ON line_ops.position = line_rows.position
     WHERE op = 'PUT'
"""

_ADD_TO_BUCKET = """
    UPDATE ps_buckets
       SET add_checksum = (add_checksum + :added) & 4294967295, op_checksum = (op_checksum + :live) & 4294967295,
           last_op = :last_op, count_since_last = count_since_last + :count,
           downloaded_size = downloaded_size + :bytes
     WHERE id = :bucket
"""


def store_data(connection: apsw.Connection, line: bytes) -> None:
    """Add a data line's operations to its bucket. Raises ProtocolError when an operation is not as it must be.

    Only the last operation of a row in the line matters, and nothing before a CLEAR does: sums show the rest.
    """
    name, jsonb = _parse_data_line(connection, line)
    connection.execute("DELETE FROM temp.line_ops")
    connection.execute(_FILL_LINE, (jsonb,))
    count, invalid, clear = _row(connection, _SUMMARY)
    if invalid:
        raise ProtocolError(f"{invalid} operations of a data line lack a field or have one of the wrong type")
    if not count:
        return
    bucket = _bucket_id(connection, name)
    last_op = _value(connection, "SELECT op_id FROM temp.line_ops ORDER BY position DESC LIMIT 1")
    if clear is not None:
        _clear_bucket(connection, bucket, clear)
    _replace_rows(connection, bucket)
    before = _value(connection, "SELECT coalesce(max(rowid), 0) FROM ps_oplog")
    connection.execute(_INSERT_PUTS, {"bucket": bucket})
    put = _value(connection, "SELECT coalesce(sum(hash), 0) FROM ps_oplog WHERE rowid > ?", before)
    gone = _value(connection, "SELECT coalesce(sum(hash), 0) FROM temp.superseded")
    total = _value(connection, "SELECT coalesce(sum(CAST(checksum AS INTEGER)), 0) FROM temp.line_ops")
    bindings = {"bucket": bucket, "last_op": int(last_op), "count": count, "bytes": len(line)}
    connection.execute(_ADD_TO_BUCKET, bindings | {"live": put - gone, "added": total - put + gone})


def remove_buckets(connection: apsw.Connection, names: Iterable[str]) -> None:
    """Delete buckets; their rows are looked at again by the next full checkpoint."""
    connection.execute("DELETE FROM temp.target")
    connection.execute(
        "INSERT INTO temp.target(name, bucket) SELECT name, id FROM ps_buckets "
        "WHERE name IN (SELECT value FROM json_each(?))",
        (orjson.dumps(list(names)).decode(),),
    )
    _forget_rows(connection, "bucket IN (SELECT bucket FROM temp.target)", ())
    connection.execute("DELETE FROM ps_buckets WHERE id IN (SELECT bucket FROM temp.target)")


def keep_only_buckets(connection: apsw.Connection, names: Collection[str]) -> None:
    """Delete the buckets that are not listed."""
    held = {name for (name,) in connection.execute("SELECT name FROM ps_buckets")}
    if gone := held.difference(names):
        remove_buckets(connection, gone)


def complete_checkpoint(
    connection: apsw.Connection, schema: Schema, action: CompleteCheckpoint, now_us: int
) -> tuple[ChecksumsFailed | CheckpointHeld | CheckpointPublished, frozenset[str]]:
    """Check a checkpoint and publish it if the gate is open (I6); also the names of the tables that changed.

    `now_us`: microseconds since 1970.
    """
    target, priority = action.target, action.priority
    _fill_target(connection, target.through(priority))
    if failed := _failed_buckets(connection):
        return ChecksumsFailed(failed), frozenset()
    connection.execute(
        "UPDATE ps_buckets SET last_op = max(last_op, ?) WHERE id IN (SELECT bucket FROM temp.target)",
        (target.last_op_id,),
    )
    if priority is None and target.write_checkpoint is not None:
        set_value(connection, SEEN_KEY, target.write_checkpoint)
    if not _gate_is_open(connection, priority):
        return CheckpointHeld(priority), frozenset()
    changed = _publish(connection, schema, priority)
    _record_sync(connection, priority, now_us)
    if priority is None and target.write_checkpoint is not None:
        set_value(connection, APPLIED_KEY, target.write_checkpoint)
    return CheckpointPublished(priority), changed


def get_value(connection: apsw.Connection, key: str) -> int | None:
    """A number kept in ps_kv, or None."""
    row = connection.execute("SELECT value FROM ps_kv WHERE key = ?", (key,)).fetchone()
    return None if row is None else int(row[0])


def set_value(connection: apsw.Connection, key: str, value: int) -> None:
    """Keep a number in ps_kv, as text: the gate's sentinel and receipts are compared as written."""
    connection.execute(
        "INSERT INTO ps_kv(key, value) VALUES(?, ?) ON CONFLICT(key) DO UPDATE SET value = excluded.value",
        (key, str(value)),
    )


def _parse_data_line(connection: apsw.Connection, line: bytes) -> tuple[str, bytes]:
    try:
        # Parsed once: the functions below read SQLite's binary form.
        jsonb = _value(connection, "SELECT jsonb(?)", line.decode())
    except (apsw.SQLError, UnicodeDecodeError) as error:
        raise ProtocolError(f"a data line is not JSON: {error}") from None
    keys, name, data_type = _row(
        connection,
        "SELECT (SELECT count(*) FROM jsonb_each(?1)), ?1 ->> '$.data.bucket', json_type(?1, '$.data.data')",
        jsonb,
    )
    if keys != 1 or not isinstance(name, str) or data_type != "array":
        raise ProtocolError("a data line must hold a bucket's name and a list of operations, and nothing else")
    return name, jsonb


def _bucket_id(connection: apsw.Connection, name: str) -> int:
    connection.execute("INSERT INTO ps_buckets(name) VALUES(?) ON CONFLICT(name) DO NOTHING", (name,))
    bucket: int = _value(connection, "SELECT id FROM ps_buckets WHERE name = ?", name)
    return bucket


def _clear_bucket(connection: apsw.Connection, bucket: int, clear: int) -> None:
    _forget_rows(connection, "bucket = ?", (bucket,))
    connection.execute(
        "UPDATE ps_buckets SET last_applied_op = 0, op_checksum = 0, add_checksum = "
        "(SELECT CAST(checksum AS INTEGER) & 4294967295 FROM temp.line_ops WHERE position = ?) WHERE id = ?",
        (clear, bucket),
    )
    connection.execute("DELETE FROM temp.line_ops WHERE position <= ?", (clear,))


def _forget_rows(connection: apsw.Connection, which: str, bindings: Sequence[int]) -> None:
    connection.execute(
        f"INSERT INTO ps_updated_rows SELECT row_type, row_id FROM ps_oplog WHERE {which} ON CONFLICT DO NOTHING",
        bindings,
    )
    connection.execute(f"DELETE FROM ps_oplog WHERE {which}", bindings)


def _replace_rows(connection: apsw.Connection, bucket: int) -> None:
    connection.execute("DELETE FROM temp.line_rows; DELETE FROM temp.superseded")
    connection.execute(_FIND_LINE_ROWS)
    connection.execute(_FIND_SUPERSEDED, {"bucket": bucket})
    if not connection.changes():
        return
    # A row that was never published from this bucket needs no second look when it goes.
    connection.execute(
        "INSERT INTO ps_updated_rows SELECT row_type, row_id FROM temp.superseded WHERE op = 'REMOVE' "
        "AND (SELECT last_applied_op FROM ps_buckets WHERE id = ?) != 0 ON CONFLICT DO NOTHING",
        (bucket,),
    )
    connection.execute("DELETE FROM ps_oplog WHERE rowid IN (SELECT oplog_rowid FROM temp.superseded)")


def _fill_target(connection: apsw.Connection, buckets: Iterable[BucketChecksum]) -> None:
    connection.execute("DELETE FROM temp.target")
    rows = [[bucket.bucket, bucket.checksum, bucket.count] for bucket in buckets]
    connection.execute(
        "INSERT INTO temp.target SELECT value ->> 0, value ->> 1, value ->> 2, ps_buckets.id "
        "FROM json_each(?) LEFT JOIN ps_buckets ON ps_buckets.name = value ->> 0",
        (orjson.dumps(rows).decode(),),
    )


def _failed_buckets(connection: apsw.Connection) -> tuple[str, ...]:
    rows = connection.execute(
        "SELECT target.name FROM temp.target LEFT JOIN ps_buckets ON ps_buckets.id = target.bucket "
        "WHERE coalesce(add_checksum + op_checksum, 0) & 4294967295 != target.checksum"
    )
    return tuple(name for (name,) in rows)


def _gate_is_open(connection: apsw.Connection, priority: int | None) -> bool:
    return may_publish(
        priority=priority,
        queue_is_empty=not _value(connection, "SELECT EXISTS(SELECT 1 FROM ps_crud)"),
        gate=get_value(connection, GATE_KEY),
        seen=get_value(connection, SEEN_KEY),
    )


# The newest version of each row to look at: among all buckets, or among those of a partial checkpoint.
_CHANGED_ROWS = """
    SELECT row_id, row_type FROM temp.target
      JOIN ps_buckets ON ps_buckets.id = target.bucket
     CROSS JOIN ps_oplog INDEXED BY ps_oplog_opid
        ON ps_oplog.bucket = ps_buckets.id AND ps_oplog.op_id > ps_buckets.last_applied_op
"""
_NEWEST_VERSION = """
    SELECT rowid FROM ps_oplog INDEXED BY ps_oplog_row
     WHERE ps_oplog.row_id = row.row_id AND ps_oplog.row_type = row.row_type {among} ORDER BY op_id DESC LIMIT 1
"""
_FIND_CHANGED = f"""
    INSERT INTO temp.changed
    SELECT row_id, row_type, ({_NEWEST_VERSION.format(among="")})
      FROM ({_CHANGED_ROWS} UNION SELECT row_id, row_type FROM ps_updated_rows) AS row
"""
_FIND_CHANGED_PARTIALLY = f"""
    INSERT INTO temp.changed
    SELECT row_id, row_type, ({_NEWEST_VERSION.format(among="AND bucket IN (SELECT bucket FROM temp.target)")})
      FROM ({_CHANGED_ROWS} GROUP BY row_id, row_type) AS row
"""


def _publish(connection: apsw.Connection, schema: Schema, priority: int | None) -> frozenset[str]:
    connection.execute("DELETE FROM temp.changed")
    connection.execute(_FIND_CHANGED if priority is None else _FIND_CHANGED_PARTIALLY)
    types = {row_type for (row_type,) in connection.execute("SELECT DISTINCT row_type FROM temp.changed")}
    tables = {table.name: table.data_table for table in schema.tables if not table.local_only}
    for row_type in types & tables.keys():
        _write_rows(connection, tables[row_type], row_type)
    if unknown := types - tables.keys():
        _write_untyped_rows(connection, unknown)
    connection.execute("UPDATE ps_buckets SET last_applied_op = last_op WHERE id IN (SELECT bucket FROM temp.target)")
    connection.execute("DELETE FROM temp.changed")
    return frozenset(tables.get(row_type, "ps_untyped") for row_type in types)


def _write_rows(connection: apsw.Connection, table: str, row_type: str) -> None:
    connection.execute(
        f'DELETE FROM "{table}" WHERE id IN '
        "(SELECT row_id FROM temp.changed WHERE row_type = ? AND oplog_rowid IS NULL)",
        (row_type,),
    )
    connection.execute(
        f'INSERT INTO "{table}"(id, data) SELECT changed.row_id, ps_oplog.data FROM temp.changed '
        "CROSS JOIN ps_oplog ON ps_oplog.rowid = changed.oplog_rowid WHERE changed.row_type = ? "
        "ON CONFLICT(id) DO UPDATE SET data = excluded.data",
        (row_type,),
    )


def _write_untyped_rows(connection: apsw.Connection, types: Iterable[str]) -> None:
    bindings = (orjson.dumps(list(types)).decode(),)
    connection.execute(
        "DELETE FROM ps_untyped WHERE (type, id) IN (SELECT row_type, row_id FROM temp.changed "
        "WHERE oplog_rowid IS NULL AND row_type IN (SELECT value FROM json_each(?)))",
        bindings,
    )
    connection.execute(
        "INSERT INTO ps_untyped(type, id, data) SELECT changed.row_type, changed.row_id, ps_oplog.data "
        "FROM temp.changed CROSS JOIN ps_oplog ON ps_oplog.rowid = changed.oplog_rowid "
        "WHERE changed.row_type IN (SELECT value FROM json_each(?)) "
        "ON CONFLICT(type, id) DO UPDATE SET data = excluded.data",
        bindings,
    )


def _record_sync(connection: apsw.Connection, priority: int | None, now_us: int) -> None:
    level = FULL_SYNC_PRIORITY if priority is None else priority
    connection.execute("DELETE FROM ps_sync_state WHERE priority < ?", (level,))
    connection.execute(
        "INSERT INTO ps_sync_state VALUES(?, ?) ON CONFLICT(priority) DO UPDATE SET last_synced_at = ?",
        (level, now_us, now_us),
    )
    if priority is None:
        connection.execute("DELETE FROM ps_updated_rows")
        connection.execute(
            "UPDATE ps_buckets SET count_since_last = 0, count_at_last = target.count "
            "FROM temp.target WHERE target.bucket = ps_buckets.id"
        )
        connection.execute("UPDATE ps_stream_subscriptions SET last_synced_at = ? WHERE active", (now_us,))


def _row(connection: apsw.Connection, sql: str, *bindings: Any) -> tuple[Any, ...]:
    return next(connection.execute(sql, bindings))


def _value(connection: apsw.Connection, sql: str, *bindings: Any) -> Any:
    return _row(connection, sql, *bindings)[0]
