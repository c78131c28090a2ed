"""One source's life: make or continue its slot, follow the stream while tables are read, again after a failure."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from time import monotonic, sleep

import psycopg

from ..conf import Settings
from ..exceptions import ConfigurationError, LeadershipLost, RulesError, SlotLost
from ..pgoutput.lsn import Lsn
from ..storage import rule_sets, sources
from ..storage.compactor import Compactor
from ..storage.connections import Connection, connect, connect_for_rows
from ..storage.rule_sets import StoredRuleSet
from ..storage.sources import StoredSource
from ..storage.writer import Announcer, StorageWriter
from ..sync_rules import compile_rules
from ..sync_rules.formats import check_format, unknown_format
from ..sync_rules.plan import Plan
from .backfills import Backfills
from .changes import ChangeApplier
from .connection import ReplicationConnection, SystemIdentity, check_direct
from .diagnosis import Verdict, diagnose
from .filling import Filling, NeedsReading, Resume
from .followed_tables import FollowedTables, IdentityChanged
from .layout import LayoutBuilder
from .marks import Marks
from .progress import Progress
from .publication import publication_names, publish_tables
from .slot import check_server, drop_slot, history_problem, slot_prefix, slot_problem
from .source_reader import SourceReader
from .stream import Stream
from .tables import read_tables
from .waiting import Waiting
from .wakeups import wait_readable

logger = logging.getLogger(__name__)

FIRST_RETRY_S, LONGEST_RETRY_S = 0.5, 30.0
SETTLED_AFTER_S = 60.0  # a session this long was sound: the next failure begins with a short pause again
SLOT_FREE_AFTER_S = 10.0
PUBLISH_ATTEMPT_MS = 400  # whoever is told to stop meanwhile ends within a second


class Stopped(Exception):
    """The replicator was told to stop, or to look again at what it does."""


@dataclass(frozen=True)
class Leadership:
    """What the followers of one replicator share.

    `number` is what their writes must name. `start_again` makes all of them look anew at the rules; `check` raises
    Stopped when one must end, and `wake_fd` becomes readable then. `followed` are sources that went well once.
    """

    settings: Settings
    plan: Plan
    rules: str
    number: int
    announcer: Announcer
    start_again: Callable[[], None]
    check: Callable[[], None]
    wake_fd: int
    followed: set[str]


class SourceFollower:
    """Follows one source into bucket storage until stopped."""

    def __init__(self, alias: str, leadership: Leadership, *, progress: Progress) -> None:
        self._alias, self._lead, self._progress = alias, leadership, progress
        self._settings = leadership.settings
        self._lost: str | None = None  # why the slot is of no use

    def run(self) -> None:
        """Follow; connects again by itself.

        Raises Stopped, LeadershipLost, and ConfigurationError where only a person can help and it never went well.
        """
        pause = FIRST_RETRY_S
        while True:
            self._lead.check()
            began = monotonic()
            try:
                self._follow()
            except (Stopped, LeadershipLost):
                raise
            except Resume:
                self._lead.start_again()
                continue
            except Exception as error:
                if monotonic() - began > SETTLED_AFTER_S:
                    pause = FIRST_RETRY_S
                self._handle(error, pause)
                pause = min(pause * 2, LONGEST_RETRY_S)

    def _handle(self, error: Exception, pause: float) -> None:
        diagnosis = diagnose(error)
        if diagnosis.verdict is Verdict.NEW_SLOT:
            logger.warning("%s: %s", self._alias, diagnosis)
            self._lost = str(diagnosis)
            return
        if (
            diagnosis.verdict is Verdict.PERSON
            and self._alias not in self._lead.followed
            and len(self._settings.sources) == 1
        ):
            raise ConfigurationError(str(diagnosis)) from error
        self._report(str(diagnosis))
        level = logging.ERROR if diagnosis.verdict is Verdict.PERSON else logging.WARNING
        logger.log(level, "%s: %s; again in %.1f s", self._alias, diagnosis, pause)
        logger.debug("%s", self._alias, exc_info=error)
        self._wait(pause)

    def _report(self, error: str) -> None:
        try:
            with closing(connect(self._settings.storage)) as storage:
                sources.report_error(storage, self._alias, error)
        except Exception as unreachable:
            logger.debug("the error cannot be stored: %s", unreachable)

    def _follow(self) -> None:
        with ExitStack() as stack:
            storage = stack.enter_context(
                closing(connect(self._settings.storage, application_name="django_localsync storage"))
            )
            source = stack.enter_context(closing(connect_for_rows(self._alias)))
            check_direct(source, self._alias)
            check_server(source)
            replication = stack.enter_context(closing(ReplicationConnection(self._alias)))
            stored = self._prepare(storage, source, replication)
            session = _Session(self._alias, self._lead, storage, source, stored, self._progress)
            stack.callback(session.close)
            _wait_until_free(source, stored.slot)
            names = publication_names(self._settings.publication_name)
            replication.start(stored.slot, Lsn(stored.written_lsn), names, self._lead.check, self._lead.wake_fd)
            logger.info("%s: following slot %s from %s", self._alias, stored.slot, Lsn(stored.written_lsn))
            sources.report_error(storage, self._alias, "")
            self._lead.followed.add(self._alias)
            session.run(replication)

    def _prepare(self, storage: Connection, source: Connection, replication: ReplicationConnection) -> StoredSource:
        """The source as storage has it, with a slot that can be continued; a new one where there is none."""
        stored = sources.load_source(storage, self._alias)
        problem = self._lost or (_continuation_problem(source, replication, stored) if stored else "it is new")
        system = replication.identify_system()
        if stored is not None and problem is None:
            sources.continue_on_timeline(storage, stored.id, system.timeline)
            return stored
        logger.info("%s: making a slot, because %s", self._alias, problem)
        prefix = slot_prefix(self._settings.slot_name, system.database)
        slot = prefix if len(self._settings.sources) == 1 else f"{prefix}_{self._settings.sources.index(self._alias)}"
        if not drop_slot(source, slot):
            _wait_until_free(source, slot)
            drop_slot(source, slot)
        self._publish_tables(source)
        waiting = Waiting(source, lambda: f"{self._alias}: making slot {slot}")

        def check() -> None:
            self._lead.check()
            waiting.tell_when_long()

        created = replication.create_slot(slot, check, self._lead.wake_fd)
        with storage.transaction():
            if stored is not None:
                rule_sets.begin_rule_set(storage, self._lead.plan, self._lead.rules, starts_over=True)
            begun = sources.begin_source(storage, self._alias, slot, system[:2], created.consistent_point.value)
        if stored is not None:  # the other sources' rows have to be read for the new definitions, too
            self._lost = None
            self._lead.start_again()
        return begun

    def _publish_tables(self, source: Connection) -> None:
        """Wait for whoever holds a table, such as a migration or VACUUM, without becoming deaf."""
        waiting = Waiting(source, lambda: f"{self._alias}: publishing the tables")
        source.execute(f"SET lock_timeout = {PUBLISH_ATTEMPT_MS}")
        while True:
            try:
                publish_tables(source, self._settings.publication_name, read_tables(source, self._lead.plan.uses))
                break
            except psycopg.errors.LockNotAvailable:
                self._lead.check()
                waiting.tell_when_long()
        source.execute("SET lock_timeout = 0")

    def _wait(self, seconds: float) -> None:
        wait_readable(self._lead.wake_fd, timeout_s=seconds)
        self._lead.check()


class _Session:
    """Everything that follows a source over one replication connection."""

    def __init__(
        self,
        alias: str,
        lead: Leadership,
        storage: Connection,
        source: Connection,
        stored: StoredSource,
        progress: Progress,
    ) -> None:
        self._alias, self._lead, self._storage, self._stored = alias, lead, storage, stored
        self._compactor = Compactor(storage, lead.settings.erase_within_s)
        newest, active = _rule_sets(storage)
        feeds = rule_sets.load_feeds(storage, lead.plan, active)
        living = frozenset(definition for feed in feeds for definition in feed.definition_ids())
        served = living - rule_sets.filling_definitions(storage)
        layouts = LayoutBuilder(source, feeds)
        backfills, marks = Backfills(), Marks()
        receipts = frozenset[int]().union(*(feed.receipts() for feed in feeds))
        self._writer = StorageWriter(
            storage, leader=lead.number, living=living, receipts=receipts, announcer=lead.announcer
        )
        self._tables = FollowedTables(storage, stored, layouts, backfills, served, progress)
        self._filling = Filling(
            storage,
            self._writer,
            self._tables,
            backfills,
            marks,
            rule_set=newest.id,
            plan=lead.plan,
            aliases=lead.settings.sources,
            served=served,
            progress=progress,
        )
        self._reader = SourceReader(
            alias,
            lead.settings.publication_name,
            feeds,
            backfills,
            marks,
            lead.settings.heartbeat_interval_s,
            stored.published,
            stored.slot,
        )
        self._progress = progress

    def run(self, replication: ReplicationConnection) -> None:
        """Follow until something ends it. What a table's changed identity asks for is done before that is raised."""
        with self._writer.transaction():
            self._tables.begin_counts_again(ChangeApplier(self._writer))
            self._writer.publish(self._stored.id, self._stored.written_lsn)
        stream = Stream(
            replication,
            self._writer,
            self._stored.id,
            self._stored.written_lsn,
            self._tables,
            self._filling,
            when_idle=self._clean,
            when_committed=self._reader.note_commit,
        )
        self._reader.start()
        if rule_sets.load_rule_set(self._storage, "processing") is None:
            logger.info("%s: the rules are active", self._alias)
        try:
            stream.run(self._check, self._lead.wake_fd)
        except IdentityChanged as change:
            logger.info("%s", change)
            with self._writer.transaction():
                self._tables.replace(
                    change.table, change.identity, self._writer, ChangeApplier(self._writer), change.columns
                )
                self._writer.publish(self._stored.id, stream.position)
            raise Resume("a table's identity changed") from change
        except NeedsReading as need:
            logger.info("%s", need)
            with self._writer.transaction():
                self._tables.reread(need.table, need.definitions, self._writer)
                self._writer.publish(self._stored.id, stream.position)
            raise Resume("rows must be read again") from need
        except psycopg.errors.UniqueViolation as violation:
            table = self._tables.with_id(_table_of_duplicate(violation))
            if table is None:
                raise
            logger.info("%s held equal keys for a while; its rows are read again", table.name)
            with self._writer.transaction():
                self._tables.replace_as_it_is(table, self._writer, ChangeApplier(self._writer))
                self._writer.publish(self._stored.id, stream.position)
            raise Resume("a table's key was none for a while") from violation

    def close(self) -> None:
        """End the reading thread."""
        self._reader.stop()
        self._progress.finish()

    def _check(self) -> None:
        self._lead.check()
        if self._reader.failure is not None:
            raise self._reader.failure

    def _clean(self) -> bool:
        """Delete a piece of what is retired, or compact one; one source's follower does it for all."""
        if self._alias != self._lead.settings.sources[0]:
            return False
        return rule_sets.delete_some_retired(self._storage) or self._compactor.step()


def _table_of_duplicate(violation: psycopg.errors.UniqueViolation) -> int | None:
    """Id of the table of which a row came that storage holds already: for a while its key was not unique."""
    if violation.diag.constraint_name != "localsync_current_row_pkey":
        return None
    found = re.search(r"\((\d+),", violation.diag.message_detail or "")
    return int(found[1]) if found else None


def _rule_sets(storage: Connection) -> tuple[StoredRuleSet, Plan | None]:
    """The newest rule set, and the plan of an active one that is served while the newest is filled."""
    processing, active = rule_sets.load_rule_set(storage, "processing"), rule_sets.load_rule_set(storage, "active")
    newest = processing or active
    assert newest is not None, "the replicator begins a rule set before it follows"
    if processing is None or processing.starts_over or active is None:
        return newest, None
    return newest, compile_rules(active.rules, format=active.format).plan


def prepare_rules(storage: Connection, plan: Plan, rules: str) -> None:
    """Make the configured rules the newest rule set of storage. Belongs in a transaction of the leader.

    Raises ConfigurationError where a newer release filled what is served.
    """
    processing, active = rule_sets.load_rule_set(storage, "processing"), rule_sets.load_rule_set(storage, "active")
    if active is not None:
        check_format(active.format)
    if processing is not None and processing.identity == plan.identity:
        return
    if active is not None and active.identity == plan.identity:
        if processing is None:
            return
        if not processing.starts_over:
            rule_sets.cancel_unfinished(storage)
            return
    rule_sets.begin_rule_set(storage, plan, rules, starts_over=active is None or not _is_known(active))


def _is_known(active: StoredRuleSet) -> bool:
    """Whether this version understands the active rules as they were understood when they were filled."""
    if unknown_format(active.format):
        return False
    try:
        return compile_rules(active.rules, format=active.format).plan.identity == active.identity
    except RulesError:
        return False


def _continuation_problem(source: Connection, replication: ReplicationConnection, stored: StoredSource) -> str | None:
    after = Lsn(stored.written_lsn)
    system = SystemIdentity(stored.system_identifier, stored.timeline, "")
    problem = history_problem(replication, source, system, after)
    if problem is None and (lost := slot_problem(source, stored.slot, after)):
        problem = str(SlotLost(stored.slot, lost))
    return problem


def _wait_until_free(source: Connection, slot: str) -> None:
    """Our own former connection may take a moment to end."""
    deadline = monotonic() + SLOT_FREE_AFTER_S
    query = "SELECT active FROM pg_replication_slots WHERE slot_name = %s"
    while source.execute(query, (slot,)).fetchone() == (True,) and monotonic() < deadline:
        sleep(0.02)
