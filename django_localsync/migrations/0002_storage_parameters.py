"""How Postgres should keep bucket storage: room for updates on the page, row JSON compressed the fast way."""

from django.db import migrations

# Totals are updated in place: with free room on the page every update stays there (HOT), and the table does not grow.
FILLFACTOR = "ALTER TABLE localsync_bucket SET (fillfactor = 50)"

# What compaction erased is gone from the table's pages when a fiftieth of it was changed, not a fifth.
VACUUM_SOON = """
    ALTER TABLE localsync_bucket_operation
      SET (autovacuum_vacuum_scale_factor = 0.02, toast.autovacuum_vacuum_scale_factor = 0.02)
"""
VACUUM_AS_USUAL = """
    ALTER TABLE localsync_bucket_operation
    RESET (autovacuum_vacuum_scale_factor, toast.autovacuum_vacuum_scale_factor)
"""

# A server built without lz4 does not have it among the values of the setting.
LZ4 = """
DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_settings WHERE name = 'default_toast_compression' AND 'lz4' = ANY(enumvals)) THEN
        ALTER TABLE localsync_bucket_operation ALTER COLUMN data SET COMPRESSION lz4;
    END IF;
END $$
"""


class Migration(migrations.Migration):
    """Storage parameters, which models cannot express."""

    dependencies = [("django_localsync", "0001_initial")]

    operations = [
        migrations.RunSQL(FILLFACTOR, "ALTER TABLE localsync_bucket RESET (fillfactor)"),
        migrations.RunSQL(VACUUM_SOON, VACUUM_AS_USUAL),
        migrations.RunSQL(LZ4, migrations.RunSQL.noop),
    ]
