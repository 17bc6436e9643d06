"""Measure ways to score the same samples, side by side."""
