"""The client against the recorded behaviour of the official one, through the real store on real files."""

import apsw
import orjson
import pytest

from django_localsync.client import Schema
from django_localsync.client.bucket_storage import get_value, set_value
from django_localsync.client.ddl import GATE_KEY
from django_localsync.client.engine import (
    CloseStream,
    FetchCredentials,
    LineReceived,
    SyncCompleted,
    SyncIteration,
    UploadsFinished,
)
from django_localsync.client.store import Store
from django_localsync.exceptions import ProtocolError
from tests.vectors import vectors


@pytest.mark.parametrize("vector", vectors("client_sync"))
def test_client_ends_in_the_recorded_state_after_sync_lines(vector, tmp_path):
    store = Store(tmp_path / "client.db", Schema.from_json(vector["schema"]))

    instructions, failed = play(store, vector["steps"])

    expected = vector["expected"]
    assert failed == expected["error"]
    assert instructions == [wanted for wanted in expected["instructions"] if "UpdateSyncStatus" not in wanted]
    assert state_of(store) == {key: expected[key] for key in state_of(store)}


def play(store, steps):
    iteration, instructions = SyncIteration(), []
    for step in steps:
        try:
            instructions += [spell(each) for each in take_step(store, iteration, step)]
        except ProtocolError:
            return instructions, True
    return [each for each in instructions if each], False


def take_step(store, iteration, step):
    match step:
        case {"sql": sql}:
            with store.transaction():
                store.execute(sql)
            return []
        case {"control": "target_checkpoint_request_id", "payload": number}:
            with store.transaction() as connection:
                set_value(connection, GATE_KEY, int(number))
            return []
        case {"control": "completed_upload"}:
            return store.advance(iteration, [UploadsFinished()])
        case line:
            return store.advance(iteration, [LineReceived(orjson.dumps(line))])


def spell(instruction):
    match instruction:
        case CloseStream():
            return {"CloseSyncStream": {"hide_disconnect": False}}
        case FetchCredentials(expired):
            return {"FetchCredentials": {"did_expire": expired}}
        case SyncCompleted(None):
            return {"DidCompleteSync": {}}
        case SyncCompleted(receipt):
            return {"DidCompleteSync": {"applied_checkpoint_request_id": str(receipt)}}
    return None


def state_of(store):
    return {
        "items": store.read("SELECT * FROM items ORDER BY id"),
        "untyped": store.read("SELECT * FROM ps_untyped ORDER BY type, id"),
        "buckets": store.read(
            "SELECT name, last_applied_op, last_op, add_checksum, op_checksum FROM ps_buckets ORDER BY name"
        ),
        "oplog": store.read(
            "SELECT name AS bucket, op_id, row_type, row_id, key, data, hash FROM ps_oplog "
            "JOIN ps_buckets ON ps_buckets.id = ps_oplog.bucket ORDER BY op_id"
        ),
        "updated_rows": store.read("SELECT * FROM ps_updated_rows"),
        "synced_priorities": [
            row["priority"] for row in store.read("SELECT priority FROM ps_sync_state ORDER BY priority")
        ],
        "kv": store.read("SELECT key, value FROM ps_kv WHERE key != 'client_id' ORDER BY key"),
        "subscriptions": store.read(
            "SELECT stream_name, active, is_default, local_params, ttl FROM ps_stream_subscriptions"
        ),
    }


@pytest.mark.parametrize("vector", vectors("client_crud"))
def test_local_writes_are_queued_as_recorded(vector, tmp_path):
    store = Store(tmp_path / "client.db", Schema.from_json(vector["schema"]))

    failing = [number for number, sql in enumerate(vector["statements"]) if not run_statement(store, sql)]

    expected = vector["expected"]
    with store.transaction() as connection:
        gate = get_value(connection, GATE_KEY)
    assert failing == expected["failing_statements"]
    assert store.read("SELECT id, tx_id, data AS entry FROM ps_crud ORDER BY id") == expected["ps_crud"]
    assert (None if gate is None else str(gate)) == expected["target_checkpoint_request_id"]
    for table, rows in expected["data_tables"].items():
        assert store.read(f'SELECT id, data FROM "{table}" ORDER BY id') == rows


def run_statement(store, sql):
    if sql in ("BEGIN", "COMMIT"):
        store.begin() if sql == "BEGIN" else store.commit()
        return True
    if store._writer.in_transaction:
        store.execute(sql)
        return True
    try:
        with store.transaction():
            store.execute(sql)
    except apsw.Error:
        return False
    return True


@pytest.mark.parametrize("vector", vectors("client_schema_objects"))
def test_schema_makes_the_recorded_objects(vector, tmp_path):
    store = Store(tmp_path / "client.db", Schema.from_json(vector["schema"]))

    views = {table.get("view_name") or table["name"] for table in vector["schema"]["tables"]}
    objects = [
        {"type": row["type"], "name": row["name"]}
        for row in store.read("SELECT type, name FROM sqlite_master WHERE sql IS NOT NULL ORDER BY type, name")
        if row["name"].startswith(("ps_data_", "ps_view_")) or row["name"] in views
    ]

    assert objects == vector["objects"]


@pytest.mark.parametrize("vector", vectors("line_parsing"))
def test_lines_are_accepted_or_refused_as_recorded(vector, tmp_path):
    store = Store(tmp_path / "client.db", Schema([]))
    iteration = SyncIteration()

    try:
        for line in vector["lines"]:
            store.advance(iteration, [LineReceived(line.encode())])
        accepted = True
    except ProtocolError:
        accepted = False

    assert accepted == vector["expected_accepted"]
