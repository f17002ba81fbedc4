"""Run Records: one Airtable record per client run, created once and updated in order."""

__version__ = "0.1.0"
