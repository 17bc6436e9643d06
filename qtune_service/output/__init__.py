"""The output folder of a job: its layout, its columns, and readers, queries and comparisons of finished outputs."""
