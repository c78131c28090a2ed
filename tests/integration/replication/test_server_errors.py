"""What a server refuses, and why: each error says whether it passes, and what a person can do."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import psycopg
import pytest

from django_localsync.exceptions import ConfigurationError, SlotLost
from django_localsync.replication.connection import ReplicationConnection, check_direct
from django_localsync.replication.diagnosis import Diagnosis, Verdict, diagnose
from django_localsync.replication.slot import check_server
from django_localsync.storage.connections import connect, connect_for_rows
from tests.proxies import pooled
from tests.servers import MAJOR, OwnServer, database_alias, own_server

Session = psycopg.Connection[tuple[Any, ...]]


@pytest.fixture(scope="module")
def server() -> Iterator[OwnServer]:
    """A server with a role `guest` that has a password and no rights, and little room."""
    reserved = {"reserved_connections": "0"} if MAJOR >= 16 else {}
    with own_server(max_connections="10", superuser_reserved_connections="4", **reserved) as server:
        with server.connect() as session:
            session.execute("CREATE ROLE guest LOGIN PASSWORD 'guest'; CREATE TABLE note (id int PRIMARY KEY)")
        yield server


@pytest.fixture
def session(server: OwnServer) -> Iterator[Session]:
    """A superuser's session."""
    with server.connect() as connection:
        yield connection


def as_guest(server: OwnServer) -> str:
    """The URL of the role without rights."""
    return "postgresql://guest:guest@" + server.url.rpartition("@")[2]


def failure_to_connect(url: str, **parameters: Any) -> Diagnosis:
    """What is said of a connection that cannot be made."""
    with pytest.raises(psycopg.OperationalError) as error:
        psycopg.connect(url, **parameters)
    return diagnose(error.value)


@pytest.mark.parametrize("parameters", [{"password": "wrong"}, {"dbname": "nope"}, {"user": "nobody"}])
def test_wrong_credentials_need_a_person(server, parameters):
    found = failure_to_connect(server.url, **parameters)
    assert (found.verdict, "user, password and database" in str(found)) == (Verdict.PERSON, True)
    assert "wrong" not in str(found)  # never a password


def test_a_server_that_does_not_answer_is_tried_again():
    assert failure_to_connect("postgresql://127.0.0.1:1/x").verdict is Verdict.RETRY


def test_a_role_without_replication_is_told_the_attribute(server):
    with database_alias("elsewhere", as_guest(server)):
        with pytest.raises(psycopg.OperationalError) as error:
            ReplicationConnection("elsewhere")
        assert "ALTER ROLE … REPLICATION" in str(diagnose(error.value))
        with closing(connect("elsewhere")) as connection, pytest.raises(ConfigurationError, match="ALTER ROLE guest"):
            check_server(connection)


def test_a_role_without_select_is_told_the_grant(server):
    with (
        database_alias("elsewhere", as_guest(server)),
        closing(connect_for_rows("elsewhere")) as connection,
        pytest.raises(psycopg.Error) as error,
    ):
        connection.execute("SELECT * FROM public.note")
    found = diagnose(error.value)
    assert (found.verdict, "GRANT SELECT" in str(found)) == (Verdict.PERSON, True)


def test_row_level_security_is_an_error_and_never_hides_a_row(server, session):
    session.execute("ALTER TABLE note ENABLE ROW LEVEL SECURITY; GRANT SELECT ON note TO guest")
    session.execute("CREATE POLICY all_rows ON note USING (true)")
    with database_alias("elsewhere", as_guest(server)), closing(connect_for_rows("elsewhere")) as connection:
        with pytest.raises(psycopg.Error) as error:
            connection.execute("SELECT * FROM public.note")
        found = diagnose(error.value)
        assert (found.verdict, "BYPASSRLS" in str(found)) == (Verdict.PERSON, True)
        session.execute("ALTER ROLE guest BYPASSRLS")
        connection.execute("SELECT * FROM public.note")
    session.execute("DROP POLICY all_rows ON note; ALTER TABLE note DISABLE ROW LEVEL SECURITY")
    session.execute("REVOKE SELECT ON note FROM guest; ALTER ROLE guest NOBYPASSRLS")


def test_too_many_connections_are_tried_again(server):
    taken = [psycopg.connect(as_guest(server)) for _ in range(6)]
    found = failure_to_connect(as_guest(server))
    for connection in taken:
        connection.close()
    assert (found.verdict, "max_connections" in str(found)) == (Verdict.RETRY, True)


def test_a_read_only_server_needs_a_person(session):
    session.execute("SET default_transaction_read_only = on")
    with pytest.raises(psycopg.Error) as error:
        session.execute("INSERT INTO note VALUES (1)")
    session.execute("RESET default_transaction_read_only")
    found = diagnose(error.value)
    assert (found.verdict, "standby" in str(found)) == (Verdict.PERSON, True)


def test_tables_of_ours_that_do_not_exist_ask_for_migrate(session):
    with pytest.raises(psycopg.Error) as error:
        session.execute("SELECT * FROM localsync_checkpoint")
    assert diagnose(error.value) == Diagnosis(
        Verdict.PERSON, 'relation "localsync_checkpoint" does not exist', "run: manage.py migrate"
    )


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (SlotLost("s", "gone"), Verdict.NEW_SLOT),
        (ConfigurationError("x; do y"), Verdict.PERSON),
        (OSError(errno.ENOSPC, "No space left on device"), Verdict.PERSON),
        (psycopg.errors.DiskFull("could not extend file"), Verdict.PERSON),
        (psycopg.errors.DeadlockDetected("deadlock"), Verdict.RETRY),
        (psycopg.errors.AdminShutdown("terminating connection"), Verdict.RETRY),
        (ConnectionResetError("reset"), Verdict.RETRY),
        (ValueError(), Verdict.RETRY),
    ],
)
def test_every_error_has_a_verdict(error, verdict):
    found = diagnose(error)
    assert (found.verdict, bool(found.message)) == (verdict, True)


def test_a_pooler_that_refuses_replication_is_recognised(server):
    with (
        pooled(server.url, "replication") as url,
        database_alias("elsewhere", url),
        pytest.raises(psycopg.OperationalError) as error,
    ):
        ReplicationConnection("elsewhere")
    found = diagnose(error.value)
    assert (found.verdict, "REPLICATION_URL" in str(found)) == (Verdict.PERSON, True)


def test_a_pooler_that_ignores_replication_is_recognised(server):
    with (
        pooled(server.url) as url,
        database_alias("elsewhere", url),
        closing(ReplicationConnection("elsewhere")) as replication,
        pytest.raises(ConfigurationError, match="REPLICATION_URL"),
    ):
        replication.identify_system()


def test_a_pooler_of_transactions_is_recognised(server):
    with (
        pooled(server.url) as url,
        database_alias("elsewhere", url),
        closing(connect("elsewhere")) as connection,
        pytest.raises(ConfigurationError, match=r"'elsewhere'.*REPLICATION_URL"),
    ):
        check_direct(connection, "elsewhere")


def test_a_direct_connection_is_recognised(server):
    with database_alias("elsewhere", server.url), closing(connect("elsewhere")) as connection:
        check_direct(connection, "elsewhere")


def test_wal_level_turned_back_is_told():
    with own_server(wal_level="replica") as server, database_alias("elsewhere", server.url):
        refusal = pytest.raises(ConfigurationError, match="wal_level = replica; set wal_level = logical")
        with closing(connect("elsewhere")) as connection, refusal:
            check_server(connection)
        with closing(ReplicationConnection("elsewhere")) as replication, pytest.raises(psycopg.Error) as error:
            replication.create_slot("localsync_test")
    found = diagnose(error.value)
    assert (found.verdict, "wal_level = logical" in str(found)) == (Verdict.PERSON, True)
