"""Commands that ask a server: `qtune jobs` and `qtune datasets`.

Exit codes are those of cli/console.py, and of a job that was watched to its end: 0 succeeded, 1 failed, 5 cancelled.
"""
