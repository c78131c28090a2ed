"""Pure: bucket operations, checksums, and what a changed row means for its buckets."""
