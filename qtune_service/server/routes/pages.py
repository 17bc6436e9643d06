"""The web page: a few HTML shells and the files that they load. All data come by the API, with the caller's own rights.

There is no build step: scripts are ES modules as they are written, and the report's own stylesheets are used, so that
both look alike. Static files lie below a digest of them all: what a browser has cached is never stale, relative imports
between modules keep the digest, and a new version of the server is a new folder.
"""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, Response
from fastapi.responses import HTMLResponse
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from qtune_service import __version__
from qtune_service.job_states import JobStatus
from qtune_service.server.dependencies import PageReader
from qtune_service.server.routes import charts
from qtune_service.server.routes.form import PARTS, form_fields

STATIC = Path(str(files("qtune_service.server"))) / "static"
REPORT_CSS = Path(str(files("qtune_service.report"))) / "templates" / "css"
STYLES = ("report/page", "report/tables", "report/figures", "report/samples", "report/media", "css/shell")
PLACED = {
    "input.paths", "model.name", "prune.sample_keep_ratio", "prune.token_keep_ratio", "prune.strategy",
    "prune.strategy_order", "prune.token_strategy",
}  # fmt: skip
"""Fields of the form that new.html.j2 places itself; the others are listed below them."""
A_YEAR_S = 31_536_000
router = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)


def install(app: FastAPI) -> None:
    """Serve pages and what they load."""
    app.include_router(router)
    app.include_router(charts.router)
    app.mount("/static/{digest}/report", _Kept(directory=REPORT_CSS))
    app.mount("/static/{digest}", _Kept(directory=STATIC))


def render(template: str, **values: Any) -> str:
    """A page, from `templates/`."""
    return _environment().get_template(template).render(**values)


@router.get("/")
def jobs(_who: PageReader) -> str:
    """All jobs."""
    return render("jobs.html.j2", statuses=list(JobStatus))


@router.get("/new")
def new_job(_who: PageReader) -> str:
    """The form of a new job."""
    fields = form_fields()
    rest = {part: [n for n in fields if n.startswith(f"{part}.") and n not in PLACED] for part in PARTS}
    return render("new.html.j2", fields=fields, rest=rest)


@router.get("/compare")
def compare(_who: PageReader) -> str:
    """Two jobs side by side."""
    return render("compare.html.j2")


@router.get("/sign-in")
def sign_in() -> str:
    """The one page for everybody."""
    return render("sign_in.html.j2")


@router.get("/jobs/{job_id}")
def job(job_id: str, _who: PageReader) -> str:
    """One job. Whether there is one of this id, the page's script finds out."""
    return render("job.html.j2", job_id=job_id)


@cache
def digest() -> str:
    """Changes when any static file does."""
    found = hashlib.sha256(charts.versions())
    for root in (STATIC, REPORT_CSS):
        for path in sorted(p for p in root.rglob("*") if p.is_file()):
            found.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return found.hexdigest()[:16]


class _Kept(StaticFiles):
    """Files that a browser may keep for good: under another digest they are asked for again."""

    def file_response(self, full_path: Any, stat_result: Any, scope: Scope, status_code: int = 200) -> Response:
        """With how long it keeps."""
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
    environment.filters["code"] = _with_code
    environment.globals.update(version=__version__, styles=STYLES, static=lambda path: f"/static/{digest()}/{path}")
    return environment


def _with_code(text: str) -> Markup:
    """Texts of settings, where `this` stands for code."""
    parts = [
        Markup("<code>{}</code>").format(part) if i % 2 else escape(part) for i, part in enumerate(text.split("`"))
    ]
    return Markup("").join(parts)
