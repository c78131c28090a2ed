"""Probes of a real server: what they say while storage, rules and process come and go."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest
from django.core.asgi import get_asgi_application

from django_localsync.health import FRESH_S
from django_localsync.models import RuleSet
from django_localsync.routing import localsync_application
from django_localsync.streams import get_stream_server
from example_project.postgres import free_port
from tests.integration.serving.conftest import Server, StartServer, Storage, _test_database_url
from tests.integration.serving.test_mishaps import terminate_servers_connections
from tests.processes import wait_until
from tests.proxies import proxied

READY = {"started": True, "ready": True, "problem": None}


def ask(server: Server, probe: str, **options: Any) -> tuple[int, Any]:
    response = httpx2.request("GET", f"http://127.0.0.1:{server.port}/any/prefix/probes/{probe}", timeout=30, **options)
    return response.status_code, response.json()


def test_a_process_that_can_serve_says_so(storage: Storage, server: Server):
    assert ask(server, "readiness", headers={"Host": "10.1.2.3:8000"}) == (200, READY)
    assert ask(server, "startup") == (200, READY)
    assert ask(server, "liveness") == (200, {"live": True})


def test_without_active_rules_it_has_started_and_is_not_ready(storage: Storage, start_server: StartServer):
    server = start_server(fresh=True)
    assert ask(server, "readiness")[0] == 200

    RuleSet.objects.update(state="retired")

    _, said = wait_until(lambda: (found := ask(server, "readiness"))[0] == 503 and found, "it is not ready")
    assert (said["started"], said["ready"]) == (True, False)
    assert "run_replicator" in said["problem"]
    assert ask(server, "startup") == (200, said)


def test_a_storage_that_cannot_be_reached_fails_all_but_liveness(start_server: StartServer):
    nowhere = f"postgresql://someone:secret@127.0.0.1:{free_port()}/nowhere"
    server = start_server(fresh=True, database_url=nowhere)

    expected = {"started": False, "ready": False, "problem": "storage cannot be reached"}
    with ThreadPoolExecutor() as threads:  # those that ask at the same time share an answer
        readiness, startup = threads.map(lambda probe: ask(server, probe), ("readiness", "startup"))
    assert readiness == startup == (503, expected)
    assert ask(server, "liveness") == (200, {"live": True})


def test_it_is_ready_again_when_the_network_is(storage: Storage, start_server: StartServer):
    with proxied(_test_database_url()) as (proxy, url):
        server = start_server(fresh=True, database_url=url)
        assert ask(server, "readiness")[0] == 200

        port, proxy.target = proxy.target, free_port()
        proxy.cut()
        wait_until(lambda: ask(server, "readiness")[0] == 503, "it notices", 30)
        assert ask(server, "liveness")[0] == 200

        proxy.target = port
        wait_until(lambda: ask(server, "readiness")[0] == 200, "it recovers", 30)


def test_connections_that_postgres_ended_do_not_make_it_unready(storage: Storage, start_server: StartServer):
    server = start_server(fresh=True)
    assert ask(server, "readiness")[0] == 200
    terminate_servers_connections(storage, "true")
    time.sleep(FRESH_S)  # what was just said is said again
    assert ask(server, "readiness")[0] == 200


async def probe_in_process(name: str) -> tuple[int, Any]:
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": f"/localsync/probes/{name}", "headers": [], "query_string": b""}
    await localsync_application(get_asgi_application())(scope, receive, send)
    return sent[0]["status"], json.loads(sent[1]["body"])


@pytest.mark.usefixtures("storage")
async def test_a_process_that_stops_is_not_ready():
    get_stream_server().stop()

    assert await probe_in_process("readiness") == (
        503,
        {"started": True, "ready": False, "problem": "the server is stopping"},
    )
    assert (await probe_in_process("liveness"))[0] == 200
