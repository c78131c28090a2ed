"""How far the reading of tables is: told after every chunk."""

from __future__ import annotations

import logging
from time import monotonic

logger = logging.getLogger(__name__)

PROGRESS_INTERVAL_S = 2.0


class Progress:
    """Says how far reading is. The default one logs a line every two seconds."""

    def __init__(self) -> None:
        self.rows = self.estimated_rows = 0
        self._began = self._said = monotonic()

    def expect(self, rows: int) -> None:
        """So many rows more are to be read, as far as Postgres can tell."""
        if self.estimated_rows == self.rows == 0:
            self._began = self._said = monotonic()
        self.estimated_rows += rows

    def advance(self, table: str, rows: int) -> None:
        """A chunk of `rows` rows of `table` is stored."""
        self.rows += rows
        if monotonic() - self._said >= PROGRESS_INTERVAL_S:
            self._said = monotonic()
            logger.info("copying %s: %s", table, self.summary())

    def finish(self) -> None:
        """Everything was read, or reading was broken off."""
        if self.rows:
            logger.info("copied %s", self.summary())
        self.rows = self.estimated_rows = 0

    def rate(self) -> float:
        """Rows a second since reading began."""
        return self.rows / max(monotonic() - self._began, 0.001)

    def summary(self) -> str:
        """Rows so far, rate and estimated time left."""
        rate = self.rate()
        left = max(self.estimated_rows - self.rows, 0) / rate if rate else 0
        total = max(self.estimated_rows, self.rows)
        return f"{self.rows:,} of about {total:,} rows, {rate:,.0f} rows/s, {left:.0f} s left"
