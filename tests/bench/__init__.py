"""`make bench`: measurements side by side, in one run, against the goals of the project."""
