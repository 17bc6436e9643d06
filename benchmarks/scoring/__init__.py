"""Ways to score the same samples, measured side by side; see ../scoring.py."""
