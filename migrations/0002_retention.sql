-- Retention, the month's calls, and counts and plans that stay quick beside a million messages.

-- Pruning --------------------------------------------------------------------------------------------------------

-- What was removed of each run. Its timeline says so, and a check goes on knowing which fields were ours to compare.
CREATE TABLE pruned_messages (
    run_id TEXT PRIMARY KEY REFERENCES runs (run_id),
    messages INTEGER NOT NULL CHECK (messages > 0),  -- delivered updates that were removed
    fields TEXT NOT NULL CHECK (json_valid(fields) AND json_type(fields) = 'array'),    -- names that they delivered
    accepted_since TEXT NOT NULL CHECK (accepted_since GLOB '????-??-??T??:??:??.???Z'),
    delivered_until TEXT NOT NULL CHECK (delivered_until GLOB '????-??-??T??:??:??.???Z')
) STRICT, WITHOUT ROWID;

-- Whoever removes a message, it leaves its trace.
CREATE TRIGGER outbox_leaves_a_trace AFTER DELETE ON outbox
BEGIN
    INSERT INTO pruned_messages (run_id, messages, fields, accepted_since, delivered_until)
    VALUES (old.run_id, 1, old.fields, old.accepted_at, old.delivered_at)
    ON CONFLICT (run_id) DO UPDATE SET
        messages = messages + 1,
        fields = (SELECT json_group_array(value) FROM (
            SELECT value FROM json_each(pruned_messages.fields) UNION SELECT value FROM json_each(excluded.fields))),
        accepted_since = min(accepted_since, excluded.accepted_since),
        delivered_until = max(delivered_until, excluded.delivered_until);
END;

CREATE TRIGGER pruned_messages_stay BEFORE DELETE ON pruned_messages
BEGIN SELECT RAISE (ABORT, 'what was pruned is remembered'); END;

-- What is left to prune of webhooks: a held one keeps its body until it is matched or discarded.
CREATE INDEX webhook_events_with_body ON webhook_events (received_at) WHERE body IS NOT NULL AND outcome <> 'held';

-- The month's calls ------------------------------------------------------------------------------------------------

-- Requests to Airtable by the day they were sent (UTC) and how they ended: kept when the calls themselves are pruned.
CREATE TABLE airtable_calls_by_day (
    day TEXT NOT NULL CHECK (day GLOB '????-??-??'),
    outcome TEXT NOT NULL,
    calls INTEGER NOT NULL CHECK (calls >= 0),
    PRIMARY KEY (day, outcome)
) STRICT, WITHOUT ROWID;

INSERT INTO airtable_calls_by_day (day, outcome, calls)
SELECT substr(started_at, 1, 10), outcome, count(*) FROM airtable_calls GROUP BY 1, 2;

CREATE TRIGGER airtable_calls_are_counted AFTER INSERT ON airtable_calls
BEGIN
    INSERT INTO airtable_calls_by_day (day, outcome, calls) VALUES (substr(new.started_at, 1, 10), new.outcome, 1)
    ON CONFLICT (day, outcome) DO UPDATE SET calls = calls + 1;
END;

CREATE TRIGGER airtable_calls_are_counted_by_their_end AFTER UPDATE OF outcome, started_at ON airtable_calls
WHEN old.outcome <> new.outcome OR substr(old.started_at, 1, 10) <> substr(new.started_at, 1, 10)
BEGIN
    UPDATE airtable_calls_by_day SET calls = calls - 1
    WHERE day = substr(old.started_at, 1, 10) AND outcome = old.outcome;
    INSERT INTO airtable_calls_by_day (day, outcome, calls) VALUES (substr(new.started_at, 1, 10), new.outcome, 1)
    ON CONFLICT (day, outcome) DO UPDATE SET calls = calls + 1;
END;

-- How the service keeps to [airtable] monthly_call_budget, as it last decided.
CREATE TABLE call_budget (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    monthly_calls INTEGER NOT NULL CHECK (monthly_calls >= 0),  -- 0: none is set
    state TEXT NOT NULL CHECK (state IN ('ample', 'stretched', 'reserved', 'spent')),
    updates_wait_until TEXT CHECK (updates_wait_until GLOB '????-??-??T??:??:??.???Z'),
    CHECK ((state = 'ample') = (updates_wait_until IS NULL))
) STRICT;
INSERT INTO call_budget (id, monthly_calls, state) VALUES (1, 0, 'ample');

-- What is not yet in Airtable, and what holds it?
DROP VIEW pending_sync;
CREATE VIEW pending_sync AS
SELECT m.id AS message_id, m.run_id, m.kind, m.state, m.accepted_at, m.attempts,
    CASE
        WHEN m.state = 'dead' THEN 'set aside: ' || coalesce(e.cause, e.message)
        WHEN m.state = 'sending' THEN 'on its way since ' || coalesce(
            (SELECT started_at FROM airtable_calls WHERE id = m.call_id), 'a moment')
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

-- Counts -----------------------------------------------------------------------------------------------------------

-- Messages that ever came to an end. All that were ever accepted are the ids given out (sqlite_sequence), so that what
-- is on its way is the difference, and an accepted message costs no counting.
CREATE TABLE outbox_counts (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    delivered INTEGER NOT NULL CHECK (delivered >= 0),
    dead INTEGER NOT NULL CHECK (dead >= 0)          -- as it stands: a replay takes one off
) STRICT;

INSERT INTO outbox_counts (id, delivered, dead)
SELECT 1, coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'outbox'), 0) - count(*), coalesce(sum(state = 'dead'), 0)
FROM outbox WHERE delivered_at IS NULL;

CREATE TRIGGER outbox_ends_are_counted AFTER UPDATE OF state ON outbox
WHEN old.state <> new.state AND (new.state IN ('delivered', 'dead') OR old.state = 'dead')
BEGIN
    UPDATE outbox_counts SET delivered = delivered + (new.state = 'delivered'),
        dead = dead + (new.state = 'dead') - (old.state = 'dead');
END;

-- Creates by the day they were accepted (UTC), and how they stand.
CREATE TABLE creations_by_day (
    day TEXT PRIMARY KEY CHECK (day GLOB '????-??-??'),
    created INTEGER NOT NULL CHECK (created >= 0),
    delivered INTEGER NOT NULL CHECK (delivered >= 0),
    failed INTEGER NOT NULL CHECK (failed >= 0)
) STRICT, WITHOUT ROWID;

INSERT INTO creations_by_day (day, created, delivered, failed)
SELECT substr(accepted_at, 1, 10), count(*), sum(state = 'delivered'), sum(state = 'dead')
FROM outbox WHERE kind = 'create' GROUP BY 1;

CREATE TRIGGER creations_are_counted AFTER INSERT ON outbox WHEN new.kind = 'create'
BEGIN
    INSERT INTO creations_by_day (day, created, delivered, failed) VALUES (substr(new.accepted_at, 1, 10), 1, 0, 0)
    ON CONFLICT (day) DO UPDATE SET created = created + 1;
END;

CREATE TRIGGER creations_are_counted_by_their_end AFTER UPDATE OF state ON outbox
WHEN new.kind = 'create' AND old.state <> new.state
BEGIN
    UPDATE creations_by_day SET
        delivered = delivered + (new.state = 'delivered') - (old.state = 'delivered'),
        failed = failed + (new.state = 'dead') - (old.state = 'dead')
    WHERE day = substr(new.accepted_at, 1, 10);
END;

-- How did creations fare, day by day?
DROP VIEW creation_stats;
CREATE VIEW creation_stats AS
SELECT day, sum(created) AS created, sum(already_existed) AS already_existed, sum(failed) AS failed,
    round(1.0 * sum(delivered) / nullif(sum(delivered) + sum(failed), 0), 4) AS success_rate
FROM (
    SELECT day, created, delivered, failed, 0 AS already_existed FROM creations_by_day
    UNION ALL
    SELECT day, 0, 0, 0, count FROM repeated_kickoffs
)
GROUP BY day ORDER BY day DESC;

-- Plans ------------------------------------------------------------------------------------------------------------

-- A run's messages in their order, and by state what of it waits: nothing walks through all that waits for a run.
DROP INDEX outbox_by_run;
CREATE INDEX outbox_by_run ON outbox (run_id);
CREATE INDEX outbox_waiting ON outbox (run_id, state) WHERE delivered_at IS NULL;
-- Every state, so that the newest delivered ones are found behind a million that wait, and creates behind updates.
DROP INDEX outbox_by_state;
CREATE INDEX outbox_by_state ON outbox (state);
CREATE INDEX outbox_creates ON outbox (id) WHERE kind = 'create';
-- Runs that something was set aside of, or that a hand left without a due time: a start looks at these only.
CREATE INDEX runs_undue ON runs (id) WHERE due_at IS NULL AND sync <> 'synced';

-- What happened to a run, in order? (… WHERE run_id = '…' ORDER BY at, step, id)
DROP VIEW run_timeline;
CREATE VIEW run_timeline AS
SELECT run_id, accepted_at AS at, 3 AS step, id, kind || ' accepted' AS what,
    'message ' || id || ' from ' || source || ': ' || iif(source = 'repair', fields, change) AS detail
FROM outbox
UNION ALL
SELECT run_id, delivered_at, 9, max(id), 'delivered', 'call ' || coalesce(call_id, '?') || ' carried ' || count(*) || ' messages'
FROM outbox WHERE delivered_at IS NOT NULL GROUP BY run_id, delivered_at, call_id
UNION ALL
SELECT run_id, dead_at, 8, id, kind || ' set aside', 'message ' || id || ', see error ' || error_id
FROM outbox WHERE dead_at IS NOT NULL
UNION ALL
SELECT run_id, accepted_at, 1, id, 'update held', 'held update ' || id || ', no such run: ' || substr(change, 1, 500) FROM held_updates
UNION ALL
SELECT run_id, settled_at, 4, id, 'held update ' || state,
    'held update ' || id || coalesce(' became message ' || message_id, '')
FROM held_updates WHERE settled_at IS NOT NULL
UNION ALL
SELECT run_id, first_at, 2, id, kind || ' opened', 'error ' || id || ': ' || message || coalesce(' (' || cause || ')', '')
FROM errors WHERE run_id IS NOT NULL
UNION ALL
SELECT run_id, resolved_at, 7, id, kind || ' resolved', 'error ' || id || ' ' || resolution || coalesce(': ' || note, '')
FROM errors WHERE run_id IS NOT NULL AND resolved_at IS NOT NULL
UNION ALL
SELECT run_id, received_at, 1, id, 'webhook ' || outcome,
    event || coalesce(' of Apify run ' || apify_run_id, '') || coalesce(': ' || detail, '')
FROM webhook_events WHERE run_id IS NOT NULL
UNION ALL
SELECT run_id, created_at, 3, id, 'run adopted', 'its record in Airtable is ' || airtable_record_id
FROM runs WHERE origin = 'adopted'
UNION ALL
SELECT run_id, created_at, 5, id, 'batch queued', 'batch ' || number || coalesce(', ' || profiles || ' profiles', '') FROM batches
UNION ALL
SELECT run_id, started_at, 6, id, 'batch started', 'batch ' || number || ' is Apify run ' || apify_run_id
FROM batches WHERE started_at IS NOT NULL AND apify_run_id IS NOT NULL
UNION ALL
SELECT run_id, reopened_at, 7, id, 'batch resurrected', 'batch ' || number || ', Apify run ' || apify_run_id
FROM batches WHERE reopened_at IS NOT NULL
UNION ALL
SELECT run_id, finished_at, 7, id, 'batch ' || outcome, 'batch ' || number || coalesce(', Apify run ' || apify_run_id, '')
    || coalesce(': ' || cause, '')
FROM batches WHERE finished_at IS NOT NULL AND outcome IS NOT NULL
UNION ALL
SELECT run_id, measured_at, 8, id, 'batch measured', 'batch ' || number || ': ' || coalesce(items || ' items', 'items unknown')
    || coalesce(', $' || cost_usd, ', cost unknown') || coalesce(', ' || duration_seconds || ' s', '')
FROM batches WHERE measured_at IS NOT NULL
UNION ALL
SELECT run_id, delivered_until, 10, messages, 'updates pruned',
    messages || ' updates accepted since ' || accepted_since || ' and delivered by then were removed (retention)'
FROM pruned_messages;

