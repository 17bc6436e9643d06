"""Run users' programs and read users' binary files in child processes with limits.

limits.py       limits that a child applies to itself before its program starts
processes.py    the environment of a child, and one command with bounded time and output
worker_loop.py  messages on a pipe, and the loop of a child that answers requests
worker_pool.py  the server's pool of such children
"""
