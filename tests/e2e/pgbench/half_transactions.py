"""A replicator with a fault, for the test of the test: it publishes a checkpoint after every change to a teller.

That is in the middle of pgbench's transaction, so devices get halves. `python -m tests.e2e.pgbench.half_transactions`
stands for `manage.py run_replicator`.
"""

from __future__ import annotations

from typing import Any

from django.core.management import execute_from_command_line

from django_localsync.pgoutput.messages import Update
from django_localsync.replication import stream


class HalfTransactions(stream.Stream):
    """Shows what it has so far, at the position of the last whole transaction."""

    def _handle(self, message: Any) -> None:
        super()._handle(message)
        table = self._tables.layout(message.relation) if isinstance(message, Update) else None
        if table is not None and table.name.name == "pgbench_tellers":
            self._end_lsn = self.position
            self._publish()
            self._end_lsn = None


if __name__ == "__main__":
    from django_localsync.replication import follower

    follower.Stream = HalfTransactions
    execute_from_command_line(["manage.py", "run_replicator"])
