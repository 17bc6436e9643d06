"""Child processes with limits, for programs of users and for binary files that users send.

environment.py  which variables a child gets
limits.py       what a child may take, applied by the child itself before its program starts
running.py      one command to its end, with bounded time and output
frames.py       messages on a pipe
serving.py      the loop of a child that answers requests
workers.py      a pool of such children, on the side of the server
"""
