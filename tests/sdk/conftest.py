"""A backend for the tests of the SDK, and how they are told what went on."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.databases import temporary_database
from tests.processes import print_logs
from tests.sdk.backend import Backend, running_backend
from tests.sdk.device import Device

pytest.register_assert_rewrite("tests.sdk.contract")


@pytest.fixture(scope="module")
def shared_backend(server_url: str, migrated_database: str) -> Iterator[Backend]:
    """One backend for all tests of a module: each makes its own lists there."""
    with temporary_database(server_url, template=migrated_database) as url, running_backend(url) as backend:
        yield backend


@pytest.fixture
def backend(shared_backend: Backend) -> Iterator[Backend]:
    yield shared_backend
    print_logs()


@pytest.fixture
def device(new_device: Callable[..., Device]) -> Device:
    """A device of the kind that the module tests."""
    return new_device()
