"""Finished outputs in other forms: what each trainer reads, a dataset for the hub, and files to look at."""
