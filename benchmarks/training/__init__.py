"""Measure what pruning costs a training step, and what it saves."""
