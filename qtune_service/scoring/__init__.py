"""Exact scores out of a causal language model."""
