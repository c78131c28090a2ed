"""The official JavaScript SDK in a browser, unmodified, over HTTP and WebSocket; and its hooks for React."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.sdk.backend import Backend
from tests.sdk.browser import Browser, chromium
from tests.sdk.contract import INSERT_TODO, TITLES, Contract, connect, reconnect_after, titled
from tests.sdk.device import TABLES
from tests.sdk.web_client import Tab, served_app, web_client

NewTab = Callable[..., Tab]


@pytest.fixture(scope="module")
def app() -> Iterator[str]:
    with served_app() as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(params=["http", "web-socket"])
def new_device(request: pytest.FixtureRequest, browser: Browser, app: str) -> Iterator[NewTab]:
    with ExitStack() as devices:
        connection: Any = request.param
        yield lambda **options: devices.enter_context(web_client(browser, app, connection=connection, **options))


class TestWeb(Contract):
    """Everything that an SDK may count on."""


def test_a_reloaded_page_has_its_rows_before_it_connects(backend: Backend, device: Tab) -> None:
    list_id = backend.add_list("Kept", "bob")
    backend.add_todo(list_id, "Milk")
    connect(device, backend, "bob")
    device.wait_for(titled("Milk"), TITLES, list_id)

    device.reload()

    assert device.query(TITLES, list_id) == titled("Milk")
    assert device.status["fetches"] == 0


def test_tabs_share_their_rows_and_what_is_new(backend: Backend, device: Tab) -> None:
    list_id = backend.add_list("Tabs", "bob")
    connect(device, backend, "bob")
    other = device.another()
    assert other.query(TITLES, list_id) == []
    connect(other, backend, "bob")

    device.write((INSERT_TODO, [str(uuid.uuid4()), list_id, " Written "]))
    other.wait_for(titled("Written"), TITLES, list_id)
    backend.rows("UPDATE todos SET title = 'Changed' WHERE list_id = %(id)s", id=list_id)

    device.wait_for(titled("Changed"), TITLES, list_id)
    other.wait_for(titled("Changed"), TITLES, list_id)


def test_a_component_shows_the_status_a_stream_and_the_rows_of_a_query(backend: Backend, new_device: NewTab) -> None:
    list_id = backend.add_list("React", "bob")
    todo = backend.add_todo(list_id, "Milk")
    page = new_device(tables=TABLES | {"chosen_todos": {"title": "text"}})
    page.show(list_id)
    page.wait_for_texts("offline", "incomplete", "", "0 added")

    connect(page, backend, "bob")
    page.wait_for_texts("online", "complete", "Milk", "0 added")
    backend.rows("UPDATE todos SET title = 'Oat milk' WHERE id = %(id)s", id=todo)
    page.wait_for_texts("online", "complete", "Oat milk", "0 added")
    page.click()
    page.wait_for_texts("online", "complete", "Added, Oat milk", "1 added")
    page.show(None)
    reconnect_after(600, page, backend, "bob")

    page.wait_for([], "SELECT title FROM chosen_todos")
    assert page.query(TITLES, list_id) == titled("Added", "Oat milk")
