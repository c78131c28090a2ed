"""Bucket storage filled through the real writer, and real servers over it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
from django.contrib.auth.models import User
from django.db import connection as django_connection

from django_localsync.buckets.checksum import put_checksum
from django_localsync.buckets.operation import OpKind
from django_localsync.models import Checkpoint, Definition, RuleSet, Source, SourceTable, WriteCheckpoint
from django_localsync.storage.connections import connect
from django_localsync.storage.writer import LookupEntry, StorageWriter, WriteSet
from django_localsync.tokens import make_token
from example_project.database_url import with_database
from example_project.postgres import free_port
from tests.integration.serving.plans import ListedPlan
from tests.settings import URL_VARIABLE

ROOT = Path(__file__).parents[3]
DEADLINE_S = 10.0
START_TIMEOUT_S = 60.0  # two cores under a full test run: imports alone may take seconds
RULES = [
    {"name": "all", "of": "everyone", "priority": 1},
    {"name": "mine", "of": "user"},
    {"name": "lists", "of": "lists"},
]


class Storage:
    """Bucket storage with one active rule set; every `publish` is a checkpoint, announced as the replicator does."""

    def __init__(self) -> None:
        self.connection = connect("default")
        self.writer = StorageWriter(self.connection)
        Checkpoint.objects.create(incarnation="cafe", system_identifier="1", timeline=1)
        self.activate(RULES)

    def activate(self, rules: list[dict[str, Any]]) -> None:
        """Replace the rule set."""
        RuleSet.objects.filter(state="active").update(state="retired")
        Definition.objects.filter(state="served").update(state="retired")
        text = json.dumps(rules)
        plan = ListedPlan(text)
        self.rule_set = RuleSet.objects.create(identity=text[:64], rules=text, state="active")
        self.source, _ = Source.objects.get_or_create(
            alias="default", defaults={"slot": "s", "system_identifier": "1", "timeline": 1}
        )
        self.table = SourceTable.objects.create(
            source=self.source, relation_oid=1, schema="public", name="t", key_columns=["id"]
        )
        self.definitions: dict[str, int] = {}
        for kind, sources in (("bucket", plan.bucket_sources), ("lookup", plan.lookup_sources)):
            for source in sources:
                made = Definition.objects.create(state="served", kind=kind, name=source.name, identity=source.identity)
                self.definitions[source.name] = made.id

    def wire_name(self, definition: str, *parameters: str) -> str:
        return f"cafe.{self.definitions[definition]}#{definition}{_compact(parameters)}"

    def publish(
        self,
        *rows: tuple[str, tuple[str, ...], str, dict[str, Any]],
        join: tuple[str, str] | None = None,
        leave: tuple[str, str] | None = None,
        **announced: Any,
    ) -> None:
        """One checkpoint: PUT rows of (definition, parameters, id, data); let (user, list) members come and go."""
        changes = WriteSet()
        with self.writer.transaction():
            keys = [(self.definitions[definition], _compact(parameters)) for definition, parameters, _, _ in rows]
            ids = self.writer.bucket_ids(keys)
            for key, (_, _, row_id, data) in zip(keys, rows, strict=True):
                text = json.dumps({"id": row_id, **data})
                checksum = put_checksum("todos", row_id, text)
                changes.drafts.append((ids[key], OpKind.PUT.value, checksum, "todos", row_id, f"1/{row_id}", text))
            for members, entries in ((changes.added_lookups, join), (changes.removed_lookups, leave)):
                if entries:
                    members.add(self.member(*entries))
            self.writer.write(changes)
            self.writer.publish(self.source.id, **{"lsn": 1, **announced})

    def op_id(self) -> int:
        """The newest checkpoint's op id."""
        row = self.connection.execute("SELECT op_id FROM localsync_checkpoint").fetchone()
        assert row
        return int(row[0])

    def member(self, user: str, name: str) -> LookupEntry:
        definition = self.definitions["members"]
        return LookupEntry(definition, _compact([user]), self.table.id, f"{user}/{name}", _compact([name]))

    def request_write_checkpoint(self, user: str, client_id: str, number: int, lsn: int) -> None:
        WriteCheckpoint.objects.create(user_key=user, client_id=client_id, number=number, positions={"default": lsn})


def _compact(value: Any) -> str:
    return json.dumps(list(value), separators=(",", ":"))


@pytest.fixture
def storage(transactional_db: None) -> Iterator[Storage]:
    storage = Storage()
    yield storage
    storage.connection.close()


@dataclass
class Server:
    """A server process."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/any/prefix/sync/stream"

    def state(self) -> dict[str, int]:
        return json.loads(httpx2.get(f"http://127.0.0.1:{self.port}/").content)

    def wait_for(self, what: str, number: int) -> float:
        """Wait until so many "streams" or "requests" are open; the seconds that it took."""
        begin = time.monotonic()
        while (state := self.state())[what] != number:
            assert time.monotonic() - begin < DEADLINE_S, state
            time.sleep(0.02)
        return time.monotonic() - begin

    def stop(self) -> float:
        """SIGTERM; the seconds until it ended, and its workers with it."""
        begin = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(DEADLINE_S)
        while self._is_alive():
            assert time.monotonic() - begin < DEADLINE_S, "a worker outlives its server"
            time.sleep(0.02)
        return time.monotonic() - begin

    def kill(self) -> None:
        """End it and its workers, which a server that is killed leaves behind."""
        if self._is_alive():
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def _is_alive(self) -> bool:
        """Whether anything of its process group is there, of which it is the leader."""
        self.process.poll()
        try:
            os.killpg(self.process.pid, 0)
        except ProcessLookupError:
            return False
        return True


COMMANDS = {
    "uvicorn": ["uvicorn", "--log-level=warning", "--port"],
    "daphne": ["daphne", "--verbosity=0", "--bind=127.0.0.1", "--port"],
    "granian": ["granian", "--interface=asginl", "--log-level=warning", "--workers-kill-timeout=3", "--port"],
    "hypercorn": ["hypercorn", "--workers=0", "--graceful-timeout=1", "--log-level=warning", "--bind"],
}

StartServer = Callable[..., Server]


@pytest.fixture(scope="session")
def start_server(django_db_setup: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartServer]:
    """Gives a server of a kind with some settings; it serves later tests, too, unless it is `fresh`."""
    servers: dict[str, Server] = {}

    def start(
        kind: str = "uvicorn", *, fresh: bool = False, database_url: str | None = None, **settings: Any
    ) -> Server:
        key = f"{kind} {settings} {database_url} {len(servers) + 1 if fresh else 0}"
        if key not in servers:
            log = tmp_path_factory.mktemp("server") / "log"
            servers[key] = _start(kind, settings, database_url or _test_database_url(), log)
        return servers[key]

    yield start
    for server in servers.values():
        server.kill()


def _start(kind: str, settings: dict[str, Any], database_url: str, log: Path) -> Server:
    port = free_port()
    address = f"127.0.0.1:{port}" if COMMANDS[kind][-1] == "--bind" else str(port)
    command = [sys.executable, "-m", *COMMANDS[kind], address, "tests.integration.serving.asgi:application"]
    configured = json.dumps({name.upper(): value for name, value in settings.items()})
    environment = os.environ | {URL_VARIABLE: database_url, "TEST_LOCALSYNC": configured}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=output, stderr=output, start_new_session=True
        )
    server = Server(process, port, log)
    _wait_for_port(server)
    return server


@pytest.fixture(params=["uvicorn", "daphne"])
def server(request: pytest.FixtureRequest, start_server: StartServer) -> Server:
    """A server of each kind that we support."""
    return start_server(request.param)


def _wait_for_port(server: Server) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and server.process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", server.port)) == 0:
                return
        time.sleep(0.05)
    pytest.fail(server.log.read_text())


def _test_database_url() -> str:
    return with_database(os.environ[URL_VARIABLE], str(django_connection.settings_dict["NAME"]))


def token_of(user: str, **options: Any) -> str:
    """A token whose subject is `user`."""
    subject = SimpleNamespace(_meta=User._meta, pk=user, id=user)
    return make_token(subject, **options)  # type: ignore[arg-type]


class Lines:
    """The lines of a stream, one at a time, or up to a kind of line."""

    def __init__(self, response: httpx2.Response) -> None:
        self._lines = response.iter_lines()

    def next(self) -> dict[str, Any]:
        return json.loads(next(self._lines))

    def through(self, kind: str) -> list[dict[str, Any]]:
        lines = [self.next()]
        while kind not in lines[-1]:
            lines.append(self.next())
        return lines

    def rest(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._lines]


class Streams:
    """Opens streams with a real HTTP client."""

    def __init__(self) -> None:
        self.client = httpx2.Client(timeout=DEADLINE_S)

    def open(
        self,
        server: Server,
        user: str = "u1",
        token: str | None = None,
        headers: dict[str, str] | None = None,
        **request: Any,
    ) -> httpx2.Response:
        headers = {
            "Accept-Encoding": "identity",
            "Authorization": f"Token {token or token_of(user)}",
            **(headers or {}),
        }
        body = {"raw_data": True, "client_id": "c1", **request}
        return self.client.send(self.client.build_request("POST", server.url, json=body, headers=headers), stream=True)


@pytest.fixture
def streams() -> Iterator[Streams]:
    streams = Streams()
    yield streams
    streams.client.close()


class RawStream:
    """A stream over a bare socket, whose reading the test controls."""

    def __init__(
        self, server: Server, user: str = "u1", *, receive_buffer: int = 1 << 16, missing_bytes: int = 0
    ) -> None:
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(DEADLINE_S)
        self.socket.connect(("127.0.0.1", server.port))
        body = b'{"raw_data":true}'
        head = f"POST /any/prefix/sync/stream HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token_of(user)}\r\n"
        self.socket.sendall(f"{head}Content-Length: {len(body) + missing_bytes}\r\n\r\n".encode() + body)
        self.received = b""

    def read_until(self, text: bytes) -> None:
        """Read until the text was received; fails when the server closes."""
        while text not in self.received:
            part = self.socket.recv(65536)
            assert part, self.received
            self.received += part

    def close(self) -> None:
        self.socket.close()
