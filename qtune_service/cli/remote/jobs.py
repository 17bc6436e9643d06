"""`qtune jobs`: its list of commands."""

from __future__ import annotations

import typer

from qtune_service.cli.help import Group, command
from qtune_service.cli.import_jobs import import_jobs
from qtune_service.cli.remote import cancel_resume_delete, list_show_logs
from qtune_service.cli.remote.download import DOWNLOAD_EXAMPLES, download
from qtune_service.cli.remote.login import login
from qtune_service.cli.remote.submit import REPRUNE_EXAMPLES, SUBMIT_EXAMPLES, reprune, submit
from qtune_service.cli.remote.watch import watch

app = typer.Typer(cls=Group, help="Submit, follow and download jobs of a server (`qtune serve`).", no_args_is_help=True)
command(app, "submit", examples=SUBMIT_EXAMPLES)(submit)
command(app, "list")(list_show_logs.list_jobs)
command(app, "show")(list_show_logs.show_job)
command(app, "watch")(watch)
command(app, "logs")(list_show_logs.logs)
command(app, "download", examples=DOWNLOAD_EXAMPLES)(download)
command(app, "reprune", examples=REPRUNE_EXAMPLES)(reprune)
command(app, "cancel")(cancel_resume_delete.cancel)
command(app, "resume")(cancel_resume_delete.resume)
command(app, "delete")(cancel_resume_delete.delete)
command(app, "login")(login)
command(app, "import")(import_jobs)
