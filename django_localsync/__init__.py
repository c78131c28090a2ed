"""Local-first for Django: a device's SQLite and the backend's Postgres, in sync by themselves."""

__version__ = "0.1.0"
