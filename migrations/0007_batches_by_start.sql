-- Which Apify runs are other batches by now? A look for a lost start asks for those of its time, not of all times.
CREATE INDEX batches_by_start ON batches (started_at) WHERE apify_run_id IS NOT NULL;
