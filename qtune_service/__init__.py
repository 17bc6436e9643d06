"""Q-Tuning as a service: prune fine-tuning data by exact perplexity and predictive entropy."""

__version__ = "0.1.0"
