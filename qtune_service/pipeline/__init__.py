"""The job: plan, encode, score, find thresholds, prune, commit. Ray Data runs it."""
