"""The replicator's life: lead, continue or copy, follow; again after a failure.

One is active, others stand by: whoever holds the advisory lock of the storage's database leads, over the very
connection that writes, so that losing the lock and losing the right to write are one event.
"""

from __future__ import annotations

import logging
import os
import select
from collections.abc import Callable
from contextlib import closing
from time import monotonic

import psycopg
from psycopg import sql

from ..conf import Settings, get_settings, read_rules
from ..exceptions import ConfigurationError, ReplicationError, SlotLost
from ..pgoutput.lsn import Lsn
from ..storage import generations
from ..storage.connections import Connection, connect, connect_for_rows
from ..storage.generations import Generation
from ..storage.writer import StorageWriter
from ..sync_rules import canonical_json, compile_rules
from ..sync_rules.plan import Plan
from .changes import ChangeApplier, UnknownBaseRow
from .connection import ReplicationConnection, SystemIdentity
from .copy import Progress, copy_table
from .layout import CopyNeeded, LayoutBuilder, tables_problem
from .publication import publication_names, publish_tables
from .slot import check_server, drop_slot, slot_prefix, slot_problem
from .stream import Stream

logger = logging.getLogger(__name__)

STANDBY_INTERVAL_S = 1.0
FIRST_RETRY_S, LONGEST_RETRY_S = 0.5, 30.0
SETTLED_AFTER_S = 60.0  # a session this long was sound: the next failure begins with a short pause again


class _Stopped(Exception):
    """The replicator was told to stop."""


class Replicator:
    """Follows one source into bucket storage until `stop` is called."""

    def __init__(self, *, progress: Callable[[int], Progress] = Progress) -> None:
        self._settings: Settings = get_settings()
        rules = read_rules(self._settings)
        self._plan: Plan = compile_rules(rules).plan
        self._rules = canonical_json(rules)
        self._progress = progress
        self._copy_reason: str | None = None
        self._stopping = False
        self._wake_reader, self._wake_writer = os.pipe()
        os.set_blocking(self._wake_writer, False)

    def stop(self) -> None:
        """End as soon as possible; may be called from a signal handler or another thread."""
        self._stopping = True
        os.write(self._wake_writer, b"x")

    def run(self) -> None:
        """Replicate until stopped; reconnects by itself. Raises ConfigurationError where only a person can help."""
        pause = FIRST_RETRY_S
        while not self._stopping:
            began = monotonic()
            try:
                self._replicate()
            except _Stopped:
                return
            except ConfigurationError:
                raise
            except (CopyNeeded, UnknownBaseRow, SlotLost) as error:
                logger.warning("%s", error)
                self._copy_reason = str(error)
            except (psycopg.Error, ReplicationError, OSError) as error:
                if monotonic() - began > SETTLED_AFTER_S:
                    pause = FIRST_RETRY_S
                logger.warning("%s: %s; again in %.1f s", type(error).__name__, str(error).strip(), pause)
                self._wait(pause)
                pause = min(pause * 2, LONGEST_RETRY_S)

    def _replicate(self) -> None:
        with closing(connect(self._settings.storage, application_name="django_localsync storage")) as storage:
            self._lead(storage)
            generations.prepare_storage(storage)
            source = self._settings.source
            with closing(connect_for_rows(source)) as reader, closing(ReplicationConnection(source)) as replication:
                check_server(reader)
                self._follow(storage, reader, replication)

    def _follow(self, storage: Connection, reader: Connection, replication: ReplicationConnection) -> None:
        layouts = LayoutBuilder(reader, self._plan)
        writer = StorageWriter(storage)
        system = replication.identify_system()
        generations.abandon_unfinished(storage)
        generation = generations.load_generation(storage, "active", self._plan)
        problem = self._copy_reason or self._continuation_problem(reader, generation, system, layouts)
        if generation is None or problem:
            logger.info("copying: %s", problem)
            generation = self._copy(storage, reader, replication, writer, layouts, system)
            self._copy_reason = None
        start = Lsn(generation.source.lsn)
        replication.start(generation.source.slot, start, publication_names(self._settings.publication_name))
        logger.info("following slot %s from %s", generation.source.slot, start)
        cleaner = _Cleaner(storage, reader, self._settings.source)
        Stream(replication, writer, generation, layouts, when_idle=cleaner.step).run(
            lambda: self._stopping, self._wake_reader
        )

    def _continuation_problem(
        self, reader: Connection, generation: Generation | None, system: SystemIdentity, layouts: LayoutBuilder
    ) -> str | None:
        if generation is None:
            return "these rules were not replicated before"
        source = generation.source
        if (source.system_identifier, source.timeline) != (system.system_identifier, system.timeline):
            return "the source is another server, or was restored or failed over"
        problem = slot_problem(reader, source.slot)
        if problem:
            return str(SlotLost(source.slot, problem))
        return tables_problem(generation.tables, layouts.catalog())

    def _copy(
        self,
        storage: Connection,
        reader: Connection,
        replication: ReplicationConnection,
        writer: StorageWriter,
        layouts: LayoutBuilder,
        system: SystemIdentity,
    ) -> Generation:
        """Copy all rows beside what is served now, then swap in one transaction."""
        catalog = layouts.catalog()
        publish_tables(reader, self._settings.publication_name, catalog)
        prefix = slot_prefix(self._settings.slot_name, system.database)
        generation = generations.begin_generation(
            storage, self._plan, self._rules, self._settings.source, prefix, system[:2]
        )
        slot = replication.create_slot(generation.source.slot)
        progress = self._progress(sum(table.estimated_rows for table in catalog))
        applier = ChangeApplier(writer, generation)
        try:
            with reader.transaction():
                reader.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
                reader.execute(sql.SQL("SET TRANSACTION SNAPSHOT {}").format(sql.Literal(slot.snapshot)))
                for table in catalog:
                    stored = generations.add_table(
                        storage, generation.source.id, table.oid, table.name, table.identity, table.key_columns
                    )
                    replicated = layouts.from_catalog(stored, table)
                    copy_table(reader, writer, applier, table, replicated, progress, self._check_stop)
        finally:
            progress.finish()
        with writer.transaction():
            generations.activate(storage, generation)
            writer.publish(generation.source.id, slot.consistent_point.value, rules_replaced=True)
        logger.info("copied %s", progress.summary())
        activated = generations.load_generation(storage, "active", self._plan)
        assert activated is not None
        return activated

    def _lead(self, storage: Connection) -> None:
        waiting = False
        while not generations.try_lead(storage):
            if not waiting:
                logger.info("another replicator is active; standing by")
                waiting = True
            self._wait(STANDBY_INTERVAL_S)
        if waiting:
            logger.info("taking over")

    def _wait(self, seconds: float) -> None:
        select.select([self._wake_reader], [], [], seconds)
        self._check_stop()

    def _check_stop(self) -> None:
        if self._stopping:
            raise _Stopped


class _Cleaner:
    """Drops what retired rule sets own, a batch whenever the stream is idle."""

    def __init__(self, storage: Connection, source: Connection, alias: str) -> None:
        self._storage, self._source, self._alias = storage, source, alias
        self._slots_dropped = self._done = False

    def step(self) -> bool:
        """Delete one batch; answers whether there is more to delete."""
        if not self._slots_dropped:
            slots = generations.retired_slots(self._storage)
            dropped = [drop_slot(self._source, slot) for _, alias, slot in slots if alias == self._alias]
            self._slots_dropped = all(dropped)
            return self._slots_dropped  # one that is still read is tried again later
        self._done = self._done or not generations.delete_some_retired(self._storage)
        return not self._done
