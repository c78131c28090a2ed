"""Sources that are configured no more: their rows are taken back, and their slots and publications dropped."""

from __future__ import annotations

import logging
from contextlib import closing

from ..conf import Settings
from ..storage import rule_sets, sources
from ..storage.connections import Connection, connect
from ..storage.writer import Announcer, StorageWriter
from .changes import ChangeApplier
from .publication import drop_publications
from .slot import drop_slot

logger = logging.getLogger(__name__)


def forget_other_sources(storage: Connection, settings: Settings, leader: int, announcer: Announcer) -> None:
    """Forget every source but the configured ones. What of it cannot be dropped at its server is told."""
    gone = sources.other_sources(storage, settings.sources)
    if not gone:
        return
    living = rule_sets.living_definitions(storage)
    writer = StorageWriter(storage, leader=leader, living=living, announcer=announcer)
    with writer.transaction():
        applier = ChangeApplier(writer)
        for source in gone:
            logger.info("%s is no source any more; its rows are taken back", source.alias)
            for table in sources.load_tables(storage, source.id):
                applier.truncate(table.id, table.identity, living)
        sources.forget_sources(storage, settings.sources)
        writer.publish(0, 0)
    for source in gone:
        _drop_replication(source.alias, source.slot, settings.publication_name)


def _drop_replication(alias: str, slot: str, publication: str) -> None:
    try:
        with closing(connect(alias)) as source:
            if drop_slot(source, slot):
                drop_publications(source, publication)
                return
            reason = "somebody reads it"
    except Exception as error:  # the alias may be gone, too
        reason = str(error).strip() or type(error).__name__
    logger.warning(
        "%s: slot %s could not be dropped (%s) and keeps WAL; run there: SELECT pg_drop_replication_slot('%s')",
        alias,
        slot,
        reason,
        slot,
    )
