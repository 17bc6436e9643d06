"""A server in a process of its own, drivers without a model: `python -m tests.api.scripted_server ROOT PORT JOBS`."""

from __future__ import annotations

import sys
from pathlib import Path

from qtune_service.server.app import create_app
from qtune_service.server.http_server import make_http_server
from qtune_service.server.settings import load_settings
from tests.api.servers import scripted, settings

if __name__ == "__main__":
    root, port, max_running = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    database = load_settings().database_url
    chosen = settings(root, database_url=database, max_running_jobs=max_running, port=port)
    make_http_server(create_app(chosen, scripted(root)), chosen).run()
