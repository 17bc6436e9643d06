"""An unfinished output of an earlier version, and the script that made it."""
