"""`localsync_status` and `localsync_teardown` on real servers."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from django.core.management import call_command
from django.core.management.base import CommandError
from django.test import override_settings

from django_localsync.models import BucketOperation, Checkpoint, Source
from django_localsync.replication import follower
from tests.elsewhere import ALIAS, NOTES, Elsewhere, elsewhere, errors, replicator, wait_until_healed
from tests.processes import wait_until
from tests.servers import database_alias

pytestmark = pytest.mark.django_db(transaction=True)

SETTINGS = {"RULES": NOTES, "SOURCES": [ALIAS]}


@pytest.fixture
def source() -> Iterator[Elsewhere]:
    """A source that keeps little WAL."""
    with elsewhere(max_slot_wal_keep_size="64MB", checkpoint_timeout="1h") as source:
        yield source


def status(*options: str) -> tuple[int, Any]:
    """Exit code and JSON of the command."""
    output = io.StringIO()
    with override_settings(LOCALSYNC=SETTINGS):
        try:
            call_command("localsync_status", "--json", *options, stdout=output)
        except SystemExit as ended:
            return int(str(ended.code)), json.loads(output.getvalue())
    return 0, json.loads(output.getvalue())


def text() -> str:
    """What people read."""
    output = io.StringIO()
    with override_settings(LOCALSYNC=SETTINGS), suppress(SystemExit):
        call_command("localsync_status", stdout=output)
    return output.getvalue()


def teardown(*options: str) -> str:
    """What the command says."""
    output = io.StringIO()
    with override_settings(LOCALSYNC=SETTINGS):
        call_command("localsync_teardown", *options, stdout=output)
    return output.getvalue()


def told(report: Any) -> str:
    """Every problem and warning in it."""
    (source,) = report["sources"]
    parts = [report, source, *source["tables"]]
    return "; ".join(text for part in parts for text in part["problems"] + part["warnings"])


def test_before_the_first_start(source):
    code, report = status()
    assert (code, report["level"]) == (2, "problem")
    assert "no replicator runs; start: manage.py run_replicator" in told(report)
    assert "nothing was replicated from it yet" in told(report)


def test_all_is_well(source):
    with replicator():
        wait_until_healed(source)
        wait_until(lambda: status()[1]["sources"][0]["active"], "the slot is read again after the first copy")
        code, report = status("--probe", "5")
        assert (code, told(report)) == (0, "")
        (found,) = report["sources"]
        assert (found["alias"], found["active"], found["wal_status"]) == (ALIAS, True, "reserved")
        assert found["budget_bytes"] == 64 << 20
        assert 0 < found["probe_s"] < 5
        assert found["lag_s"] < 60
        assert [(table["name"], table["identity"]) for table in found["tables"]] == [("public.note", "id")]
        assert "all is well" in text()
        assert "public.note" in text()


def test_lag_is_told_in_bytes_and_seconds_while_no_replicator_runs(source):
    with replicator():
        wait_until_healed(source)
    _, before = status()
    source.execute("INSERT INTO note SELECT n, repeat('x', 1000) FROM generate_series(10, 2000) AS n")
    code, report = status()
    (found,) = report["sources"]
    assert (code, "no replicator runs" in told(report)) == (2, True)
    assert found["lag_bytes"] > before["sources"][0]["lag_bytes"] + 2_000_000
    assert found["lag_s"] > 0
    assert found["retained_bytes"] >= found["lag_bytes"]


def test_a_clock_that_was_set_back_gives_no_negative_lag(source):
    with replicator():
        wait_until_healed(source)
    Source.objects.update(committed_at="2100-01-01T00:00:00Z")
    source.execute("INSERT INTO note VALUES (3, 'three')")
    assert status()[1]["sources"][0]["lag_s"] == 0


def test_half_of_the_wal_budget_is_a_warning(source):
    with replicator():
        wait_until_healed(source)
        source.proxy.stalled = True
        for _ in range(3):
            source.execute("SELECT pg_logical_emit_message(true, 'x', 'x'), pg_switch_wal()")
        assert "% of max_slot_wal_keep_size" in told(direct_status(source))
        source.proxy.stalled = False
        source.proxy.cut()
        wait_until(lambda: source.execute("CHECKPOINT") or "max_slot" not in told(status()[1]), "the slot moves on")


def direct_status(source: Elsewhere) -> Any:
    """The status as it is found without passing the proxy."""
    with database_alias(ALIAS, source.server.url):
        return status()[1]


@pytest.mark.parametrize(
    ("mishap", "remedy"),
    [
        ("ALTER PUBLICATION localsync DROP TABLE note", "public.note is not in publication 'localsync'"),
        ("DROP PUBLICATION localsync_insert_only", "publication 'localsync_insert_only' does not exist"),
        ("DROP TABLE note", "it was dropped or renamed"),
        (
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots",
            "does not exist; the replicator makes",
        ),
    ],
)
def test_what_is_wrong_is_told_while_no_replicator_runs(source, mishap, remedy):
    with replicator():
        wait_until_healed(source)
    wait_until(lambda: source.query("SELECT FROM pg_replication_slots WHERE active") == [], "the slot is free")
    source.execute(mishap)
    code, report = status()
    assert (code, remedy in told(report)) == (2, True), told(report)


def test_rights_that_are_missing_are_told(source):
    with replicator():
        wait_until_healed(source)
    source.execute("CREATE ROLE guest LOGIN PASSWORD 'guest'", "ALTER TABLE note ENABLE ROW LEVEL SECURITY")
    with database_alias(ALIAS, f"postgresql://guest:guest@127.0.0.1:{source.proxy.port}/postgres"):
        report = told(status()[1])
    assert "run: ALTER ROLE guest REPLICATION" in report
    assert "run: GRANT SELECT ON public.note TO guest" in report
    assert "row level security hides rows; run: ALTER ROLE guest BYPASSRLS" in report


def test_a_table_without_replica_identity_is_a_warning(source):
    source.execute("ALTER TABLE note DROP CONSTRAINT note_pkey")
    with replicator():
        wait_until_healed(source)
        code, report = status()
    assert (code, report["level"]) == (1, "warning")
    assert "ALTER TABLE public.note REPLICA IDENTITY FULL" in told(report)


def test_a_source_that_cannot_be_reached_is_told_with_the_reason(source, monkeypatch):
    monkeypatch.setattr(follower, "FIRST_RETRY_S", 0.05)
    with replicator():
        wait_until_healed(source)
        source.server.stop()
        wait_until(lambda: errors() != "", "the error is stored")
        code, report = status()
        assert (code, "server" in told(report)) == (2, True)
        source.restart()
        wait_until(lambda: errors() == "", "the error ends")
        assert status()[0] == 0


def test_nothing_is_taken_away_while_a_replicator_runs(source):
    with replicator():
        wait_until_healed(source)
        with pytest.raises(CommandError, match="a replicator is running; stop it first"):
            teardown("--no-input")


def test_teardown_says_what_it_would_do(source):
    with replicator():
        wait_until_healed(source)
    said = teardown("--dry-run", "--data")
    for trace in ("slot localsync_postgres", "publication localsync ", "publication localsync_insert_only"):
        assert f"{trace.strip()} of database 'elsewhere'" in said
    assert "bucket storage" in said
    assert len(source.slots()) == 1


def test_teardown_asks(source, monkeypatch):
    with replicator():
        wait_until_healed(source)
    monkeypatch.setattr("builtins.input", lambda question: "no")
    with pytest.raises(CommandError, match="nothing was changed"):
        teardown()
    assert len(source.slots()) == 1


def test_teardown_leaves_no_trace_and_a_new_start_reads_all_again(source):
    source.execute("SELECT pg_create_logical_replication_slot('theirs', 'pgoutput')")
    source.execute("CREATE PUBLICATION theirs FOR TABLE note")
    with replicator():
        wait_until_healed(source)
    teardown("--no-input", "--data")
    assert source.slots() == ["theirs"]
    assert source.query("SELECT pubname FROM pg_publication") == [("theirs",)]
    assert [model.objects.count() for model in (BucketOperation, Source, Checkpoint)] == [0, 0, 0]
    source.execute("INSERT INTO note VALUES (3, 'three')")
    with replicator():
        wait_until_healed(source)


def test_teardown_without_data_keeps_what_is_served(source):
    with replicator():
        wait_until_healed(source)
    teardown("--no-input")
    assert (source.slots(), BucketOperation.objects.count()) == ([], 2)
    source.execute("DELETE FROM note WHERE id = 1")
    with replicator():
        wait_until_healed(source)
