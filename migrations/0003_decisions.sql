-- Who decided what: a message sent again, an error closed, a check asked for.

CREATE TABLE decisions (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    at TEXT NOT NULL CHECK (at GLOB '????-??-??T??:??:??.???Z'),
    action TEXT NOT NULL CHECK (action IN ('retry', 'resolve', 'check')),
    who TEXT CHECK (who <> ''),                      -- as given at the page's sign-in; NULL: by a call or a command, or nameless
    run_id TEXT,                                     -- the run it is about, which may not exist
    message_id INTEGER,                              -- the message that is sent again (outbox.id, until pruned)
    error_id INTEGER REFERENCES errors (id),         -- the error that was closed
    note TEXT,
    CHECK ((action = 'retry') = (message_id IS NOT NULL)),
    CHECK ((action = 'resolve') = (error_id IS NOT NULL))
) STRICT;
CREATE INDEX decisions_by_run ON decisions (run_id, id);
CREATE INDEX decisions_by_message ON decisions (message_id, id) WHERE message_id IS NOT NULL;
CREATE INDEX decisions_by_error ON decisions (error_id, id) WHERE error_id IS NOT NULL;
CREATE INDEX decisions_by_action ON decisions (action, id);

CREATE TRIGGER decisions_stay BEFORE DELETE ON decisions
BEGIN SELECT RAISE (ABORT, 'decisions are kept'); END;

CREATE TRIGGER decisions_are_final BEFORE UPDATE ON decisions
BEGIN SELECT RAISE (ABORT, 'a decision stays as it was made'); END;

CREATE TRIGGER decisions_are_new BEFORE INSERT ON decisions WHEN EXISTS (SELECT 1 FROM decisions WHERE id = new.id)
BEGIN SELECT RAISE (ABORT, 'this decision was made already'); END;

-- What was set aside, by when: a plot of the last hours looks at those only.
CREATE INDEX outbox_by_death ON outbox (dead_at) WHERE dead_at IS NOT NULL;

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
FROM pruned_messages
UNION ALL
SELECT run_id, at, 6, id, iif(action = 'retry', 'retry asked for', 'error closed by hand'),
    coalesce('message ' || message_id, 'error ' || error_id) || coalesce(', by ' || who, '')
FROM decisions WHERE run_id IS NOT NULL;
