"""The example project with one more stream, for which a device must ask by parameter: the to-dos of one list."""

from typing import Any

from example_project.settings import *  # noqa: F403
from example_project.settings import LOCALSYNC


def _rules() -> dict[str, Any]:
    from example_project.lists.streams import streams

    one_list = {
        "with": {"my_lists": "SELECT list_id FROM memberships WHERE CAST(user_id AS TEXT) = auth.user_id()"},
        "query": "SELECT id, title FROM todos AS chosen_todos"
        " WHERE list_id = subscription.parameter('list') AND list_id IN my_lists",
    }
    return {"streams": {"shared_lists": streams[0], "one_list": one_list}}


LOCALSYNC = {**LOCALSYNC, "RULES": _rules}
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]  # tests log in often, and have no secrets
