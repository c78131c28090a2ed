"""Django's entry point of the app."""

from django.apps import AppConfig


class ListsConfig(AppConfig):
    """Shared to-do lists."""

    name = "example_project.lists"
    label = "lists"
