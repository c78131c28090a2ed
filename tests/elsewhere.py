"""A source on a server of its own, behind a proxy: it can be restarted, restored and cut off while storage stands."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psycopg
from django.db import connection
from django.test import override_settings

from django_localsync.buckets.operation import OpKind
from django_localsync.models import Source
from django_localsync.replication.slot import drop_slot
from tests.processes import wait_until
from tests.proxies import Proxy, proxied
from tests.replication import RunningReplicator
from tests.servers import OwnServer, database_alias, own_server
from tests.source import streams

ALIAS = "elsewhere"
NOTES = streams(all="SELECT id, title FROM note")
HEALED_WITHIN_S = 30.0


class Elsewhere:
    """Alias `elsewhere`: a table `note` (id, title) with two rows."""

    def __init__(self, server: OwnServer, proxy: Proxy) -> None:
        self.server, self.proxy = server, proxy

    def execute(self, *statements: str) -> None:
        """Run SQL on the server itself; each text is a transaction of its own."""
        with self.server.connect() as session:
            for statement in statements:
                session.execute(statement)

    def query(self, statement: str) -> list[tuple[Any, ...]]:
        """Ask the server itself."""
        with self.server.connect() as session:
            return session.execute(statement).fetchall()

    def titles(self) -> dict[str, str]:
        """What the table holds."""
        return {str(note): title for note, title in self.query("SELECT id, title FROM note")}

    def served(self) -> dict[str, str]:
        """`served`, where storage is on this server, too."""
        return dict(self.query(SERVED.replace("%s", str(OpKind.PUT.value))))

    def errors(self) -> str:
        """`errors`, where storage is on this server, too."""
        return "; ".join(row[0] for row in self.query("SELECT error FROM localsync_source"))

    def use(self, server: OwnServer) -> None:
        """From here on, the alias leads to this server."""
        self.server = server
        self.proxy.target = int(server.url.rpartition(":")[2].partition("/")[0])
        self.proxy.cut()

    def restart(self, **settings: str) -> None:
        """Shut the server down and start it again, with these settings changed."""
        self.server.stop()
        self.server.change_settings(**settings)
        self.server.start()
        self.use(self.server)

    def crash(self) -> None:
        """Kill the server and start it again: it recovers from its WAL."""
        postmaster = int((self.server.cluster / "postmaster.pid").read_text().split("\n", 1)[0])
        os.kill(postmaster, signal.SIGQUIT)  # Postgres's "immediate": what it has not flushed is lost
        self.restart()

    def slots(self) -> list[str]:
        """Names of the server's slots."""
        return [row[0] for row in self.query("SELECT slot_name FROM pg_replication_slots ORDER BY 1")]

    def drop_slots(self) -> None:
        """Drop every slot, sending away whoever reads it."""
        with self.server.connect() as session:
            for slot in self.slots():
                wait_until(lambda slot=slot: _dropped(session, slot), "the slot can be dropped")

    def lose_slots(self) -> None:
        """Write so much WAL that Postgres gives up every slot."""
        for _ in range(8):
            self.execute("SELECT pg_logical_emit_message(true, 'x', 'x'), pg_switch_wal()")
        self.execute("CHECKPOINT")
        lost = self.query("SELECT wal_status FROM pg_replication_slots")
        assert lost == [("lost",)] * len(lost), lost


def _dropped(session: psycopg.Connection[Any], slot: str) -> bool:
    session.execute("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active")
    with suppress(psycopg.errors.ObjectInUse):
        return drop_slot(session, slot)
    return False


@contextmanager
def elsewhere(**settings: str) -> Iterator[Elsewhere]:
    """The source, with these settings of Postgres."""
    with own_server(**settings) as server, proxied(server.url) as (proxy, url), database_alias(ALIAS, url):
        source = Elsewhere(server, proxy)
        source.execute(
            "CREATE TABLE note (id int PRIMARY KEY, title text)", "INSERT INTO note VALUES (1, 'one'), (2, 'two')"
        )
        yield source
        for extra in _servers_of(source, server):
            extra.stop()


def _servers_of(source: Elsewhere, first: OwnServer) -> list[OwnServer]:
    return [source.server] if source.server is not first else []


@contextmanager
def replicator(**settings: Any) -> Iterator[RunningReplicator]:
    """A replicator of `elsewhere`, just started, and stopped afterwards."""
    settings = {"RULES": NOTES, "SOURCES": [ALIAS], **settings}
    with override_settings(LOCALSYNC=settings):
        running = RunningReplicator(**settings)
        _replicators.append(running)
        try:
            yield running
        finally:
            _replicators.remove(running)
            running.stop()


_replicators: list[RunningReplicator] = []


# What a client that reads at the checkpoint ends with.
SERVED = """
    SELECT row_id, data::json ->> 'title' FROM (
        SELECT DISTINCT ON (row_type, row_id, subkey) row_id, data, operation.kind
          FROM localsync_bucket_operation AS operation
          JOIN localsync_bucket AS bucket ON bucket.id = bucket_id
          JOIN localsync_definition AS definition ON definition.id = definition_id
         WHERE definition.state = 'served' AND op_id <= (SELECT op_id FROM localsync_checkpoint)
         ORDER BY row_type, row_id, subkey, op_id DESC) AS newest
     WHERE kind = %s
"""


def served() -> dict[str, str]:
    """Row id and title of what clients get; nothing while no rule set is served."""
    with connection.cursor() as cursor:
        cursor.execute(SERVED, [OpKind.PUT.value])
        return dict(cursor.fetchall())


def errors() -> str:
    """What storage says keeps sources from being followed."""
    return "; ".join(Source.objects.values_list("error", flat=True))


def in_step(source: Elsewhere) -> bool:
    """Whether clients get what the table holds."""
    return served() == source.titles()


def wait_until_healed(source: Elsewhere) -> None:
    """Wait until clients get what the table holds."""
    wait_until(lambda: in_step(source), f"storage holds {source.titles()}", HEALED_WITHIN_S, check=_check_running)


def _check_running() -> None:
    for running in _replicators:
        if running.error is not None:
            raise AssertionError("the replicator ended") from running.error
