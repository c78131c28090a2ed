"""Both drivers against a real HTTP server that cuts, lies and refuses."""

import asyncio
import queue
import threading
import time

import pytest

from django_localsync.client import (
    AsyncDatabase,
    AsyncLocalSyncConnector,
    Column,
    Database,
    LocalSyncConnector,
    Schema,
    SyncOptions,
    Table,
)
from django_localsync.exceptions import AuthError, LocalSyncError, RequestError
from tests.unit.client.backend import BUCKET, Backend, keepalive

SCHEMA = Schema([Table("todos", [Column.text("title"), Column.integer("done")])])
QUICK = SyncOptions(retry_delay_s=0.05, max_retry_delay_s=0.2)
DEADLINE_S = 10


@pytest.fixture
def backend():
    with Backend() as backend:
        yield backend


@pytest.fixture
def database(tmp_path):
    with Database(tmp_path / "client.db", SCHEMA) as database:
        yield database


class Tokens:
    """Gives token-1, token-2, … and counts."""

    def __init__(self):
        self.given = 0

    def __call__(self):
        self.given += 1
        return f"token-{self.given}"


def connect(database, backend, **kwargs):
    tokens = Tokens()
    database.connect(LocalSyncConnector(backend.endpoint, tokens, **kwargs), QUICK)
    return tokens


def eventually(condition):
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def titles(database):
    return {row["id"]: row["title"] for row in database.get_all("SELECT id, title FROM todos")}


def test_first_sync_then_live_changes(database, backend):
    backend.put("a", title="one")
    connect(database, backend)

    database.wait_for_first_sync(DEADLINE_S)
    assert titles(database) == {"a": "one"}

    backend.put("b", title="two")
    backend.remove("a")
    eventually(lambda: titles(database) == {"b": "two"})
    assert database.status.connected
    assert not database.status.downloading


def test_local_write_is_uploaded_and_comes_back_with_the_backends_changes(database, backend):
    connect(database, backend)
    database.wait_for_first_sync(DEADLINE_S)

    with database.write_transaction() as transaction:
        transaction.execute("INSERT INTO todos(id, title) VALUES(?, ?)", ("a", "one"))
        transaction.execute("INSERT INTO todos(id, title) VALUES(?, ?)", ("b", "two"))
        assert transaction.get("SELECT count(*) AS n FROM todos") == {"n": 2}

    eventually(lambda: database.get_crud_batch() is None)
    assert [len(transaction["operations"]) for transaction in backend.uploads[0]["transactions"]] == [2]
    backend.put("a", title="one, corrected")
    eventually(lambda: titles(database) == {"a": "one, corrected", "b": "two"})


def test_writes_made_offline_are_uploaded_after_a_restart(tmp_path, backend):
    with Database(tmp_path / "client.db", SCHEMA) as database:
        database.execute("INSERT INTO todos(id, title) VALUES('a', 'offline')")
        client_id = database.client_id

    with Database(tmp_path / "client.db", SCHEMA) as database:
        assert titles(database) == {"a": "offline"}
        connect(database, backend)
        eventually(lambda: backend.rows == {"a": {"title": "offline"}})
        assert backend.uploads[0]["client_id"] == client_id


def test_a_stream_cut_in_the_middle_of_lines_goes_on_where_it_was(database, backend):
    backend.put_many((f"row-{number}", {"title": "x" * 50}) for number in range(5000))
    backend.cut_after_bytes.extend([10, 300, 200_000, 500_000])

    connect(database, backend)

    database.wait_for_first_sync(DEADLINE_S)
    assert database.get("SELECT count(*) AS n FROM todos") == {"n": 5000}
    after = [int(bucket["after"]) for request in backend.requests for bucket in request["buckets"]]
    assert after == sorted(after)
    assert after[-1] > 0, "nothing of the cut streams was kept"


def test_connections_that_drop_are_made_again(database, backend):
    connect(database, backend)
    database.wait_for_first_sync(DEADLINE_S)

    backend.drop_connections()
    backend.put("a", title="after")

    eventually(lambda: titles(database) == {"a": "after"})


def test_a_checksum_mismatch_downloads_the_bucket_again(database, backend):
    backend.put("a", title="one")
    backend.wrong_checksums = 2

    connect(database, backend)

    database.wait_for_first_sync(DEADLINE_S)
    assert titles(database) == {"a": "one"}
    assert [request["buckets"] for request in backend.requests] == [[], [], []]


def test_a_refused_token_is_dropped_and_another_fetched(database, backend):
    backend.good_tokens = {"token-2"}

    tokens = connect(database, backend)

    database.wait_for_first_sync(DEADLINE_S)
    assert tokens.given == 2
    assert database.status.download_error is None


def test_the_error_of_a_refused_token_is_shown_without_the_token(database, backend, caplog):
    backend.good_tokens = set()

    connect(database, backend)

    database.wait_for_status(lambda status: status.download_error is not None, DEADLINE_S)
    assert isinstance(database.status.download_error, AuthError)
    assert str(database.status.download_error) == "the token has expired"
    assert "token-" not in caplog.text + repr(database.status)


@pytest.mark.parametrize("token", ["two words", "line\nbreak", ""])
def test_a_token_that_cannot_be_sent_is_refused_without_being_shown(database, backend, token, caplog):
    database.connect(LocalSyncConnector(backend.endpoint, lambda: token), QUICK)

    database.wait_for_status(lambda status: status.download_error is not None, DEADLINE_S)

    assert "printable ASCII" in str(database.status.download_error)
    assert not token or token not in caplog.text


def test_a_token_about_to_expire_is_replaced_without_appearing_disconnected(database, backend):
    backend.put("a", title="one")
    backend.first_lines.append(keepalive(20))
    seen = []
    database.on_status(lambda status: seen.append(status.connected))

    connect(database, backend)

    eventually(lambda: "token-2" in backend.tokens_seen)
    database.wait_for_first_sync(DEADLINE_S)
    assert titles(database) == {"a": "one"}
    assert seen == sorted(seen), "it was seen disconnected after it had been connected"


def test_an_expired_token_ends_the_stream_and_another_is_fetched(database, backend):
    backend.first_lines.append(keepalive(0))

    connect(database, backend)

    database.wait_for_first_sync(DEADLINE_S)
    assert backend.tokens_seen == ["token-1", "token-2"]


@pytest.mark.parametrize("status", [500, 503, 400, 413])
def test_a_failed_upload_is_shown_kept_and_sent_again(database, backend, status):
    backend.upload_statuses.append(status)
    connect(database, backend)

    database.execute("INSERT INTO todos(id, title) VALUES('a', 'one')")

    database.wait_for_status(lambda now: now.upload_error is not None, DEADLINE_S)
    eventually(lambda: backend.rows == {"a": {"title": "one"}})
    database.wait_for_status(lambda now: now.upload_error is None, DEADLINE_S)


def sent_parts(backend):
    return [
        [(transaction["id"], [operation["op_id"] for operation in transaction["operations"]]) for transaction in parts]
        for parts in (body["transactions"] for body in backend.uploads)
    ]


def queue_three_transactions(write):
    return [
        write([("INSERT INTO todos(id, title) VALUES(?, 'x')", (f"{number}{letter}",)) for letter in letters])
        for number, letters in enumerate(("abc", "d", "e"))
    ]


# Too long: the whole; then its first part, which is one transaction; then this one's second half.
TOO_LONG = [413, 413]
PARTS = [[(1, [1])], [(1, [2, 3])], [(2, [4]), (3, [5])]]


def test_an_upload_that_is_too_long_goes_in_parts_in_order(database, backend):
    def write(statements):
        with database.write_transaction() as transaction:
            for statement in statements:
                transaction.execute(*statement)

    queue_three_transactions(write)
    backend.upload_statuses.extend(TOO_LONG)
    connect(database, backend)

    eventually(lambda: database.get_crud_batch() is None)
    assert sent_parts(backend) == PARTS


async def test_async_upload_that_is_too_long_goes_in_parts_in_order(tmp_path, backend):
    async def write(statements):
        async with database.write_transaction() as transaction:
            for statement in statements:
                await transaction.execute(*statement)

    async def token():
        return "token-1"

    async with AsyncDatabase(tmp_path / "client.db", SCHEMA) as database:
        for writing in queue_three_transactions(write):
            await writing
        backend.upload_statuses.extend(TOO_LONG)
        await database.connect(AsyncLocalSyncConnector(backend.endpoint, token), QUICK)
        async with asyncio.timeout(DEADLINE_S):
            while await database.get_crud_batch() is not None:
                await asyncio.sleep(0.01)

    assert sent_parts(backend) == PARTS


def test_an_upload_refused_with_401_fetches_another_token(database, backend):
    connect(database, backend)
    database.wait_for_first_sync(DEADLINE_S)
    backend.upload_statuses.append(401)

    database.execute("INSERT INTO todos(id, title) VALUES('a', 'one')")

    eventually(lambda: backend.rows)
    assert backend.tokens_seen[-1] != "token-1"


def test_a_rejected_transaction_is_reported_and_the_queue_goes_on(database, backend):
    backend.put("a", title="the backend's")
    backend.reject = lambda operation: operation["id"] == "a"
    rejections = []
    connect(database, backend, on_rejected=rejections.append)
    database.wait_for_first_sync(DEADLINE_S)

    database.execute("UPDATE todos SET title = 'mine' WHERE id = 'a'")
    database.execute("INSERT INTO todos(id, title) VALUES('b', 'two')")

    eventually(lambda: titles(database) == {"a": "the backend's", "b": "two"})
    eventually(lambda: rejections)
    assert rejections[0].result.operations[0].errors == {"title": ["bad"]}
    assert rejections[0].transaction.operations[0].data == {"title": "mine"}


def test_upload_data_that_completes_nothing_is_an_error_not_a_busy_loop(database, backend):
    class Forgetful(LocalSyncConnector):
        calls = 0

        def upload_data(self, database):
            self.calls += 1

    connector = Forgetful(backend.endpoint, Tokens())
    database.connect(connector, SyncOptions(retry_delay_s=30))
    database.execute("INSERT INTO todos(id) VALUES('a')")

    database.wait_for_status(lambda status: status.upload_error is not None, DEADLINE_S)
    assert "complete()" in str(database.status.upload_error)
    assert connector.calls == 1


def test_watch_shows_each_change_once_and_ends_with_the_database(database, backend):
    results = queue.Queue()
    sql = "SELECT id, title FROM todos WHERE done IS NOT 1 ORDER BY id"
    watcher = threading.Thread(target=lambda: [results.put(rows) for rows in database.watch(sql)])
    watcher.start()
    assert results.get(timeout=DEADLINE_S) == []

    database.execute("INSERT INTO todos(id, title) VALUES('a', 'local')")
    assert results.get(timeout=DEADLINE_S) == [{"id": "a", "title": "local"}]

    database.execute("INSERT INTO todos(id, title, done) VALUES('b', 'not shown', 1)")
    backend.put("a", title="local")
    backend.put("c", title="theirs")
    connect(database, backend)
    database.wait_for_first_sync(DEADLINE_S)
    assert results.get(timeout=DEADLINE_S) == [{"id": "a", "title": "local"}, {"id": "c", "title": "theirs"}]

    database.close()
    watcher.join(DEADLINE_S)
    assert not watcher.is_alive()
    assert results.empty()


def test_a_subscription_is_sent_at_once_and_again_after_a_restart(tmp_path, backend):
    with Database(tmp_path / "client.db", SCHEMA) as database:
        connect(database, backend)
        database.wait_for_first_sync(DEADLINE_S)
        subscription = database.sync_stream("todos", {"list": 1}).subscribe(priority=1)
        subscription.wait_for_first_sync(DEADLINE_S)

    with Database(tmp_path / "client.db", SCHEMA) as database:
        connect(database, backend)
        eventually(lambda: len(backend.requests) == 3)

    wanted = [{"stream": "todos", "parameters": {"list": 1}, "override_priority": 1}]
    assert [request["streams"]["subscriptions"] for request in backend.requests] == [[], wanted, wanted]


def test_clearing_forgets_rows_and_queue_and_downloads_again(database, backend):
    backend.put("a", title="one")
    connect(database, backend)
    database.wait_for_first_sync(DEADLINE_S)
    client_id = database.client_id

    database.disconnect_and_clear()
    assert titles(database) == {}
    assert not database.status.has_synced

    connect(database, backend)
    database.wait_for_first_sync(DEADLINE_S)
    assert titles(database) == {"a": "one"}
    assert backend.requests[-1]["buckets"] == []
    assert backend.requests[-1]["client_id"] == client_id


def test_after_a_restart_only_what_is_new_is_asked_for(tmp_path, backend):
    backend.put("a", title="one")
    with Database(tmp_path / "client.db", SCHEMA) as database:
        connect(database, backend)
        database.wait_for_first_sync(DEADLINE_S)

    with Database(tmp_path / "client.db", SCHEMA) as database:
        assert database.status.has_synced
        connect(database, backend)
        eventually(lambda: len(backend.requests) == 2)

    assert backend.requests[1]["buckets"] == [{"name": BUCKET, "after": "1"}]


def test_a_server_that_is_not_there_is_an_error_in_the_status(database):
    database.connect(LocalSyncConnector("http://127.0.0.1:9", Tokens()), QUICK)

    database.wait_for_status(lambda status: status.download_error is not None, DEADLINE_S)

    assert not database.status.connected


def test_a_wrong_path_is_named_by_its_status(database, backend):
    database.connect(LocalSyncConnector(backend.endpoint + "/nowhere", Tokens()), QUICK)

    database.wait_for_status(lambda status: status.download_error is not None, DEADLINE_S)

    assert isinstance(database.status.download_error, RequestError)
    assert database.status.download_error.status == 404


@pytest.mark.parametrize("endpoint", ["example.org", "https://example.org/"])
def test_an_impossible_endpoint_is_refused(endpoint):
    with pytest.raises(LocalSyncError, match="endpoint"):
        LocalSyncConnector(endpoint, Tokens())


def test_statements_that_would_end_the_transaction_are_refused(database):
    with pytest.raises(ValueError, match="write_transaction"):
        database.execute("COMMIT")


def test_a_transaction_inside_a_transaction_is_refused_not_a_deadlock(database):
    with database.write_transaction(), pytest.raises(RuntimeError, match="its own methods"):
        database.execute("INSERT INTO todos(id) VALUES('a')")


def test_a_failed_block_leaves_nothing_behind(database):
    def fail_halfway():
        with database.write_transaction() as transaction:
            transaction.execute("INSERT INTO todos(id) VALUES('a')")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_halfway()

    assert titles(database) == {}
    assert database.get_crud_batch() is None


# The asyncio driver shares everything but its shell with the blocking one.


def async_connector(backend):
    tokens = Tokens()

    async def fetch():
        return tokens()

    return AsyncLocalSyncConnector(backend.endpoint, fetch)


async def test_async_first_sync_write_upload_and_watch(tmp_path, backend):
    backend.put("a", title="one")
    async with AsyncDatabase(tmp_path / "client.db", SCHEMA) as database:
        await database.connect(async_connector(backend), QUICK)
        await database.wait_for_first_sync(DEADLINE_S)
        rows = database.watch("SELECT id, title FROM todos ORDER BY id")
        assert await anext(rows) == [{"id": "a", "title": "one"}]

        async with database.write_transaction() as transaction:
            await transaction.execute("UPDATE todos SET title = 'mine' WHERE id = 'a'")
            await transaction.execute("INSERT INTO todos(id, title) VALUES('b', 'two')")
        expected = [{"id": "a", "title": "mine"}, {"id": "b", "title": "two"}]
        assert await asyncio.wait_for(anext(rows), DEADLINE_S) == expected

        await asyncio.to_thread(eventually, lambda: backend.rows == {"a": {"title": "mine"}, "b": {"title": "two"}})
        backend.put("c", title="three")
        expected.append({"id": "c", "title": "three"})
        assert await asyncio.wait_for(anext(rows), DEADLINE_S) == expected
        await rows.aclose()


async def test_async_upload_survives_a_refused_token_and_errors(tmp_path, backend):
    backend.upload_statuses.extend([503, 401])
    async with AsyncDatabase(tmp_path / "client.db", SCHEMA) as database:
        await database.connect(async_connector(backend), QUICK)
        await database.execute("INSERT INTO todos(id, title) VALUES('a', 'one')")

        await asyncio.to_thread(eventually, lambda: backend.rows == {"a": {"title": "one"}})
        await database.wait_for_status(lambda status: status.upload_error is None and not status.uploading, DEADLINE_S)
        assert await database.get_next_crud_transaction() is None


async def test_async_cancelled_writer_rolls_back_and_frees_the_database(tmp_path):
    async with AsyncDatabase(tmp_path / "client.db", SCHEMA) as database:

        async def write_and_hang():
            async with database.write_transaction() as transaction:
                await transaction.execute("INSERT INTO todos(id) VALUES('a')")
                await asyncio.sleep(60)

        task = asyncio.create_task(write_and_hang())
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

        await asyncio.wait_for(database.execute("INSERT INTO todos(id) VALUES('b')"), DEADLINE_S)
        assert await database.get_all("SELECT id FROM todos") == [{"id": "b"}]


async def test_async_transaction_inside_a_transaction_is_refused_not_a_deadlock(tmp_path):
    async with AsyncDatabase(tmp_path / "client.db", SCHEMA) as database, database.write_transaction():
        with pytest.raises(RuntimeError, match="its own methods"):
            await database.execute("INSERT INTO todos(id) VALUES('a')")


async def test_async_watch_ends_with_the_database(tmp_path):
    database = AsyncDatabase(tmp_path / "client.db", SCHEMA)

    async def collect():
        return [rows async for rows in database.watch("SELECT id FROM todos")]

    watching = asyncio.create_task(collect())
    await asyncio.sleep(0.1)
    await database.close()

    assert await asyncio.wait_for(watching, DEADLINE_S) == [[]]


async def test_async_subscription_waits_for_its_stream(tmp_path, backend):
    async with AsyncDatabase(tmp_path / "client.db", SCHEMA) as database:
        await database.connect(async_connector(backend), QUICK)
        await database.wait_for_first_sync(DEADLINE_S)

        subscription = await database.sync_stream("todos").subscribe()
        await subscription.wait_for_first_sync(DEADLINE_S)
        subscription.unsubscribe()
