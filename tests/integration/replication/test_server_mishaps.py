"""Servers that restart, fail over, are restored, refuse: replication heals, or names the remedy and waits."""

from __future__ import annotations

import faulthandler
import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from django_localsync.exceptions import ConfigurationError
from django_localsync.models import BucketOperation, Source
from django_localsync.replication import follower, stream
from tests.conftest import SOAK
from tests.elsewhere import ALIAS, Elsewhere, elsewhere, errors, in_step, replicator, served, wait_until_healed
from tests.processes import ROOT, project_environment, wait_until
from tests.proxies import pooled
from tests.servers import MAJOR, OwnServer, copy_cluster, database_alias, own_server, server_in

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def source() -> Iterator[Elsewhere]:
    """A source of its own."""
    with elsewhere() as source:
        yield source


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder for further servers."""
    with tempfile.TemporaryDirectory(prefix="localsync-server-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follower, "FIRST_RETRY_S", 0.05)
    monkeypatch.setattr(follower, "LONGEST_RETRY_S", 0.5)


def change_everything(source: Elsewhere) -> None:
    """A row comes, one changes, one goes."""
    source.execute(
        "INSERT INTO note VALUES (3, 'three')",
        "UPDATE note SET title = 'ONE' WHERE id = 1",
        "DELETE FROM note WHERE id = 2",
    )


def test_server_restarted(source):
    with replicator():
        wait_until_healed(source)
        change_everything(source)
        source.restart()
        source.execute("INSERT INTO note VALUES (4, 'four')")
        wait_until_healed(source)


def test_server_crashed(source):
    with replicator():
        wait_until_healed(source)
        change_everything(source)
        source.crash()
        source.execute("INSERT INTO note VALUES (4, 'four')")
        wait_until_healed(source)


def test_server_down_while_the_replicator_starts(source):
    source.server.stop()
    with replicator() as running:
        time.sleep(0.5)
        assert running.error is None
        source.restart()
        wait_until_healed(source)


def test_server_set_back_to_a_copy_of_its_files(source, folder):
    source.server.stop()
    copy = copy_cluster(source.server, folder / "copy")
    source.restart()
    with replicator():
        wait_until_healed(source)
        change_everything(source)
        wait_until_healed(source)
        source.server.stop()
        copy.start()
        source.use(copy)
        source.execute("INSERT INTO note VALUES (5, 'five')")
        wait_until_healed(source)
        assert served() == {"1": "one", "2": "two", "5": "five"}


@pytest.mark.soak
def test_another_server_took_the_address(source):
    with replicator(), own_server() as other:
        wait_until_healed(source)
        first = source.server
        source.use(other)
        source.execute("CREATE TABLE note (id int PRIMARY KEY, title text); INSERT INTO note VALUES (7, 'seven')")
        wait_until_healed(source)
        source.use(first)
        wait_until_healed(source)


@contextmanager
def standby_of(source: Elsewhere, folder: Path, **settings: str) -> Iterator[OwnServer]:
    """A running hot standby, made by pg_basebackup, with a physical slot `standby1`."""
    source.execute("SELECT pg_create_physical_replication_slot('standby1', true)")
    standby = server_in(folder / "standby", hot_standby_feedback="on", primary_slot_name="standby1", **settings)
    standby.make_empty_cluster()
    standby.run("pg_basebackup", "-d", source.server.url, "-D", str(standby.cluster), "-c", "fast", "-R")
    standby.start()
    try:
        yield standby
    finally:
        standby.stop()


def promote(standby: OwnServer) -> None:
    """Make a primary of it."""
    with standby.connect() as session:
        session.execute("SELECT pg_promote(true)")


def test_failover_to_a_standby_without_the_slot(source, folder):
    with standby_of(source, folder) as standby, replicator():
        wait_until_healed(source)
        change_everything(source)
        wait_until_healed(source)
        wait_until_replayed(source, standby)
        source.server.stop()
        promote(standby)
        source.use(standby)
        source.execute("INSERT INTO note VALUES (4, 'four')")
        wait_until_healed(source)


@pytest.mark.soak
def test_failover_to_a_standby_that_missed_what_clients_have(source, folder):
    with standby_of(source, folder) as standby, replicator():
        wait_until_healed(source)
        wait_until_replayed(source, standby)
        standby.stop()
        change_everything(source)
        wait_until_healed(source)
        source.server.stop()
        standby.start()
        promote(standby)
        source.use(standby)
        source.execute("INSERT INTO note VALUES (4, 'four')")
        wait_until_healed(source)
        assert served() == {"1": "one", "2": "two", "4": "four"}


def test_a_standby_is_refused_until_it_is_promoted(source, folder):
    with standby_of(source, folder) as standby, replicator():
        wait_until_healed(source)
        wait_until_replayed(source, standby)
        source.server.stop()
        source.use(standby)
        wait_until(lambda: "standby" in errors(), "the standby is refused")
        promote(standby)
        source.execute("INSERT INTO note VALUES (4, 'four')")
        wait_until_healed(source)
        wait_until(lambda: errors() == "", "the error ends")


@pytest.mark.soak
@pytest.mark.skipif(MAJOR < 17, reason="Postgres takes slots along since 17")
def test_failover_with_the_slot_reads_nothing_again(source, folder):
    with standby_of(source, folder, sync_replication_slots="on") as standby, replicator():
        wait_until_healed(source)
        change_everything(source)
        wait_until_healed(source)
        # The slot is taken along once it has moved on behind what the standby can decode from.
        synced = lambda: source.execute("SELECT pg_log_standby_snapshot()") or is_synced(standby)  # noqa: E731
        wait_until(synced, "the standby has the slot", 60)
        wait_until_replayed(source, standby)
        before = operations()
        source.server.stop()
        promote(standby)
        source.use(standby)
        source.execute("INSERT INTO note VALUES (4, 'four')")
        wait_until_healed(source)
        assert operations() == before + 1


def wait_until_replayed(source: Elsewhere, standby: OwnServer) -> None:
    """Wait until the standby has all that the source has."""
    ((position,),) = source.query("SELECT pg_current_wal_flush_lsn()")
    with standby.connect() as session:
        query = f"SELECT pg_last_wal_replay_lsn() >= '{position}'"
        wait_until(lambda: session.execute(query).fetchone() == (True,), "the standby has replayed it")


def is_synced(standby: OwnServer) -> bool:
    """Whether the standby holds a copy of our slot that survives a promotion."""
    with standby.connect() as session:
        query = "SELECT count(*) FROM pg_replication_slots WHERE synced AND NOT temporary"
        return session.execute(query).fetchone() == (1,)


def operations() -> int:
    """How many operations are stored."""
    return BucketOperation.objects.count()


def test_wal_level_turned_back(source):
    with replicator() as running:
        wait_until_healed(source)
        source.proxy.stalled = True
        source.drop_slots()  # Postgres does not start with wal_level = replica while there are logical slots
        source.restart(wal_level="replica")
        source.proxy.stalled = False
        source.proxy.cut()
        change_everything(source)
        wait_until(lambda: "set wal_level = logical" in errors(), "the remedy is told")
        assert (served(), running.error) == ({"1": "one", "2": "two"}, None)
        source.restart(wal_level="logical")
        wait_until_healed(source)
        wait_until(lambda: errors() == "", "the error ends")


@contextmanager
def alias_as_guest(source: Elsewhere, *rights: str) -> Iterator[None]:
    """The alias connects as a role `guest` that has these rights only."""
    source.execute("CREATE ROLE guest LOGIN PASSWORD 'guest'", *rights)
    with database_alias(ALIAS, f"postgresql://guest:guest@127.0.0.1:{source.proxy.port}/postgres"):
        yield


OWNS_ALL = ("GRANT CREATE ON DATABASE postgres TO guest", "ALTER TABLE note OWNER TO guest")


def refusal() -> str:
    """The one error that ends a replicator which could never follow its only source."""
    with replicator() as running:
        wait_until(lambda: running.error is not None, "the replicator ends")
    assert isinstance(running.error, ConfigurationError), running.error
    return str(running.error)


def test_role_without_replication(source):
    with alias_as_guest(source, *OWNS_ALL):
        assert "ALTER ROLE guest REPLICATION" in refusal()
        source.execute("ALTER ROLE guest REPLICATION")
        with replicator():
            wait_until_healed(source)


def test_role_that_may_neither_publish_nor_read(source):
    with alias_as_guest(source, "ALTER ROLE guest REPLICATION"):
        _, told, statements = refusal().partition("as their owner run: ")
        assert told
        source.execute(*statements.split("; "))
        with replicator():
            wait_until(lambda: "GRANT SELECT" in errors(), "the right is told")
            source.execute("GRANT SELECT ON note TO guest")
            wait_until_healed(source)
            change_everything(source)
            wait_until_healed(source)


def test_row_level_security_from_the_start(source):
    source.execute("ALTER TABLE note ENABLE ROW LEVEL SECURITY", "ALTER TABLE note FORCE ROW LEVEL SECURITY")
    with alias_as_guest(source, *OWNS_ALL, "ALTER ROLE guest REPLICATION"), replicator():
        wait_until(lambda: "BYPASSRLS" in errors(), "the remedy is told")
        assert served() == {}
        source.execute("ALTER ROLE guest BYPASSRLS")
        wait_until_healed(source)
        wait_until(lambda: errors() == "", "the error ends")


def test_a_right_revoked_while_streaming_stops_nothing(source):
    with alias_as_guest(source, *OWNS_ALL, "ALTER ROLE guest REPLICATION"), replicator():
        wait_until_healed(source)
        source.execute("ALTER TABLE note OWNER TO postgres", "REVOKE ALL ON note FROM guest")
        change_everything(source)
        wait_until_healed(source)


def test_pooler_in_front_and_the_way_around_it(source):
    with pooled(source.server.url) as url, database_alias(ALIAS, url):
        assert "REPLICATION_URL" in refusal()
        with replicator(REPLICATION_URL=source.server.url):
            wait_until_healed(source)


def test_connection_cut_at_any_byte(source):
    """Counted from the moment at which the first copy begins, and in the stream."""
    budgets = range(0, 30_000, 61 if SOAK else 3777)
    with replicator():
        for number, budget in enumerate(budgets):
            source.proxy.budget = budget
            source.execute(f"INSERT INTO note VALUES ({10 + number}, repeat('x', 3000))")
            source.execute(f"UPDATE note SET title = 'cut {number}' WHERE id <= 2")
            wait_until(lambda: source.proxy.budget is None or in_step(source), "it is cut, or in step")
        source.proxy.budget = None
        wait_until_healed(source)
    assert source.proxy.cuts > len(budgets) // 3


def test_answers_that_come_byte_by_byte(source):
    """Whoever waited for them inside libpq would hold up every thread, the proxy's too, for ever."""
    source.proxy.piece = 1
    faulthandler.dump_traceback_later(60, exit=True)
    try:
        with replicator():
            change_everything(source)
            wait_until_healed(source)
    finally:
        faulthandler.cancel_dump_traceback_later()


@contextmanager
def small_disk(megabytes: int) -> Iterator[Path]:
    """A disk of this size; only root can mount one."""
    with tempfile.TemporaryDirectory(prefix="localsync-disk-") as name:
        mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=0777", "tmpfs", name]
        if os.geteuid() != 0 or subprocess.run(mount, check=False).returncode:
            pytest.skip("only root can mount a small disk")
        try:
            yield Path(name)
        finally:
            subprocess.run(["umount", "--lazy", name], check=True)


@pytest.mark.soak
def test_disk_full_in_storage(source):
    """Bucket storage is on the same server here, and its operations on a disk that is soon full."""
    with small_disk(16) as disk:
        source.server.adopt(disk)
        migrate_storage(source)
        source.execute(
            f"CREATE TABLESPACE small LOCATION '{disk}'",
            "ALTER TABLE localsync_bucket_operation SET TABLESPACE small",
        )
        with replicator(STORAGE=ALIAS):
            wait_until(lambda: source.served() == source.titles(), "it is in step", 60)
            source.execute(
                "INSERT INTO note SELECT 100 + n, (SELECT string_agg(md5((n * m)::text), '') FROM"
                " generate_series(1, 300) AS m) FROM generate_series(1, 2500) AS n"
            )
            wait_until(lambda: "the disk of the database server is full" in source.errors(), "the remedy is told", 30)
            assert source.served() == {"1": "one", "2": "two"}
            subprocess.run(["mount", "-o", "remount,size=200m", str(disk)], check=True)
            wait_until(lambda: source.served() == source.titles(), "it is in step", 60)
            wait_until(lambda: source.errors() == "", "the error ends")
        source.execute("DROP TABLE localsync_bucket_operation", "DROP TABLESPACE small")


def test_clock_jumps(source, monkeypatch):
    jumps = itertools.cycle([0.0, 1e9, -1e9, 86_400.0, -3600.0])
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + next(jumps))
    with replicator(HEARTBEAT_INTERVAL_S=0.2):
        wait_until_healed(source)
        change_everything(source)
        wait_until_healed(source)
        source.proxy.cut()
        source.execute("UPDATE note SET title = 'after the jump'")
        wait_until_healed(source)


def test_an_idle_source_moves_on_by_heartbeats(source):
    with replicator(HEARTBEAT_INTERVAL_S=0.2):
        wait_until_healed(source)
        ((before,),) = source.query("SELECT confirmed_flush_lsn - '0/0'::pg_lsn FROM pg_replication_slots")
        stored = Source.objects.get().written_lsn
        wait_until(lambda: Source.objects.get().written_lsn > stored, "storage moves on")
        moved = f"SELECT confirmed_flush_lsn - '0/0'::pg_lsn > {before} FROM pg_replication_slots"
        wait_until(lambda: source.query(moved) == [(True,)], "the slot moves on")
    assert operations() == 2


def test_an_idle_replicator_with_its_storage_beside_the_source_is_quiet(source, monkeypatch):
    """Storing a position writes WAL, which moves the position."""
    monkeypatch.setattr(stream, "IDLE_POSITION_INTERVAL_S", 0.5)
    migrate_storage(source)
    with replicator(STORAGE=ALIAS):
        wait_until(lambda: source.served() == source.titles(), "it is in step", 30)
        time.sleep(0.8)
        before = transactions(source)
        time.sleep(1.5)
        assert transactions(source) - before < 12


def transactions(source: Elsewhere) -> int:
    """How many writing transactions the server has seen."""
    ((number,),) = source.query("SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint")
    return int(number)


def migrate_storage(source: Elsewhere) -> None:
    """Make the tables of bucket storage on the source's own server."""
    migrate = [sys.executable, "manage.py", "migrate", "django_localsync", "--verbosity=0"]
    subprocess.run(migrate, check=True, cwd=ROOT, env=os.environ | project_environment(source.server.url))
