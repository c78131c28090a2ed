"""The example project with one more stream, for which a device must ask by parameter: the to-dos of one list."""

import yaml

from example_project.settings import *  # noqa: F403
from example_project.settings import HERE, LOCALSYNC

_rules = yaml.safe_load((HERE / "sync_rules.yaml").read_text())
_rules["streams"]["one_list"] = {
    "with": {"my_lists": "SELECT list_id FROM memberships WHERE CAST(user_id AS TEXT) = auth.user_id()"},
    "query": "SELECT id, title FROM todos AS chosen_todos"
    " WHERE list_id = subscription.parameter('list') AND list_id IN my_lists",
}
LOCALSYNC = {**LOCALSYNC, "RULES": _rules}
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]  # tests log in often, and have no secrets
