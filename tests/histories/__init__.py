"""Random histories of sources beside a replicator, and what clients must see of them at every moment."""
