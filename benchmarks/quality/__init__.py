"""Does Q-Tuning make better models? Small models on data with planted flaws; see docs/reference/quality.md."""
