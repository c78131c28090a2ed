"""Postgres text → SQLite values."""

from __future__ import annotations

from .types import PgType as PgType
