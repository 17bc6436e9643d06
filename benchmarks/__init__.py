"""Measure speed, memory, faults and quality; each folder is a benchmark with its results."""
