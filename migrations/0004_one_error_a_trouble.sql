-- One open error for one trouble of a run, however often and by whomever it is met; a lost record can be found again.

-- Open errors that say the same become the first of them, which keeps their messages and counts.
CREATE TABLE merged AS
SELECT e.id, e.count, e.last_at, (SELECT min(first.id) FROM errors AS first
    WHERE first.run_id = e.run_id AND first.kind = e.kind AND first.state = 'open'
        AND (e.kind <> 'rejected' OR first.cause IS e.cause)) AS kept
FROM errors AS e
WHERE e.state = 'open' AND e.run_id IS NOT NULL AND e.kind IN ('rejected', 'record_deleted', 'duplicate_record', 'drift');
DELETE FROM merged WHERE id = kept;
UPDATE outbox SET error_id = (SELECT kept FROM merged WHERE merged.id = error_id)
WHERE delivered_at IS NULL AND error_id IN (SELECT id FROM merged);
UPDATE errors SET
    count = count + (SELECT sum(merged.count) FROM merged WHERE kept = errors.id),
    last_at = max(last_at, (SELECT max(merged.last_at) FROM merged WHERE kept = errors.id))
WHERE id IN (SELECT kept FROM merged);
UPDATE errors SET state = 'resolved', resolved_at = strftime('%Y-%m-%dT%H:%M:%fZ', 'now'), resolution = 'merged',
    note = 'counted with error ' || (SELECT kept FROM merged WHERE merged.id = errors.id)
WHERE id IN (SELECT id FROM merged);
DROP TABLE merged;

-- Of a run one each, whether the sync loop, a look or a check met it; of refusals one for each cause.
CREATE UNIQUE INDEX errors_one_of_run ON errors (run_id, kind)
    WHERE kind IN ('record_deleted', 'duplicate_record', 'drift') AND state = 'open';
CREATE UNIQUE INDEX errors_one_refusal ON errors (run_id, cause) WHERE kind = 'rejected' AND state = 'open';
-- Only a record that is no run's is known by its own id: errors.found_record_id, where a check opened the error.
DROP INDEX errors_one_finding;
CREATE UNIQUE INDEX errors_one_unknown_record ON errors (found_record_id) WHERE kind = 'unknown_record' AND state = 'open';

-- INSERT OR REPLACE deletes what is in its way (see 0001), so this says again what the indexes say.
DROP TRIGGER errors_exist_once;
CREATE TRIGGER errors_exist_once BEFORE INSERT ON errors
WHEN EXISTS (SELECT 1 FROM errors WHERE id = new.id)
    OR (new.state = 'open' AND (
        (new.kind = 'missing_record' AND EXISTS (SELECT 1 FROM errors
            WHERE kind = 'missing_record' AND state = 'open' AND run_id = new.run_id))
        OR (new.kind = 'unmatched_webhook' AND EXISTS (SELECT 1 FROM errors
            WHERE kind = 'unmatched_webhook' AND state = 'open' AND cause = new.cause))
        OR (new.kind IN ('record_deleted', 'duplicate_record', 'drift') AND EXISTS (SELECT 1 FROM errors
            WHERE kind = new.kind AND state = 'open' AND run_id = new.run_id))
        OR (new.kind = 'rejected' AND EXISTS (SELECT 1 FROM errors
            WHERE kind = 'rejected' AND state = 'open' AND run_id = new.run_id AND cause = new.cause))
        OR (new.kind = 'unknown_record' AND EXISTS (SELECT 1 FROM errors
            WHERE kind = 'unknown_record' AND state = 'open' AND found_record_id = new.found_record_id))))
BEGIN SELECT RAISE (ABORT, 'this error is open already'); END;

-- Runs whose lost record is looked for by its Run ID: a person retried what was set aside when it was deleted.
-- What waits for such a run is not sent before that.
CREATE TABLE record_looks (
    run_id TEXT PRIMARY KEY REFERENCES runs (run_id),
    due_at TEXT NOT NULL CHECK (due_at GLOB '????-??-??T??:??:??.???Z')
) STRICT, WITHOUT ROWID;
CREATE INDEX record_looks_due ON record_looks (due_at);

ALTER TABLE check_findings ADD COLUMN error_id INTEGER;  -- the open error that it is
ALTER TABLE checks ADD COLUMN columns_left_out TEXT NOT NULL DEFAULT '[]'  -- columns of the registry that the table lacks
    CHECK (json_valid(columns_left_out) AND json_type(columns_left_out) = 'array');

-- Which runs are missing, what waits for them, and what was probably meant? What a resolved error held waits too.
DROP VIEW missing_records;
CREATE VIEW missing_records AS
SELECT e.run_id,
    (SELECT count(*) FROM held_updates AS h WHERE h.run_id = e.run_id AND h.state = 'held') AS updates_held,
    (SELECT group_concat(value, ', ') FROM json_each(e.similar_runs)) AS similar_runs,
    e.client_id, e.first_at, e.last_at, e.count AS times, e.message, e.id AS error_id
FROM errors AS e
WHERE e.kind = 'missing_record' AND e.state = 'open'
ORDER BY e.id;

-- What is not yet in Airtable, and what holds it?
DROP VIEW pending_sync;
CREATE VIEW pending_sync AS
SELECT m.id AS message_id, m.run_id, m.kind, m.state, m.accepted_at, m.attempts,
    CASE
        WHEN m.state = 'dead' THEN 'set aside: ' || coalesce(e.cause, e.message)
        WHEN m.state = 'sending' THEN 'on its way since ' || coalesce(
            (SELECT started_at FROM airtable_calls WHERE id = m.call_id), 'a moment')
        WHEN r.due_at IS NULL AND EXISTS (SELECT 1 FROM record_looks AS l WHERE l.run_id = m.run_id)
            THEN 'its record was deleted, and is looked for by its Run ID first'
        WHEN r.due_at IS NULL THEN 'waits for the create of its run, which was set aside'
        WHEN b.state = 'spent' THEN 'waits until ' || b.updates_wait_until || ': the month''s calls are used up'
        WHEN b.state = 'reserved' AND r.airtable_record_id IS NOT NULL THEN 'waits until ' || b.updates_wait_until
            || ': what is left of the month''s calls is kept for creates and errors'
        WHEN b.state = 'stretched' AND r.airtable_record_id IS NOT NULL THEN 'waits until ' || b.updates_wait_until
            || ', for company: at this pace the month''s calls would not last'
        WHEN r.failures > 0 THEN 'failed ' || r.failures || ' times, next try at ' || r.due_at || coalesce(
            ': ' || (SELECT error FROM airtable_calls WHERE id = m.call_id), '')
        ELSE 'due at ' || r.due_at
    END AS waits_for
FROM outbox AS m
JOIN runs AS r ON r.run_id = m.run_id
JOIN call_budget AS b ON b.id = 1
LEFT JOIN errors AS e ON e.id = m.error_id
WHERE m.delivered_at IS NULL;
