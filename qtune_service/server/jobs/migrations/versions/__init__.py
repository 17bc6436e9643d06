"""Hold one migration module for each revision."""
