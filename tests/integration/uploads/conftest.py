"""Who uploads."""

from __future__ import annotations

import pytest
from django.contrib.auth.models import User

from tests.testapp.models import TodoList


@pytest.fixture
def alice(db: None) -> User:
    return User.objects.create_user("alice")


@pytest.fixture
def bob(db: None) -> User:
    return User.objects.create_user("bob")


@pytest.fixture
def groceries(alice: User) -> TodoList:
    created = TodoList.objects.create(name="Groceries")
    created.members.add(alice)
    return created
