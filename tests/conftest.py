"""What every test may count on: a real Postgres, short or soaking hypothesis runs, databases of one's own.

Without LOCALSYNC_TEST_DATABASE_URL an embedded server is started and thrown away afterwards (one for each worker of
`pytest -n`); LOCALSYNC_TEST_POSTGRES chooses its version (16 or 18). LOCALSYNC_SOAK=1 gives properties a large budget
and runs the tests marked `soak`.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from example_project.database_url import parse_url
from example_project.postgres import EmbeddedPostgres
from tests.databases import temporary_database
from tests.settings import DATABASES, URL_VARIABLE

ROOT = Path(__file__).parent.parent
SOAK = os.environ.get("LOCALSYNC_SOAK", "") not in ("", "0")

hypothesis.settings.register_profile("short", max_examples=50, deadline=None, print_blob=True)
hypothesis.settings.register_profile("soak", max_examples=3000, deadline=None, print_blob=True)


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Choose hypothesis's budget and seed, and have a server before the first connection is made."""
    hypothesis.settings.load_profile("soak" if SOAK else "short")
    if config.getoption("--hypothesis-seed") is None:
        config.option.hypothesis_seed = str(random.SystemRandom().randrange(2**32))
    if URL_VARIABLE not in os.environ and not _hands_out_tests(config) and not _needs_no_server(config):
        _start_server(config)


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Name what a failure must be repeated with."""
    seed, budget = config.getoption("--hypothesis-seed"), "soak" if SOAK else "short"
    server = "given" if os.environ.get(URL_VARIABLE) != getattr(config, "_localsync_url", None) else "embedded"
    return [f"hypothesis: --hypothesis-seed={seed} ({budget} budget)", f"postgres: {server}"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave long tests to `make soak`."""
    if not SOAK:
        for item in items:
            if item.get_closest_marker("soak"):
                item.add_marker(pytest.mark.skip(reason="long; run by `make soak`"))


def _hands_out_tests(config: pytest.Config) -> bool:
    """Whether this process runs no test itself, but gives them to workers (`-n`), each of which has its own server."""
    return bool(getattr(config.option, "numprocesses", None)) and not hasattr(config, "workerinput")


def _needs_no_server(config: pytest.Config) -> bool:
    """Nothing will run, or only tests of pure rooms."""
    asks = config.option
    paths = [Path(str(argument).split("::")[0]).resolve() for argument in config.args]
    pure = (ROOT / "tests/unit", ROOT / "tests/test_architecture.py")
    return asks.collectonly or asks.help or all(any(path.is_relative_to(part) for part in pure) for path in paths)


def _start_server(config: pytest.Config) -> None:
    folder = Path(tempfile.mkdtemp(prefix="localsync-tests-"))
    major = int(os.environ.get("LOCALSYNC_TEST_POSTGRES", "18"))
    server = EmbeddedPostgres(folder / "postgres", durable=False, major=major)
    folder.chmod(0o755)  # root's server runs as `nobody`, who must get in
    config.add_cleanup(lambda: shutil.rmtree(folder))
    config.add_cleanup(server.stop)
    os.environ[URL_VARIABLE] = config._localsync_url = server.start()  # type: ignore[attr-defined]
    DATABASES["default"].update(parse_url(os.environ[URL_VARIABLE]))


@pytest.fixture(scope="session")
def server_url() -> str:
    """The URL of the test server's maintenance database, as a superuser."""
    return os.environ[URL_VARIABLE]


@pytest.fixture(scope="session")
def migrated_database(server_url: str) -> Iterator[str]:
    """The name of a database with the example project's tables, to make others from."""
    with temporary_database(server_url) as url:
        environment = os.environ | {"DATABASE_URL": url, "DJANGO_SETTINGS_MODULE": "example_project.settings"}
        subprocess.run([sys.executable, "manage.py", "migrate", "--verbosity=0"], check=True, cwd=ROOT, env=environment)
        yield str(parse_url(url)["NAME"])


@pytest.fixture
def fresh_database(server_url: str, migrated_database: str) -> Iterator[str]:
    """The URL of a new, migrated, empty database of the example project; dropped with its slots afterwards."""
    with temporary_database(server_url, template=migrated_database) as url:
        yield url
