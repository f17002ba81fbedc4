-- The outbox: runs created at kickoff, the messages that carry them to Airtable, and all that went wrong on the way.
--
-- Times are UTC ISO 8601 text with milliseconds (2026-05-16T09:20:00.000Z), states are words, JSON is text. Open the
-- file read-only at any time: sqlite3 'file:runrecords.db?mode=ro', and start with the views at the end.
-- Triggers, and not only the program, keep the order: create before update, one create a run, nothing lost.

-- A client's processing in one job, and the present value of its fields. Rows are never deleted.
CREATE TABLE runs (
    id INTEGER PRIMARY KEY AUTOINCREMENT,            -- order of acceptance
    run_id TEXT NOT NULL UNIQUE,                     -- <job_id>-<client_id>
    job_id TEXT NOT NULL,
    client_id TEXT NOT NULL,
    origin TEXT NOT NULL CHECK (origin IN ('kickoff', 'adopted')),  -- adopted: its record was found in Airtable
    status_by TEXT NOT NULL DEFAULT 'batches' CHECK (status_by IN ('batches', 'caller')),  -- who set the status last
    airtable_record_id TEXT UNIQUE CHECK (airtable_record_id <> ''),  -- unknown until the create was delivered
    sync TEXT NOT NULL DEFAULT 'pending' CHECK (sync IN ('pending', 'synced', 'failed')),
    due_at TEXT CHECK (due_at GLOB '????-??-??T??:??:??.???Z'),  -- when something is to be sent; NULL: nothing is
    failures INTEGER NOT NULL DEFAULT 0 CHECK (failures >= 0),   -- failed sends in a row
    share INTEGER NOT NULL DEFAULT 10 CHECK (share IN (1, 2, 5, 10)),  -- runs its next call may carry; less after a refusal
    call_id INTEGER,                                 -- the Airtable call that carries it right now
    created_at TEXT NOT NULL CHECK (created_at GLOB '????-??-??T??:??:??.???Z'),
    changed_at TEXT NOT NULL CHECK (changed_at GLOB '????-??-??T??:??:??.???Z'),
    fields TEXT NOT NULL CHECK (json_valid(fields) AND json_type(fields) = 'object'),  -- the fold of all accepted changes
    -- A plain column: VACUUM INTO from a read-only connection fails over a generated one (measured, SQLite 3.40.1).
    status TEXT CHECK (status IS json_extract(fields, '$.status')),
    CHECK (origin = 'kickoff' OR airtable_record_id IS NOT NULL),
    CHECK (call_id IS NULL OR due_at IS NOT NULL)
) STRICT;

-- What the sync loop looks at: only runs with something to send, so that a million delivered ones cost nothing.
CREATE INDEX runs_due ON runs (airtable_record_id IS NULL, share, due_at) WHERE due_at IS NOT NULL AND call_id IS NULL;
CREATE INDEX runs_in_flight ON runs (call_id) WHERE call_id IS NOT NULL;
CREATE INDEX runs_by_client ON runs (client_id, id);
CREATE INDEX runs_by_job ON runs (job_id, id);
CREATE INDEX runs_by_status ON runs (status, id);
CREATE INDEX runs_by_sync ON runs (sync, id);
CREATE INDEX runs_by_time ON runs (created_at);

-- What goes to Airtable. A message says which fields of its run wait; what is sent is their present value in runs.fields.
CREATE TABLE outbox (
    id INTEGER PRIMARY KEY AUTOINCREMENT,            -- order of acceptance
    run_id TEXT NOT NULL REFERENCES runs (run_id),
    kind TEXT NOT NULL CHECK (kind IN ('create', 'update')),
    state TEXT NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'sending', 'delivered', 'dead')),
    source TEXT NOT NULL CHECK (source IN ('kickoff', 'caller', 'harvest', 'repair')),
    fields TEXT NOT NULL CHECK (json_valid(fields) AND json_type(fields) = 'array'),    -- names of the fields that wait
    change TEXT NOT NULL CHECK (json_valid(change) AND json_type(change) = 'object'),   -- as asked: set, add, append
    attempts INTEGER NOT NULL DEFAULT 0 CHECK (attempts >= 0),
    accepted_at TEXT NOT NULL CHECK (accepted_at GLOB '????-??-??T??:??:??.???Z'),
    delivered_at TEXT CHECK (delivered_at GLOB '????-??-??T??:??:??.???Z'),
    dead_at TEXT CHECK (dead_at GLOB '????-??-??T??:??:??.???Z'),
    call_id INTEGER,                                 -- the last call that carried it (airtable_calls.id, until pruned)
    error_id INTEGER REFERENCES errors (id),         -- why it is dead
    CHECK (state <> 'sending' OR call_id IS NOT NULL),
    CHECK ((state = 'delivered') = (delivered_at IS NOT NULL)),
    CHECK ((state = 'dead') = (dead_at IS NOT NULL)),
    CHECK ((state = 'dead') = (error_id IS NOT NULL))
) STRICT;

CREATE UNIQUE INDEX outbox_one_create ON outbox (run_id) WHERE kind = 'create';
CREATE INDEX outbox_by_run ON outbox (run_id, delivered_at);  -- delivered_at NULL first: what waits for a run
CREATE INDEX outbox_by_delivery ON outbox (delivered_at) WHERE delivered_at IS NOT NULL;
CREATE INDEX outbox_by_state ON outbox (state, id) WHERE delivered_at IS NULL;

-- INSERT OR REPLACE and UPDATE OR REPLACE delete the rows in their way without asking the DELETE triggers, and
-- UPDATE OF id does not see SET rowid. So whatever must stay also refuses to be replaced or renumbered.

CREATE TRIGGER runs_exist_once BEFORE INSERT ON runs
WHEN EXISTS (SELECT 1 FROM runs WHERE run_id = new.run_id) OR EXISTS (SELECT 1 FROM runs WHERE id = new.id)
    OR EXISTS (SELECT 1 FROM runs WHERE airtable_record_id = new.airtable_record_id)
BEGIN SELECT RAISE (ABORT, 'this run exists already'); END;

CREATE TRIGGER runs_keep_their_name BEFORE UPDATE ON runs
WHEN old.id <> new.id OR old.run_id <> new.run_id OR old.job_id <> new.job_id OR old.client_id <> new.client_id
    OR old.origin <> new.origin
BEGIN SELECT RAISE (ABORT, 'a run keeps its name and origin'); END;

CREATE TRIGGER runs_keep_their_record BEFORE UPDATE OF airtable_record_id ON runs
WHEN (old.airtable_record_id IS NOT NULL AND new.airtable_record_id IS NULL)
    OR EXISTS (SELECT 1 FROM runs WHERE airtable_record_id = new.airtable_record_id AND id <> old.id)
BEGIN SELECT RAISE (ABORT, 'a run keeps its Airtable record, and shares it with no other'); END;

CREATE TRIGGER runs_stay BEFORE DELETE ON runs
BEGIN SELECT RAISE (ABORT, 'runs are kept, so that none is created twice'); END;

CREATE TRIGGER outbox_starts_pending BEFORE INSERT ON outbox WHEN new.state <> 'pending'
BEGIN SELECT RAISE (ABORT, 'a message starts as pending'); END;

CREATE TRIGGER outbox_ids_are_new BEFORE INSERT ON outbox WHEN EXISTS (SELECT 1 FROM outbox WHERE id = new.id)
BEGIN SELECT RAISE (ABORT, 'this message exists already'); END;

CREATE TRIGGER outbox_has_its_run BEFORE INSERT ON outbox
WHEN NOT EXISTS (SELECT 1 FROM runs WHERE run_id = new.run_id)
BEGIN SELECT RAISE (ABORT, 'a message needs its run'); END;

CREATE TRIGGER outbox_create_once BEFORE INSERT ON outbox
WHEN new.kind = 'create' AND (
    EXISTS (SELECT 1 FROM outbox WHERE run_id = new.run_id AND kind = 'create')
    OR EXISTS (SELECT 1 FROM runs WHERE run_id = new.run_id AND origin = 'adopted'))
BEGIN SELECT RAISE (ABORT, 'a run is created once'); END;

CREATE TRIGGER outbox_create_before_update BEFORE INSERT ON outbox
WHEN new.kind = 'update'
    AND NOT EXISTS (SELECT 1 FROM outbox WHERE run_id = new.run_id AND kind = 'create')
    AND NOT EXISTS (SELECT 1 FROM runs WHERE run_id = new.run_id AND origin = 'adopted')
BEGIN SELECT RAISE (ABORT, 'an update needs the create of its run'); END;

CREATE TRIGGER outbox_moves BEFORE UPDATE OF state ON outbox
WHEN old.state <> new.state AND NOT (
    (old.state = 'pending' AND new.state = 'sending')
    OR (old.state = 'sending' AND new.state IN ('pending', 'delivered', 'dead'))
    OR (old.state = 'dead' AND new.state = 'pending'))
BEGIN SELECT RAISE (ABORT, 'a message goes pending, sending, then delivered, dead or pending again; dead to pending'); END;

CREATE TRIGGER outbox_sends_create_first BEFORE UPDATE OF state, call_id ON outbox
WHEN new.state = 'sending' AND new.kind = 'update'
    AND (SELECT airtable_record_id FROM runs WHERE run_id = new.run_id) IS NULL
    AND NOT EXISTS (SELECT 1 FROM outbox AS c WHERE c.run_id = new.run_id AND c.kind = 'create'
                    AND c.state = 'sending' AND c.call_id = new.call_id)
BEGIN SELECT RAISE (ABORT, 'an update is sent with its create or after it'); END;

CREATE TRIGGER outbox_creates_leave_last BEFORE UPDATE OF state, call_id ON outbox
WHEN old.kind = 'create' AND old.state = 'sending' AND new.state <> 'delivered'
    AND (new.state <> 'sending' OR new.call_id IS NOT old.call_id)
    AND EXISTS (SELECT 1 FROM outbox AS u WHERE u.run_id = old.run_id AND u.delivered_at IS NULL
                AND u.kind = 'update' AND u.state = 'sending')
BEGIN SELECT RAISE (ABORT, 'updates on their way with a create are taken back before it'); END;

CREATE TRIGGER outbox_delivers_to_a_record BEFORE UPDATE OF state ON outbox
WHEN new.state = 'delivered' AND (SELECT airtable_record_id FROM runs WHERE run_id = new.run_id) IS NULL
BEGIN SELECT RAISE (ABORT, 'nothing is delivered while the record id is unknown'); END;

CREATE TRIGGER outbox_keeps_its_place BEFORE UPDATE ON outbox WHEN old.id <> new.id
BEGIN SELECT RAISE (ABORT, 'a message keeps its place'); END;

CREATE TRIGGER outbox_keeps_its_meaning BEFORE UPDATE OF run_id, kind, fields, change, accepted_at ON outbox
WHEN old.run_id <> new.run_id OR old.kind <> new.kind OR old.fields <> new.fields
    OR old.change <> new.change OR old.accepted_at <> new.accepted_at
BEGIN SELECT RAISE (ABORT, 'a message keeps what was accepted'); END;

CREATE TRIGGER outbox_keeps_creates BEFORE DELETE ON outbox WHEN old.kind = 'create'
BEGIN SELECT RAISE (ABORT, 'creates are kept, so that no run is created twice'); END;

CREATE TRIGGER outbox_keeps_undelivered BEFORE DELETE ON outbox WHEN old.state <> 'delivered'
BEGIN SELECT RAISE (ABORT, 'only what was delivered may be removed'); END;

-- Every request to Airtable, written before it is sent and completed with its answer.
CREATE TABLE airtable_calls (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    method TEXT NOT NULL,                            -- create (upsert on the run id), update, find, list, describe
    outcome TEXT NOT NULL DEFAULT 'in_flight' CHECK (outcome IN
        ('in_flight', 'ok', 'refused', 'rate_limited', 'quota', 'denied', 'unknown', 'interrupted')),
    status INTEGER,                                  -- HTTP status, when there was an answer
    records INTEGER NOT NULL CHECK (records >= 0),
    messages INTEGER NOT NULL CHECK (messages >= 0), -- outbox messages that rode along
    error TEXT,                                      -- what Airtable or the network said
    started_at TEXT NOT NULL CHECK (started_at GLOB '????-??-??T??:??:??.???Z'),
    finished_at TEXT CHECK (finished_at GLOB '????-??-??T??:??:??.???Z'),
    CHECK ((outcome = 'in_flight') = (finished_at IS NULL))
) STRICT;
CREATE INDEX airtable_calls_in_flight ON airtable_calls (id) WHERE outcome = 'in_flight';
CREATE INDEX airtable_calls_by_time ON airtable_calls (started_at);

-- What went wrong and needs eyes. Never deleted; resolved with how and when.
CREATE TABLE errors (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    kind TEXT NOT NULL CHECK (kind IN ('missing_record', 'unmatched_webhook', 'duplicate_record', 'rejected',
                                       'record_deleted', 'drift', 'unknown_record')),
    state TEXT NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'resolved')),
    run_id TEXT,                                     -- the run it is about, which may not exist
    client_id TEXT,
    message TEXT NOT NULL,                           -- what happened, for a person
    cause TEXT,                                      -- what the other side said
    similar_runs TEXT NOT NULL DEFAULT '[]' CHECK (json_valid(similar_runs) AND json_type(similar_runs) = 'array'),
    count INTEGER NOT NULL DEFAULT 1 CHECK (count > 0),  -- how often it happened while open
    first_at TEXT NOT NULL CHECK (first_at GLOB '????-??-??T??:??:??.???Z'),
    last_at TEXT NOT NULL CHECK (last_at GLOB '????-??-??T??:??:??.???Z'),
    resolved_at TEXT CHECK (resolved_at GLOB '????-??-??T??:??:??.???Z'),
    resolution TEXT,                                 -- created_late, adopted, matched, replayed, repaired, by_hand, no_longer_seen
    note TEXT,
    found_record_id TEXT,                            -- the record that a consistency check found it at; NULL: no check did
    looks INTEGER NOT NULL DEFAULT 0 CHECK (looks >= 0), -- times that Airtable was asked for a missing record
    look_due_at TEXT CHECK (look_due_at GLOB '????-??-??T??:??:??.???Z'),  -- when it is asked next
    CHECK (look_due_at IS NULL OR (kind = 'missing_record' AND state = 'open')),
    CHECK ((state = 'resolved') = (resolved_at IS NOT NULL AND resolution IS NOT NULL))
) STRICT;
CREATE UNIQUE INDEX errors_one_missing_record ON errors (run_id) WHERE kind = 'missing_record' AND state = 'open';
CREATE UNIQUE INDEX errors_one_unmatched_webhook ON errors (cause) WHERE kind = 'unmatched_webhook' AND state = 'open';
CREATE UNIQUE INDEX errors_one_finding ON errors (kind, found_record_id) WHERE found_record_id IS NOT NULL AND state = 'open';
CREATE INDEX errors_look_due ON errors (look_due_at) WHERE look_due_at IS NOT NULL;
CREATE INDEX errors_by_kind ON errors (kind, state, id);
CREATE INDEX errors_by_state ON errors (state, id);
CREATE INDEX errors_by_run ON errors (run_id, id);
CREATE INDEX errors_by_client ON errors (client_id, id);

CREATE TRIGGER errors_stay BEFORE DELETE ON errors
BEGIN SELECT RAISE (ABORT, 'errors are kept: resolve them'); END;

CREATE TRIGGER errors_exist_once BEFORE INSERT ON errors
WHEN EXISTS (SELECT 1 FROM errors WHERE id = new.id)
    OR (new.kind = 'missing_record' AND new.state = 'open' AND EXISTS (SELECT 1 FROM errors
        WHERE kind = 'missing_record' AND state = 'open' AND run_id = new.run_id))
    OR (new.kind = 'unmatched_webhook' AND new.state = 'open' AND EXISTS (SELECT 1 FROM errors
        WHERE kind = 'unmatched_webhook' AND state = 'open' AND cause = new.cause))
    OR (new.found_record_id IS NOT NULL AND new.state = 'open' AND EXISTS (SELECT 1 FROM errors
        WHERE kind = new.kind AND found_record_id = new.found_record_id AND state = 'open'))
BEGIN SELECT RAISE (ABORT, 'this error is open already'); END;

CREATE TRIGGER errors_keep_their_subject BEFORE UPDATE ON errors
WHEN old.id <> new.id OR old.kind <> new.kind OR old.run_id IS NOT new.run_id
    OR old.found_record_id IS NOT new.found_record_id OR (old.kind = 'unmatched_webhook' AND old.cause IS NOT new.cause)
BEGIN SELECT RAISE (ABORT, 'an error keeps what it is about'); END;

CREATE TRIGGER errors_close BEFORE UPDATE OF state ON errors WHEN old.state = 'resolved' AND new.state = 'open'
BEGIN SELECT RAISE (ABORT, 'a resolved error stays resolved: what happens again opens a new one'); END;

-- Updates whose run does not exist here: kept in order until it does.
CREATE TABLE held_updates (
    id INTEGER PRIMARY KEY AUTOINCREMENT,            -- order of acceptance
    run_id TEXT NOT NULL,                            -- no such run, so no reference
    error_id INTEGER NOT NULL REFERENCES errors (id),
    state TEXT NOT NULL DEFAULT 'held' CHECK (state IN ('held', 'applied', 'discarded')),
    change TEXT NOT NULL CHECK (json_valid(change) AND json_type(change) = 'object'),
    accepted_at TEXT NOT NULL CHECK (accepted_at GLOB '????-??-??T??:??:??.???Z'),
    settled_at TEXT CHECK (settled_at GLOB '????-??-??T??:??:??.???Z'),
    message_id INTEGER,                              -- the message it became (outbox.id, until pruned)
    CHECK ((state = 'held') = (settled_at IS NULL)),
    CHECK ((state = 'applied') = (message_id IS NOT NULL))
) STRICT;
CREATE INDEX held_updates_waiting ON held_updates (run_id, id) WHERE state = 'held';
CREATE INDEX held_updates_by_run ON held_updates (run_id, id);

CREATE TRIGGER held_updates_stay BEFORE DELETE ON held_updates WHEN old.state = 'held'
BEGIN SELECT RAISE (ABORT, 'a held update is kept until it is applied or discarded'); END;

CREATE TRIGGER held_updates_start_held BEFORE INSERT ON held_updates
WHEN new.state <> 'held' OR EXISTS (SELECT 1 FROM held_updates WHERE id = new.id)
BEGIN SELECT RAISE (ABORT, 'a held update starts as held, in a row of its own'); END;

CREATE TRIGGER held_updates_settle_once BEFORE UPDATE OF state ON held_updates
WHEN old.state <> 'held' AND old.state <> new.state
BEGIN SELECT RAISE (ABORT, 'a held update is applied or discarded once'); END;

CREATE TRIGGER held_updates_keep_their_meaning BEFORE UPDATE ON held_updates
WHEN old.id <> new.id OR old.run_id <> new.run_id OR old.change <> new.change OR old.accepted_at <> new.accepted_at
BEGIN SELECT RAISE (ABORT, 'a held update keeps what was accepted'); END;

-- One Apify actor run that belongs to a run.
CREATE TABLE batches (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    run_id TEXT NOT NULL REFERENCES runs (run_id),
    number INTEGER NOT NULL CHECK (number > 0),      -- 1, 2, 3 … within its run
    state TEXT NOT NULL DEFAULT 'queued' CHECK (state IN
        ('queued', 'starting', 'unknown', 'running', 'succeeded', 'failed', 'timed_out', 'aborted', 'measured')),
    outcome TEXT CHECK (outcome IN ('succeeded', 'failed', 'timed_out', 'aborted')),  -- how it ended
    cause TEXT,                                      -- why it failed, or what it waits for
    token TEXT UNIQUE,                               -- names it in its webhooks' URL; NULL: started by others
    actor_id TEXT,
    input TEXT CHECK (input IS NULL OR json_valid(input)),
    profiles INTEGER CHECK (profiles >= 0),          -- profiles in its input
    apify_run_id TEXT UNIQUE,
    apify_status TEXT,                               -- Apify's own word, as last seen
    dataset_id TEXT,
    items INTEGER CHECK (items >= 0),                -- posts in its dataset
    cost_usd REAL CHECK (cost_usd >= 0),
    duration_seconds REAL CHECK (duration_seconds >= 0),
    status_message TEXT,
    attempts INTEGER NOT NULL DEFAULT 0 CHECK (attempts >= 0),  -- starts sent
    polls INTEGER NOT NULL DEFAULT 0 CHECK (polls >= 0),        -- looks without news in a row
    due_at TEXT CHECK (due_at GLOB '????-??-??T??:??:??.???Z'),  -- when the harvest loop acts on it next
    attempted_at TEXT CHECK (attempted_at GLOB '????-??-??T??:??:??.???Z'),
    started_at TEXT CHECK (started_at GLOB '????-??-??T??:??:??.???Z'),
    reopened_at TEXT CHECK (reopened_at GLOB '????-??-??T??:??:??.???Z'),  -- last resurrected
    finished_at TEXT CHECK (finished_at GLOB '????-??-??T??:??:??.???Z'),
    measured_at TEXT CHECK (measured_at GLOB '????-??-??T??:??:??.???Z'),
    last_webhook_at TEXT CHECK (last_webhook_at GLOB '????-??-??T??:??:??.???Z'),
    created_at TEXT NOT NULL CHECK (created_at GLOB '????-??-??T??:??:??.???Z'),
    UNIQUE (run_id, number),
    CHECK (state NOT IN ('starting', 'unknown') OR attempted_at IS NOT NULL),
    CHECK (state NOT IN ('running', 'succeeded', 'timed_out', 'aborted') OR apify_run_id IS NOT NULL),
    CHECK ((state IN ('succeeded', 'failed', 'timed_out', 'aborted', 'measured')) = (outcome IS NOT NULL)),
    CHECK ((state = 'measured') = (measured_at IS NOT NULL))
) STRICT;
CREATE INDEX batches_due ON batches (due_at) WHERE due_at IS NOT NULL;
CREATE INDEX batches_active ON batches (state, id) WHERE state <> 'measured';

CREATE TRIGGER batches_stay BEFORE DELETE ON batches
BEGIN SELECT RAISE (ABORT, 'batches are kept: the figures of their run are the sum of them'); END;

CREATE TRIGGER batches_exist_once BEFORE INSERT ON batches
WHEN EXISTS (SELECT 1 FROM batches WHERE id = new.id) OR EXISTS (SELECT 1 FROM batches WHERE token = new.token)
    OR EXISTS (SELECT 1 FROM batches WHERE apify_run_id = new.apify_run_id)
    OR EXISTS (SELECT 1 FROM batches WHERE run_id = new.run_id AND number = new.number)
BEGIN SELECT RAISE (ABORT, 'this batch exists already'); END;

CREATE TRIGGER batches_keep_their_name BEFORE UPDATE ON batches
WHEN old.id <> new.id OR old.run_id <> new.run_id OR old.number <> new.number OR old.token IS NOT new.token
BEGIN SELECT RAISE (ABORT, 'a batch keeps its name'); END;

CREATE TRIGGER batches_share_no_apify_run BEFORE UPDATE OF apify_run_id ON batches
WHEN EXISTS (SELECT 1 FROM batches WHERE apify_run_id = new.apify_run_id AND id <> old.id)
BEGIN SELECT RAISE (ABORT, 'this Apify run is another batch'); END;

-- Every webhook that Apify sent, as it was said, and what became of it.
CREATE TABLE webhook_events (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    dispatch_id TEXT UNIQUE,                         -- Apify's, the same over the retries of one dispatch
    event TEXT NOT NULL,                             -- ACTOR.RUN.SUCCEEDED, TEST …
    event_key TEXT,                                  -- equal for two webhooks about one event of one Apify run
    outcome TEXT NOT NULL CHECK (outcome IN ('queued', 'duplicate', 'held', 'ignored')),
    detail TEXT,                                     -- why it was held or ignored
    run_id TEXT,                                     -- the run that it named or was matched to
    batch_id INTEGER REFERENCES batches (id),
    batch_token TEXT,                                -- the batch that its URL named
    apify_run_id TEXT,
    report TEXT CHECK (report IS NULL OR json_valid(report)),          -- what it said of the Apify run, decoded
    error_id INTEGER REFERENCES errors (id),
    deliveries INTEGER NOT NULL DEFAULT 1 CHECK (deliveries > 0),  -- how often this dispatch came
    received_at TEXT NOT NULL CHECK (received_at GLOB '????-??-??T??:??:??.???Z'),
    body TEXT                                        -- raw, until pruned
) STRICT;
CREATE INDEX webhook_events_by_key ON webhook_events (event_key) WHERE event_key IS NOT NULL AND outcome <> 'duplicate';
CREATE INDEX webhook_events_by_run ON webhook_events (run_id, id);
CREATE INDEX webhook_events_held ON webhook_events (apify_run_id) WHERE outcome = 'held';

CREATE TRIGGER webhook_events_stay BEFORE DELETE ON webhook_events WHEN old.outcome = 'held'
BEGIN SELECT RAISE (ABORT, 'a held webhook is kept until it is matched or discarded'); END;

CREATE TRIGGER webhook_events_come_once BEFORE INSERT ON webhook_events
WHEN EXISTS (SELECT 1 FROM webhook_events WHERE id = new.id)
    OR EXISTS (SELECT 1 FROM webhook_events WHERE dispatch_id = new.dispatch_id)
BEGIN SELECT RAISE (ABORT, 'this webhook came already: count its delivery'); END;

CREATE TRIGGER webhook_events_keep_their_name BEFORE UPDATE ON webhook_events
WHEN old.id <> new.id OR old.dispatch_id IS NOT new.dispatch_id
BEGIN SELECT RAISE (ABORT, 'a webhook keeps its name'); END;

-- Requests that carried an Idempotency-Key, for as long as retention.idempotency_days says.
CREATE TABLE idempotency_keys (
    scope TEXT NOT NULL,                             -- POST /runs, or the run that the update named
    key TEXT NOT NULL,
    digest TEXT NOT NULL,                            -- of the request that it stands for
    run_id TEXT NOT NULL,
    accepted_at TEXT NOT NULL CHECK (accepted_at GLOB '????-??-??T??:??:??.???Z'),
    PRIMARY KEY (scope, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX idempotency_keys_by_time ON idempotency_keys (accepted_at);

-- Kickoffs that asked for a run which existed: counted, for creation_stats; nothing else is written for them.
CREATE TABLE repeated_kickoffs (
    day TEXT PRIMARY KEY CHECK (day GLOB '????-??-??'),
    count INTEGER NOT NULL CHECK (count > 0)
) STRICT, WITHOUT ROWID;

-- The one base that this store delivers to: the record ids above mean nothing to another.
CREATE TABLE destination (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    base_id TEXT NOT NULL,
    bound_at TEXT NOT NULL CHECK (bound_at GLOB '????-??-??T??:??:??.???Z')
) STRICT;

-- Each consistency check that came to an end, and what it saw.
CREATE TABLE checks (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    started_at TEXT NOT NULL CHECK (started_at GLOB '????-??-??T??:??:??.???Z'),
    finished_at TEXT NOT NULL CHECK (finished_at GLOB '????-??-??T??:??:??.???Z'),
    since TEXT NOT NULL CHECK (since GLOB '????-??-??T??:??:??.???Z'),  -- it read the records created after this
    trouble TEXT,                                    -- why it could not finish; it changed nothing then
    pages INTEGER NOT NULL CHECK (pages >= 0),
    records INTEGER NOT NULL CHECK (records >= 0),
    calls INTEGER NOT NULL CHECK (calls >= 0),       -- requests that it made, failed ones too
    found TEXT NOT NULL CHECK (json_valid(found) AND json_type(found) = 'object'),      -- findings by kind of error
    opened INTEGER NOT NULL CHECK (opened >= 0),     -- errors
    resolved INTEGER NOT NULL CHECK (resolved >= 0),
    repaired INTEGER NOT NULL CHECK (repaired >= 0)  -- messages queued
) STRICT;
CREATE INDEX checks_by_time ON checks (finished_at);

-- What the check that is under way (or the last one) saw in Airtable; each check begins with none.
CREATE TABLE check_seen (
    record_id TEXT PRIMARY KEY,
    run_id TEXT,                                     -- as its Run ID cell says
    client_id TEXT,                                  -- as its Client ID cell says
    drifted TEXT CHECK (drifted IS NULL OR json_valid(drifted)),  -- names of the fields that are not as delivered
    cause TEXT                                       -- their values, here and there
) STRICT, WITHOUT ROWID;
CREATE INDEX check_seen_by_run ON check_seen (run_id);

-- Records that its listing left in doubt: each is asked for by its name before anything is said about it.
CREATE TABLE check_doubts (
    record_id TEXT PRIMARY KEY,
    run_id TEXT,
    asked INTEGER NOT NULL DEFAULT 0 CHECK (asked IN (0, 1))
) STRICT, WITHOUT ROWID;
CREATE INDEX check_doubts_unasked ON check_doubts (record_id) WHERE asked = 0;

-- What it found wrong.
CREATE TABLE check_findings (
    kind TEXT NOT NULL,
    record_id TEXT NOT NULL,
    run_id TEXT,
    client_id TEXT,
    message TEXT NOT NULL,
    cause TEXT NOT NULL,
    drifted TEXT,
    PRIMARY KEY (kind, record_id)
) STRICT, WITHOUT ROWID;

-- Views for the usual questions ---------------------------------------------------------------------------------

-- Which runs are missing, what waits for them, and what was probably meant?
CREATE VIEW missing_records AS
SELECT e.run_id,
    (SELECT count(*) FROM held_updates AS h
        WHERE h.run_id = e.run_id AND h.state = 'held' AND h.error_id = e.id) AS updates_held,
    (SELECT group_concat(value, ', ') FROM json_each(e.similar_runs)) AS similar_runs,
    e.client_id, e.first_at, e.last_at, e.count AS times, e.message, e.id AS error_id
FROM errors AS e
WHERE e.kind = 'missing_record' AND e.state = 'open'
ORDER BY e.id;

-- What is not yet in Airtable, and what holds it?
CREATE VIEW pending_sync AS
SELECT m.id AS message_id, m.run_id, m.kind, m.state, m.accepted_at, m.attempts,
    CASE
        WHEN m.state = 'dead' THEN 'set aside: ' || coalesce(e.cause, e.message)
        WHEN m.state = 'sending' THEN 'on its way since ' || coalesce(
            (SELECT started_at FROM airtable_calls WHERE id = m.call_id), 'a moment')
        WHEN r.due_at IS NULL THEN 'waits for the create of its run, which was set aside'
        WHEN r.failures > 0 THEN 'failed ' || r.failures || ' times, next try at ' || r.due_at || coalesce(
            ': ' || (SELECT error FROM airtable_calls WHERE id = m.call_id), '')
        ELSE 'due at ' || r.due_at
    END AS waits_for
FROM outbox AS m
JOIN runs AS r ON r.run_id = m.run_id
LEFT JOIN errors AS e ON e.id = m.error_id
WHERE m.delivered_at IS NULL;

-- Which messages were set aside, and for what?
CREATE VIEW rejected_messages AS
SELECT m.id AS message_id, m.run_id, m.kind, m.fields, m.dead_at, e.kind AS error, coalesce(e.cause, e.message) AS cause,
    e.id AS error_id, m.change
FROM outbox AS m JOIN errors AS e ON e.id = m.error_id
WHERE m.state = 'dead' AND m.delivered_at IS NULL;

-- Which creations failed, on what day? (… WHERE day = date('now', '-1 day'))
CREATE VIEW failed_creations AS
SELECT substr(dead_at, 1, 10) AS day, run_id, cause, dead_at, message_id, error_id FROM rejected_messages WHERE kind = 'create';

-- What was delivered, and when? (… WHERE delivered_at >= strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '-1 hour'))
CREATE VIEW deliveries AS
SELECT delivered_at, run_id, kind, fields, id AS message_id, call_id,
    round((julianday(delivered_at) - julianday(accepted_at)) * 86400, 3) AS seconds_after_acceptance
FROM outbox WHERE delivered_at IS NOT NULL;

-- What happened to a run, in order? (… WHERE run_id = '…' ORDER BY at, step, id)
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
FROM batches WHERE measured_at IS NOT NULL;

-- How did creations fare, day by day?
CREATE VIEW creation_stats AS
SELECT day, sum(created) AS created, sum(already_existed) AS already_existed, sum(failed) AS failed,
    round(1.0 * sum(delivered) / nullif(sum(delivered) + sum(failed), 0), 4) AS success_rate
FROM (
    SELECT substr(accepted_at, 1, 10) AS day, 1 AS created, state = 'delivered' AS delivered, state = 'dead' AS failed,
        0 AS already_existed
    FROM outbox WHERE kind = 'create'
    UNION ALL
    SELECT day, 0, 0, 0, count FROM repeated_kickoffs
)
GROUP BY day ORDER BY day DESC;
