"""The evaluator and the replicator's storage agree, on the rules of the example project."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys

from tests.conftest import ROOT


def test_the_live_tables_and_storage_grant_the_same(fresh_database: str):
    seed = random.randrange(1 << 32)
    environment = os.environ | {"DATABASE_URL": fresh_database, "DJANGO_SETTINGS_MODULE": "example_project.settings"}

    ended = subprocess.run(
        [sys.executable, "-m", "tests.integration.evaluation.agreement", str(seed)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )

    assert ended.returncode == 0, f"seed {seed}\n{ended.stderr}"
    counts = [int(number) for number in re.findall(r"\d+", ended.stdout)]
    assert len(counts) == 3
    assert min(counts) > 3, ended.stdout
