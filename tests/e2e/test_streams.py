"""Processes that are left, told to end, or killed: streams go, servers and replicators end, standbys take over."""

from __future__ import annotations

import random
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import LiteralString

import psycopg
import pytest

from example_project.database_url import parse_url
from tests.conftest import SOAK
from tests.databases import temporary_database
from tests.e2e.project import Database, Person, RunningProject, open_database, running_project
from tests.e2e.wire import begin_stream, data_rows, http, open_stream, read_checkpoint
from tests.processes import START_TIMEOUT_S, Process, replicator, replicator_process, wait_until

ABANDONED_WITHIN_S = 2.0
SERVER_ENDS_WITHIN_S = 3.0
REPLICATOR_ENDS_WITHIN_S = 1.0
LONG_COPY_ROWS = 60_000  # seconds, also on a fast machine
TAKEN_OVER_WITHIN_S = 5.0
STREAMS = 1000 if SOAK else 200
SEED = random.SystemRandom().randrange(2**32)


@pytest.fixture(scope="module", params=["uvicorn", "daphne"])
def server(request: pytest.FixtureRequest, server_url: str, migrated_database: str) -> Iterator[RunningProject]:
    """A project whose server counts what it serves. A test that ends it starts another one."""
    application = "tests.e2e.counted_streams:application"
    with (
        temporary_database(server_url, template=migrated_database) as url,
        running_project(url, request.param, application=application) as project,
    ):
        yield project


def make_person(project: RunningProject, todos: int = 3, *, title: str = "Something to do") -> Person:
    """A user with a list of so many to-dos, which are replicated."""
    person = project.add_person("alice")
    list_id = project.add_list("Long", person)
    add_todos(project, list_id, todos, title)
    bucket: LiteralString = "SELECT operations FROM localsync_bucket WHERE strpos(parameters, %(list)s) > 0"
    wait_until(lambda: project.rows(bucket, list=list_id) == [(todos + 2,)], "everything is replicated")
    return person


def add_todos(database: Database, list_id: str, number: int, title: str) -> None:
    statement: LiteralString = """
        INSERT INTO todos (id, list_id, title, done, created_at, updated_at)
        SELECT gen_random_uuid(), %(list)s, %(title)s, false, now(), now() FROM generate_series(1, %(number)s)
    """
    database.rows(statement, list=list_id, number=number, title=title)


def count_requests(project: RunningProject) -> int:
    return int(http.get(f"{project.address}/requests").text)


def wait_until_none_is_served(project: RunningProject) -> None:
    wait_until(lambda: count_requests(project) == 0, "abandoned streams are gone", ABANDONED_WITHIN_S)


# --- streams ---


def test_abandoned_streams_are_gone_within_two_seconds(server: RunningProject) -> None:
    token = make_person(server).token()
    with ExitStack() as streams:
        for _ in range(20):
            streams.enter_context(open_stream(server.endpoint, token)).read_until(b"checkpoint_complete")
        assert count_requests(server) == 20
    wait_until_none_is_served(server)


def test_streams_abandoned_while_they_send_are_gone_within_two_seconds(server: RunningProject) -> None:
    token = make_person(server, 15_000, title="x" * 200).token()  # 8 MB: more than any buffer on the way
    stalled = [begin_stream(server.endpoint, token, window=4096) for _ in range(5)]
    for stream in stalled:
        assert stream.connection.recv(1000)
    if server.server.name == "uvicorn":  # daphne takes everything into its memory, and the stream is idle then
        assert count_requests(server) == 5
    for stream in stalled:
        stream.connection.close()
    wait_until_none_is_served(server)


def test_clients_that_leave_at_any_moment_spoil_nothing_for_others(server: RunningProject) -> None:
    chance = random.Random(SEED)
    print(f"seed: {SEED}")
    person = make_person(server, 300)
    token, list_id = person.token(), str(server.expected(person)["lists"][0][0])
    for number in range(60):
        stream = begin_stream(server.endpoint, token)
        add_todos(server, list_id, 1, "Meanwhile")
        time.sleep(chance.uniform(0, 0.012))
        stream.connection.close()
        if number % 10 == 0:
            read_checkpoint(server.endpoint, token)
    wait_until_none_is_served(server)
    assert len(data_rows(read_checkpoint(server.endpoint, token))) >= 302
    assert "Traceback" not in server.server.log


def test_sigterm_ends_a_server_and_its_streams_in_time(server: RunningProject) -> None:
    token = make_person(server).token()
    streams = [begin_stream(server.endpoint, token) for _ in range(STREAMS)]
    for stream in streams:
        stream.read_until(b"checkpoint_complete")

    took_s, log = replace_server(server)
    for stream in streams:
        stream.read_to_end()
        stream.connection.close()

    print(f"{STREAMS} streams and their server ended in {took_s:.2f} s")
    assert took_s < SERVER_ENDS_WITHIN_S
    assert "Traceback" not in log
    if server.server.name == "uvicorn":  # daphne cuts off whatever is open
        assert all(stream.ended_normally for stream in streams)


def test_sigterm_ends_a_server_whose_clients_do_not_read(server: RunningProject) -> None:
    token = make_person(server, 15_000, title="x" * 200).token()
    stalled = [begin_stream(server.endpoint, token, window=4096) for _ in range(3)]
    for stream in stalled:
        assert stream.connection.recv(1000)
    took_s, _ = replace_server(server)
    for stream in stalled:
        stream.connection.close()
    # What a client does not take cannot end normally: the server's own graceful timeout cuts it off.
    assert took_s < SERVER_ENDS_WITHIN_S + 2


def replace_server(project: RunningProject) -> tuple[float, str]:
    """End the server by SIGTERM and start another one; seconds to its end, and its log."""
    process, began = project.server, time.monotonic()
    process.stop()
    took_s = time.monotonic() - began
    project.start_server()
    return took_s, process.log


# --- the replicator ---


def time_to_end(process: Process) -> float:
    """Seconds from SIGTERM to the end, which must be regular."""
    began = time.monotonic()
    assert process.stop() == 0
    took_s = time.monotonic() - began
    assert "Traceback" not in process.log
    return took_s


def test_sigterm_ends_an_idle_replicator_within_a_second(fresh_database: str) -> None:
    with replicator(fresh_database) as process:
        assert time_to_end(process) < REPLICATOR_ENDS_WITHIN_S


def test_sigterm_ends_a_replicator_within_a_second_while_it_copies(fresh_database: str) -> None:
    with open_database(fresh_database) as database:
        person = database.add_person("alice")
        add_todos(database, database.add_list("Long", person), LONG_COPY_ROWS, "x")
        count: LiteralString = "SELECT count(*) FROM localsync_bucket_operation WHERE row_type = 'todos'"
        with replicator_process(fresh_database) as process:
            wait_until(lambda: database.rows(count) != [(0,)], "something is copied", check=process.check)
            assert time_to_end(process) < REPLICATOR_ENDS_WITHIN_S
        assert database.rows(count)[0][0] < LONG_COPY_ROWS, "the copy ended before the signal"
        with replicator(fresh_database):
            assert database.rows(count) == [(LONG_COPY_ROWS,)], "the copy that was cut short lost or repeated something"


def test_sigterm_ends_a_replicator_within_a_second_while_its_slot_waits_for_a_transaction(fresh_database: str) -> None:
    with open_database(fresh_database) as database, psycopg.connect(fresh_database) as other:
        other.execute("SELECT pg_current_xact_id()")
        with replicator_process(fresh_database) as process:
            waiting: LiteralString = "SELECT 1 FROM pg_stat_activity WHERE query LIKE 'CREATE_REPLICATION_SLOT%%'"
            wait_until(lambda: database.rows(waiting), "a slot is being created", check=process.check)
            assert time_to_end(process) < REPLICATOR_ENDS_WITHIN_S
        other.rollback()
        with replicator(fresh_database):
            slots: LiteralString = "SELECT count(*) FROM pg_replication_slots WHERE database = current_database()"
            wait_until(lambda: database.rows(slots) == [(1,)], "the slot that nobody took is dropped")


def test_sigterm_ends_a_replicator_within_a_second_while_a_migration_holds_a_table(fresh_database: str) -> None:
    with open_database(fresh_database) as database, psycopg.connect(fresh_database) as migration:
        migration.execute("LOCK TABLE todos IN ACCESS EXCLUSIVE MODE")
        with replicator_process(fresh_database) as process:
            waiting: LiteralString = "SELECT 1 FROM pg_stat_activity WHERE query LIKE 'ALTER PUBLICATION%%'"
            wait_until(lambda: database.rows(waiting), "tables are published", START_TIMEOUT_S, check=process.check)
            assert time_to_end(process) < REPLICATOR_ENDS_WITHIN_S
        migration.rollback()
        with replicator(fresh_database):
            pass  # it becomes ready


@contextmanager
def silent_server() -> Iterator[int]:
    """A port that takes connections and never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(16)
        yield int(listener.getsockname()[1])


@contextmanager
def nobody() -> Iterator[int]:
    """A port that refuses connections."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield int(taken.getsockname()[1])


def test_sigterm_ends_a_replicator_within_a_second_while_postgres_refuses(fresh_database: str) -> None:
    with nobody() as port, replicator_process(with_port(fresh_database, port)) as process:
        process.wait_for_log("again in")
        assert time_to_end(process) < REPLICATOR_ENDS_WITHIN_S


def test_sigterm_ends_a_replicator_within_a_second_while_postgres_is_silent(fresh_database: str) -> None:
    with silent_server() as port, replicator_process(with_port(fresh_database, port)) as process:
        wait_until(lambda: has_connection_to(process, port), "it has connected", check=process.check)
        time.sleep(0.2)
        began = time.monotonic()
        process.stop()  # before it has begun, a signal's own default ends it
        assert time.monotonic() - began < REPLICATOR_ENDS_WITHIN_S


def with_port(url: str, port: int) -> str:
    return url.replace(f":{parse_url(url)['PORT']}/", f":{port}/")


def has_connection_to(process: Process, port: int) -> bool:
    """Whether the process has a TCP connection to a port of 127.0.0.1."""
    with open(f"/proc/{process.pid}/net/tcp") as connections:
        return any(line.split()[2] == f"0100007F:{port:04X}" and line.split()[3] == "01" for line in connections)


def test_a_standby_ends_within_a_second_and_takes_over_within_seconds_of_a_kill(fresh_database: str) -> None:
    with (
        replicator(fresh_database) as active,
        replicator_process(fresh_database) as standby,
        replicator_process(fresh_database) as other,
        open_database(fresh_database) as database,
    ):
        for process in (standby, other):
            process.wait_for_log("standing by")
        assert time_to_end(other) < REPLICATOR_ENDS_WITHIN_S

        list_id = database.add_list("Before", database.add_person("alice"))
        active.kill()
        database.add_todo(list_id, "After")
        began = time.monotonic()
        count: LiteralString = "SELECT count(*) FROM localsync_bucket_operation WHERE row_type = 'todos'"
        wait_until(lambda: database.rows(count) == [(1,)], "the standby replicates", check=standby.check)
        took_s = time.monotonic() - began
        print(f"taken over in {took_s:.1f} s")
        assert took_s < TAKEN_OVER_WITHIN_S
        assert "copying" not in standby.log
        assert time_to_end(standby) < REPLICATOR_ENDS_WITHIN_S
