"""Direct psycopg connections with a Django alias's own parameters."""

from __future__ import annotations

import os
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
    "quote_all_identifiers": "off",
    "row_security": "off",  # rows that a policy hides are an error, not left out
}

# A first copy and a stream last as long as they last.
NO_TIMEOUTS = dict.fromkeys(
    ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout", "idle_session_timeout"), "0"
)

# A server that vanished without a word is noticed within about a minute, not after the hours of the kernel's defaults.
NETWORK = {
    "connect_timeout": 10,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,  # milliseconds
}

# libpq makes settings of these variables, and they win over `options`.
FORMAT_VARIABLES = {"PGDATESTYLE": "DateStyle", "PGTZ": "TimeZone"}

Connection = psycopg.Connection[tuple[Any, ...]]


def connection_parameters(alias: str) -> dict[str, Any]:
    """libpq parameters of a direct connection to an alias's database.

    Replication, LISTEN and session locks do not pass a pooler: for the source, the setting `replication_url` says
    where the server itself is.
    """
    url = _direct_url(alias)
    if url is not None:
        return dict(conninfo_to_dict(url))
    parameters = dict(connections[alias].get_connection_params())
    for django_only in ("cursor_factory", "context", "prepare_threshold"):
        parameters.pop(django_only, None)
    return parameters


def _direct_url(alias: str) -> str | None:
    settings = get_settings()
    url = settings.replication_url
    if isinstance(url, str):
        return url if alias == settings.source else None
    return url.get(alias) if url else None


def connect(alias: str, **overrides: Any) -> Connection:
    """Open a direct connection in autocommit mode."""
    parameters = {"application_name": "django_localsync", **NETWORK, **connection_parameters(alias), **overrides}
    return psycopg.connect(**parameters, autocommit=True)


def connect_for_rows(alias: str, **overrides: Any) -> Connection:
    """Open a direct connection whose text output is fixed, whatever the settings of role, database and environment.

    Its search_path is empty, so names must be qualified; no timeout ends its statements.
    """
    fixed = " ".join(f"-c {name}={value}" for name, value in (TEXT_FORMAT | NO_TIMEOUTS).items())
    options = " ".join(filter(None, [connection_parameters(alias).get("options"), fixed]))
    connection = connect(alias, **overrides, options=options, client_encoding=TEXT_FORMAT["client_encoding"])
    if os.environ.keys() & FORMAT_VARIABLES.keys():
        for setting in FORMAT_VARIABLES.values():
            connection.execute(f"SET {setting} TO {TEXT_FORMAT[setting]}")
    return connection
