"""The ablation's page and plots, from the results file and the scores beside it alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from alidade.ablation import words
from alidade.ablation.config import REFERENCE, UNTRAINED
from alidade.ablation.headlines import GSD_POINTS, HEADLINES, SIZE_POINTS, Headline, gsd_key, size_key
from alidade.ablation.plots import Forest, draw_curves, draw_forests
from alidade.ablation.run import CHANCE, LAST, PATCH_MEAN
from alidade.ablation.scores import Key, beside, load_scores
from alidade.ablation.statistics import Estimate, Setting, setting_of
from alidade.evaluation.results import load
from alidade.imagery.atomic import atomic_write

SIMPLE = (CHANCE, PATCH_MEAN, "band statistics", "random convolution")
TRIVIAL_LABELS = (*SIMPLE, UNTRAINED)
FOREST, GSD_PLOT, SIZE_PLOT = "differences", "relative-gsd", "image-size"


def write_document(results: Path, out: Path, *, setting: str | None = None) -> list[Path]:
    """Write the page and its three plots beside it; the files written, page first.

    Args:
        results: the results file; the scores beside it are read too.
        out: the Markdown page. Plots take its name with a suffix.
        setting: hash of the setting to report; the one measured last when not given.

    Raises:
        ResultsError: nothing to report, or a damaged or missing file.
        OSError: the folder cannot be written to.
    """
    rows = load(results)
    found = setting_of(rows, load_scores(beside(results)) if rows else {}, setting)
    out.parent.mkdir(parents=True, exist_ok=True)
    plots = {name: out.with_name(f"{out.stem}-{name}.svg") for name in (FOREST, GSD_PLOT, SIZE_PLOT)}
    comparisons = max(1, len(found.variants) - 1)
    draw_forests(_forests(found, comparisons), plots[FOREST])
    _draw_curve(found, gsd_key, GSD_POINTS, plots[GSD_PLOT], "relative GSD of the queries (gallery native)")
    _draw_curve(found, size_key, SIZE_POINTS, plots[SIZE_PLOT], "side of the images in pixels (trained on at most 64)")
    text = "\n\n".join(
        [
            words.opening(found, results, out),
            "## Verdict",
            *_verdict(found, comparisons),
            f"![Differences to {REFERENCE}]({plots[FOREST].name})",
            words.READING,
            "## All measures",
            *_tables(found),
            f"## Differences to `{REFERENCE}`",
            words.pairing(comparisons),
            _differences(found, comparisons),
            "## Accuracy against relative GSD",
            words.GSD,
            f"![5-NN against relative GSD]({plots[GSD_PLOT].name})",
            _curve_table(found, gsd_key, GSD_POINTS, told_wrongly=True),
            "## Accuracy against image size",
            words.SIZE,
            f"![5-NN against image size]({plots[SIZE_PLOT].name})",
            _curve_table(found, size_key, SIZE_POINTS),
            "## Compute",
            words.COMPUTE,
            _compute(found),
            "## What this can show, and what not",
            words.LIMITS,
        ]
    )
    with atomic_write(out) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
    return [out, *plots.values()]


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def cell(found: Estimate | None, headline: Headline, *, signed: bool = False) -> str:
    """A mean with its interval in the headline's unit; empty where nothing was measured."""
    if found is None:
        return ""
    sign = "+" if signed else ""
    value, low, high = (f"{headline.scale * v:{sign}.{headline.digits}f}" for v in (found.value, found.low, found.high))
    return f"{value} ({low} to {high})"


def _verdict(found: Setting, comparisons: int) -> list[str]:
    rows, beaten, wins, losses = [], list[str](), dict[str, int](), dict[str, int]()
    for headline in HEADLINES:
        means = {v: e for v in found.variants if (e := found.mean(headline.key, v)) is not None}
        order = sorted(means, key=lambda v: -headline.better * means[v].value)
        if not order:
            continue
        over = [found.difference(headline.key, order[0], other, comparisons) for other in (REFERENCE, *order[1:2])]
        ahead = "" if order[0] == REFERENCE else cell(over[0], headline, signed=True)
        second = cell(over[1], headline, signed=True) + f" over `{order[1]}`" if len(over) > 1 else ""
        certain = over[0] is not None and order[0] != REFERENCE and over[0].sign == headline.better
        alone = len(over) > 1 and over[1] is not None and over[1].sign == headline.better
        told = "alone in front" if alone else f"better than `{REFERENCE}`" if certain else "not significant"
        plain = [e.value for label in SIMPLE if (e := found.mean(headline.key, label)) is not None]
        if plain and max(headline.better * v for v in plain) >= headline.better * means[order[0]].value:
            beaten.append(headline.title.removesuffix(", %"))
        rows.append([headline.title, f"`{order[0]}`", cell(means[order[0]], headline), ahead, second, told])
        for variant in found.variants:
            difference = found.difference(headline.key, variant, REFERENCE, comparisons)
            if variant != REFERENCE and difference is not None and difference.sign:
                count = wins if difference.sign == headline.better else losses
                count[variant] = count.get(variant, 0) + 1
    header = [
        "measure",
        "best mean",
        "value (95 %)",
        f"margin over `{REFERENCE}` (95 %)",
        "margin over the next",
        "after correction",
    ]
    return [words.verdict(found, wins, losses, len(rows)), *words.trivial(beaten), table(header, rows)]


def _tables(found: Setting) -> list[str]:
    header = ["", *(h.title for h in HEADLINES)]
    labels = [
        label for label in (*TRIVIAL_LABELS, *found.variants) if any(found.seeds(h.key, label) for h in HEADLINES)
    ]
    rows = []
    for label in labels:
        shown = f"`{label}`" if label in found.variants else label
        rows.append([shown, *(cell(found.mean(h.key, label), h) for h in HEADLINES)])
    # seven columns with intervals do not fit a page: one table for each kind of measure
    half = [1 + i for i, h in enumerate(HEADLINES) if h.relational]
    rest = [i for i in range(1, len(header)) if i not in half]
    counts = "; ".join(f"{h.title.removesuffix(', %')}: {n}" for h in HEADLINES if (n := _counted(found, h.key)))
    parts = [
        table(
            [header[0], *(header[i] for i in part)],
            [[r[0], *(r[i] for i in part)] for r in rows if any(r[i] for i in part)],
        )
        for part in (half, rest)
    ]
    return [*parts, f"Reported on: {counts}."]


def _counted(found: Setting, key: Key) -> str:
    known = next(iter(found.scored.get(key, {}).values()), None)
    if known is None:
        return ""
    if known.groups is None:
        return f"{len(known.scores):,} images"
    return f"{len(known.scores):,} windows of {len(np.unique(known.groups))} scenes"


def _differences(found: Setting, comparisons: int) -> str:
    rows = []
    for variant in found.variants:
        if variant != REFERENCE:
            line = [f"`{variant}`"]
            for headline in HEADLINES:
                difference = found.difference(headline.key, variant, REFERENCE, comparisons)
                mark = "" if difference is None or not difference.sign else " †"
                line.append(cell(difference, headline, signed=True) + mark)
            rows.append(line)
    return table(["", *(h.title for h in HEADLINES)], rows)


def _forests(found: Setting, comparisons: int) -> list[Forest]:
    panels = []
    for headline in HEADLINES:
        differences = {
            variant: d
            for variant in found.variants
            if variant != REFERENCE
            and (d := found.difference(headline.key, variant, REFERENCE, comparisons)) is not None
        }
        panels.append(Forest(title=headline.title, differences=differences, scale=headline.scale * headline.better))
    return panels


def _draw_curve(
    found: Setting, key: Callable[[str, bool], Key], points: Sequence[str], path: Path, across: str
) -> None:
    def curve(label: str, truthful: bool = True) -> list[Estimate | None]:
        return [found.mean(key(point, truthful), label) for point in points]

    trivial = {label: curve(label) for label in (CHANCE, "band statistics", UNTRAINED)}
    wrong = {v: told for v in found.variants if any(told := curve(v, truthful=False))}
    draw_curves({v: curve(v) for v in found.variants}, points, path, across=across, trivial=trivial, wrong=wrong)


def _curve_table(
    found: Setting, key: Callable[[str, bool], Key], points: Sequence[str], *, told_wrongly: bool = False
) -> str:
    percent = Headline(title="", key=("", "", "", ""), better=1)
    rows = []
    for label in (*TRIVIAL_LABELS, *found.variants):
        for truthful in (True, False) if told_wrongly else (True,):
            cells = [cell(found.mean(key(point, truthful), label), percent) for point in points]
            if any(cells):
                shown = f"`{label}`" if label in found.variants else label
                rows.append([shown if truthful else f"{shown}, GSD told wrongly", *cells])
    return table(["", *points], rows)


def _compute(found: Setting) -> str:
    names = [
        "parameters",
        "steps",
        "images",
        "tokens",
        "training seconds",
        "processor seconds",
        "images per second",
        LAST,
    ]
    rows = []
    for label in (*found.variants, UNTRAINED):
        figures = []
        for name in names:
            values = [v for (other, _), v in sorted(found.compute.get(name, {}).items()) if other == label]
            figures.append(f"{np.mean(values):,.0f}" if values else "")
        seeds = len([1 for (other, _) in found.compute.get(LAST, {}) if other == label])
        if seeds:
            rows.append([f"`{label}`" if label in found.variants else label, str(seeds), *figures])
    return table(["", "seeds", *names], rows)
