"""What the browser is told of tiles and scenes: short plain values, ready to be shown."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from alidade.imagery.footprint import Footprint
from alidade.search.feedback import PROBE_FROM
from alidade.search.picture import RAMP
from alidade.search.scan import Hits
from alidade.search.schema import wkb_rings
from alidade.server.scenes import SceneInfo

Row = dict[str, Any]
_DECIMALS = 6
_GSD_STEPS = (0.0, 1.0, 3.0, 8.0, 20.0, 50.0, 1e5)
"""Limits of the classes of ground resolution offered, in metres."""


def rows_of(table: pa.Table, new: Collection[str] = ()) -> list[Row]:
    """Tiles with an archive's columns and perhaps ``score``, as the gallery and the map want them."""
    wanted = ["id", "geometry", "time", "sensor", "gsd_m", "source", "source_id"]
    wanted += ["score"] if "score" in table.column_names else []
    return [_row(row, row["id"] in new) for row in table.select(wanted).to_pylist()]


def _row(row: dict[str, Any], new: bool) -> Row:
    footprint = None if row["geometry"] is None else Footprint(wkb_rings(row["geometry"]))
    score = row.get("score")
    return {
        "id": row["id"],
        "score": None if score is None else round(float(score), 4),
        "date": row["time"].strftime("%Y-%m-%d") if row["time"] else "",
        "sensor": row["sensor"],
        "gsd": metres(row["gsd_m"]),
        "name": Path(row["source"]).name,
        "scene": row["source_id"],
        "box": None if footprint is None else [round(v, _DECIMALS) for v in footprint.bbox()],
        "rings": []
        if footprint is None
        else [[[round(x, _DECIMALS), round(y, _DECIMALS)] for x, y in ring] for ring in footprint.rings],
        "new": new,
    }


def scene_rows(scenes: Iterable[SceneInfo]) -> list[Row]:
    """Scenes for the map, the finest and newest last: there they are drawn on top."""
    ordered = sorted(scenes, key=lambda s: (-s.gsd_m, s.time is not None, s.time.isoformat() if s.time else "", s.id))
    return [
        {
            "id": s.id,
            "order": number,
            "name": s.name,
            "sensor": s.sensor,
            "date": s.time.strftime("%Y-%m-%d") if s.time else "",
            "box": None if s.bbox is None else list(s.bbox),
        }
        for number, s in enumerate(ordered)
    ]


def metres(gsd_m: float) -> str:
    """``"0.3 m"``, ``"10 m"``: to two digits below a hundred."""
    return f"{gsd_m:.2g} m" if gsd_m < 99.5 else f"{gsd_m:,.0f} m"


def sensor_choices(scenes: Iterable[SceneInfo]) -> dict[str, str]:
    """Sensors by id with the number of their scenes, for a list to choose from; ``""`` is any."""
    counts: dict[str, int] = {}
    for scene in scenes:
        counts[scene.sensor] = counts.get(scene.sensor, 0) + 1
    return {"": "any sensor"} | {name: f"{name} ({counts[name]:,})" for name in sorted(counts)}


def gsd_choices(scenes: Iterable[SceneInfo]) -> dict[str, str]:
    """Classes of ground resolution that the archive has, by ``"finest,coarsest"``; ``""`` is any."""
    found = {int(np.searchsorted(_GSD_STEPS, s.gsd_m, side="right")) for s in scenes if s.gsd_m > 0}
    choices = {"": "any detail"}
    for step in sorted(found):
        low, high = _GSD_STEPS[step - 1], _GSD_STEPS[min(step, len(_GSD_STEPS) - 1)]
        key = f"{max(low, 0.001):g},{high:g}"
        choices[key] = (
            f"finer than {high:g} m" if low == 0 else f"{low:g} m and coarser" if high > 1e4 else f"{low:g}–{high:g} m"
        )
    return choices


def answer_line(hits: Hits) -> str:
    """``"200 of 3,112 matching tiles, exact, 31 ms"``; an index says how many it compared."""
    how = "exact" if hits.exact else f"by index, {hits.scanned:,} compared"
    return f"{len(hits):,} of {hits.matches:,} matching tiles, {how}, {max(1.0, 1e3 * hits.seconds):.0f} ms"


def method_line(more: int, less: int) -> str:
    """How the examples are combined, in one sentence; empty without any."""
    if not more + less:
        return ""
    named = [f"{more} more like" if more else "", f"{less} not like" if less else ""]
    told = " and ".join(part for part in named if part)
    if not more:
        return f"{told}: taken off the rest of the question."
    if not less:
        return f"{told}: their mean."
    if more + less >= PROBE_FROM:
        return f"{told}: a linear probe between them."
    return f"{told}: Rocchio’s rule; a linear probe from {PROBE_FROM} on."


def first(hits: Hits, count: int) -> Hits:
    """The best ``count``."""
    return replace(hits, table=hits.table.slice(0, count))


def above(scores: np.ndarray, least: float | None) -> int:
    """How many scores ``[N]``, highest first, are at least ``least`` when shown with three digits."""
    if least is None:
        return len(scores)
    return int(np.searchsorted(-scores, -(least - 5e-4), side="right"))


def gradient() -> str:
    """The colours of similarity as CSS, from less to more."""
    return f"linear-gradient(to right, {', '.join('rgb({},{},{})'.format(*anchor) for anchor in RAMP)})"
