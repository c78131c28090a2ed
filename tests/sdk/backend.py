"""The example project as the SDK's tests see it: its database, its address, its users' tokens."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, LiteralString

import httpx2
import psycopg
from django.contrib.auth.hashers import MD5PasswordHasher
from django.contrib.auth.models import User
from psycopg.rows import DictRow, dict_row

from django_localsync.tokens import make_token
from tests.processes import asgi_process, free_port, replicator
from tests.settings import SECRET_KEY

# The second lets this process make tokens that the server accepts.
ENVIRONMENT = {"DJANGO_SETTINGS_MODULE": "tests.sdk.settings", "SECRET_KEY": SECRET_KEY}


class Backend:
    """A running example project with the users alice and bob."""

    def __init__(self, endpoint: str, connection: psycopg.Connection[DictRow]) -> None:
        self.endpoint, self._connection = endpoint, connection
        self.token = cache(self._token)

    def rows(self, sql: LiteralString, **parameters: Any) -> list[DictRow]:
        """The rows that a statement returns; it is committed at once."""
        cursor = self._connection.execute(sql, parameters)
        return cursor.fetchall() if cursor.description else []

    def add_user(self, name: str) -> None:
        """Commit a user whose password is the name."""
        self.rows(
            "INSERT INTO auth_user (username, password, date_joined, is_active, is_staff, is_superuser,"
            " first_name, last_name, email)"
            " VALUES (%(name)s, %(password)s, now(), true, false, false, '', '', '')",
            name=name,
            password=MD5PasswordHasher().encode(name, "salt"),
        )

    def user_id(self, name: str) -> int:
        """A user's primary key."""
        return int(self.rows("SELECT id FROM auth_user WHERE username = %(name)s", name=name)[0]["id"])

    def add_list(self, name: str, *members: str) -> str:
        """Commit a list that the members share, of whom the first owns it; return its id."""
        list_id = str(uuid.uuid4())
        with self._connection.transaction():
            self.rows(
                "INSERT INTO lists (id, name, owner_id, created_at) VALUES (%(id)s, %(name)s, %(owner)s, now())",
                id=list_id,
                name=name,
                owner=self.user_id(members[0]),
            )
            for member in members:
                self.add_member(list_id, member)
        return list_id

    def add_member(self, list_id: str, name: str) -> None:
        """Commit a membership."""
        self.rows(
            "INSERT INTO memberships (id, list_id, user_id, username)"
            " SELECT gen_random_uuid(), %(list)s, id, username FROM auth_user WHERE username = %(name)s",
            list=list_id,
            name=name,
        )

    def remove_member(self, list_id: str, name: str) -> None:
        """Commit the end of a membership."""
        self.rows("DELETE FROM memberships WHERE list_id = %(list)s AND username = %(name)s", list=list_id, name=name)

    def add_todo(self, list_id: str, title: str) -> str:
        """Commit a to-do; return its id."""
        todo_id = str(uuid.uuid4())
        self.rows(
            "INSERT INTO todos (id, list_id, title, done, created_at, updated_at)"
            " VALUES (%(id)s, %(list)s, %(title)s, false, now(), now())",
            id=todo_id,
            list=list_id,
            title=title,
        )
        return todo_id

    def short_token(self, user: str, lifetime_s: int) -> str:
        """A token that expires sooner than those of the token view."""
        return make_token(User(pk=self.user_id(user)), lifetime_s=lifetime_s)

    def _token(self, user: str) -> str:
        """A token as an app gets it, by logging in."""
        response = httpx2.post(f"{self.endpoint}/token", auth=(user, user))
        assert response.status_code == 200, response.text
        return str(response.json()["data"]["token"])


@contextmanager
def running_backend(database_url: str) -> Iterator[Backend]:
    """A new backend: the users and a list that they share were there before replicator and server began to run."""
    port = free_port()
    with psycopg.connect(database_url, autocommit=True, row_factory=dict_row) as connection:
        backend = Backend(f"http://127.0.0.1:{port}/localsync", connection)
        for name in ("alice", "bob"):
            backend.add_user(name)
        backend.add_todo(backend.add_list("Household", "alice", "bob"), "Buy bread")
        backend.add_todo(backend.add_list("Alice's own", "alice"), "A present for Bob")
        with (
            replicator(database_url, environment=ENVIRONMENT),
            asgi_process(database_url, port=port, environment=ENVIRONMENT),
        ):
            yield backend
