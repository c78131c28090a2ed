"""What mishap tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.source import source_tables


@pytest.fixture
def source(transactional_db: None) -> Iterator[None]:
    """The test database as a source: tables that the test makes go away, and so do slots and publications."""
    with source_tables():
        yield
