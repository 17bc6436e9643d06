"""Exact token scores (NLL and entropy) from a causal language model."""
