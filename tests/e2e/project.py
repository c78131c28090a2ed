"""The example project as processes: its database as the backend sees it, and what each user's devices must hold.

What a device must hold is asked of Postgres in SQL of its own, so a mistake in rules, replicator, server or client
shows as a difference.
"""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, LiteralString

import psycopg
from django.contrib.auth.models import User

from django_localsync.tokens import make_token
from tests.processes import Server, asgi_process, free_port, replicator_process
from tests.settings import SECRET_KEY

ENVIRONMENT = {"SECRET_KEY": SECRET_KEY}
"""Servers that accept the tokens which this process makes."""

Rows = list[tuple[Any, ...]]

MY_LISTS = "SELECT list_id FROM memberships WHERE user_id = %(user)s"
ISO = """'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'"""
EXPECTED: Mapping[str, LiteralString] = {
    "lists": f"""
        SELECT id::text, name, owner_id, to_char(created_at AT TIME ZONE 'UTC', {ISO})
          FROM lists WHERE id IN ({MY_LISTS})
    """,
    "memberships": f"""
        SELECT id::text, list_id::text, user_id, username FROM memberships WHERE list_id IN ({MY_LISTS})
    """,
    "todos": f"""
        SELECT id::text, list_id::text, title, done::int, created_by_id,
               to_char(created_at AT TIME ZONE 'UTC', {ISO}), to_char(updated_at AT TIME ZONE 'UTC', {ISO})
          FROM todos WHERE list_id IN ({MY_LISTS})
    """,
}
"""What Postgres says that a user's devices hold: by table, with its columns in the order of COLUMNS."""

COLUMNS: Mapping[str, Mapping[str, str]] = {
    "lists": {"name": "text", "owner_id": "integer", "created_at": "text"},
    "memberships": {"list_id": "text", "user_id": "integer", "username": "text"},
    "todos": {
        "list_id": "text",
        "title": "text",
        "done": "integer",
        "created_by_id": "integer",
        "created_at": "text",
        "updated_at": "text",
    },
}
"""What an app for the example project declares, besides `id`."""


@dataclass(frozen=True)
class Person:
    """A user of the project."""

    id: int
    name: str

    def token(self, lifetime_s: int | None = None) -> str:
        """A new token, as the token view gives them."""
        return make_token(User(pk=self.id), lifetime_s=lifetime_s)


class Database:
    """The example project's database, read and written past Django, as another part of a backend would."""

    def __init__(self, url: str, connection: psycopg.Connection[Any]) -> None:
        self.url, self.connection = url, connection

    def rows(self, sql: LiteralString, **parameters: Any) -> Rows:
        """The rows that a statement returns; it is committed at once."""
        cursor = self.connection.execute(sql, parameters)
        return cursor.fetchall() if cursor.description else []

    def expected(self, person: Person) -> dict[str, Rows]:
        """What the person's devices hold once they are in sync: by table, rows sorted by id."""
        with self.connection.transaction():
            self.rows("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            return {table: sorted(self.rows(sql, user=person.id)) for table, sql in EXPECTED.items()}

    def add_person(self, name: str) -> Person:
        """Make a user whose name begins so."""
        name = f"{name}-{secrets.token_hex(3)}"
        statement: LiteralString = """
            INSERT INTO auth_user (username, password, first_name, last_name, email, is_superuser, is_staff, is_active,
                                   date_joined)
            VALUES (%(name)s, '!', '', '', '', false, false, true, now()) RETURNING id
        """
        return Person(int(self.rows(statement, name=name)[0][0]), name)

    def add_list(self, name: str, *members: Person) -> str:
        """Make a list that the members share, of whom the first owns it; return its id."""
        list_id = str(uuid.uuid4())
        with self.connection.transaction():
            self.rows(
                "INSERT INTO lists (id, name, owner_id, created_at) VALUES (%(id)s, %(name)s, %(owner)s, now())",
                id=list_id,
                name=name,
                owner=members[0].id,
            )
            for member in members:
                self.add_member(list_id, member)
        return list_id

    def add_member(self, list_id: str, person: Person) -> None:
        """Grant a list."""
        self.rows(
            "INSERT INTO memberships (id, list_id, user_id, username)"
            " VALUES (gen_random_uuid(), %(list)s, %(user)s, %(name)s)",
            list=list_id,
            user=person.id,
            name=person.name,
        )

    def remove_member(self, list_id: str, person: Person) -> None:
        """Revoke a list."""
        self.rows(
            "DELETE FROM memberships WHERE list_id = %(list)s AND user_id = %(user)s", list=list_id, user=person.id
        )

    def add_todo(self, list_id: str, title: str) -> str:
        """Make a to-do; return its id."""
        todo_id = str(uuid.uuid4())
        self.rows(
            "INSERT INTO todos (id, list_id, title, done, created_at, updated_at)"
            " VALUES (%(id)s, %(list)s, %(title)s, false, now(), now())",
            id=todo_id,
            list=list_id,
            title=title,
        )
        return todo_id


class RunningProject(Database):
    """The example project with one replicator and one server, which may be ended and started again."""

    def __init__(
        self,
        url: str,
        connection: psycopg.Connection[Any],
        cleanup: ExitStack,
        *,
        kind: Server,
        application: str,
        environment: Mapping[str, str],
    ) -> None:
        super().__init__(url, connection)
        self._cleanup, self._kind, self._application = cleanup, kind, application
        self._environment, self._port = environment, free_port()
        self.address = f"http://127.0.0.1:{self._port}"
        self.endpoint = f"{self.address}/localsync"
        self.begin_replicator()
        self.start_server()
        self.wait_for_replicator()

    def begin_replicator(self) -> None:
        """Start a replicator, and do not wait until it replicates."""
        self.replicator = self._cleanup.enter_context(replicator_process(self.url, environment=self._environment))

    def wait_for_replicator(self) -> None:
        """Wait until the newest replicator follows the stream."""
        self.replicator.wait_for_log("the rules are active")

    def start_server(self) -> None:
        """Start a server at the same address as before."""
        self.server = self._cleanup.enter_context(
            asgi_process(
                self.url, self._kind, port=self._port, application=self._application, environment=self._environment
            )
        )


@contextmanager
def open_database(url: str) -> Iterator[Database]:
    """A migrated database of the example project."""
    with psycopg.connect(url, autocommit=True) as connection:
        yield Database(url, connection)


@contextmanager
def running_project(
    url: str,
    kind: Server = "uvicorn",
    *,
    application: str = "example_project.asgi:application",
    environment: Mapping[str, str] | None = None,
) -> Iterator[RunningProject]:
    """Run replicator and server on a migrated database."""
    own = ENVIRONMENT | dict(environment or {})
    with psycopg.connect(url, autocommit=True) as connection, ExitStack() as cleanup:
        yield RunningProject(url, connection, cleanup, kind=kind, application=application, environment=own)
