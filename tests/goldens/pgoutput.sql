-- What produced pgoutput.json: `python -m tests.pgoutput_capture <url of a database>` records it again.
-- Statements end at a semicolon before a line's end; each runs by itself, outside of a transaction it does not begin.

CREATE SCHEMA golden;
CREATE TYPE golden.mood AS ENUM ('sad', 'ok');
CREATE TABLE golden.keyed (id int PRIMARY KEY, body text, mood golden.mood, large text);
ALTER TABLE golden.keyed ALTER COLUMN large SET STORAGE EXTERNAL;
CREATE TABLE golden.whole (a int, b text);
ALTER TABLE golden.whole REPLICA IDENTITY FULL;
CREATE TABLE golden.indexed (a int NOT NULL, b numeric(12, 2) NOT NULL, c text);
CREATE UNIQUE INDEX indexed_key ON golden.indexed (b);
ALTER TABLE golden.indexed REPLICA IDENTITY USING INDEX indexed_key;
CREATE TABLE golden.unidentified (a int);
ALTER TABLE golden.unidentified REPLICA IDENTITY NOTHING;
CREATE PUBLICATION golden FOR TABLE golden.keyed, golden.whole, golden.indexed;
CREATE PUBLICATION golden_insert_only FOR TABLE golden.unidentified WITH (publish = 'insert, truncate');

-- replicated from here on

BEGIN;
INSERT INTO golden.keyed VALUES (1, 'blåbær 👋', 'ok', repeat('x', 2100)), (2, '', NULL, NULL);
COMMIT;
UPDATE golden.keyed SET body = 'new' WHERE id = 1;
UPDATE golden.keyed SET id = 3 WHERE id = 2;
DELETE FROM golden.keyed WHERE id = 3;
BEGIN;
INSERT INTO golden.whole VALUES (1, 'one'), (2, NULL);
UPDATE golden.whole SET b = 'uno' WHERE a = 1;
DELETE FROM golden.whole WHERE a = 2;
COMMIT;
BEGIN;
INSERT INTO golden.indexed VALUES (1, 12.5, 'c');
UPDATE golden.indexed SET b = 13, c = NULL;
DELETE FROM golden.indexed;
COMMIT;
INSERT INTO golden.unidentified VALUES (7);
ALTER TABLE golden.keyed DROP COLUMN mood, ADD COLUMN at timestamptz DEFAULT '2024-05-06 07:08:09.5+02';
INSERT INTO golden.keyed VALUES (4, 'after DDL', NULL);
TRUNCATE golden.keyed, golden.whole;
TRUNCATE golden.indexed RESTART IDENTITY CASCADE;
SELECT pg_logical_emit_message(false, 'beside', '\x00ff'::bytea);
SELECT pg_logical_emit_message(true, 'within', 'text æ');
SELECT pg_replication_origin_create('golden in ' || current_database());
SELECT pg_replication_origin_session_setup('golden in ' || current_database());
INSERT INTO golden.whole VALUES (3, 'from elsewhere');
SELECT pg_replication_origin_session_reset();
SELECT pg_replication_origin_drop('golden in ' || current_database());
