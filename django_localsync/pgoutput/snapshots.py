"""Which transactions a snapshot shows, and what was delivered lately: how a chunk meets the stream without a seam.

A chunk of a table is read in a snapshot S while the stream flows. When the stream passes a mark that was written
after S was taken, every transaction that S shows has been delivered. Others may have been delivered too, even some
that nobody can see yet: logical decoding does not wait for a commit to become visible. A chunk's row is therefore the
stream's row at the mark exactly if no delivered transaction that S does not show has touched its key. The idea of
watermarks is DBLog's (Andreakis and Papapanagiotou, 2020, https://arxiv.org/abs/2010.12597).
https://www.postgresql.org/docs/current/functions-info.html#FUNCTIONS-PG-SNAPSHOT
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Self

EPOCH = 1 << 32
MAX_TOUCHED_KEYS = 50_000  # of one transaction and table, about 5 MB; beyond it counts as having touched every row


@dataclass(frozen=True, slots=True)
class Snapshot:
    """`pg_current_snapshot()`: numbers have 64 bits; below `xmin` all is shown, from `xmax` on nothing."""

    xmin: int
    xmax: int
    in_progress: frozenset[int]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `xmin:xmax:xip,xip,…`.

        >>> Snapshot.parse("10:20:10,14").shows(12)
        True
        """
        xmin, xmax, in_progress = text.split(":")
        return cls(int(xmin), int(xmax), frozenset(int(xid) for xid in in_progress.split(",") if xid))

    def shows(self, xid: int) -> bool:
        """Whether a committed transaction, by the 32 bits that the stream gives, is visible."""
        wide = self.widen(xid)
        return wide < self.xmin or (wide < self.xmax and wide not in self.in_progress)

    def widen(self, xid: int) -> int:
        """The 64-bit number nearest to this snapshot that ends in these 32 bits.

        >>> Snapshot(EPOCH, EPOCH + 5, frozenset()).widen(EPOCH - 3) == EPOCH - 3
        True
        """
        wide = self.xmax - (self.xmax - xid) % EPOCH
        return wide + EPOCH if self.xmax - wide > EPOCH // 2 else wide


@dataclass(slots=True)
class Delivered:
    """What one delivered transaction did to the tables that are being read.

    `keys` of each table's changed rows, before and after; `changes` are kept of tables whose rows are about to be
    counted. None in either stands for too many to remember.
    """

    xid: int
    keys: dict[int, set[str] | None] = field(default_factory=dict)
    changes: dict[int, list[Any] | None] = field(default_factory=dict)
    truncated: set[int] = field(default_factory=set)

    def touch(self, table: int, *keys: str | None) -> None:
        """A row of this key was changed, or is now under this key."""
        known = self.keys.setdefault(table, set())
        if known is not None:
            known.update(key for key in keys if key is not None)
            if len(known) > MAX_TOUCHED_KEYS:
                self.keys[table] = None

    def touch_unknown(self, table: int) -> None:
        """A row was changed of which the key cannot be told."""
        self.keys[table] = None

    def keep(self, table: int, change: Any) -> None:
        """Keep a change for later."""
        known = self.changes.setdefault(table, [])
        if known is not None:
            known.append(change)
            if len(known) > MAX_TOUCHED_KEYS:
                self.changes[table] = None

    def truncate(self, table: int) -> None:
        """All rows are gone, and what was done to them before."""
        self.truncated.add(table)
        self.changes.pop(table, None)


class RecentTransactions:
    """Transactions that were delivered while a table is being read, as far as some snapshot may not show them."""

    def __init__(self) -> None:
        self._delivered: list[Delivered] = []

    def __len__(self) -> int:
        return len(self._delivered)

    def add(self, transaction: Delivered) -> None:
        """A transaction was delivered whole."""
        self._delivered.append(transaction)

    def xids(self) -> list[int]:
        """All of them, as the stream numbers them."""
        return [transaction.xid for transaction in self._delivered]

    def hidden_from(self, snapshot: Snapshot) -> list[Delivered]:
        """Those that a snapshot does not show, in commit order."""
        return [transaction for transaction in self._delivered if not snapshot.shows(transaction.xid)]

    def forget(self, snapshots: Iterable[Snapshot]) -> None:
        """Drop what all of these snapshots show; later ones will show it too."""
        pending = list(snapshots)
        self._delivered = [
            transaction
            for transaction in self._delivered
            if not all(snapshot.shows(transaction.xid) for snapshot in pending)
        ]

    def clear(self) -> None:
        """No table is being read any more."""
        self._delivered.clear()
