"""The example project with rules over pgbench's tables, as pgbench made them.

`pgbench_history` has no key, so its id is made of its columns.
"""

from example_project.settings import *  # noqa: F403
from example_project.settings import LOCALSYNC

_RULES = """
config:
  edition: 3

streams:
  bank:
    auto_subscribe: true
    queries:
      - SELECT aid AS id, * FROM pgbench_accounts
      - SELECT tid AS id, * FROM pgbench_tellers
      - SELECT bid AS id, * FROM pgbench_branches
      - SELECT tid || '/' || bid || '/' || aid || '/' || delta || '/' || mtime AS id, * FROM pgbench_history
"""

LOCALSYNC = {**LOCALSYNC, "RULES": _RULES}
