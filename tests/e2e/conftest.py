"""Fixtures: the example project with its processes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.databases import temporary_database
from tests.e2e.devices import Devices, making_devices
from tests.e2e.project import RunningProject, running_project
from tests.processes import print_logs


@pytest.fixture(scope="module")
def project(server_url: str, migrated_database: str) -> Iterator[RunningProject]:
    """The example project under uvicorn, for the tests of a module that leave its processes alone."""
    with temporary_database(server_url, template=migrated_database) as url, running_project(url) as running:
        yield running


@pytest.fixture
def devices() -> Iterator[Devices]:
    """Makes devices, which end with the test."""
    with making_devices() as maker:
        yield maker


@pytest.fixture(autouse=True)
def _print_logs() -> Iterator[None]:
    """Let a failing test show what the processes that it shares have printed."""
    yield
    print_logs()
