"""Run a job: plan, encode, score, commit, find thresholds, prune, finish; under Ray or in this process."""
