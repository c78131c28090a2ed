"""What this process has done, as plain numbers: counting costs an addition, whether or not anybody reads them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from threading import Lock

from .protocol.crud import TransactionResult

REPEATED = "repeated"


class Counters:
    """Numbers that only grow. Those of streams are counted by event loops alone, so they need no lock."""

    def __init__(self) -> None:
        self.streams = self.operations = self.bytes = 0
        self.uploads: Counter[str] = Counter()
        self._lock = Lock()  # views run in threads

    def count_uploads(self, results: Iterable[TransactionResult]) -> None:
        """Count uploaded operations by what became of them; repeats of an answered upload are one kind."""
        with self._lock:
            for result in results:
                for operation in result.operations:
                    self.uploads[REPEATED if result.repeated else operation.status.value] += 1


counters = Counters()
"""Of this process."""
