"""Plots of the ablation, drawn without a display and the same to the byte each time.

Two colours of Okabe and Ito's palette, which people with any colour vision tell apart, and one panel per variant: ten
lines in one panel could not be.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from alidade.ablation.config import REFERENCE
from alidade.ablation.statistics import Estimate
from alidade.imagery.atomic import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OWN, OTHER, GREY = "#D55E00", "#0072B2", "#8a8a8a"
COLUMNS = 5
Curve = Sequence[Estimate | None]


@dataclass(frozen=True, kw_only=True)
class Forest:
    """One panel of differences.

    Attributes:
        title: what was measured, with its unit.
        differences: of each variant to the reference.
        scale: what values are multiplied with.
    """

    title: str
    differences: Mapping[str, Estimate]
    scale: float


def draw_forests(panels: Sequence[Forest], path: Path) -> None:
    """Differences with 95 % intervals as bars, a panel per measure and a line per variant; right is better."""
    names = list(dict.fromkeys(name for panel in panels for name in panel.differences))
    rows = -(-len(panels) // 4)
    figure, axes = _panels(rows, min(4, len(panels)), (3.0, 0.26 * len(names) + 1.1))
    for ax, panel in zip(axes, panels, strict=False):
        ax.axvline(0, color=OTHER, linewidth=1)
        for line, name in enumerate(names):
            found = panel.differences.get(name)
            if found is not None:
                low, value, high = (panel.scale * v for v in (found.low, found.value, found.high))
                colour = OWN if found.sign else GREY
                ax.plot((min(low, high), max(low, high)), (line, line), color=colour, linewidth=2)
                ax.plot(value, line, "o", color=colour, markersize=5)
        ax.set_yticks(range(len(names)), names)
        ax.set_ylim(max(len(names), 1) - 0.5, -0.5)
        ax.set_title(panel.title, fontsize=9)
        ax.tick_params(labelsize=8)
    for ax in axes[len(panels) :]:
        ax.set_visible(False)
    _save(figure, path)


def draw_curves(
    curves: Mapping[str, Curve],
    ticks: Sequence[str],
    path: Path,
    *,
    across: str,
    trivial: Mapping[str, Curve],
    wrong: Mapping[str, Curve] | None = None,
) -> None:
    """A panel per variant: its accuracy with its 95 % band, the reference beside it, trivial rows dashed below.

    Args:
        curves: by variant, a point per tick.
        ticks: names of the points.
        path: SVG file.
        across: what the horizontal axis is.
        trivial: curves that all panels show.
        wrong: by variant, the points where the ground sample distance was told wrongly.
    """
    rows = -(-len(curves) // COLUMNS)
    figure, axes = _panels(rows, min(COLUMNS, len(curves)), (2.3, 2.1), sharey=True)
    for ax, (name, curve) in zip(axes, curves.items(), strict=False):
        for style, (label, points) in zip(("--", ":", "-."), trivial.items(), strict=False):
            _line(ax, points, GREY, style, label, band=False)
        if name != REFERENCE and REFERENCE in curves:
            _line(ax, curves[REFERENCE], OTHER, "-", REFERENCE)
        _line(ax, curve, OWN, "-", "this variant")
        if wrong and name in wrong:
            _line(ax, wrong[name], OWN, "none", "GSD told wrongly", band=False, marker="x")
        ax.set_title(name, fontsize=9)
        ax.set_xticks(range(len(ticks)), ticks, fontsize=8)
        ax.tick_params(axis="y", labelsize=8)
        ax.grid(axis="y", linewidth=0.3)
    for ax in axes[len(curves) :]:
        ax.set_visible(False)
    known = {label: handle for ax in axes for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.legend(list(known.values()), list(known), loc="lower center", ncols=6, fontsize=8, frameon=False)
    figure.supxlabel(across, fontsize=9, y=0.075 if rows > 1 else 0.13)
    figure.supylabel("5-NN accuracy, %", fontsize=9)
    figure.get_layout_engine().set(rect=(0, 0.1 if rows > 1 else 0.18, 1, 0.9 if rows > 1 else 0.82))  # type: ignore[union-attr,call-arg]
    _save(figure, path)


def _line(ax: Axes, points: Curve, colour: str, style: str, label: str, *, band: bool = True, marker: str = "") -> None:
    there = [(x, p) for x, p in enumerate(points) if p is not None]
    where = [x for x, _ in there]
    values = [100 * p.value for _, p in there]
    ax.plot(where, values, linestyle=style, color=colour, label=label, linewidth=1.3, marker=marker)
    if band:
        low, high = ([100 * v for v in side] for side in ([p.low for _, p in there], [p.high for _, p in there]))
        ax.fill_between(where, low, high, color=colour, alpha=0.2, linewidth=0)


def _panels(rows: int, columns: int, each: tuple[float, float], *, sharey: bool = False) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(columns * each[0] + 0.4, rows * each[1] + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(rows, columns, squeeze=False, sharey=sharey).flat)


def _save(figure: Figure, path: Path) -> None:
    # without a salt and with a date no two SVG files would be alike
    with matplotlib.rc_context({"svg.hashsalt": "alidade"}), atomic_write(path) as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None})
