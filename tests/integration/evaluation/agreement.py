"""Run as a module with the example project's settings: do the evaluator and a replicator's storage agree?

Makes users, lists and to-dos at random, changes them while a replicator follows, and compares what every bucket holds
and which buckets every user has. Prints how much it compared; ends with an AssertionError where the two differ.
"""

from __future__ import annotations

import asyncio
import random
import sys
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import django
import orjson

django.setup()

from django.conf import settings  # noqa: E402
from django.contrib.auth.models import User  # noqa: E402
from django.db import transaction  # noqa: E402

from django_localsync.conf import get_settings, read_rules  # noqa: E402
from django_localsync.evaluation import Evaluator  # noqa: E402
from django_localsync.evaluation.explain import Explainer  # noqa: E402
from django_localsync.storage.reader import StorageReader  # noqa: E402
from django_localsync.storage.resolving import Client  # noqa: E402
from django_localsync.sync_rules import compile_rules  # noqa: E402
from django_localsync.sync_rules.plan import RequestParameters  # noqa: E402
from django_localsync.tokens import user_claims  # noqa: E402
from example_project.lists.models import List, Membership, Todo  # noqa: E402
from tests.replication import drop_replication, replicating, stored_buckets  # noqa: E402

CHANGES = 100


def change(chance: random.Random) -> None:
    """One random change of lists, who shares them, and what is to do."""
    users, lists, todos = [*User.objects.all()], [*List.objects.all()], [*Todo.objects.all()]
    kind = chance.choice(["list", "todo", "todo", "share", "share", "leave", "move", "edit", "drop list", "drop todo"])
    match kind:
        case "list":
            List.objects.create(name=f"list {chance.random()}", owner=chance.choice(users))
        case "todo" if lists:
            Todo.objects.create(
                list=chance.choice(lists), title="Ünïcode \\ \t", created_by=chance.choice([None, *users])
            )
        case "share" if lists:
            user = chance.choice(users)
            Membership.objects.get_or_create(list=chance.choice(lists), user=user, defaults={"username": user.username})
        case "leave":
            membership = Membership.objects.order_by("?").first()
            if membership:
                membership.delete()
        case "move" if todos and lists:
            Todo.objects.filter(pk=chance.choice(todos).pk).update(list=chance.choice(lists))
        case "edit" if todos:
            Todo.objects.filter(pk=chance.choice(todos).pk).update(title="x" * chance.choice([1, 199]), done=True)
        case "drop list" if len(lists) > 3:
            chance.choice(lists).delete()
        case "drop todo" if todos:
            chance.choice(todos).delete()


def evaluated_buckets() -> dict[str, dict[tuple[str, str], Any]]:
    """What every bucket holds by the live tables."""
    evaluator = Evaluator.of_project()
    explainer, found = Explainer(evaluator), defaultdict(dict)
    for source, _ in enumerate(evaluator.plan.buckets):
        for _, _, row in evaluator.bucket_rows(source):
            name = explainer.bucket_name((source, row.parameters))
            found[name][row.row_type, row.row_id] = orjson.loads(row.data)
    return dict(found)


def granted_buckets() -> dict[int, set[str]]:
    """The buckets of each user by the live tables."""
    evaluator = Evaluator.of_project()
    name = Explainer(evaluator).bucket_name
    return {
        user.pk: {name(bucket) for bucket in evaluator.resolve(RequestParameters(user_claims(user))).buckets}
        for user in User.objects.all()
    }


async def served_buckets(users: list[User]) -> dict[int, set[str]]:
    """The buckets that the server gives each user, without the incarnation and definition that begin their names."""
    reader = StorageReader(
        "default", plan_for=lambda rules, _: compile_rules(rules).plan, pool_size=1, max_buckets=1000
    )
    await reader.open()
    try:
        found = {}
        for user in users:
            claims = user_claims(user)
            reading = await reader.read_checkpoint(Client(claims["sub"], "device", RequestParameters(claims)))
            found[user.pk] = {name.partition("#")[2] for name in reading.checkpoint.buckets}
        return found
    finally:
        await reader.close()


def main(seed: int) -> None:
    """Make changes, compare, and say how much was compared."""
    chance = random.Random(seed)
    for name in ("alice", "bob", "carol"):
        User.objects.create_user(name)
    for _ in range(CHANGES):
        change(chance)
    others = {key: value for key, value in settings.LOCALSYNC.items() if key != "RULES"}
    with replicating(read_rules(get_settings()), **others) as replicator:
        for _ in range(CHANGES):
            change(chance)
        for user in User.objects.all():  # so that there is something to compare, however the dice fell
            last = List.objects.create(name="last", owner=user)
            Membership.objects.create(list=last, user=user, username=user.username)
            Todo.objects.create(list=last, title="last")
        replicator.catch_up()
    stored = {name: rows for name, rows in stored_buckets().items() if rows}
    served = asyncio.run(served_buckets([*User.objects.all()]))
    assert (evaluated_buckets(), granted_buckets()) == (stored, served)
    for number in range(len(UNSEEN)):
        assert is_noticed(number, stored, served), f"unseen change {number}"
    drop_replication()
    print(f"{len(stored)} buckets, {sum(map(len, stored.values()))} rows, {sum(map(len, served.values()))} grants")


# Changes that storage has not seen, so that both must differ.
UNSEEN: list[Callable[[], object]] = [
    lambda: Todo.objects.update(title="another title"),
    lambda: Todo.objects.first().delete(),  # type: ignore[union-attr]
    lambda: Membership.objects.first().delete(),  # type: ignore[union-attr]
    lambda: Membership.objects.filter(list__name="last").update(user=User.objects.create_user("mallory")),
]


def is_noticed(number: int, stored: object, served: object) -> bool:
    """Whether the two differ once a change has been made behind the replicator's back."""
    with transaction.atomic():
        UNSEEN[number]()
        differs = (evaluated_buckets(), granted_buckets()) != (stored, served)
        transaction.set_rollback(True)
    return differs


if __name__ == "__main__":
    main(int(sys.argv[1]))
