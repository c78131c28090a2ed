"""Whatever the project could do to its tables before, it can do with a replicator running; and storage follows."""

from __future__ import annotations

import pytest
from django.db import connection, migrations, models
from django.db.migrations.state import ProjectState

from tests.replication import replicating
from tests.source import eventually, execute, rows, streams, values, works

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("source")]

NOTES = streams(all="SELECT * FROM shop_note")
LINES = streams(all="SELECT a || '-' || b AS id, a, b FROM line")


class Project:
    """A project with one model, migrated step by step by Django's own operations."""

    def __init__(self) -> None:
        self.state = ProjectState()
        self.migrate(
            migrations.CreateModel(
                "Note", [("id", models.BigAutoField(primary_key=True)), ("title", models.CharField(max_length=50))]
            )
        )
        execute("INSERT INTO shop_note (title) VALUES ('one'), ('two')")

    def migrate(self, *operations: migrations.operations.base.Operation) -> None:
        """Apply operations as `manage.py migrate` does: in one transaction."""
        migration = migrations.Migration("step", "shop")
        migration.operations = list(operations)
        with connection.schema_editor(atomic=True) as editor:
            self.state = migration.apply(self.state, editor)


def test_add_field():
    project = Project()
    with replicating(NOTES) as replicator:
        project.migrate(migrations.AddField("note", "rank", models.IntegerField(default=7)))
        execute("UPDATE shop_note SET rank = 8 WHERE title = 'two'")
        eventually(lambda: values("rank"), {"1": 7, "2": 8})
        project.migrate(migrations.AddField("note", "done", models.BooleanField(null=True)))
        eventually(lambda: values("done"), {"1": None, "2": None})
        replicator.catch_up()


def test_remove_field():
    project = Project()
    project.migrate(migrations.AddField("note", "rank", models.IntegerField(default=7)))
    with replicating(NOTES) as replicator:
        project.migrate(migrations.RemoveField("note", "rank"))
        execute("INSERT INTO shop_note (title) VALUES ('three')")
        eventually(rows, {str(i): {"id": i, "title": title} for i, title in enumerate(("one", "two", "three"), 1)})
        replicator.catch_up()


def test_alter_field():
    project = Project()
    project.migrate(migrations.AddField("note", "rank", models.IntegerField(default=7, null=True)))
    with replicating(NOTES) as replicator:
        project.migrate(
            migrations.AlterField("note", "rank", models.CharField(max_length=20, default="")),
            migrations.AlterField("note", "title", models.TextField(db_index=True)),
        )
        eventually(lambda: values("rank"), {"1": "7", "2": "7"})
        project.migrate(migrations.RenameField("note", "rank", "position"))
        eventually(lambda: values("position"), {"1": "7", "2": "7"})
        replicator.catch_up()
        assert "rank" not in rows()["1"]


def test_alter_the_primary_key():
    project = Project()
    with replicating(NOTES) as replicator:
        project.migrate(migrations.AlterField("note", "id", models.CharField(max_length=20, primary_key=True)))
        execute("UPDATE shop_note SET title = 'ONE' WHERE id = '1'", "DELETE FROM shop_note WHERE id = '2'")
        eventually(rows, {"1": {"id": "1", "title": "ONE"}})
        replicator.catch_up()


def test_constraints_and_indexes():
    project = Project()
    with replicating(NOTES) as replicator:
        project.migrate(
            migrations.AlterUniqueTogether("note", {("title", "id")}),
            migrations.AddIndex("note", models.Index(fields=["title"], name="note_title")),
            migrations.AddConstraint("note", models.UniqueConstraint(fields=["title"], name="note_unique")),
            migrations.RemoveConstraint("note", "note_unique"),
        )
        execute("UPDATE shop_note SET title = upper(title)")
        eventually(lambda: values("title"), {"1": "ONE", "2": "TWO"})
        replicator.catch_up()


def test_rename_and_delete_the_model():
    project = Project()
    with replicating(NOTES) as replicator:
        project.migrate(migrations.AlterModelTable("note", "shop_other"))
        eventually(rows, {})
        project.migrate(migrations.AlterModelTable("note", "shop_note"))
        eventually(lambda: values("title"), {"1": "one", "2": "two"})
        project.migrate(migrations.DeleteModel("note"))
        eventually(rows, {})
        replicator.catch_up()


def test_a_many_to_many_table_comes_with_its_field():
    project = Project()
    members = streams(all=["SELECT * FROM shop_note", "SELECT * FROM shop_note_related"])
    with replicating(members) as replicator:
        project.migrate(migrations.AddField("note", "related", models.ManyToManyField("self", symmetrical=False)))
        execute("INSERT INTO shop_note_related (from_note_id, to_note_id) VALUES (1, 2)")
        eventually(lambda: values("to_note_id"), {"1": 2, "2": None})
        replicator.catch_up()


def test_update_and_delete_on_a_table_without_a_key():
    execute("CREATE TABLE line (a int, b text); INSERT INTO line VALUES (1, 'x'), (2, 'y')")
    with replicating(LINES) as replicator:
        execute(
            "UPDATE line SET b = 'z' WHERE a = 1", "DELETE FROM line WHERE a = 2", "INSERT INTO line VALUES (3, 'n')"
        )
        replicator.catch_up()
        assert "3-n" in rows()


def test_replica_identity_of_every_kind():
    Project()
    execute("CREATE UNIQUE INDEX code ON shop_note (title)")
    with replicating(NOTES) as replicator:
        for number, identity in enumerate(["FULL", "DEFAULT", "USING INDEX code", "FULL", "DEFAULT"]):
            execute(f"ALTER TABLE shop_note REPLICA IDENTITY {identity}")
            execute(f"UPDATE shop_note SET title = title || {number}")
            execute(f"INSERT INTO shop_note (title) VALUES ('new {number}')", "DELETE FROM shop_note WHERE id = 1")
        expected = {"2": "two01234", "3": "new 01234", "4": "new 1234", "5": "new 234", "6": "new 34", "7": "new 4"}
        eventually(lambda: values("title"), expected)
        replicator.catch_up()


def test_drop_column():
    Project()
    execute("ALTER TABLE shop_note ADD extra text DEFAULT 'x'")
    with replicating(NOTES) as replicator:
        execute("ALTER TABLE shop_note DROP COLUMN extra")
        eventually(lambda: "extra" in rows()["1"], False)
        execute("ALTER TABLE shop_note ADD other text; ALTER TABLE shop_note DROP COLUMN other CASCADE")
        execute("UPDATE shop_note SET title = 'uno' WHERE id = 1")
        eventually(rows, {"1": {"id": 1, "title": "uno"}, "2": {"id": 2, "title": "two"}})
        replicator.catch_up()


def test_alter_type():
    Project()
    execute("ALTER TABLE shop_note ADD amount int DEFAULT 5")
    with replicating(NOTES) as replicator:
        execute("ALTER TABLE shop_note ALTER amount TYPE numeric(10, 2)")
        eventually(lambda: values("amount"), {"1": "5.00", "2": "5.00"})
        execute("ALTER TABLE shop_note ALTER amount DROP DEFAULT, ALTER amount TYPE boolean USING amount > 1")
        eventually(lambda: values("amount"), {"1": 1, "2": 1})
        replicator.catch_up()


def test_drop_the_primary_key_and_go_on():
    """Updates of a table that lost its key work again as soon as it is seen that they are not to be published."""
    Project()
    with replicating(NOTES) as replicator:
        execute("ALTER TABLE shop_note DROP CONSTRAINT shop_note_pkey")
        eventually(lambda: works("UPDATE shop_note SET title = 'uno' WHERE id = 1"), True)
        execute("ALTER TABLE shop_note ADD PRIMARY KEY (id)")
        eventually(lambda: values("title"), {"1": "uno", "2": "two"})
        replicator.catch_up()
