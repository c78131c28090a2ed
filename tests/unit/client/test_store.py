"""The client's database file: changes of schema, being killed, what SQLite is told and says."""

import sqlite3
import subprocess
import sys
from pathlib import Path
from uuid import UUID

import apsw
import orjson
import pytest

from django_localsync.client import Column, Database, Index, Schema, Table
from django_localsync.client.ddl import GATE_CLOSED
from django_localsync.client.engine import LineReceived, SyncIteration
from django_localsync.client.store import Store
from django_localsync.client.upload_queue import complete, needs_write_checkpoint, set_gate
from django_localsync.exceptions import ConfigurationError, ProtocolError

ROOT = Path(__file__).parents[3]
TODOS = Table("todos", [Column.text("title"), Column.integer("done")])


def put(op_id, row_id, checksum=1, row_type="todos", data='{"title":"t"}', **extra):
    operation = {"op_id": str(op_id), "op": "PUT", "object_type": row_type, "object_id": row_id}
    return operation | {"checksum": checksum, "data": data} | extra


def data_line(*operations, bucket="b"):
    return orjson.dumps({"data": {"bucket": bucket, "data": list(operations)}})


def checkpoint_lines(last_op_id, checksum, *data, bucket="b"):
    buckets = [{"bucket": bucket, "checksum": checksum}]
    yield orjson.dumps({"checkpoint": {"last_op_id": str(last_op_id), "buckets": buckets}})
    yield from data
    yield orjson.dumps({"checkpoint_complete": {"last_op_id": str(last_op_id)}})


def receive(store, *lines):
    iteration = SyncIteration()
    for line in lines:
        store.advance(iteration, [LineReceived(line)])


@pytest.fixture
def path(tmp_path):
    return tmp_path / "client.db"


def test_a_table_new_to_the_schema_has_the_rows_that_were_synced_before(path):
    store = Store(path, Schema([]))
    receive(store, *checkpoint_lines(1, 1, data_line(put(1, "a"))))
    store.close()

    store = Store(path, Schema([TODOS]))

    assert store.read("SELECT * FROM todos") == [{"id": "a", "title": "t", "done": None}]
    assert store.read("SELECT * FROM ps_untyped") == []


def test_a_table_that_leaves_the_schema_keeps_its_rows_for_when_it_returns(path):
    store = Store(path, Schema([TODOS]))
    receive(store, *checkpoint_lines(1, 1, data_line(put(1, "a"))))
    store.close()

    Store(path, Schema([])).close()

    store = Store(path, Schema([TODOS]))
    assert store.read("SELECT id FROM todos") == [{"id": "a"}]


def test_columns_and_indexes_follow_the_schema(path):
    Store(path, Schema([TODOS])).close()
    changed = Table("todos", [Column.text("title"), Column.real("weight")], indexes=[Index("by_weight", ["weight"])])

    store = Store(path, Schema([changed]))

    assert store.read("SELECT name FROM pragma_table_info('todos')") == [
        {"name": name} for name in ("id", "title", "weight")
    ]
    plan = store.read("EXPLAIN QUERY PLAN SELECT id FROM todos WHERE weight > 1")
    assert "ps_data__todos__by_weight" in plan[0]["detail"]


def test_the_index_of_an_unchanged_schema_is_not_built_again(path):
    schema = Schema([Table("todos", [Column.text("title")], indexes=[Index("by_title", ["title"])])])
    Store(path, schema).close()
    version = sqlite3.connect(path).execute("PRAGMA schema_version").fetchone()

    Store(path, schema).close()

    assert sqlite3.connect(path).execute("PRAGMA schema_version").fetchone() == version


def test_a_file_of_another_layout_is_refused_with_a_way_out(path):
    Store(path, Schema([])).close()
    with sqlite3.connect(path) as connection:
        connection.execute("INSERT INTO ps_migration(id) VALUES(99)")

    with pytest.raises(ConfigurationError, match="another file name"):
        Store(path, Schema([]))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Schema([TODOS, TODOS]),
        lambda: Schema([Table("todos", [Column.text("id")])]),
        lambda: Schema([Table("todos", [Column.text("a"), Column.text("A")])]),
        lambda: Schema([Table("ps_crud", [])]),
        lambda: Schema([Table('a"b', [])]),
        lambda: Schema([Table("todos", [], indexes=[Index("i", ["missing"])])]),
        lambda: Schema([Table("todos", [], include_old=["missing"])]),
        lambda: Schema.from_json({"tables": [{"name": "todos"}]}),
        lambda: Schema.from_json({"tables": [{"name": "t", "columns": [{"name": "c", "type": "blob"}]}]}),
    ],
)
def test_impossible_schemas_are_refused(make):
    with pytest.raises(ConfigurationError):
        make()


def test_the_widest_table_that_sqlite_allows_can_be_written(path):
    columns = [f"c{number}" for number in range(1999)]
    store = Store(path, Schema([Table("wide", [Column.integer(name) for name in columns])]))

    with store.transaction():
        store.execute("INSERT INTO wide(id, c0, c1998) VALUES('a', 1, 2)")
        store.execute("UPDATE wide SET c1998 = 3")

    assert store.read("SELECT data FROM ps_crud ORDER BY id DESC LIMIT 1") == [
        {"data": '{"op":"PATCH","id":"a","type":"wide","data":{"c1998":3}}'}
    ]


def test_names_and_values_with_quotes_survive(path):
    store = Store(path, Schema([Table("it's", [Column.text("o'clock"), Column.text("größe")])]))

    with store.transaction():
        store.execute("""INSERT INTO "it's"(id, "o'clock", "größe") VALUES(?, ?, ?)""", ("a", 'say "hi"\n', "\\"))

    (operation,) = store.crud_operations(10)
    assert operation.type == "it's"
    assert operation.data == {"o'clock": 'say "hi"\n', "größe": "\\"}
    assert store.read("""SELECT * FROM "it's" """) == [{"id": "a", "o'clock": 'say "hi"\n', "größe": "\\"}]


def test_an_insert_that_was_ignored_is_not_uploaded(path):
    store = Store(path, Schema([TODOS]))
    receive(store, *checkpoint_lines(1, 1, data_line(put(1, "a"))))

    with store.transaction():
        store.execute("INSERT OR IGNORE INTO todos(id, title) VALUES('a', 'default')")

    assert store.crud_operations(1) == ()
    assert store.read("SELECT value FROM ps_kv WHERE value = ?", (str(GATE_CLOSED),)) == []


def test_metadata_is_uploaded_with_the_write(path):
    store = Store(path, Schema([Table("todos", [Column.text("title")], include_metadata=True)]))

    with store.transaction():
        store.execute("INSERT INTO todos(id, title, _metadata) VALUES('a', 'x', 'made')")
        store.execute("UPDATE todos SET _deleted = TRUE, _metadata = 'gone'")

    assert [(each.op.value, each.metadata) for each in store.crud_operations(9)] == [
        ("PUT", "made"),
        ("DELETE", "gone"),
    ]
    assert store.read("SELECT * FROM todos") == []


@pytest.mark.parametrize("blob", [b"\0", b"", b"\xff\1"])  # the first is binary JSON's null
def test_a_blob_cannot_be_written_because_json_has_none(path, blob):
    store = Store(path, Schema([TODOS]))

    with pytest.raises(apsw.SQLError, match="BLOB"), store.transaction():
        store.execute("INSERT INTO todos(id, title) VALUES('a', ?)", (blob,))

    assert store.crud_operations(1) == ()


def test_transactions_are_read_whole_and_completed_in_order(path):
    store = Store(path, Schema([TODOS]))
    for transaction in (["a", "b"], ["c"], ["d", "e"]):
        with store.transaction():
            for row_id in transaction:
                store.execute("INSERT INTO todos(id) VALUES(?)", (row_id,))

    sizes = [[len(each.operations) for each in store.crud_transactions(limit)] for limit in (1, 2, 3, 4, 100)]

    assert sizes == [[2], [2], [2, 1], [2, 1, 2], [2, 1, 2]]


def test_the_gate_is_not_set_when_there_was_another_write_meanwhile(path):
    store = Store(path, Schema([TODOS]))
    with store.transaction():
        store.execute("INSERT INTO todos(id) VALUES('a')")
    with store.transaction() as connection:
        complete(connection, 1, None)
        sequence = needs_write_checkpoint(connection)
    with store.transaction():
        store.execute("INSERT INTO todos(id) VALUES('b')")
    with store.transaction() as connection:
        complete(connection, 2, None)  # the queue is empty again, but the receipt is of before
        assert not set_gate(connection, 1, sequence)
        assert needs_write_checkpoint(connection) == 2


@pytest.mark.parametrize(
    "operation",
    [
        put("1e3", "a"),
        put("", "a"),
        put(1, "a", checksum=1.5),
        put(1, "a", checksum=2**32),
        put(1, "a", data={"n": 1}),
        put(1, "a", data=7),
        put(1, None),
        put(1, 7),
        put(1, "a", row_type=None),
        put(1, "a", subkey=5),
        {"op_id": 1, "op": "MOVE", "checksum": 1},
        {"op_id": "1", "op": "MOVE"},
        {"op_id": "1", "op": "move", "checksum": 1},
        7,
    ],
)
def test_malformed_operations_are_refused_and_nothing_is_kept(path, operation):
    store = Store(path, Schema([TODOS]))

    with pytest.raises(ProtocolError):
        receive(store, data_line(put(1, "x"), operation))

    assert store.read("SELECT * FROM ps_oplog") == store.read("SELECT * FROM ps_buckets") == []


@pytest.mark.parametrize(
    "line", [b'{"data":{"bucket":"b","data":[]}', b'{"data":{"bucket":"b","data":[]},"x":1}', b'{"data":\xff}']
)
def test_malformed_data_lines_are_refused(path, line):
    store = Store(path, Schema([]))

    with pytest.raises(ProtocolError):
        receive(store, line)


def test_priority_0_is_published_although_a_local_write_waits(path):
    store = Store(path, Schema([TODOS]))
    with store.transaction():
        store.execute("INSERT INTO todos(id) VALUES('mine')")
    buckets = [{"bucket": "b", "checksum": 1, "priority": 0}]

    receive(
        store,
        orjson.dumps({"checkpoint": {"last_op_id": "1", "buckets": buckets}}),
        data_line(put(1, "a")),
        orjson.dumps({"partial_checkpoint_complete": {"last_op_id": "1", "priority": 0}}),
    )

    assert store.read("SELECT id FROM todos ORDER BY id") == [{"id": "a"}, {"id": "mine"}]


def test_sql_has_a_uuid_function_for_new_rows(path):
    store = Store(path, Schema([TODOS]))

    with store.transaction():
        store.execute("INSERT INTO todos(id) VALUES (uuid()), (uuid())")

    assert len({str(UUID(row["id"])) for row in store.read("SELECT id FROM todos")}) == 2


def test_the_tables_of_a_query_are_found_through_views_and_subqueries(path):
    store = Store(path, Schema([TODOS, Table("lists", [Column.text("name")])]))

    tables = store.tables_read("SELECT count(*) FROM todos WHERE id IN (SELECT id FROM lists WHERE name = ?)")

    assert {"ps_data__todos", "ps_data__lists"} <= tables


WRITER = """
import sys
from django_localsync.client import Column, Database, Schema, Table
database = Database(sys.argv[1], Schema([Table("todos", [Column.text("title"), Column.integer("done")])]))
for number in range(10**9):
    with database.write_transaction() as transaction:
        for half in "ab":
            transaction.execute("INSERT INTO todos(id, title) VALUES(?, 't')", (f"{number}{half}",))
    print(number, flush=True)
"""


def test_a_killed_writer_leaves_whole_transactions_and_an_equal_queue(path):
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, cwd=ROOT)
    for _ in range(20):
        process.stdout.readline()
    process.kill()
    printed = 20 + len(process.communicate()[0].splitlines())

    with Database(path, Schema([TODOS])) as database:
        rows = [row["id"] for row in database.get_all("SELECT id FROM todos")]
        transactions = database.get_crud_transactions(10**6)
    assert len(rows) >= 2 * printed, "what was reported as written is there"
    assert {len(each.operations) for each in transactions} == {2}
    assert sorted(rows) == sorted(operation.id for each in transactions for operation in each.operations)


DOWNLOADER = """
import sys
from django_localsync.client import Column, Schema, Table
from django_localsync.client.engine import LineReceived, SyncIteration
from django_localsync.client.store import Store
store = Store(sys.argv[1], Schema([Table("todos", [Column.text("title")])]))
iteration = SyncIteration()
for line in sys.stdin.buffer:
    store.advance(iteration, [LineReceived(line)])
    print("line", flush=True)
"""


@pytest.mark.parametrize("kill_after", [7, 41])  # lines of 42
def test_a_killed_download_shows_nothing_half_and_goes_on_where_it_was(path, kill_after):
    pages = [data_line(*(put(op_id, f"row-{op_id}") for op_id in range(at, at + 50))) for at in range(1, 2001, 50)]
    lines = list(checkpoint_lines(2000, 2000, *pages))
    process = subprocess.Popen(
        [sys.executable, "-c", DOWNLOADER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
    )
    process.stdin.write(b"\n".join(lines) + b"\n")
    process.stdin.flush()
    for _ in range(kill_after):
        process.stdout.readline()
    process.kill()
    process.communicate()

    store = Store(path, Schema([TODOS]))
    assert store.read("SELECT count(*) AS n FROM todos")[0]["n"] in (0, 2000)
    after = dict(store.read_stream_state()[0])["b"]
    assert after >= 50 * (kill_after - 1)
    receive(store, lines[0], *pages[after // 50 :], lines[-1])
    assert store.read("SELECT count(*) AS n FROM todos") == [{"n": 2000}]


def test_the_client_works_where_django_cannot_be_imported(path):
    script = (
        "import sys; sys.modules['django'] = None\n"
        "from django_localsync.client import Column, Database, Schema, Table\n"
        "with Database(sys.argv[1], Schema([Table('todos', [Column.text('title')])])) as database:\n"
        "    database.execute('INSERT INTO todos(id, title) VALUES(?, ?)', ('a', 'x'))\n"
        "    print(database.get('SELECT title FROM todos')['title'])\n"
    )

    result = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, cwd=ROOT)

    assert (result.returncode, result.stdout.strip()) == (0, "x"), result.stderr
