"""What cannot be said in the language of streams."""

from __future__ import annotations


class NotExpressible(Exception):
    """A part of a QuerySet that a stream cannot have: why, the nearest form that works, and the lookup at fault."""

    def __init__(self, reason: str, hint: str, lookup: str | None = None) -> None:
        self.reason, self.hint, self.lookup = reason, hint, lookup
        super().__init__(reason)

    @property
    def message(self) -> str:
        """Lookup and reason in one sentence."""
        return f"{self.lookup}: {self.reason}" if self.lookup else self.reason
