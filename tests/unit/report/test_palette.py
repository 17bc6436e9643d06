"""Tests of the pictures' colours."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from qtune_service.report.chart_layers import DARK, LIGHT, PAGE, Palette

# Linear RGB as seen without one kind of cone: Machado, Oliveira and Fernandes (2009), severity 1.
VISIONS = {
    "ordinary": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}


@pytest.mark.parametrize("palette", [LIGHT, DARK])
def test_quadrants_are_told_apart_with_any_colour_vision(palette: Palette) -> None:
    """At least 20 apart in CIELAB for each pair, and 3:1 against the ground."""
    for matrix in VISIONS.values():
        labs = [_lab(np.array(matrix) @ _linear(color)) for color in palette.quadrants]
        assert min(float(np.linalg.norm(a - b)) for a, b in itertools.combinations(labs, 2)) >= 20
    assert min(_contrast(color, palette.surface) for color in palette.quadrants) >= 3
    assert _contrast(palette.ink, palette.surface) >= 7
    assert _contrast(palette.muted, palette.surface) >= 4.5


def test_the_page_takes_its_colours_from_variables() -> None:
    """So that light, dark and print need no second drawing."""
    assert all(color.startswith("var(--") for color in (*PAGE.quadrants, PAGE.ink, PAGE.muted, PAGE.grid, PAGE.surface))


def _linear(color: str) -> NDArray[np.float64]:
    c = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def _lab(rgb: NDArray[np.float64]) -> NDArray[np.float64]:
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = to_xyz @ np.clip(rgb, 0, 1) / np.array([0.9505, 1.0, 1.089])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def _contrast(a: str, b: str) -> float:
    weights = np.array([0.2126, 0.7152, 0.0722])
    low, high = sorted(float(_linear(color) @ weights) for color in (a, b))
    return (high + 0.05) / (low + 0.05)
