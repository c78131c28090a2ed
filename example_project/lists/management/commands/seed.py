"""`manage.py seed`: users alice and bob with a shared list, and admin. Running it again changes nothing."""

from __future__ import annotations

from typing import Any

from django.contrib.auth import get_user_model
from django.core.management.base import BaseCommand
from django.db import transaction

from example_project.lists.models import List, Membership, Todo

TITLES = ["Buy bread", "Water the plants", "Call grandmother"]


class Command(BaseCommand):
    """Makes the users and lists that the demo talks about."""

    help = "Make users alice, bob and admin (each with the name as password) and a list that alice and bob share."

    @transaction.atomic
    def handle(self, *args: Any, **options: Any) -> None:
        """Make what is missing."""
        user_model = get_user_model()
        if user_model.objects.filter(username="alice").exists():
            return
        alice, bob = (user_model.objects.create_user(name, password=name) for name in ("alice", "bob"))
        user_model.objects.create_superuser("admin", password="admin")
        household, private = (
            List.objects.create(name="Household", owner=alice),
            List.objects.create(name="Alice's own", owner=alice),
        )
        for todo_list, user in ((household, alice), (household, bob), (private, alice)):
            Membership.objects.create(list=todo_list, user=user, username=user.username)
        for title in TITLES:
            Todo.objects.create(list=household, title=title, created_by=alice)
        Todo.objects.create(list=private, title="A present for Bob", created_by=alice)
