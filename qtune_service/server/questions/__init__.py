"""Questions of clients to finished outputs, answered in child processes with limits.

    operations.py   the table of what may be asked, in the child
    worker.py       the child's program
    client.py       the server's side: typed calls, and errors as the package's own

A user's SQL is parsed and evaluated in a child alone, and so are Parquet files that users upload or that outputs hold.
"""
