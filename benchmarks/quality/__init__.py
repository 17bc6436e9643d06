"""Does Q-Tuning make better models? Small ones, on data with planted flaws; see __main__.py and docs/quality.md."""
