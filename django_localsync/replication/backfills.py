"""What of a source is still to be read: shared by the thread that reads tables and the one that follows the stream."""

from __future__ import annotations

from dataclasses import dataclass
from threading import Condition

from ..pgoutput.snapshots import Snapshot
from ..storage.sources import StoredBackfill, StoredTable

MAX_ON_THE_WAY = 3  # chunks that were read and have not come through the stream: bounds memory


@dataclass(slots=True)
class Backfill:
    """A table that is being read.

    `stored`, `attempt` and `is_quiet` belong to the follower: another attempt makes everything void that was read
    before; quiet is a table of which storage knows no row that is still to be read. The rest is how the two threads
    hand over: `must_see` are transactions that the first chunk must show; `wanted` are keys to read again (None: none
    were asked for yet).
    """

    stored: StoredBackfill
    table: StoredTable
    attempt: int = 0
    is_quiet: bool = False
    on_the_way: int = 0
    announced: bool = False  # a mark is on its way after which the phase changes
    is_resumed: bool = False  # an earlier life began it, and knew more of it
    must_see: list[int] | None = None
    wanted: list[str] | None = None


class Backfills:
    """All of them, by id. Every access holds the lock, which `changed` belongs to."""

    def __init__(self) -> None:
        self.changed = Condition()
        self.horizon: Snapshot | None = None  # what it shows, every later snapshot shows
        self.catalog_in_doubt = False  # it is to be told to the follower even if it looks as before
        self._all: dict[int, Backfill] = {}
        self._of_table: dict[int, list[Backfill]] = {}

    def __len__(self) -> int:
        return len(self._all)

    def add(self, backfill: Backfill) -> None:
        """Something is to be read."""
        with self.changed:
            self._all[backfill.stored.id] = backfill
            self._of_table.setdefault(backfill.stored.table, []).append(backfill)
            self.changed.notify_all()

    def get(self, backfill: int) -> Backfill | None:
        """The backfill of this id, unless it has ended."""
        return self._all.get(backfill)

    def end(self, backfill: int) -> None:
        """It is complete, or void."""
        with self.changed:
            ended = self._all.pop(backfill, None)
            if ended is not None:
                self._of_table[ended.stored.table].remove(ended)
            self.changed.notify_all()

    def update(self, backfill: Backfill, stored: StoredBackfill, *, is_answered: bool) -> None:
        """The follower came further with it; `is_answered`: the mark that was announced has come through."""
        with self.changed:
            backfill.stored = stored
            backfill.announced = backfill.announced and not is_answered
            self.changed.notify_all()

    def restart(self, backfill: Backfill) -> None:
        """What was read since the last stored chunk is void."""
        with self.changed:
            backfill.attempt += 1
            backfill.is_quiet = False
            backfill.on_the_way = 0
            backfill.announced = False
            self.changed.notify_all()

    def doubt_catalog(self) -> None:
        """Have the reading thread look at the catalogue at once."""
        with self.changed:
            self.catalog_in_doubt = True
            self.changed.notify_all()

    def take_doubt(self) -> bool:
        """Whether the catalogue was doubted since this was asked last."""
        with self.changed:
            in_doubt, self.catalog_in_doubt = self.catalog_in_doubt, False
            return in_doubt

    def of_table(self, table: int) -> list[Backfill]:
        """What is still to be read of one table."""
        return list(self._of_table.get(table, ()))

    def next_to_read(self) -> Backfill | None:
        """One for which the reading thread has something to do."""
        with self.changed:
            for backfill in sorted(self._all.values(), key=lambda backfill: not backfill.stored.withholds):
                waits = backfill.announced or backfill.on_the_way >= MAX_ON_THE_WAY
                if not waits and (backfill.stored.phase != "rereading" or backfill.on_the_way == 0):
                    return backfill
            return None
