"""Start, watch and stop the drivers of jobs."""
