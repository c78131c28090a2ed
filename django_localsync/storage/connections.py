"""Direct psycopg connections with a Django alias's own parameters."""

from __future__ import annotations

from typing import Any

import psycopg
from django.db import connections
from psycopg.conninfo import conninfo_to_dict

from ..conf import get_settings

# They change what Postgres prints, and users set them on roles and databases.
TEXT_FORMAT = {
    "DateStyle": "ISO",
    "TimeZone": "UTC",
    "IntervalStyle": "postgres",
    "extra_float_digits": "1",
    "bytea_output": "hex",
    "lc_monetary": "C",
    "client_encoding": "UTF8",
    "search_path": "",
    "row_security": "off",  # rows that a policy hides are an error, not left out
}

Connection = psycopg.Connection[tuple[Any, ...]]


def connection_parameters(alias: str) -> dict[str, Any]:
    """libpq parameters of a direct connection to an alias's database.

    Replication, LISTEN and session locks do not pass a pooler: for the source, the setting `replication_url` says
    where the server itself is.
    """
    settings = get_settings()
    if settings.replication_url and alias == settings.source:
        return dict(conninfo_to_dict(settings.replication_url))
    parameters = dict(connections[alias].get_connection_params())
    for django_only in ("cursor_factory", "context", "prepare_threshold"):
        parameters.pop(django_only, None)
    return parameters


def connect(alias: str, **overrides: Any) -> Connection:
    """Open a direct connection in autocommit mode."""
    parameters = {"application_name": "django_localsync", **connection_parameters(alias), **overrides}
    return psycopg.connect(**parameters, autocommit=True)


def connect_for_rows(alias: str, **overrides: Any) -> Connection:
    """Open a direct connection whose text output is fixed, whatever the settings of role and database.

    Its search_path is empty, so names must be qualified.
    """
    fixed = " ".join(f"-c {name}={value}" for name, value in TEXT_FORMAT.items())
    options = " ".join(filter(None, [connection_parameters(alias).get("options"), fixed]))
    return connect(alias, **overrides, options=options)
