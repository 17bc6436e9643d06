"""Serve the chart library as a static file.

An installed package bundles the library with a JavaScript engine, which takes 90 MB of memory for a second. The server
must not keep that memory, so a child process writes the file once for each version into the server's folder.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from threading import Lock
from typing import Annotated

from fastapi import APIRouter, Depends
from fastapi.responses import FileResponse

from qtune_service.errors import StorageError
from qtune_service.isolation.environment import child_environment
from qtune_service.report.scripts import chart_library_version
from qtune_service.web.deps import TheServer

router = APIRouter(include_in_schema=False)
JAVASCRIPT = "text/javascript; charset=utf-8"
KEPT = {"Cache-Control": "public, max-age=31536000, immutable"}
"""The library's version is part of the digest in its path."""
MAKE_TIMEOUT_S = 60
_making = Lock()
_WRITE = """
import sys
from pathlib import Path
from qtune_service.report.scripts import chart_library
Path(sys.argv[1]).write_text(chart_library(), encoding="utf-8")
"""


def library_file(server: TheServer) -> Path:
    """The library's file, made where it is not there yet. Raises StorageError."""
    path = server.settings.data_root / "static" / f"vega-{chart_library_version()}.js"
    with _making:
        if not path.exists():
            _make(path)
    return path


@router.get("/static/{digest}/vega.js")
def library(path: Annotated[Path, Depends(library_file)]) -> FileResponse:
    """Vega, Vega-Lite and Vega-Embed as one classic script."""
    return FileResponse(path, media_type=JAVASCRIPT, headers=KEPT)


def _make(path: Path) -> None:
    """Written beside and then renamed: another server may do the same."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-c", _WRITE, str(part)]
        subprocess.run(command, check=True, capture_output=True, timeout=MAKE_TIMEOUT_S, env=child_environment("plain"))
        part.replace(path)
    except (OSError, subprocess.SubprocessError) as error:
        raise StorageError(f"the chart library could not be written to {path}: {error}", "Is the disk full?") from error
