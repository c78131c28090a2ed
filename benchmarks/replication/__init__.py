"""How fast the replicator is, beside the least that Postgres and Python need: `make bench-replication`."""
