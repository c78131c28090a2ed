"""Shell: bucket storage in Postgres."""
