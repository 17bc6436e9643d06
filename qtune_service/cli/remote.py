"""Commands that ask a server: `qtune jobs` and `qtune datasets`. What runs here instead is in cli/prune.py.

Exit codes are those of cli/console.py, and of a job that was watched to its end: 0 succeeded, 1 failed, 5 cancelled.
"""

from __future__ import annotations

import typer

from qtune_service.cli import datasets, downloading, login, looking_part, moving, server_jobs, watching

jobs_app = typer.Typer(help="Jobs of a server: `qtune serve`, here or elsewhere.", no_args_is_help=True)
jobs_app.command("submit")(server_jobs.submit)
jobs_app.command("list")(looking_part.list_jobs)
jobs_app.command("show")(looking_part.show_job)
jobs_app.command("watch")(watching.watch)
jobs_app.command("logs")(looking_part.logs)
jobs_app.command("download")(downloading.download)
jobs_app.command("reprune")(server_jobs.reprune)
jobs_app.command("cancel")(moving.cancel)
jobs_app.command("resume")(moving.resume)
jobs_app.command("delete")(moving.delete)
jobs_app.command("login")(login.login)

datasets_app = typer.Typer(help="Data that lie with a server: `dataset://ID` in jobs.", no_args_is_help=True)
datasets_app.command("upload")(datasets.upload)
datasets_app.command("list")(datasets.list_datasets)
datasets_app.command("delete")(datasets.delete)
