"""The output folder of a job: its layout, its columns, and how a finished one is read."""
