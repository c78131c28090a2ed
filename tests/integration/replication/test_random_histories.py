"""Random histories (tests/histories): whatever happens, clients end with what the rules say, and see no half of it.

Each is a seed. Deliberate mistakes (tests/histories/faults.py) must each be noticed by this very property.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from django_localsync.replication import follower, replicator, source_reader, stream
from django_localsync.replication.changes import ChangeApplier
from django_localsync.replication.filling import Filling
from django_localsync.replication.marks import Marks
from django_localsync.replication.stream import Stream
from django_localsync.storage.writer import StorageWriter
from tests.conftest import SOAK
from tests.histories.faults import QUICKLY_NOTICED, RARELY_MET, Fault
from tests.histories.run import CRASHES, Stage
from tests.servers import database_alias, own_server

pytestmark = pytest.mark.django_db(transaction=True)

HISTORIES = int(os.environ.get("LOCALSYNC_HISTORIES", 2000 if SOAK else 5))
SEED = int(os.environ.get("LOCALSYNC_SEED", random.SystemRandom().randrange(2**32)))


@pytest.fixture(scope="module")
def origin() -> Iterator[str]:
    """The alias of a source whose commits can be hidden: they wait for a standby that does not exist."""
    settings = {"synchronous_standby_names": "absent", "synchronous_commit": "local"}
    with own_server(**settings) as server, database_alias("origin", server.url) as alias:
        yield alias


@pytest.fixture
def stage(origin: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    """Everything that a replicator does now and then, it does all the time."""
    for owner, name, value in (
        (follower, "FIRST_RETRY_S", 0.01),
        (follower, "LONGEST_RETRY_S", 0.02),
        (replicator, "FIRST_RETRY_S", 0.01),
        (replicator, "LONGEST_RETRY_S", 0.02),
        (stream, "BATCH_ROWS", 40),
        (source_reader, "CATALOG_INTERVAL_S", 0.03),
        (source_reader, "FIRST_CHUNK_BLOCKS", 1),
        (source_reader, "MAX_CHUNK_BLOCKS", 1),
        (source_reader, "CHUNK_ROWS", 10),
    ):
        monkeypatch.setattr(owner, name, value)
    for owner, name in (
        (StorageWriter, "write"),
        (StorageWriter, "publish"),
        (StorageWriter, "bucket_ids"),
        (Stream, "_confirm"),
        (Stream, "_receive"),
        (ChangeApplier, "look_up"),
        (ChangeApplier, "work_out"),
        (Filling, "pass_mark"),
        (Marks, "set"),
    ):
        monkeypatch.setattr(owner, name, CRASHES.breaking(getattr(owner, name)))
    set_mark = Marks.set

    def slowly(marks: Marks, connection: Any, mark: Any) -> None:
        time.sleep(random.uniform(0, 0.015))  # so that more happens while a table is read
        set_mark(marks, connection, mark)

    monkeypatch.setattr(Marks, "set", slowly)
    stage = Stage([origin], "default")
    yield stage
    stage.close()


def test_clients_end_with_what_the_rules_say(stage):
    print(f"{HISTORIES} histories from LOCALSYNC_SEED={SEED}")
    play(stage, range(SEED, SEED + HISTORIES))


@pytest.mark.parametrize("fault", QUICKLY_NOTICED)
def test_a_deliberate_fault_is_found(fault, stage, monkeypatch):
    find(fault, stage, monkeypatch)


@pytest.mark.soak
@pytest.mark.parametrize("fault", RARELY_MET)
def test_a_deliberate_fault_that_takes_more_histories_is_found(fault, stage, monkeypatch):
    find(fault, stage, monkeypatch)


def find(fault: Fault, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Play histories with this fault until it is noticed."""
    with monkeypatch.context() as patch:
        fault(patch)
        patch.setattr("tests.histories.run.DEADLINE_S", 6.0)
        with pytest.raises(AssertionError):
            play(stage, range(60))


def play(stage: Stage, seeds: Iterable[int]) -> None:
    """Run these histories: some store every transaction while they read the next, others hardly ever."""
    for seed in seeds:
        stream.BATCH_ROWS = random.Random(seed).choice([1, 3, 40])
        stage.play(seed)
