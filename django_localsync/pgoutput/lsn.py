"""LSN: a byte position in the write-ahead log."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, slots=True, order=True)
class Lsn:
    """A byte position in the write-ahead log, as an unsigned 64-bit number.

    Storage keeps it in a signed bigint: 2**63 bytes of WAL are 290 years at a gigabyte a second.

    >>> Lsn.parse("16/B374D848")
    Lsn(value=97500059720)
    >>> str(Lsn(97500059720)), Lsn(97500059720).padded()
    ('16/B374D848', '00000016/B374D848')
    """

    value: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read Postgres's text form. Raises ValueError for anything else."""
        high, separator, low = text.partition("/")
        if not separator or not 1 <= len(high) <= 8 or not 1 <= len(low) <= 8:
            raise ValueError(f"not an LSN: {text!r}")
        return cls((int(high, 16) << 32) | int(low, 16))

    def padded(self) -> str:
        """Both halves with eight digits, so that text order is position order."""
        return f"{self.value >> 32:08X}/{self.value & 0xFFFFFFFF:08X}"

    def __str__(self) -> str:
        return f"{self.value >> 32:X}/{self.value & 0xFFFFFFFF:X}"
