"""Every picture of a report by name, as Vega-Lite specifications: for the page, and for files.

import vl_convert
png = vl_convert.vegalite_to_png(pictures(data)["plane"], scale=2)
"""

from __future__ import annotations

from typing import Any

from qtune_service.report.data import ReportData
from qtune_service.report.histograms import histogram_charts
from qtune_service.report.palette import LIGHT, PAGE, Palette
from qtune_service.report.plane import plane_chart
from qtune_service.report.rank_plane import rank_plane_chart
from qtune_service.report.what_if import what_if_chart

__all__ = ["histogram_charts", "pictures", "plane_chart", "rank_plane_chart", "what_if_chart"]

Spec = dict[str, Any]


def pictures(data: ReportData, palette: Palette = LIGHT) -> dict[str, Spec]:
    """Those that the data allow. With the palette PAGE they are as wide as what holds them, else of fixed sizes."""
    if data.thresholds is None:
        return {}
    wide = {"width": "container"} if palette is PAGE else {}
    found = {"plane": plane_chart(data, palette, **wide), "ranks": rank_plane_chart(data, palette, **wide)}
    if data.curve:
        found["what_if"] = what_if_chart(data, palette, **wide)
    return found | histogram_charts(data, palette, **wide)
