"""Answer clients' queries of finished outputs in child processes with limits.

    worker.py    the child's program, with the table of its operations
    client.py    the server's side: typed calls, and the package's own errors
    protocol.py  the encoding of requests and answers

Only children parse and evaluate users' SQL, and only they read Parquet files of uploads and outputs.
"""
