"""Benchmarks of stage 1: thresholds in memory and distributed, and DuckDB out of core."""
