"""Serve the web page: HTML shells and their static files. Scripts get all data from the API, with the user's rights.

There is no build step: scripts are ES modules as they are written. The report's stylesheets and scripts are served
too, so that the page and the report look and work alike. The path of a static file contains a digest of all of them, so
a browser's cache is never stale, and relative imports between modules keep the digest.
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
from qtune_service.jobs.models import JobStatus
from qtune_service.report.scripts import chart_library_version
from qtune_service.web import charts
from qtune_service.web.deps import PageReader
from qtune_service.web.form import PARTS, form_fields

STATIC = Path(str(files("qtune_service.web"))) / "static"
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
    """Serve pages and what they load."""
    app.include_router(router)
    app.include_router(charts.router)
    app.mount("/static/{digest}/report/css", _Kept(directory=REPORT / "css"))
    app.mount("/static/{digest}/report/js", _Kept(directory=REPORT / "js"))
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
    """Return a digest of all static files."""
    found = hashlib.sha256(chart_library_version().encode())
    for root in (STATIC, REPORT / "css", REPORT / "js"):
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
        loader=PackageLoader("qtune_service.web"), autoescape=True, undefined=StrictUndefined,
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
