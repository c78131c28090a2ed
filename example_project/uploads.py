"""What devices may write, and what the server adds to it.

A device sends what its user did; these classes decide whether it may be done, as the views of an API would. What the
server sets or changes (who created a to-do, when, spaces trimmed off a title) comes back to the device by sync.
"""

from __future__ import annotations

from typing import Any

from django.contrib.auth import get_user_model
from django.db import models
from rest_framework import serializers
from rest_framework.permissions import IsAuthenticated

from django_localsync.upload import UploadHandler, UploadTable

from .lists.models import List, Membership, Todo


class ListSerializer(serializers.ModelSerializer[List]):
    """A list: its name."""

    class Meta:
        model = List
        fields = ["name"]


class ListTable(UploadTable):
    """Everybody may make lists; members may rename and delete theirs."""

    serializer_class = ListSerializer
    permission_classes = [IsAuthenticated]

    def get_queryset(self) -> models.QuerySet[Any]:
        """The user's lists."""
        return List.objects.filter(memberships__user=self.user)

    def perform_create(self, serializer: serializers.Serializer[Any]) -> None:
        """Make the list, with its owner as the first member."""
        created = serializer.save(owner=self.user)
        Membership.objects.create(list=created, user=self.user, username=self.user.get_username())


class MembershipSerializer(serializers.ModelSerializer[Membership]):
    """An invitation: a list and the name of a user."""

    class Meta:
        model = Membership
        fields = ["list", "username"]

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        """Find the user of that name, who must not be a member yet."""
        user = get_user_model().objects.filter(username=attrs.get("username")).first()
        if user is None:
            raise serializers.ValidationError({"username": ["There is no user of this name."]})
        if Membership.objects.filter(list=attrs["list"], user=user).exists():
            raise serializers.ValidationError({"username": ["This user is a member already."]})
        return {**attrs, "user": user}


class MembershipTable(UploadTable):
    """Members invite others, send them away, and leave."""

    serializer_class = MembershipSerializer
    permission_classes = [IsAuthenticated]

    def get_queryset(self) -> models.QuerySet[Any]:
        """Every membership of the user's lists."""
        return Membership.objects.filter(list__in=List.objects.filter(memberships__user=self.user))

    def perform_update(self, serializer: serializers.Serializer[Any]) -> None:
        """Refuse: a membership is made and deleted, never changed."""
        raise serializers.ValidationError({"username": ["A membership cannot be changed."]})


class TodoSerializer(serializers.ModelSerializer[Todo]):
    """What a device may say of a to-do; spaces around the title are trimmed."""

    class Meta:
        model = Todo
        fields = ["list", "title", "done"]


class TodoTable(UploadTable):
    """Members write the to-dos of their lists."""

    serializer_class = TodoSerializer
    permission_classes = [IsAuthenticated]

    def get_queryset(self) -> models.QuerySet[Any]:
        """The to-dos of the user's lists."""
        return Todo.objects.filter(list__in=List.objects.filter(memberships__user=self.user))

    def perform_create(self, serializer: serializers.Serializer[Any]) -> None:
        """Note who made it."""
        serializer.save(created_by=self.user)


class ListsUploadHandler(UploadHandler):
    """The tables that devices write to, by the names that they have there."""

    tables = {"lists": ListTable, "memberships": MembershipTable, "todos": TodoTable}
