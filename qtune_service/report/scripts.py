"""Scripts of the report. Each concern is an ES module in templates/js.

report.html must load nothing, so its modules are joined into one inline script, without their imports and exports. The
service's pages import the same files. The chart library is part of an installed package (vl-convert), 0.9 MB.
"""

from __future__ import annotations

import re
from functools import cache
from importlib import metadata
from importlib.resources import files

MODULES = ("format", "copy", "charts", "picking", "what_if", "tokens", "sorting", "start")
"""In the order of the joined script: a module comes after those that it imports. Their names share one scope."""
_IMPORT = re.compile(r"^import .*\n", re.MULTILINE)
_EXPORT = re.compile(r"^export ", re.MULTILINE)


@cache
def inline_script() -> str:
    """Return the script of report.html: all modules in one function."""
    folder = files("qtune_service.report") / "templates" / "js"
    joined = "\n".join((folder / f"{name}.js").read_text(encoding="utf-8") for name in MODULES)
    return f'"use strict";\n(async () => {{\n{_EXPORT.sub("", _IMPORT.sub("", joined))}\n}})();'


@cache
def chart_library() -> str:
    """Return Vega, Vega-Lite and Vega-Embed as one classic script that sets `window.vegaEmbed`."""
    import vl_convert

    bundle: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return bundle


def chart_library_version() -> str:
    """Return the version of the package that bundles the chart library."""
    return metadata.version("vl-convert-python")

