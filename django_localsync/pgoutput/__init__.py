"""Pure: what Postgres's logical replication sends, decoded."""
