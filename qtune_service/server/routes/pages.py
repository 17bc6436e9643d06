"""Serve the web page: HTML shells, static files, and the chart library.

All data come from the API with the caller's rights. There is no build step. Scripts are plain ES modules, and pages
share the stylesheets and scripts of the report. The URL of a static file contains a digest of all static files, so
cached files are never stale.

The chart library comes from an installed package, which runs a JavaScript engine to bundle it and needs 90 MB of
memory. So a child process writes the bundle to the server's data folder, once for each version.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from functools import cache
from importlib.resources import files
from pathlib import Path
from threading import Lock
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Response
from fastapi.responses import FileResponse, HTMLResponse
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from qtune_service import __version__
from qtune_service.errors import StorageError
from qtune_service.job_states import JobStatus
from qtune_service.report.html import chart_library_version
from qtune_service.selection.plane import entry_alpha_text
from qtune_service.server.dependencies import PageReader, TheServer
from qtune_service.server.form import PARTS, form_fields
from qtune_service.server.isolation.processes import child_environment

scripts_router = APIRouter(include_in_schema=False)
JAVASCRIPT = "text/javascript; charset=utf-8"
KEPT = {"Cache-Control": "public, max-age=31536000, immutable"}
"""The digest in the path covers the library's version and the corner rule."""
MAKE_TIMEOUT_S = 60
_making = Lock()
_WRITE = """
import sys
from pathlib import Path
from qtune_service.report.html import chart_library
Path(sys.argv[1]).write_text(chart_library(), encoding="utf-8")
"""


def library_file(server: TheServer) -> Path:
    """Return the file of the chart library, and write it at first use. Raises StorageError."""
    path = server.settings.data_root / "static" / f"vega-{chart_library_version()}.js"
    with _making:
        if not path.exists():
            _make(path)
    return path


@cache
def corner_rule() -> str:
    """Return the corner rule (selection/plane.py) as an ES module."""
    rule = entry_alpha_text("errorRank", "entropyRank", minimum="Math.min", maximum="Math.max")
    return f"export const entryAlpha = (errorRank, entropyRank) => {rule};\n"


@scripts_router.get("/static/{digest}/js/corner_rule.js")
def corner_rule_script() -> Response:
    """Return the module with `entryAlpha(errorRank, entropyRank)`."""
    return Response(corner_rule(), media_type=JAVASCRIPT, headers=KEPT)


@scripts_router.get("/static/{digest}/vega.js")
def library(path: Annotated[Path, Depends(library_file)]) -> FileResponse:
    """Return Vega, Vega-Lite and Vega-Embed as one classic script."""
    return FileResponse(path, media_type=JAVASCRIPT, headers=KEPT)


def _make(path: Path) -> None:
    """Write the bundle and rename it into place: other servers may do the same."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-c", _WRITE, str(part)]
        subprocess.run(command, check=True, capture_output=True, timeout=MAKE_TIMEOUT_S, env=child_environment("plain"))
        part.replace(path)
    except (OSError, subprocess.SubprocessError) as error:
        raise StorageError(
            f"the chart library could not be written to {path}: {error}", "Check that the disk is not full."
        ) from error


STATIC = Path(str(files("qtune_service.server"))) / "static"
REPORT = Path(str(files("qtune_service.report"))) / "templates"
STYLES = (
    "report/css/page", "report/css/tables", "report/css/figures", "report/css/samples", "report/css/media", "css/shell",
)  # fmt: skip
PLACED = {
    "input.paths", "model.name", "prune.sample_keep_ratio", "prune.token_keep_ratio", "prune.strategy",
    "prune.strategy_order", "prune.token_strategy",
}  # fmt: skip
"""Fields of the form that new.html.j2 places itself; the others are listed below them."""
A_YEAR_S = 31_536_000
router = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)


def install(app: FastAPI) -> None:
    """Install the pages and their static files."""
    app.include_router(router)
    app.include_router(scripts_router)
    app.mount("/static/{digest}/report/css", _CachedFiles(directory=REPORT / "css"))
    app.mount("/static/{digest}/report/js", _CachedFiles(directory=REPORT / "js"))
    app.mount("/static/{digest}", _CachedFiles(directory=STATIC))


def render(template: str, **values: Any) -> str:
    """Render a page from `templates/`."""
    return _environment().get_template(template).render(**values)


@router.get("/")
def jobs(_who: PageReader) -> str:
    """Return the page of all jobs."""
    return render("jobs.html.j2", statuses=list(JobStatus))


@router.get("/new")
def new_job(_who: PageReader) -> str:
    """Return the form of a new job."""
    fields = form_fields()
    rest = {part: [n for n in fields if n.startswith(f"{part}.") and n not in PLACED] for part in PARTS}
    return render("new.html.j2", fields=fields, rest=rest)


@router.get("/compare")
def compare(_who: PageReader) -> str:
    """Return the comparison page."""
    return render("compare.html.j2")


@router.get("/sign-in")
def sign_in() -> str:
    """Return the sign-in page, which is public."""
    return render("sign_in.html.j2")


@router.get("/jobs/{job_id}")
def job(job_id: str, _who: PageReader) -> str:
    """Return the page of a job. Its script checks that the job exists."""
    return render("job.html.j2", job_id=job_id)


@cache
def digest() -> str:
    """Return a digest of all static files."""
    found = hashlib.sha256(f"{chart_library_version()}\n{corner_rule()}".encode())
    for root in (STATIC, REPORT / "css", REPORT / "js"):
        for path in sorted(p for p in root.rglob("*") if p.is_file()):
            found.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return found.hexdigest()[:16]


class _CachedFiles(StaticFiles):
    """Static files that browsers cache permanently under the current digest."""

    def file_response(self, full_path: Any, stat_result: Any, scope: Scope, status_code: int = 200) -> Response:
        """Add the Cache-Control header."""
        response = super().file_response(full_path, stat_result, scope, status_code)
        is_this = scope["path_params"].get("digest") == digest()
        response.headers["Cache-Control"] = f"public, max-age={A_YEAR_S}, immutable" if is_this else "no-cache"
        return response


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("qtune_service.server"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["code"] = _render_code
    environment.globals.update(version=__version__, styles=STYLES, static=lambda path: f"/static/{digest()}/{path}")
    return environment


def _render_code(text: str) -> Markup:
    """Render text with `backticks` as code."""
    parts = [
        Markup("<code>{}</code>").format(part) if i % 2 else escape(part) for i, part in enumerate(text.split("`"))
    ]
    return Markup("").join(parts)
