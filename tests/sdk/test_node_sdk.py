"""Not only our own client: the official JavaScript SDK in Node, unmodified, over HTTP and WebSocket."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

import pytest

from tests.sdk.contract import Contract, NewDevice
from tests.sdk.node_client import node_client


@pytest.fixture(params=["http", "web-socket"])
def new_device(request: pytest.FixtureRequest) -> Iterator[NewDevice]:
    with ExitStack() as devices:
        opened: Any = partial(node_client, connection=request.param)
        yield lambda **options: devices.enter_context(opened(**options))


class TestNode(Contract):
    """Everything that an SDK may count on."""
