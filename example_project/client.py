"""A terminal client of the to-do lists: `python -m example_project.client --user alice`.

Everything it shows is read from a SQLite file on this device, so it works the same without a network; commands may
also be piped into it. It needs apsw, httpx2 and orjson, and neither Django nor Postgres.
"""

from __future__ import annotations

import argparse
import logging
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import apsw
import httpx2

from django_localsync.client import Column, Database, LocalSyncConnector, Rejection, Schema, SyncStatus, Table

from .places import device_file

SCHEMA = Schema(
    [
        Table("lists", [Column.text("name"), Column.integer("owner_id"), Column.text("created_at")]),
        Table("memberships", [Column.text("list_id"), Column.integer("user_id"), Column.text("username")]),
        Table(
            "todos",
            [
                Column.text("list_id"),
                Column.text("title"),
                Column.integer("done"),
                Column.integer("created_by_id"),
                Column.text("created_at"),
                Column.text("updated_at"),
            ],
        ),
    ]
)
LISTS = "SELECT id, name FROM lists ORDER BY coalesce(created_at, '9'), name, id"
MEMBERS = "SELECT username FROM memberships WHERE list_id = ? ORDER BY username"
# `created_at` is the server's to set: until then, a to-do is known on this device alone.
TODOS = """
    SELECT id, title, done, created_at IS NULL AS is_new,
           (SELECT username FROM memberships WHERE user_id = todos.created_by_id) AS author
      FROM todos WHERE list_id = ? ORDER BY coalesce(created_at, '9'), id
"""
EVERYTHING = """
    SELECT id, name, NULL, NULL FROM lists UNION ALL SELECT id, username, list_id, NULL FROM memberships
    UNION ALL SELECT id, title, list_id, done || coalesce(created_at, '') FROM todos
"""
OFFLINE = "(offline)"
FIRST_SYNC_TIMEOUT_S = 10.0
UPLOAD_TIMEOUT_S = 10.0


class LoginError(Exception):
    """The server does not accept the name and password."""


class Login:
    """A login at the server, as a browser has it: a session, from which fresh tokens come."""

    def __init__(self, server: str, user: str, password: str) -> None:
        self._http = httpx2.Client(base_url=server, timeout=10)
        self._user, self._password = user, password

    def fetch_token(self) -> str:
        """A fresh token. Raises LoginError, or httpx2.HTTPError without a network."""
        if "localsync_example_session" not in self._http.cookies:
            self._log_in()
        response = self._post("/localsync/token")
        if response.status_code in (401, 403):  # the session has ended
            self._log_in()
            response = self._post("/localsync/token")
        token: str = response.raise_for_status().json()["data"]["token"]
        return token

    def _log_in(self) -> None:
        self._http.get("/login/").raise_for_status()  # gives the CSRF cookie
        response = self._post("/login/", {"username": self._user, "password": self._password})
        if not response.is_redirect:
            raise LoginError(f"the server knows no user {self._user!r} with this password")

    def _post(self, path: str, form: dict[str, str] | None = None) -> httpx2.Response:
        token = self._http.cookies.get("localsync_example_csrf") or ""
        return self._http.post(path, data=form, headers={"X-CSRFToken": token})


class Mistake(Exception):
    """A command that cannot be carried out; the text says why."""


class Terminal:
    """Shows one list of the device's database, again whenever it changes, and carries out commands."""

    def __init__(self, database: Database, user: str, connect: Callable[[], None]) -> None:
        self._database, self._user, self._connect = database, user, connect
        self._prompt = "> " if sys.stdin.isatty() else ""
        self._list_id: str | None = None
        self._shown = self._state = ""
        self._lock = threading.RLock()

    def run(self, lines: Iterable[str]) -> None:
        """Carry out one command a line, until the last line or `quit`."""
        threading.Thread(target=self._watch, daemon=True).start()
        for line in lines:
            self._print(self._prompt)
            name, _, argument = line.strip().partition(" ")
            if name == "quit":
                break
            if name:
                self._carry_out(name, argument.strip())

    def say(self, text: str) -> None:
        """Print a text, whole, whichever thread says it."""
        self._print(f"{chr(13) * bool(self._prompt)}{text}\n{self._prompt}")

    # Commands: a method's name is what is typed, its docstring what `help` says.

    def do_add(self, title: str) -> None:
        """add <title>: a new to-do"""
        values = (str(uuid.uuid4()), self._current_list(), title)
        self._database.execute("INSERT INTO todos (id, list_id, title, done) VALUES (?, ?, ?, 0)", values)

    def do_done(self, number: str) -> None:
        """done <number>: tick it off"""
        self._database.execute("UPDATE todos SET done = 1 WHERE id = ?", (self._pick_todo(number),))

    def do_undo(self, number: str) -> None:
        """undo <number>: it is not done after all"""
        self._database.execute("UPDATE todos SET done = 0 WHERE id = ?", (self._pick_todo(number),))

    def do_rm(self, number: str) -> None:
        """rm <number>: delete it"""
        self._database.execute("DELETE FROM todos WHERE id = ?", (self._pick_todo(number),))

    def do_list(self, _: str) -> None:
        """list: show this list"""
        self._show(self._render())

    def do_lists(self, _: str) -> None:
        """lists: all of your lists"""
        current = self._find_list()
        for number, row in enumerate(self._database.get_all(LISTS), 1):
            self.say(f"{'*' if row['id'] == current else ' '} {number} {row['name']}")

    def do_use(self, number: str) -> None:
        """use <number>: go to another list"""
        self._list_id = _pick(self._database.get_all(LISTS), number)
        self._show(self._render())

    def do_new(self, name: str) -> None:
        """new <name>: a new list"""
        self._list_id = str(uuid.uuid4())
        self._database.execute("INSERT INTO lists (id, name) VALUES (?, ?)", (self._list_id, name))

    def do_share(self, user: str) -> None:
        """share <user>: let somebody else into this list"""
        values = (str(uuid.uuid4()), self._current_list(), user)
        self._database.execute("INSERT INTO memberships (id, list_id, username) VALUES (?, ?, ?)", values)

    def do_leave(self, _: str) -> None:
        """leave: leave this list"""
        values = (self._current_list(), self._user)
        self._database.execute("DELETE FROM memberships WHERE list_id = ? AND username = ?", values)

    def do_offline(self, _: str) -> None:
        """offline: pull the plug; everything goes on to work"""
        self._database.disconnect()
        self._state = OFFLINE
        self.say(self._state)

    def do_online(self, _: str) -> None:
        """online: put it in again"""
        self._connect()

    def do_sync(self, _: str) -> None:
        """sync: wait until the server has everything"""
        deadline = time.monotonic() + UPLOAD_TIMEOUT_S
        while self._database.get_crud_batch(1) is not None:
            if self._state == OFFLINE or self._database.status.download_error or time.monotonic() > deadline:
                raise Mistake("the server cannot be reached; what you did is kept on this device")
            time.sleep(0.05)

    def do_wait(self, seconds: str) -> None:
        """wait <seconds>: let changes come in, for commands from a file"""
        time.sleep(float(seconds) if seconds.isdecimal() else 1)

    def do_help(self, _: str) -> None:
        """help: this; and quit"""
        for name in dir(self):
            if name.startswith("do_"):
                self.say(f"  {getattr(self, name).__doc__}")

    # Told by the database's own threads.

    def report_status(self, status: SyncStatus) -> None:
        """Say when the connection comes and goes."""
        state = "(online)" if status.connected else "(no connection; trying again)" if status.download_error else ""
        if state and state != self._state:
            self._state = state
            self.say(state)

    def report_rejected(self, rejection: Rejection) -> None:
        """Say what the server refused; sync takes it back."""
        for operation in rejection.result.operations:
            if operation.errors:
                self.say(f"(refused: {operation.errors})")

    def _watch(self) -> None:
        with suppress(apsw.ConnectionClosedError):
            for _ in self._database.watch(EVERYTHING):
                if (screen := self._render()) != self._shown:
                    self._show(screen)

    def _print(self, text: str) -> None:
        with self._lock:
            print(text, end="", flush=True)

    def _carry_out(self, name: str, argument: str) -> None:
        command = getattr(self, f"do_{name}", None)
        try:
            if command is None:
                raise Mistake(f"{name} is not a command; help lists them")
            command(argument)
        except Mistake as mistake:
            self.say(f"({mistake})")

    def _show(self, screen: str) -> None:
        self._shown = screen
        self.say(screen)

    def _render(self) -> str:
        list_id = self._find_list()
        if list_id is None:
            return "(no lists yet: new <name> makes one)"
        names = {row["id"]: row["name"] for row in self._database.get_all(LISTS)}
        members = ", ".join(row["username"] for row in self._database.get_all(MEMBERS, (list_id,)))
        todos = enumerate(self._database.get_all(TODOS, (list_id,)), 1)
        lines = [_render_todo(number, row) for number, row in todos] or ["  nothing to do"]
        return "\n".join([f"{names.get(list_id)} ({members or 'not uploaded yet'})", *lines])

    def _find_list(self) -> str | None:
        """The list that is shown: the chosen one as long as it is there, else the first."""
        ids = [row["id"] for row in self._database.get_all(LISTS)]
        if self._list_id not in ids:
            self._list_id = ids[0] if ids else None
        return self._list_id

    def _current_list(self) -> str:
        if (list_id := self._find_list()) is None:
            raise Mistake("there is no list yet; new <name> makes one")
        return list_id

    def _pick_todo(self, number: str) -> str:
        return _pick(self._database.get_all(TODOS, (self._current_list(),)), number)


def _pick(rows: list[dict[str, Any]], number: str) -> str:
    """The id of the row with this number, counted from 1."""
    if not number.isdecimal() or not 0 < int(number) <= len(rows):
        raise Mistake(f"give a number from 1 to {len(rows)}" if rows else "there is nothing to choose from")
    return str(rows[int(number) - 1]["id"])


def _render_todo(number: int, row: dict[str, Any]) -> str:
    author = row["author"] or ("not uploaded yet" if row["is_new"] else "")
    return f"{number:3} [{'x' if row['done'] else ' '}] {row['title']}" + (f"  · {author}" if author else "")


def main() -> int:
    """Run the client; return the exit code."""
    logging.getLogger("django_localsync").addHandler(logging.NullHandler())  # the terminal says it itself
    options = _parse_arguments()
    path: Path = options.database or device_file(options.user)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        database = Database(path, SCHEMA)
    except (OSError, apsw.Error) as error:
        return _fail(f"{path} cannot be opened ({error}); choose another file: --database FILE")
    with database:
        try:
            return _work(database, options)
        except LoginError as error:
            return _fail(str(error))


def _work(database: Database, options: argparse.Namespace) -> int:
    login = Login(options.server, options.user, options.password or options.user)
    terminal = Terminal(database, options.user, lambda: database.connect(connector))
    connector = LocalSyncConnector(
        f"{options.server}/localsync", login.fetch_token, on_rejected=terminal.report_rejected
    )
    database.on_status(terminal.report_status)
    try:
        login.fetch_token()
    except httpx2.HTTPError:
        terminal.say(f"({options.server} cannot be reached; working with what is on this device)")
    database.connect(connector)
    with suppress(TimeoutError):
        database.wait_for_first_sync(FIRST_SYNC_TIMEOUT_S)
    with suppress(KeyboardInterrupt):
        terminal.run(sys.stdin)
    return _leave(terminal)


def _leave(terminal: Terminal) -> int:
    """Give what was written last a chance to be uploaded."""
    try:
        terminal.do_sync("")
    except (Mistake, KeyboardInterrupt):
        terminal.say("(some changes wait on this device for the next time)")
    return 0


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m example_project.client", description=__doc__)
    parser.add_argument("--user", required=True, help="alice or bob, where `manage.py seed` ran")
    parser.add_argument("--password", help="by default the user's name, as seeded")
    parser.add_argument("--server", default="http://127.0.0.1:8000", help="where the demo runs (default: %(default)s)")
    parser.add_argument("--database", type=Path, help="this device's SQLite file; another file is another device")
    options = parser.parse_args()
    options.server = options.server.rstrip("/")
    return options


def _fail(text: str) -> int:
    print(text, file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
