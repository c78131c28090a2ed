"""Uploads: operations a second through the default handler, beside the same serializer called in a loop.

    make bench-uploads            (or: python -m benchmarks.uploads --operations 2000)

The loop does what a bare API view does for each row: find it among the permitted ones, validate, save, each in a
transaction. The handler adds the journal, locks, checks of keys, parents and permissions. The ratio says what that
costs. Needs a database: LOCALSYNC_TEST_DATABASE_URL, or an embedded server is started.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SIZES = (1, 10, 100)  # operations of a local transaction


def main() -> None:
    """Measure and print a table, then JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--operations", type=int, default=1000, help="of each measurement")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--profile", action="store_true", help="profile the handler instead")
    options = parser.parse_args()
    with _database():
        print(json.dumps(measure(options.operations, options.repeats, options.profile)))


def measure(operations: int, repeats: int, profile: bool = False) -> list[dict[str, Any]]:
    """The medians, for each kind of operation and size of transaction. Rounds of both ways take turns."""
    results = []
    print(f"{'operation':<8}{'size':>6}{'handler/s':>12}{'loop/s':>10}{'ratio':>8}")
    for kind in ("PUT", "PATCH"):
        for size in SIZES:
            if profile:
                _profile(lambda kind=kind, size=size: _handler_round(kind, size, operations))
                continue
            handler, loop = [], []
            for _ in range(repeats):
                loop.append(operations / _loop_round(kind, size, operations))
                handler.append(operations / _handler_round(kind, size, operations))
            rates = statistics.median(handler), statistics.median(loop)
            print(f"{kind:<8}{size:>6}{rates[0]:>12.0f}{rates[1]:>10.0f}{rates[0] / rates[1]:>8.2f}")
            results.append({"operation": kind, "size": size, "handler": rates[0], "loop": rates[1]})
    return results


@contextmanager
def _database() -> Iterator[None]:
    """A database of its own, with the tables of the test suite."""
    from example_project.postgres import EmbeddedPostgres
    from tests.databases import temporary_database

    with tempfile.TemporaryDirectory(prefix="localsync-bench-") as folder:
        url, server = os.environ.get("LOCALSYNC_TEST_DATABASE_URL"), None
        if url is None:
            server = EmbeddedPostgres(Path(folder) / "postgres", durable=True, major=18)
            Path(folder).chmod(0o755)
            url = server.start()
        try:
            with temporary_database(url) as own:
                os.environ |= {"LOCALSYNC_TEST_DATABASE_URL": own, "DJANGO_SETTINGS_MODULE": "tests.settings"}
                import django
                from django.core.management import call_command
                from django.db import connections

                django.setup()
                call_command("migrate", verbosity=0, skip_checks=True)
                yield
                connections.close_all()
        finally:
            if server is not None:
                server.stop()


def _rows(kind: str, count: int) -> tuple[Any, Any, list[uuid.UUID]]:
    """A user's list, and ids of to-dos in it, which exist already if they are to be changed."""
    from django.contrib.auth.models import User

    from tests.testapp.models import Todo, TodoList

    Todo.objects.all().delete()
    user, _ = User.objects.get_or_create(username="alice")
    made, _ = TodoList.objects.get_or_create(name="Groceries")
    made.members.add(user)
    ids = [uuid.uuid4() for _ in range(count)]
    if kind == "PATCH":
        Todo.objects.bulk_create(Todo(pk=row, list=made, title="Milk") for row in ids)
    return user, made, ids


def _handler_round(kind: str, size: int, count: int) -> float:
    from django_localsync.protocol.crud import CrudOperation, CrudTransaction, Op, UploadRequest
    from tests.testapp.uploads import Handler

    user, made, ids = _rows(kind, count)
    data = {"list_id": str(made.pk), "title": "Bread", "done": 1} if kind == "PUT" else {"title": "Bread", "done": 1}
    operations = [CrudOperation(number, Op(kind), "todos", str(row), data) for number, row in enumerate(ids)]
    parts = [operations[start : start + size] for start in range(0, count, size)]
    transactions = tuple(CrudTransaction(number, tuple(part)) for number, part in enumerate(parts))
    began = time.perf_counter()
    results = Handler().handle(UploadRequest(str(uuid.uuid4()), transactions), user)
    elapsed = time.perf_counter() - began
    assert all(result.status == "applied" for result in results)
    return elapsed


def _loop_round(kind: str, size: int, count: int) -> float:
    from django.db import transaction

    from tests.testapp.models import Todo
    from tests.testapp.uploads import TodoSerializer

    user, made, ids = _rows(kind, count)
    permitted = Todo.objects.filter(list__members=user).distinct()
    began = time.perf_counter()
    for start in range(0, count, size):
        with transaction.atomic():
            for row in ids[start : start + size]:
                if kind == "PUT":
                    serializer = TodoSerializer(data={"list": str(made.pk), "title": "Bread", "done": True})
                    serializer.is_valid(raise_exception=True)
                    serializer.save(id=row)
                else:
                    instance = permitted.get(pk=row)
                    serializer = TodoSerializer(instance, data={"title": "Bread", "done": True}, partial=True)
                    serializer.is_valid(raise_exception=True)
                    serializer.save()
    return time.perf_counter() - began


def _profile(work: Callable[[], Any]) -> None:
    import cProfile
    import pstats

    profiler = cProfile.Profile()
    profiler.runcall(work)
    pstats.Stats(profiler).sort_stats("tottime").print_stats(40)


if __name__ == "__main__":
    main()
