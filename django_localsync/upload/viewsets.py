"""An existing ViewSet as the handler of its table: offline writes obey exactly the online rules.

The ViewSet's queryset with its filter backends, its permissions, its serializer for each action, and its
`perform_create`, `perform_update` and `perform_destroy` are used as they are; authentication, parsing and throttling
are the upload view's.
"""

from __future__ import annotations

from typing import Any

from django.db import models
from django.http import HttpRequest
from rest_framework import mixins, serializers
from rest_framework.exceptions import MethodNotAllowed
from rest_framework.permissions import BasePermission
from rest_framework.request import Request
from rest_framework.viewsets import GenericViewSet

from ..exceptions import ConfigurationError
from .tables import UploadTable

_METHODS = {"create": "POST", "update": "PUT", "partial_update": "PATCH", "destroy": "DELETE"}
_PLAIN: dict[str, Any] = {
    "create": mixins.CreateModelMixin.create,
    "update": mixins.UpdateModelMixin.update,
    "partial_update": mixins.UpdateModelMixin.partial_update,
    "destroy": mixins.DestroyModelMixin.destroy,
}


class ViewSetTable(UploadTable):
    """The table of a ViewSet. In a handler's `tables` the ViewSet alone means this.

    An action that the ViewSet does not have is refused. One that it overrides as a whole cannot be used, because
    it answers a request; what it does belongs into its serializer or its `perform_…`.
    """

    permission_classes = ()

    def __init__(self, viewset_class: type[GenericViewSet[Any]], **attributes: Any) -> None:
        super().__init__(**attributes)
        self.viewset_class = viewset_class
        lookup = viewset_class.lookup_field
        if self.lookup_field == "pk" and lookup != "pk":
            self.lookup_field = lookup
        for action, plain in _PLAIN.items():
            if getattr(viewset_class, action, plain) is not plain:
                raise ConfigurationError(
                    f"{viewset_class.__name__} overrides {action}(), which uploads do not call: move what it does "
                    f"into the serializer or into perform_{action.removeprefix('partial_')}()"
                )

    def names_model(self, model: type[models.Model]) -> bool:
        """Whether the ViewSet is made for `model`, as far as its attributes say."""
        view = self.viewset_class
        named = view.queryset if view.queryset is not None else getattr(view.serializer_class, "Meta", None)
        return getattr(named, "model", None) is model

    def set_action(self, action: str) -> None:
        """Say what the operation turns out to do; the ViewSet is then as if a request had come."""
        self.action = action
        self.request = _request(self.user, _METHODS[action], dict(self.operation.data or {}))
        view: Any = self.viewset_class()
        view.request, view.action, view.format_kwarg, view.args = self.request, action, None, ()
        view.action_map = {method.lower(): name for name, method in _METHODS.items()}
        view.kwargs = {} if action == "create" else {view.lookup_url_kwarg or view.lookup_field: self.operation.id}
        self.viewset = view

    def get_queryset(self) -> models.QuerySet[Any]:
        """The rows that the ViewSet shows to the user."""
        rows: models.QuerySet[Any] = self.viewset.filter_queryset(self.viewset.get_queryset())
        return rows

    def get_serializer_class(self) -> type[serializers.Serializer[Any]]:
        """The serializer of the action."""
        found: type[serializers.Serializer[Any]] = self.viewset.get_serializer_class()
        return found

    def get_serializer_context(self) -> dict[str, Any]:
        """What the ViewSet gives its serializers."""
        context: dict[str, Any] = self.viewset.get_serializer_context()
        return context

    def get_permissions(self) -> list[BasePermission]:
        """The permissions of the action."""
        return list(self.viewset.get_permissions())

    def check_permissions(self) -> None:
        """Ask the ViewSet, which must have the action."""
        allowed = self.request.method.lower() in self.viewset_class.http_method_names
        if not (allowed and hasattr(self.viewset, self.action)):
            raise MethodNotAllowed(self.request.method)
        self.viewset.check_permissions(self.request)

    def check_object_permissions(self, instance: Any) -> None:
        """Ask the ViewSet about a row."""
        self.viewset.check_object_permissions(self.request, instance)

    def perform_create(self, serializer: serializers.Serializer[Any]) -> Any:
        """Save a new row as the ViewSet does."""
        return self.viewset.perform_create(serializer)

    def perform_update(self, serializer: serializers.Serializer[Any]) -> Any:
        """Save a changed row as the ViewSet does."""
        return self.viewset.perform_update(serializer)

    def perform_destroy(self, instance: Any) -> Any:
        """Delete a row as the ViewSet does."""
        return self.viewset.perform_destroy(instance)


def _request(user: Any, method: str, data: dict[str, Any]) -> Request:
    """A request that somebody else has authenticated and parsed."""
    http = HttpRequest()
    http.method, http.user = method, user
    request = Request(http)
    parsed: Any = request
    parsed.user, parsed.auth = user, None
    parsed._data = parsed._full_data = data
    parsed._files = {}
    return request
