"""Models with every kind of relation, key and name, for tests of QuerySet streams."""
