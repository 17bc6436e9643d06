"""What people look at: summaries and the report page."""
