-- What is held for a run is looked for with each batch that turns out to be an Apify run: not among all its webhooks.
CREATE INDEX webhook_events_held_of_run ON webhook_events (run_id) WHERE outcome = 'held';
