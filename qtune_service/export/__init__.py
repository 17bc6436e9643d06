"""Exports of finished outputs: files for each trainer, a dataset for the hub, and analysis files."""
