"""Slots as Postgres leaves them: what is told of them, and what streaming from them raises."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import psycopg
import pytest

from django_localsync.exceptions import ConfigurationError, SlotLost
from django_localsync.pgoutput.lsn import Lsn
from django_localsync.replication import slot as slot_module
from django_localsync.replication.connection import ReplicationConnection, SystemIdentity
from django_localsync.replication.diagnosis import Verdict, diagnose
from django_localsync.replication.slot import (
    SlotHealth,
    SlotWatch,
    check_server,
    drop_slot,
    history_problem,
    read_slot_health,
    slot_problem,
)
from tests.processes import wait_until
from tests.servers import MAJOR, database_alias, own_server

Session = psycopg.Connection[tuple[Any, ...]]
SLOT = "localsync_test"
KEEP = 64 << 20


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A server that keeps at most 64 MB of WAL for slots; its database has the alias `elsewhere`."""
    settings = {"max_slot_wal_keep_size": "64MB", "max_replication_slots": "2", "checkpoint_timeout": "1h"}
    with own_server(**settings) as server, database_alias("elsewhere", server.url):
        yield server.url


@pytest.fixture
def session(url: str) -> Iterator[Session]:
    """A session on it. Afterwards there is no slot."""
    with psycopg.connect(url, autocommit=True) as connection:
        yield connection
        for (slot,) in connection.execute("SELECT slot_name FROM pg_replication_slots").fetchall():
            wait_until(lambda slot=slot: drop_slot(connection, slot), "nobody reads the slot")


@pytest.fixture
def slot(session: Session) -> Lsn:
    """Where a slot that was just made begins."""
    with closing(ReplicationConnection("elsewhere")) as replication:
        return replication.create_slot(SLOT).consistent_point


def write_wal(session: Session, megabytes: int) -> None:
    """Let the server write this much WAL, and a checkpoint."""
    for _ in range(megabytes // 16):
        session.execute("SELECT pg_logical_emit_message(true, 'x', 'x'), pg_switch_wal()")
    session.execute("CHECKPOINT")


def health(session: Session) -> SlotHealth:
    """How the slot fares."""
    found = read_slot_health(session, SLOT)
    assert found is not None
    return found


def start(after: Lsn, slot: str = SLOT, publication: str = "none") -> ReplicationConnection:
    """Begin to stream."""
    replication = ReplicationConnection("elsewhere")
    try:
        replication.start(slot, after, [publication])
    except Exception:
        replication.close()
        raise
    return replication


def read_to_the_end(replication: ReplicationConnection) -> None:
    """Read until the stream ends, which raises."""
    reader, writer = os.pipe()
    with open(reader), open(writer):
        for _ in range(100):
            replication.read(0.1, reader)
    raise AssertionError("the stream goes on")


def test_a_new_slot_is_well(session, slot):
    found = health(session)
    assert (found.problem, found.warning, found.budget_bytes) == (None, None, KEEP)
    assert found.retained_bytes < 1 << 20
    assert slot_problem(session, SLOT, slot) is None


def test_half_of_the_wal_budget_gives_a_warning(session, slot):
    write_wal(session, 16)
    assert health(session).warning is None
    write_wal(session, 32)
    assert "% of max_slot_wal_keep_size" in str(health(session).warning)
    assert health(session).problem is None


def test_the_replicator_says_once_that_half_of_the_wal_budget_is_used(session, slot, monkeypatch, caplog):
    monkeypatch.setattr(slot_module, "WATCH_INTERVAL_S", 0.0)
    watch = SlotWatch(session, SLOT)
    watch.look_when_due()
    assert caplog.text == ""
    write_wal(session, 48)
    watch.look_when_due()
    watch.look_when_due()
    assert caplog.text.count("of max_slot_wal_keep_size") == 1


def test_a_slot_that_exceeded_the_wal_budget_is_lost(session, slot):
    write_wal(session, 128)
    assert "Postgres gave it up" in str(slot_problem(session, SLOT, slot))
    with pytest.raises(SlotLost) as error:
        start(slot)
    assert diagnose(error.value).verdict is Verdict.NEW_SLOT


def test_a_slot_that_does_not_exist_is_lost(session):
    assert slot_problem(session, SLOT) == "it does not exist"
    with pytest.raises(SlotLost, match="does not exist"):
        start(Lsn(0))


def test_a_slot_made_anew_under_the_old_name_is_not_continued(session, slot):
    session.execute("SELECT pg_drop_replication_slot(%s)", (SLOT,))
    write_wal(session, 16)
    session.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", (SLOT,))
    assert "beyond" in str(slot_problem(session, SLOT, slot))


@pytest.mark.parametrize(
    ("made", "told"),
    [
        ("pg_create_physical_replication_slot(%s)", "it is not a slot of pgoutput"),
        ("pg_create_logical_replication_slot(%s, 'pgoutput')", "it belongs to another database"),
    ],
)
def test_somebody_elses_slot_of_this_name_is_not_used(url, session, made, told):
    session.execute("DROP DATABASE IF EXISTS other")
    session.execute("CREATE DATABASE other")
    with psycopg.connect(url, dbname="other", autocommit=True) as elsewhere:
        elsewhere.execute(f"SELECT {made}", (SLOT,))  # type: ignore[arg-type]
        assert slot_problem(session, SLOT) == told
        elsewhere.execute("SELECT pg_drop_replication_slot(%s)", (SLOT,))


def test_a_publication_that_is_gone_ends_the_stream_for_good(session, slot):
    if MAJOR >= 18:
        pytest.skip("Postgres 18 goes on without it; publication_problems finds it")
    session.execute("CREATE TABLE IF NOT EXISTS t (a int PRIMARY KEY); INSERT INTO t SELECT count(*) FROM t")
    with closing(start(slot, publication="gone")) as replication, pytest.raises(SlotLost, match="gone"):
        read_to_the_end(replication)


def test_a_slot_in_use_is_tried_again(session, slot):
    with closing(start(slot)):
        with pytest.raises(psycopg.Error) as error:
            start(slot)
        assert diagnose(error.value).verdict is Verdict.RETRY
        assert drop_slot(session, SLOT) is False


def test_no_free_slot_needs_a_person(session, slot):
    with closing(ReplicationConnection("elsewhere")) as replication:
        replication.create_slot("second")
        with pytest.raises(psycopg.Error) as error:
            replication.create_slot("third")
    found = diagnose(error.value)
    assert (found.verdict, "max_replication_slots" in str(found)) == (Verdict.PERSON, True)


def test_a_walsender_ended_by_an_administrator_is_tried_again(session, slot):
    with closing(start(slot)) as replication:
        session.execute("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots")
        with pytest.raises(psycopg.Error) as error:
            read_to_the_end(replication)
    assert diagnose(error.value).verdict is Verdict.RETRY


def test_history_goes_on_where_system_and_timeline_are_the_same(session, slot):
    with closing(ReplicationConnection("elsewhere")) as replication:
        now = replication.identify_system()
        assert history_problem(replication, session, now, slot) is None
        assert history_problem(replication, session, now._replace(system_identifier="1"), slot)
        assert history_problem(replication, session, now._replace(timeline=7), slot)
        ahead = Lsn(slot.value + (1 << 40))
        assert history_problem(replication, session, now, ahead) == "the source was set back to an earlier state"
        assert isinstance(now, SystemIdentity)


def test_a_role_that_may_not_replicate_is_told_how(url, session):
    session.execute('DROP ROLE IF EXISTS "Guest"; CREATE ROLE "Guest"; SET ROLE "Guest"')
    try:
        with pytest.raises(ConfigurationError, match='ALTER ROLE "Guest" REPLICATION'):
            check_server(session)
    finally:
        session.execute("RESET ROLE")
    session.execute('ALTER ROLE "Guest" REPLICATION; SET ROLE "Guest"')
    check_server(session)
    session.execute("RESET ROLE")


def test_a_role_of_a_managed_service_may_replicate_by_membership(session):
    session.execute("CREATE ROLE rds_replication; CREATE ROLE managed IN ROLE rds_replication; SET ROLE managed")
    check_server(session)
    session.execute("RESET ROLE; DROP ROLE managed, rds_replication")
    check_server(session)
