"""The replicator: one leads and follows every source, each in a thread of its own; others stand by."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from threading import Thread

import psycopg

from ..conf import Settings, get_settings, read_rules
from ..exceptions import ConfigurationError, LeadershipLost
from ..storage import leadership
from ..storage.connections import Connection, connect
from ..storage.writer import Announcer
from ..sync_rules import canonical_json, compile_rules
from ..sync_rules.plan import Plan
from .diagnosis import Verdict, diagnose
from .follower import FIRST_RETRY_S, LONGEST_RETRY_S, Leadership, SourceFollower, Stopped, prepare_rules
from .forgetting import forget_other_sources
from .progress import Progress
from .wakeups import Wakeup

logger = logging.getLogger(__name__)

STANDBY_INTERVAL_S = 1.0
LEADER_CHECK_INTERVAL_S = 1.0


class Replicator:
    """Follows all sources into bucket storage until `stop` is called."""

    def __init__(self, *, progress: Callable[[], Progress] = Progress) -> None:
        self._settings: Settings = get_settings()
        rules = read_rules(self._settings)
        self._plan: Plan = compile_rules(rules).plan
        self._rules = canonical_json(rules)
        self._progress = progress
        self._stopping = False
        self._stop_signal = Wakeup()
        self._followed: set[str] = set()

    def stop(self) -> None:
        """End as soon as possible; may be called from a signal handler or another thread."""
        self._stopping = True
        self._stop_signal.set()

    def run(self) -> None:
        """Replicate until stopped; reconnects by itself. Raises ConfigurationError where only a person can help.

        May be called once.
        """
        with closing(self._stop_signal):
            self._run()

    def _run(self) -> None:
        pause, has_led = FIRST_RETRY_S, False
        while not self._stopping:
            try:
                with closing(connect(self._settings.storage, application_name="django_localsync leader")) as storage:
                    self._lead(storage)
                    has_led, pause = True, FIRST_RETRY_S
                    self._follow(storage)
            except Stopped:
                continue
            except ConfigurationError:
                raise
            except (psycopg.Error, LeadershipLost, OSError) as error:
                diagnosis = diagnose(error)
                if diagnosis.verdict is Verdict.PERSON and not has_led:
                    raise ConfigurationError(str(diagnosis)) from error
                logger.warning("storage: %s; again in %.1f s", diagnosis, pause)
                self._stop_signal.wait(pause)
                pause = min(pause * 2, LONGEST_RETRY_S)

    def _lead(self, storage: Connection) -> None:
        waiting = False
        while not leadership.try_lead(storage):
            if not waiting:
                logger.info("another replicator is active; standing by")
                waiting = True
            self._stop_signal.wait(STANDBY_INTERVAL_S)
            if self._stopping:
                raise Stopped
        if waiting:
            logger.info("taking over")

    def _follow(self, storage: Connection) -> None:
        leadership.prepare_storage(storage)
        number = leadership.take_number(storage)
        announcer = Announcer()
        while not self._stopping:
            forget_other_sources(storage, self._settings, number, announcer)
            with storage.transaction():
                prepare_rules(storage, self._plan, self._rules)
            with self._followers(number, announcer) as followers:
                self._watch(storage, followers)

    @contextmanager
    def _followers(self, number: int, announcer: Announcer) -> Iterator[list[_FollowerThread]]:
        """A running follower of each source; all are ended afterwards."""
        again = Wakeup()

        def check() -> None:
            if self._stopping or again.is_set:
                raise Stopped

        lead = Leadership(
            self._settings,
            self._plan,
            self._rules,
            number,
            announcer,
            start_again=again.set,
            check=check,
            wake_fd=again.fd,
            followed=self._followed,
        )
        threads = [
            _FollowerThread(SourceFollower(alias, lead, progress=self._progress()), again, alias)
            for alias in self._settings.sources
        ]
        try:
            for thread in threads:
                thread.start()
            yield threads
        finally:
            again.set()
            for thread in threads:
                thread.join()
            again.close()

    def _watch(self, storage: Connection, followers: list[_FollowerThread]) -> None:
        """Until a follower has ended, or we must. Raises what ended one, or psycopg.Error when the lead is lost."""
        while all(thread.is_alive() for thread in followers):
            followers[0].ended.wait(LEADER_CHECK_INTERVAL_S, self._stop_signal)
            if self._stopping:
                return
            storage.execute("SELECT 1")
        for thread in followers:
            if thread.error is not None:
                raise thread.error


class _FollowerThread(Thread):
    def __init__(self, follower: SourceFollower, ended: Wakeup, alias: str) -> None:
        super().__init__(name=f"localsync follower of {alias}", daemon=True)
        self._follower, self.ended = follower, ended
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            self._follower.run()
        except Stopped:
            pass
        except Exception as error:
            self.error = error
        finally:
            self.ended.set()
