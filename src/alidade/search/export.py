"""Answers as table cells, JSON, GeoJSON, GeoParquet or CSV; each carries the model, and all but CSV the query."""

from __future__ import annotations

import csv
import io
import json
from datetime import datetime
from pathlib import Path
from typing import Any

from alidade.errors import ArchiveError
from alidade.imagery.footprint import Footprint
from alidade.search.disk import save
from alidade.search.scan import Hits
from alidade.search.schema import table_bytes, wkb_rings

FORMATS = ("json", "geojson", "parquet", "csv")
"""What ``write`` can write; by default the ending of the file name decides."""
TABLE_HEADER = ("rank", "score", "sensor", "date", "GSD", "centre", "tile", "source")
CSV_HEADER = (
    "rank", "score", "id", "sensor", "time", "gsd_m", "lon", "lat", "valid_share", "cloud_share", "source", "source_id",
    "row", "col", "height", "width", "model", "wkt",
)  # fmt: skip
# 1e-7 degrees is 1 cm at the equator
_DEGREES = "{:.7f}"


def table_rows(hits: Hits, *, ids: bool = False) -> list[tuple[str, ...]]:
    """The cells of :data:`TABLE_HEADER` for each hit, ready to print; with ``ids`` the tile's id behind them."""
    return [
        (
            str(rank),
            f"{row['score']:z.3f}",
            row["sensor"],
            row["time"].strftime("%Y-%m-%d") if row["time"] else "-",
            f"{row['gsd_m']:.3g} m",
            _centre_cell(row["geometry"]),
            f"{row['row']},{row['col']} {row['height']}x{row['width']}",
            Path(row["source"]).name,
            *([row["id"]] if ids else []),
        )
        for rank, row in enumerate(hits.table.to_pylist(), start=1)
    ]


def to_json(hits: Hits) -> dict[str, Any]:
    """The answer as plain values: ``hits``, best first, and what was asked.

    Beside them stand ``model``, ``query``, ``matches``, ``scanned``, ``exact`` and ``milliseconds``, see :class:`Hits`.
    """
    return {**_about(hits), "hits": [_plain(r) for r in hits.table.to_pylist()]}


def to_geojson(hits: Hits) -> dict[str, Any]:
    """A GeoJSON FeatureCollection (RFC 7946), best first.

    Tiles across the antimeridian are MultiPolygons (section 3.1.9); a tile without a place has a null
    geometry (section 3.2). What was asked stands in the foreign member ``alidade`` (section 6.1).
    """
    features = []
    for rank, row in enumerate(hits.table.to_pylist(), start=1):
        footprint = _footprint(row["geometry"])
        properties = _plain({k: v for k, v in row.items() if k not in ("id", "bbox")})
        feature: dict[str, Any] = {
            "type": "Feature",
            "id": row["id"],
            "geometry": None if footprint is None else footprint.geojson(),
            "properties": {"rank": rank, **properties},
        }
        if footprint is not None:
            feature["bbox"] = list(footprint.bbox())
        features.append(feature)
    return {"type": "FeatureCollection", "alidade": _about(hits), "features": features}


def to_csv(hits: Hits) -> str:
    """One line a tile under :data:`CSV_HEADER`, best first; what is not known is empty.

    ``lon`` and ``lat`` are the centre in degrees, ``wkt`` is the footprint in well-known text (OGC 06-103r4, 7.2).
    The format has no room for what was asked: only the model stands in every line.
    """
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(CSV_HEADER)
    for rank, row in enumerate(hits.table.to_pylist(), start=1):
        footprint = _footprint(row["geometry"])
        cells: dict[str, Any] = {**_plain(row), "rank": rank, "score": f"{row['score']:z.6f}"}
        if footprint is not None:
            cells["lon"], cells["lat"] = (_DEGREES.format(degrees) for degrees in footprint.centre())
            cells["wkt"] = _wkt(footprint)
        for name in ("gsd_m", "valid_share", "cloud_share"):
            # more digits of a float32 would only show how it was rounded
            cells[name] = None if row[name] is None else f"{row[name]:.6g}"
        table.writerow(["" if cells.get(name) is None else cells[name] for name in CSV_HEADER])
    return text.getvalue()


def to_parquet(hits: Hits) -> bytes:
    """A GeoParquet 1.1 file with the archive's columns (without embeddings) and ``score``, best first.

    What was asked stands as JSON in the footer under the key ``alidade``.
    """
    return table_bytes(hits.table, _about(hits))


def kind_of(path: str | Path, format: str | None = None) -> str:
    """Which of :data:`FORMATS` a file will hold: ``format``, or what the ending of its name says.

    Raises:
        ArchiveError: neither names one, or the name is that of a picture.
    """
    target = Path(path)
    ending = target.suffix.lstrip(".").lower()
    kind = format or ending
    if kind in FORMATS and ending != "png":
        return kind
    raise ArchiveError(
        f"{target}: format of the export",
        got=repr(ending if ending == "png" else kind),
        expected=f"one of {', '.join(FORMATS)}",
        next_step="Name it with --format, or end the file name with it; a picture is named with --picture.",
    )


def write(hits: Hits, path: str | Path, format: str | None = None) -> None:
    """Write the answer, whole or not at all.

    Args:
        hits: the answer.
        path: the file; an existing one is replaced.
        format: one of :data:`FORMATS`; by default the ending of ``path`` tells.

    Raises:
        ArchiveError: an unknown format, or the file cannot be written.
    """
    target = Path(path)
    kind = kind_of(target, format)
    if kind == "json":
        data = _encode(to_json(hits))
    elif kind == "geojson":
        data = _encode(to_geojson(hits))
    elif kind == "csv":
        data = to_csv(hits).encode()
    else:
        data = to_parquet(hits)
    save(target, data, instead="Name another --out.")


def _about(hits: Hits) -> dict[str, Any]:
    return {
        "model": hits.model,
        "query": hits.query,
        "matches": hits.matches,
        "scanned": hits.scanned,
        "exact": hits.exact,
        "milliseconds": round(1e3 * hits.seconds, 1),
    }


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """Values that JSON has: times as ISO 8601, the box as a list; the geometry is left to GeoJSON."""
    plain = {k: v.isoformat() if isinstance(v, datetime) else v for k, v in row.items() if k != "geometry"}
    if row.get("bbox") is not None:
        plain["bbox"] = [row["bbox"][side] for side in ("xmin", "ymin", "xmax", "ymax")]
    return plain


def _footprint(wkb: bytes | None) -> Footprint | None:
    return None if wkb is None else Footprint(wkb_rings(wkb))


def _wkt(footprint: Footprint) -> str:
    rings = [
        "((" + ", ".join(f"{_DEGREES.format(x)} {_DEGREES.format(y)}" for x, y in ring) + "))"
        for ring in footprint.rings
    ]
    return f"POLYGON {rings[0]}" if len(rings) == 1 else f"MULTIPOLYGON ({', '.join(rings)})"


def _centre_cell(wkb: bytes | None) -> str:
    footprint = _footprint(wkb)
    if footprint is None:
        return "-"
    lon, lat = footprint.centre()
    return f"{lon:.4f},{lat:.4f}"


def _encode(content: dict[str, Any]) -> bytes:
    return json.dumps(content, ensure_ascii=False, allow_nan=False, indent=1).encode() + b"\n"
