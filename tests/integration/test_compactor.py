"""Compaction of stored buckets: the same as the pure one, beside open streams, a replicator and another compactor."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Iterator
from io import StringIO

import pytest
from django.core.management import call_command
from hypothesis import HealthCheck, given, settings

from django_localsync.buckets.compaction import compact
from django_localsync.buckets.operation import Operation, OpId, OpKind
from django_localsync.storage import compactor
from django_localsync.storage.compactor import Compactor, Savings, changed_buckets, compact_bucket
from django_localsync.storage.connections import connect
from tests.integration.serving.conftest import Lines, Server, Storage, Streams
from tests.integration.serving.conftest import start_server as start_server
from tests.integration.serving.conftest import storage as storage
from tests.integration.serving.conftest import streams as streams
from tests.replication import drop_replication, replicating, stored_buckets
from tests.unit.test_compaction import histories, make_history, reduce_bucket

READ = """
    SELECT op_id, kind, checksum, row_type, row_id, subkey, data
      FROM localsync_bucket_operation WHERE bucket_id = %s ORDER BY op_id
"""


def write_bucket(storage: Storage, operations: list[Operation], bucket: int = 1 << 32) -> int:
    """Put a history into storage as it is, in place of any other; a bucket of the stream "all"."""
    bucket = storage.definitions["all"] << 32
    connection = storage.connection
    connection.execute("DELETE FROM localsync_bucket_operation WHERE bucket_id = %s", (bucket,))
    connection.execute("DELETE FROM localsync_bucket WHERE id = %s", (bucket,))
    with connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO localsync_bucket_operation VALUES (%s, %s, %s, %s, %s, %s, %s, %s)".replace(
                "VALUES", "(bucket_id, op_id, kind, checksum, row_type, row_id, subkey, data) VALUES"
            ),
            [(bucket, o.op_id, o.kind, o.checksum, o.row_type, o.row_id, o.subkey, o.data) for o in operations],
        )
    last = operations[-1].op_id if operations else 0
    connection.execute(
        "INSERT INTO localsync_bucket (id, definition_id, parameters, operations, checksum, last_op_id,"
        " pending_operations, pending_checksum, pending_last_op_id) VALUES (%s, %s, '[]', %s, %s, %s, 0, 0, 0)",
        (bucket, storage.definitions["all"], len(operations), reduce_bucket(operations)[1], last),
    )
    connection.execute("UPDATE localsync_checkpoint SET op_id = %s, written_op_id = %s", (last, last))
    return bucket


def read_bucket(storage: Storage, bucket: int) -> list[Operation]:
    rows = storage.connection.execute(READ, (bucket,)).fetchall()
    return [Operation(OpId(op_id), OpKind(kind), *rest) for op_id, kind, *rest in rows]


def totals(storage: Storage, bucket: int) -> tuple[int, ...]:
    query = "SELECT operations, checksum, last_op_id, generation FROM localsync_bucket WHERE id = %s"
    row = storage.connection.execute(query, (bucket,)).fetchone()
    assert row is not None
    return row


def compact_now(storage: Storage, bucket: int, **sizes: int) -> Savings:
    savings = Savings()
    for _ in compact_bucket(storage.connection, bucket, savings, **sizes):
        pass
    return savings


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(histories)
def test_storage_is_compacted_as_the_pure_compaction_says(storage: Storage, made):
    operations = make_history(made)
    bucket = write_bucket(storage, operations)

    savings = compact_now(storage, bucket)

    expected = compact(operations)
    assert read_bucket(storage, bucket) == expected
    assert totals(storage, bucket)[:2] == (len(expected), reduce_bucket(operations)[1])
    assert savings.deleted == len(operations) - len(expected)
    assert compact_now(storage, bucket) == Savings(buckets=1)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(histories)
def test_small_pieces_keep_rows_and_sum_and_erase_as_much(storage: Storage, made):
    operations = make_history(made)
    bucket = write_bucket(storage, operations)

    compact_now(storage, bucket, batch=3, most_new=4)

    compacted = read_bucket(storage, bucket)
    assert reduce_bucket(compacted) == reduce_bucket(operations)
    assert totals(storage, bucket)[0] == len(compacted)
    assert [o for o in compacted if o.data] == [o for o in compact(operations) if o.data]


def rows(prefix: str, numbers: range, version: int = 0, text: str = "") -> list:
    return [("all", (), f"{prefix}{number}", {"v": version, "t": text}) for number in numbers]


def the_bucket(storage: Storage) -> int:
    return changed_buckets(storage.connection)[0]


class Device:
    """Follows the lines of a stream; every completed checkpoint must add up, as on a device."""

    def __init__(self) -> None:
        self.history: dict[str, list[Operation]] = {}
        self.announced: dict[str, int] = {}
        self.completed = 0

    def take(self, line: dict) -> None:
        if "checkpoint" in line:
            self._announce(line["checkpoint"]["buckets"], whole=True)
        elif "checkpoint_diff" in line:
            for name in line["checkpoint_diff"]["removed_buckets"]:
                self.announced.pop(name), self.history.pop(name, None)
            self._announce(line["checkpoint_diff"]["updated_buckets"], whole=False)
        elif "data" in line:
            for each in line["data"]["data"]:
                operation = Operation(
                    OpId(int(each["op_id"])),
                    OpKind[each["op"]],
                    each["checksum"],
                    *map(each.get, ("object_type", "object_id", "subkey", "data")),
                )
                self.history.setdefault(line["data"]["bucket"], []).append(operation)
        elif "checkpoint_complete" in line:
            self.completed += 1
            sums = {name: reduce_bucket(self.history.get(name, []))[1] for name in self.announced}
            assert sums == self.announced

    def _announce(self, buckets: list, *, whole: bool) -> None:
        news = {bucket["bucket"]: bucket["checksum"] for bucket in buckets}
        self.announced = news if whole else {**self.announced, **news}
        self.history = {name: ops for name, ops in self.history.items() if name in self.announced}

    def rows(self) -> dict[str, dict]:
        live = [operation for ops in self.history.values() for operation in reduce_bucket(ops)[0].values()]
        return {str(operation.row_id): json.loads(operation.data or "") for operation in live}

    def follow(self, lines: Lines, kind: str = "checkpoint_complete") -> list[str]:
        """Take lines through the next of a kind; answers their kinds."""
        kinds = []
        while not kinds or kinds[-1] != kind:
            line = lines.next()
            self.take(line)
            kinds.append(next(iter(line)))
        return kinds


def test_a_checkpoint_that_compaction_overtook_is_not_completed(storage: Storage, start_server, streams):
    server = start_server()
    text = "x" * 100_000
    storage.publish(*rows("r", range(200), 1, text))
    device, lines = Device(), Lines(streams.open(server))
    device.take(lines.next())
    device.take(lines.next())  # a page; the rest waits until there is room for it
    storage.publish(*rows("r", range(200), 2))
    compact_now(storage, the_bucket(storage))

    kinds = device.follow(lines)

    assert "checkpoint_diff" in kinds
    assert {row["v"] for row in device.rows().values()} == {2}
    assert len(device.rows()) == 200
    assert kinds.count("data") < 15  # most of the old texts were never sent


def test_a_page_is_refused_to_a_checkpoint_before_the_compaction(storage: Storage):
    storage.publish(*rows("r", range(3)))
    ((bucket, old_end),) = storage.connection.execute("SELECT id, last_op_id FROM localsync_bucket").fetchall()
    storage.publish(*rows("r", range(3), 2))

    def is_served(end: int, generation: int = 0) -> bool:
        query = "SELECT consistent_from <= %s AND generation = %s FROM localsync_bucket WHERE id = %s"
        row = storage.connection.execute(query, (end, generation, bucket)).fetchone()
        return bool(row and row[0])

    assert is_served(old_end)
    compact_now(storage, bucket)
    assert not is_served(old_end)
    assert is_served(totals(storage, bucket)[2])


def test_a_mostly_dead_bucket_is_rewritten_under_a_new_name(storage: Storage, start_server, streams):
    server = start_server()
    storage.publish(*rows("keep", range(1)))
    for version in range(3):
        storage.publish(*rows("r", range(600), version))
    device, lines = Device(), Lines(streams.open(server))
    device.follow(lines)
    expected, (old_name,) = device.rows(), [name for name in device.announced if device.history.get(name)]
    away = Device()
    away.history, away.announced = dict(device.history), dict(device.announced)
    position = str(totals(storage, the_bucket(storage))[2])
    with_patch = compactor.is_mostly_dead
    try:
        compactor.is_mostly_dead = lambda operations, live: operations - live >= 1000  # type: ignore[assignment]
        savings = compact_now(storage, the_bucket(storage))
    finally:
        compactor.is_mostly_dead = with_patch

    assert (savings.rewritten, savings.erased, savings.deleted) == (1, 1200, 1200)
    storage.publish(("all", (), "new", {"v": 1}))  # the open stream hears of it by the old name
    kinds = device.follow(lines)
    assert old_name not in device.announced
    assert kinds.count("checkpoint_complete") == 1
    assert device.rows() == {**expected, "new": {"id": "new", "v": 1}}
    fresh, again = Device(), Lines(streams.open(server, buckets=[{"name": old_name, "after": position}]))
    away.follow(again)
    fresh.follow(Lines(streams.open(server)))
    assert away.rows() == fresh.rows() == device.rows()
    assert sum(map(len, fresh.history.values())) == 602


def test_text_that_was_replaced_is_erased_in_time_though_nobody_syncs(storage: Storage):
    storage.publish(("all", (), "a", {"secret": "first words"}))
    storage.publish(("all", (), "a", {"secret": "second words"}))
    eager, patient = Compactor(storage.connection, 0.2), Compactor(storage.connection, 3600)

    def texts() -> list[str]:
        query = "SELECT data FROM localsync_bucket_operation WHERE data IS NOT NULL"
        return [data for (data,) in storage.connection.execute(query)]

    while patient.step():
        pass
    assert len(texts()) == 2
    deadline = time.monotonic() + 5
    while len(texts()) > 1 and time.monotonic() < deadline:
        eager.step()
    assert len(texts()) == 1
    assert "second words" in texts()[0]


def test_open_streams_always_add_up_while_writers_and_two_compactors_run(storage: Storage, start_server, streams):
    server = start_server()
    chance = random.Random(5)
    stopping, errors = threading.Event(), []

    def compact_on() -> None:
        with connect("default") as connection:
            while not stopping.is_set():
                try:
                    for bucket in changed_buckets(connection):
                        for _ in compact_bucket(connection, bucket, Savings(), batch=50, most_new=100):
                            pass
                except Exception as error:
                    errors.append(error)
                    return

    real, compactor.is_mostly_dead = compactor.is_mostly_dead, lambda operations, live: operations - live > 300
    threads = [threading.Thread(target=compact_on) for _ in range(2)]
    devices = [(Device(), Lines(streams.open(server))) for _ in range(3)]
    followers = [threading.Thread(target=follow_until_end, args=(*each, errors)) for each in devices]
    comer = Device()
    followers.append(threading.Thread(target=come_and_go_until_end, args=(comer, server, errors)))
    try:
        for thread in (*threads, *followers):
            thread.start()
        for version in range(120):
            storage.publish(
                *rows("r", range(n := chance.randrange(200), n + chance.randrange(1, 60)), version, "x" * 500)
            )
        stopping.set()
        for thread in threads:
            thread.join()
        storage.publish(("all", (), "end", {}))
        for thread in followers:
            thread.join(20)
    finally:
        stopping.set()
        compactor.is_mostly_dead = real
    assert errors == []
    late = Device()
    late.follow(Lines(streams.open(server)))
    assert totals(storage, storage.definitions["all"] << 32 | 1)[3] > 0, "it was never rewritten"
    assert all(device.rows() == late.rows() for device in (comer, *(device for device, _ in devices)))


def follow_until_end(device: Device, lines: Lines, errors: list) -> None:
    try:
        while "end" not in device.rows():
            device.follow(lines)
    except BaseException as error:
        errors.append(error)


def come_and_go_until_end(device: Device, server: Server, errors: list) -> None:
    """Connect again and again from wherever the device stands (I4), and leave in the midst of a checkpoint."""
    chance, visitor = random.Random(7), Streams()
    try:
        while "end" not in device.rows():
            positions = [{"name": name, "after": str(ops[-1].op_id)} for name, ops in device.history.items() if ops]
            response = visitor.open(server, buckets=positions)
            lines = Lines(response)
            rest = chance.randrange(1, 6)  # a line, or some, or all of a checkpoint and of the next
            while rest and "end" not in device.rows():
                device.take(lines.next())
                rest -= 1
            response.close()
    except BaseException as error:
        errors.append(error)
    finally:
        visitor.client.close()


def check_withheld_operations_are_left_alone(storage: Storage) -> None:
    storage.publish(*rows("r", range(3), 1))
    bucket = the_bucket(storage)
    with storage.writer.transaction():
        storage.writer.withhold()
        storage.writer.publish(storage.source.id, 1)
    shown = read_bucket(storage, bucket)
    storage.publish(*rows("r", range(3), 2))

    compact_now(storage, bucket)

    assert read_bucket(storage, bucket)[:3] == shown
    storage.publish(show=True)
    compact_now(storage, bucket)
    compacted = read_bucket(storage, bucket)
    assert [operation.kind.name for operation in compacted] == ["CLEAR", "PUT", "PUT", "PUT"]
    assert totals(storage, bucket)[:2] == (4, reduce_bucket(compacted)[1])


def test_what_is_withheld_is_compacted_when_it_is_shown(storage: Storage):
    check_withheld_operations_are_left_alone(storage)


def check_totals_after_a_clear(storage: Storage) -> None:
    storage.publish(*rows("r", range(3), 1))
    storage.publish(*rows("r", range(3), 2))
    bucket = the_bucket(storage)
    expected = compact(read_bucket(storage, bucket))
    compact_now(storage, bucket)
    assert read_bucket(storage, bucket) == expected
    assert totals(storage, bucket)[:2] == (len(expected), reduce_bucket(expected)[1])


def rewrite_without_new_name(connection, target, *arguments):
    rewrite(connection, target, *arguments)
    connection.execute("UPDATE localsync_bucket SET generation = 0 WHERE id = %s", (target.id,))


def find_what_is_withheld(connection, bucket_id):
    found = find(connection, bucket_id)
    return found and found._replace(last_op_id=2**62)


rewrite, find = compactor._rewrite, compactor._find
FAULTS = {
    "overtaken checkpoints are completed": ("_claim", lambda *_: True, "overtook"),
    "a rewritten bucket keeps its name": ("_rewrite", rewrite_without_new_name, "rewritten"),
    "totals still count what was deleted": ("_take_from_totals", lambda *_, **__: None, "totals"),
    "what is withheld supersedes what is shown": ("_find", find_what_is_withheld, "withheld"),
    "a MOVE loses its checksum": (
        "ERASE",
        compactor.ERASE.replace("kind = %s,", "kind = %s, checksum = 0,", 1),
        "totals",
    ),
    "a CLEAR has only the last checksum": (
        "CLEAR_HEAD",
        compactor.CLEAR_HEAD.replace("(checksum + %s)", "(checksum + 0 * %s)"),
        "totals",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_deliberate_fault_is_noticed(fault: str, storage: Storage, start_server, streams, monkeypatch):
    name, replacement, scenario = FAULTS[fault]
    monkeypatch.setattr(compactor, name, replacement)

    scenarios = {
        "overtook": lambda: test_a_checkpoint_that_compaction_overtook_is_not_completed(storage, start_server, streams),
        "rewritten": lambda: test_a_mostly_dead_bucket_is_rewritten_under_a_new_name(storage, start_server, streams),
        "totals": lambda: check_totals_after_a_clear(storage),
        "withheld": lambda: check_withheld_operations_are_left_alone(storage),
    }

    with pytest.raises(AssertionError):
        scenarios[scenario]()


@pytest.fixture
def notes(transactional_db: None) -> Iterator[None]:
    with connect("default") as connection:
        connection.execute("CREATE TABLE note (id int PRIMARY KEY, owner text, title text)")
    yield
    drop_replication()
    with connect("default") as connection:
        connection.execute("DROP TABLE note")


NOTES = """
config: {edition: 3}
streams:
  mine:
    query: SELECT * FROM note WHERE owner = auth.user_id()
"""


def test_a_replicator_compacts_in_idle_moments_and_loses_nothing(notes: None):
    chance = random.Random(11)
    with connect("default") as project, replicating(NOTES, ERASE_WITHIN_S=0.04) as replicator:
        for _ in range(150):
            key, owner = chance.randrange(20), chance.choice("ab")
            match chance.randrange(8):
                case 0:
                    project.execute("DELETE FROM note WHERE id = %s", (key,))
                case 1:
                    time.sleep(0.02)
                case 2 if chance.random() < 0.2:
                    project.execute("TRUNCATE note")
                case _:
                    project.execute(
                        "INSERT INTO note VALUES (%s, %s, %s) ON CONFLICT (id) DO UPDATE"
                        " SET owner = excluded.owner, title = excluded.title",
                        (key, owner, f"title {chance.random()}"),
                    )
            if chance.random() < 0.05:
                call_command("localsync_compact", "--json", stdout=StringIO())
        replicator.catch_up()
        expected = project.execute("SELECT id, owner, title FROM note").fetchall()
        titles = "SELECT count(*) FROM localsync_bucket_operation WHERE data IS NOT NULL"
        deadline = time.monotonic() + 10
        while project.execute(titles).fetchone() != (len(expected),) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert project.execute(titles).fetchone() == (len(expected),), "replaced rows are still in storage"
        assert project.execute("SELECT count(*) FROM localsync_bucket_operation WHERE kind > 2").fetchone() != (0,)
        found = stored_buckets()
    for owner in "ab":
        rows_of = {("note", str(key)): title for key, of, title in expected if of == owner}
        assert {row: data["title"] for row, data in found.get(f'mine|0["{owner}"]', {}).items()} == rows_of


def test_the_command_compacts_and_tells_what_it_saved(storage: Storage):
    for version in range(3):
        storage.publish(*rows("r", range(10), version, "x" * 100))
    output = StringIO()

    call_command("localsync_compact", "--json", stdout=output)

    figures = json.loads(output.getvalue())
    assert (figures["buckets"], figures["erased"], figures["deleted"]) == (1, 20, 19)
    assert figures["bytes"] > 2000
    assert figures["storage_bytes_before"] > 0
    again = StringIO()
    call_command("localsync_compact", stdout=again)
    assert "0 buckets compacted" in again.getvalue()
