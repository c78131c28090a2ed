"""Shell: from Postgres's write-ahead log into bucket storage."""
