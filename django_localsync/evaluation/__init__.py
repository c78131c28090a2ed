"""Shell: the rules, evaluated in this process over the source's tables as they are now, without a replicator.

`Evaluator` answers which buckets a request may have, what they hold, where a row is and who can reach it. It reads
through Django's own connection, so that it sees what the open transaction (of a test, for instance) has written.
"""

from .evaluator import Evaluator, Resolved, compile_cached, compile_project_rules

__all__ = ["Evaluator", "Resolved", "compile_cached", "compile_project_rules"]
