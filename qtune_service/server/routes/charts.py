"""The scripts that draw pictures, as static files: the report's own modules, and the chart library.

The library comes out of an installed package that runs a JavaScript engine to bundle it: 90 MB of memory for a second,
which the server's process must not keep. A child makes the file, once for each version, in the server's folder.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from threading import Lock
from typing import Annotated

from fastapi import APIRouter, Depends, Response
from fastapi.responses import FileResponse

from qtune_service.errors import StorageError
from qtune_service.report.scripts import chart_library_version, module_script
from qtune_service.server.dependencies import TheServer
from qtune_service.server.isolation.environment import child_environment

router = APIRouter(include_in_schema=False)
JAVASCRIPT = "text/javascript; charset=utf-8"
KEPT = {"Cache-Control": "public, max-age=31536000, immutable"}
"""Both lie below the digest of all static files, of which they are a part."""
MAKE_TIMEOUT_S = 60
_making = Lock()
_WRITE = """
import sys
from pathlib import Path
from qtune_service.report.scripts import chart_library
Path(sys.argv[1]).write_text(chart_library(), encoding="utf-8")
"""


def versions() -> bytes:
    """Changes when either script does; for the digest of static files."""
    return f"{chart_library_version()}\n{module_script()}".encode()


@router.get("/static/{digest}/pictures.js")
def pictures() -> Response:
    """What draws charts, slider and tokens, as a module."""
    return Response(module_script(), media_type=JAVASCRIPT, headers=KEPT)


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
