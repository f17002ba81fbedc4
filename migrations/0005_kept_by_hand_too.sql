-- What a hand at the sqlite3 shell could still undo: the base of this store, its versions, and a create's place.

CREATE TRIGGER destination_stays BEFORE DELETE ON destination
BEGIN SELECT RAISE (ABORT, 'a store keeps its base: the record ids in it mean nothing to another'); END;

CREATE TRIGGER destination_is_final BEFORE UPDATE ON destination
BEGIN SELECT RAISE (ABORT, 'a store keeps its base: the record ids in it mean nothing to another'); END;

-- Each start binds the store to its base again, which changes nothing; nor does INSERT OR REPLACE.
CREATE TRIGGER destination_is_bound_once BEFORE INSERT ON destination WHEN EXISTS (SELECT 1 FROM destination)
BEGIN SELECT RAISE (IGNORE); END;

CREATE TRIGGER schema_migrations_stay BEFORE DELETE ON schema_migrations
BEGIN SELECT RAISE (ABORT, 'what was applied stays applied: restore a backup from before it'); END;

CREATE TRIGGER schema_migrations_are_final BEFORE UPDATE ON schema_migrations
BEGIN SELECT RAISE (ABORT, 'what was applied stays as it was applied'); END;

CREATE TRIGGER schema_migrations_are_new BEFORE INSERT ON schema_migrations
WHEN EXISTS (SELECT 1 FROM schema_migrations WHERE version = new.version)
BEGIN SELECT RAISE (ABORT, 'this migration was applied already'); END;

-- AFTER, for before it a row that is given no id has none yet.
CREATE TRIGGER outbox_creates_come_first AFTER INSERT ON outbox
WHEN EXISTS (SELECT 1 FROM outbox AS c WHERE c.run_id = new.run_id AND c.kind = 'create' AND c.id > new.id)
BEGIN SELECT RAISE (ABORT, 'an update comes after the create of its run'); END;
