"""Pure: sync rules and sync streams: parser, compiler, plan, evaluator.

`compile_rules` makes a `Plan` (plan.py) of YAML, JSON or a dict: document → definitions → queries of SQL → functions
of rows (`RowQuery`) and of requests (`Querier`) → generated code. The language is PowerSync's sync config.
"""

from .compiler import CompiledRules, compile_rules
from .document import canonical_json

__all__ = ["CompiledRules", "canonical_json", "compile_rules"]
