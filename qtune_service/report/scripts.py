"""The scripts of the pictures: for report.html as one text, for the service's page as a module that it imports.

Each concern has a file in templates/js, and both pages draw with the same ones. The chart library comes out of an
installed package (vl-convert), 0.9 MB.
"""

from __future__ import annotations

from functools import cache
from importlib import metadata
from importlib.resources import files

PARTS = ("numbers", "copy", "charts", "picking", "what_if", "tokens", "sorting")
"""In this order: what a file uses stands in one before it."""
EXPORTS = ("showCommand", "copyText", "drawChart", "drawCharts", "connectPlanes", "connectSlider", "connectBox")


@cache
def inline_script() -> str:
    """For report.html: all parts and the start, which does the rest."""
    return f'"use strict";\n(async () => {{\n{_joined(*PARTS, "start")}\n}})();'


@cache
def module_script() -> str:
    """A module of the same parts, which does nothing by itself."""
    return f"{_joined(*PARTS)}\n\nexport {{ {', '.join(EXPORTS)} }};\n"


@cache
def chart_library() -> str:
    """Vega, Vega-Lite and Vega-Embed as one classic script that sets `window.vegaEmbed`."""
    import vl_convert

    bundle: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return bundle


def chart_library_version() -> str:
    """Another one has other bytes."""
    return metadata.version("vl-convert-python")


def _joined(*names: str) -> str:
    folder = files("qtune_service.report") / "templates" / "js"
    return "\n".join((folder / f"{name}.js").read_text(encoding="utf-8") for name in names)
