"""Figures for Prometheus: what this process has done, and what storage says of replication and compaction.

The numbers of a process are read from `counters`; those of storage are asked for when somebody scrapes, every few
seconds at most. Needs the extra `metrics`; nothing here is loaded before the first scrape.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from threading import Lock
from time import monotonic

import psycopg
from django.http import HttpRequest, HttpResponse
from django.utils.crypto import constant_time_compare
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from .conf import Settings, get_settings
from .counters import counters
from .protocol.crud import Status
from .replication.status import HELD_LOCK, LAG
from .storage.connections import Connection, connect
from .storage.leadership import LEADER_LOCK
from .streams import count_open_streams

FRESH_S = 5.0
TABLES = ("bucket", "bucket_operation", "current_row", "parameter_lookup")
SAVED = {
    "rewritten_buckets": "Buckets that compaction rewrote.",
    "erased_operations": "Operations whose row compaction erased.",
    "deleted_operations": "Operations that compaction deleted.",
    "erased_bytes": "Row data that compaction erased, uncompressed.",
}


@dataclass(slots=True)
class StorageFigures:
    """What storage says. `lags`: alias of a source → bytes and seconds, None where they are not known."""

    reachable: bool = False
    leading: bool = False
    bytes: dict[str, int] = field(default_factory=dict)
    saved: tuple[int, ...] = (0, 0, 0, 0)
    lags: dict[str, tuple[int | None, float | None]] = field(default_factory=dict)


class LocalSyncCollector(Collector):
    """A collector for any registry of prometheus-client. One scrape asks for the storage at a time."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._figures, self._read_at = StorageFigures(), -FRESH_S

    def describe(self) -> Iterable[Metric]:
        """Nothing: to register it asks no database."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Everything, as of now or, what storage says, of some seconds ago."""
        yield from _of_process()
        with self._lock:
            if monotonic() - self._read_at >= FRESH_S:
                self._figures, self._read_at = read_figures(get_settings()), monotonic()
            figures = self._figures
        yield from _of_storage(figures)


registry = CollectorRegistry()
registry.register(LocalSyncCollector())


def respond(request: HttpRequest, token: str) -> HttpResponse:
    """The answer to a scrape, for whoever has the token."""
    if not constant_time_compare(request.headers.get("Authorization", ""), f"Bearer {token}"):
        return HttpResponse("the metrics need their token", status=401, headers={"WWW-Authenticate": "Bearer"})
    return HttpResponse(generate_latest(registry), content_type=CONTENT_TYPE_LATEST)


def _of_process() -> Iterator[Metric]:
    yield GaugeMetricFamily("localsync_streams", "Open streams of this process.", count_open_streams())
    yield CounterMetricFamily("localsync_streams_opened", "Streams that this process has begun.", counters.streams)
    yield CounterMetricFamily("localsync_operations_synced", "Operations sent to devices.", counters.operations)
    text = "Bytes of lines sent to devices, before compression."
    yield CounterMetricFamily("localsync_bytes_synced", text, counters.bytes)
    uploads = CounterMetricFamily(
        "localsync_upload_operations", "Uploaded operations by what became of them.", labels=["status"]
    )
    found = dict(counters.uploads)
    for status in sorted({*found, *(status.value for status in Status)}):
        uploads.add_metric([status], found.get(status, 0))
    yield uploads


def _of_storage(figures: StorageFigures) -> Iterator[Metric]:
    yield GaugeMetricFamily("localsync_storage_up", "Whether bucket storage can be reached.", figures.reachable)
    if not figures.reachable:
        return
    yield GaugeMetricFamily("localsync_replicator_up", "Whether a replicator is active.", figures.leading)
    size = GaugeMetricFamily("localsync_storage_bytes", "What storage takes on disk, with indexes.", labels=["table"])
    for table, count in figures.bytes.items():
        size.add_metric([table], count)
    yield size
    for (name, text), count in zip(SAVED.items(), figures.saved, strict=True):
        yield CounterMetricFamily(f"localsync_compaction_{name}", text, count)
    behind = GaugeMetricFamily("localsync_replication_lag_bytes", "WAL that is not in storage yet.", labels=["source"])
    age = GaugeMetricFamily("localsync_replication_lag_seconds", "How old storage is at most.", labels=["source"])
    for alias, (bytes_, seconds) in figures.lags.items():
        for family, value in ((behind, bytes_), (age, seconds)):
            if value is not None:
                family.add_metric([alias], value)
    yield behind
    yield age


def read_figures(settings: Settings) -> StorageFigures:
    """Ask storage and every source; what cannot be reached is left out."""
    figures = StorageFigures()
    try:
        with closing(connect(settings.storage)) as storage:
            _read_storage(figures, storage)
            stored = storage.execute("SELECT alias, written_lsn, committed_at FROM localsync_source").fetchall()
    except (psycopg.Error, OSError):
        return StorageFigures()
    for alias, written, committed_at in stored:
        if alias in settings.sources:
            figures.lags[alias] = _read_lag(alias, {"written": written, "committed_at": committed_at})
    figures.reachable = True
    return figures


def _read_storage(figures: StorageFigures, storage: Connection) -> None:
    for table in TABLES:
        row = storage.execute("SELECT pg_total_relation_size(%s::regclass)", (f"localsync_{table}",)).fetchone()
        figures.bytes[table] = int(row[0]) if row else 0
    saved = storage.execute("SELECT rewritten, erased, deleted, bytes FROM localsync_compaction").fetchone()
    figures.saved = saved or figures.saved
    lock = {"high": LEADER_LOCK >> 32, "low": LEADER_LOCK & 0xFFFFFFFF}
    figures.leading = storage.execute(HELD_LOCK, lock).fetchone() is not None


def _read_lag(alias: str, stored: dict[str, object]) -> tuple[int | None, float | None]:
    try:
        with closing(connect(alias)) as source:
            return source.execute(LAG, stored).fetchone() or (None, None)
    except (psycopg.Error, OSError):
        return None, None
