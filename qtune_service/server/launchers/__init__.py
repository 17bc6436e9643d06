"""Launchers start, watch and stop the drivers of jobs."""
