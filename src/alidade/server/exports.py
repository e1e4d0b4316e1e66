"""Answers as JSON for programs that ask, and as files to take away."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from alidade.errors import AlidadeError
from alidade.imagery.footprint import Footprint
from alidade.search import export
from alidade.search.scan import Hits
from alidade.search.schema import wkb_rings

MEDIA_TYPES = {
    "json": "application/json",
    "geojson": "application/geo+json",
    "csv": "text/csv; charset=utf-8",
    "parquet": "application/vnd.apache.parquet",
}


def check_format(format: str) -> str:
    """A format that a search can be exported in.

    Raises:
        AlidadeError: it is none.
    """
    if format in export.FORMATS and format in MEDIA_TYPES:
        return format
    raise AlidadeError(
        "format of the export",
        got=repr(format[:40]),
        expected=f"one of {', '.join(f for f in export.FORMATS if f in MEDIA_TYPES)}",
        next_step="Choose one of these.",
    )


def as_bytes(hits: Hits, format: str) -> bytes:
    """A file of hits, as ``alidade search --out`` writes it."""
    with tempfile.TemporaryDirectory(prefix="alidade-export-") as folder:
        file = Path(folder) / f"hits.{format}"
        export.write(hits, file, format)
        return file.read_bytes()


def only(hits: Hits, ids: Sequence[str]) -> Hits:
    """Those of the hits that have these ids, best first.

    Raises:
        AlidadeError: an id that is not among them.
    """
    wanted = pa.array(list(dict.fromkeys(ids)), pa.string())
    missing = wanted.filter(pc.invert(pc.is_in(wanted, hits.table["id"].combine_chunks())))
    if len(missing):
        raise AlidadeError(
            "ids to export",
            got=repr(missing[0].as_py()[:80]),
            expected="ids of tiles that the search answered with",
            next_step="Leave it out, or ask with a larger k.",
        )
    return replace(hits, table=hits.table.filter(pc.is_in(hits.table["id"], wanted)))


def answer_json(query_id: str, hits: Hits, note: str | None, new: Sequence[str] | None = None) -> bytes:
    """An answer as the JSON of ``POST /api/search``; with the ids that are new, where that is asked."""
    content: dict[str, Any] = {
        "query_id": query_id,
        "exact": hits.exact,
        "scanned": hits.scanned,
        "matches": hits.matches,
        "milliseconds": round(1e3 * hits.seconds, 2),
        "note": note,
        "hits": [hit_json(row) for row in hits.table.to_pylist()],
    }
    if new is not None:
        content["new"] = list(new)
    return json.dumps(content, allow_nan=False).encode()


def hit_json(row: dict[str, Any]) -> dict[str, Any]:
    """One hit as plain values: what it is, where it lies, and where its pixels come from."""
    footprint = None if row["geometry"] is None else Footprint(wkb_rings(row["geometry"]))
    moment: datetime | None = row["time"]
    return {
        "id": row["id"],
        "score": round(row["score"], 6),
        "sensor": row["sensor"],
        "time": None if moment is None else moment.isoformat(),
        "gsd_m": row["gsd_m"],
        "cloud_share": row["cloud_share"],
        "valid_share": row["valid_share"],
        "scene": row["source_id"],
        "source": Path(row["source"]).name,
        "window": [row["row"], row["col"], row["height"], row["width"]],
        "bbox": None if footprint is None else list(footprint.bbox()),
        "centre": None if footprint is None else list(footprint.centre()),
        "geometry": None if footprint is None else footprint.geojson(),
    }
