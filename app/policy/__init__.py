"""Pure decisions: no I/O, no clock, no randomness. Times come in as arguments, jitter as a `random.Random`."""
