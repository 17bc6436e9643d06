"""The report of a job: page, charts, terminal tables, statistics and warnings."""
