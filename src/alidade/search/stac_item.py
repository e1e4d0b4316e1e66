"""An archive as a static STAC catalogue: a collection, one item with the embeddings, and the model's own item.

The embedding extension (v0.0.1, a proposal) keeps what the vectors are (type, dimensions, layout) for collections and
how they were made for items, so both are written. Its schema is for STAC 1.0.0.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from alidade.errors import ArchiveError
from alidade.imagery.atomic import atomic_write
from alidade.imagery.footprint import Box, Footprint, enclosing_box
from alidade.imagery.polygon import check_shapely
from alidade.models.model import Model
from alidade.search.archive import Archive, check_same
from alidade.search.filters import Columns, TimeRange
from alidade.search.stac_model import model_item

EMBEDDING = "https://stac-extensions.github.io/embeddings/v0.0.1/schema.json"
FILE = "https://stac-extensions.github.io/file/v2.1.0/schema.json"
ITEM, COLLECTION, MODEL = "item.json", "collection.json", "model.json"
_PARQUET = "application/vnd.apache.parquet"
_GEOJSON = "application/geo+json"
_MOST_SCENES = 1_000
_MOST_CORNERS = 10_000


@dataclass(kw_only=True)
class _Extent:
    """What the rows span, gathered shard by shard: no more than one is in memory."""

    rows: int = 0
    boxes: dict[str, Box] = field(default_factory=dict)
    start_ms: int | None = None
    end_ms: int | None = None
    finest_m: float = np.inf
    sensors: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, archive: Archive) -> _Extent:
        """The extent of all live rows; the archive is read once, its digests are checked."""
        extent = cls()
        for table in archive.tables():
            columns = Columns.of(table)
            extent.rows += table.num_rows
            extent.sensors |= set(pc.unique(table["sensor"]).to_pylist())
            extent.finest_m = min(extent.finest_m, float(columns.gsd_m.min(initial=np.inf)))
            extent._add_times(columns.times_ms[columns.has_time])
            scenes = table["source_id"].to_numpy()
            for scene in np.unique(scenes.astype(str)):
                extent._add_boxes(scene, columns.boxes[:, scenes == scene])
        return extent

    def _add_times(self, times: npt.NDArray[np.int64]) -> None:
        if times.size:
            self.start_ms = min(int(times.min()), int(times.min()) if self.start_ms is None else self.start_ms)
            self.end_ms = max(int(times.max()), int(times.max()) if self.end_ms is None else self.end_ms)

    def _add_boxes(self, scene: str, boxes: npt.NDArray[np.float64]) -> None:
        placed = boxes[:, ~np.isnan(boxes[0])]
        known = self.boxes.get(scene)
        if known is not None:
            placed = np.concatenate([placed, np.array([known]).T], axis=1)
        if placed.shape[1]:
            self.boxes[scene] = enclosing_box(placed)


def write_stac(archive: Archive, model: Model, out: Path, *, weights: Path, time: TimeRange | None = None) -> Path:
    """Write ``collection.json``, ``item.json`` and ``model.json``, each whole or not at all, the item last.

    Links are relative, so that archive and catalogue can move together.

    Args:
        archive: every shard is read and its digest checked.
        model: the one that made the archive.
        out: a directory; made when missing, files of these names in it are replaced.
        weights: the model's file of weights.
        time: when the imagery was taken, for archives whose tiles do not tell.

    Returns:
        The item's path.

    Raises:
        AlidadeError: the extra ``search`` is not installed.
        ArchiveError: another model, an archive without rows or without times, a damaged shard, or a directory that
            cannot be written.
    """
    check_shapely("alidade export --stac")
    check_same(archive.path, archive.header, model=model.identity, tile=archive.header.tile)
    extent = _Extent.of(archive)
    interval = _interval(archive, extent, time)
    described = model_item(model, weights=weights, href=_href(weights, out))
    described["links"] = [_link("root", COLLECTION, "application/json")]
    files = {
        MODEL: described,
        COLLECTION: _collection(archive, extent, interval, out),
        ITEM: _item(archive, extent, interval, out),
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            with atomic_write(out / name) as temporary:
                text = json.dumps(content, ensure_ascii=False, allow_nan=False, indent=1)
                temporary.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise ArchiveError(
            f"{out}: writing",
            got=error.strerror or type(error).__name__,
            expected="a directory where files can be written",
            next_step="Name another --stac.",
        ) from error
    return out / ITEM


def _item(archive: Archive, extent: _Extent, interval: tuple[str, str], out: Path) -> dict[str, Any]:
    header = archive.header
    item: dict[str, Any] = {
        "type": "Feature",
        "stac_version": "1.0.0",
        "stac_extensions": [EMBEDDING, FILE],
        "id": _identifier(archive),
        "collection": f"{_identifier(archive)}-embeddings",
        "geometry": _geometry(extent),
        "properties": {
            "title": f"Embeddings of {counted(len(archive.manifest.current), 'scene')}",
            "description": _rows_told(archive, extent),
            "datetime": None,
            "start_datetime": interval[0],
            "end_datetime": interval[1],
            "data_type": header.dtype,
            "gsd": float(f"{extent.finest_m:.3g}"),
            "emb:runtime_parameters": {"model": header.model, "tile": header.tile, "software": header.created_by},
            "emb:quantization": {"method": "cast", "original_dtype": "float32", "quantized_dtype": header.dtype},
            "emb:fit_for_use": ["retrieval", "classification"],
            "alidade:format": header.format,
            "alidade:rows": extent.rows,
            "alidade:sensors": sorted(extent.sensors),
        },
        "links": [
            _link("root", COLLECTION, "application/json"),
            _link("parent", COLLECTION, "application/json"),
            _link("collection", COLLECTION, "application/json"),
            _link("emb:model", MODEL, _GEOJSON, title=header.model),
            *_sources(archive, out),
        ],
        "assets": _assets(archive, out),
    }
    if extent.boxes:
        item["bbox"] = list(_whole_box(extent))
    return item


def _collection(archive: Archive, extent: _Extent, interval: tuple[str, str], out: Path) -> dict[str, Any]:
    header = archive.header
    box = _whole_box(extent) if extent.boxes else (-180.0, -90.0, 180.0, 90.0)
    manifest = _href(archive.path / "manifest.jsonl", out)
    return {
        "type": "Collection",
        "stac_version": "1.0.0",
        "stac_extensions": [EMBEDDING],
        "id": f"{_identifier(archive)}-embeddings",
        "title": f"Embeddings by {header.model}",
        "description": f"{_rows_told(archive, extent)} Vectors are of unit length and compared by cosine.",
        "license": "other",
        "extent": {"spatial": {"bbox": [list(box)]}, "temporal": {"interval": [list(interval)]}},
        "emb:type": "chip",
        "emb:dimensions": header.dim,
        "data_type": header.dtype,
        "gsd": float(f"{extent.finest_m:.3g}"),
        "emb:chip_layout": {
            "layout_type": "regular_grid",
            "chip_size": [header.tile, header.tile],
            "stride": [header.tile, header.tile],
        },
        "emb:fit_for_use": ["retrieval", "classification"],
        "links": [
            _link("root", COLLECTION, "application/json"),
            _link("item", ITEM, _GEOJSON),
            _link("emb:model", MODEL, _GEOJSON, title=header.model),
            _link("emb:source-data", manifest, "application/jsonl", title="every scene, shard by shard"),
        ],
        "item_assets": {"embeddings": {"type": _PARQUET, "roles": ["data"]}},
    }


def _assets(archive: Archive, out: Path) -> dict[str, Any]:
    shards = {
        f"embeddings-{Path(shard.file).stem}": {
            "href": _href(archive.shard_path(shard), out),
            "type": _PARQUET,
            "title": f"GeoParquet 1.1, {counted(shard.rows, 'tile')}",
            "roles": ["data"],
            "file:size": shard.bytes,
            # a multihash: 0x12 is SHA-256, 0x20 its length in bytes
            "file:checksum": f"1220{shard.sha256}",
        }
        for shard in archive.manifest.shards
        if shard.live
    }
    if len(shards) == 1:
        return {"embeddings": next(iter(shards.values()))}
    folder = {
        "href": _href(archive.path / "shards", out) + "/",
        "type": _PARQUET,
        "title": f"{len(shards):,} files of GeoParquet 1.1, which are assets of their own",
        "roles": ["data"],
    }
    return {"embeddings": folder, **shards}


def _sources(archive: Archive, out: Path) -> list[dict[str, str]]:
    scenes = sorted(archive.manifest.current)
    if len(scenes) > _MOST_SCENES:
        manifest = _href(archive.path / "manifest.jsonl", out)
        return [_link("emb:source-data", manifest, "application/jsonl", title=f"{len(scenes):,} scenes")]
    return [
        _link("emb:source-data", _href(archive.path / scene, out), "image/tiff; application=geotiff")
        for scene in scenes
    ]


def _rows_told(archive: Archive, extent: _Extent) -> str:
    stored = sum(shard.rows for shard in archive.manifest.shards if shard.live)
    told = f"{counted(extent.rows, 'image tile')}, one row each with footprint, time, sensor and embedding."
    if stored == extent.rows:
        return told
    dead = f"The files also hold {counted(stored - extent.rows, 'row')} of scenes that have changed since"
    return f"{told} {dead}: only rows whose source_id the manifest has not retired count."


def counted(number: int, what: str) -> str:
    """A number and what it counts: ``1 tile``, ``2,000 tiles``."""
    return f"{number:,} {what}" + ("" if number == 1 else "s")


def _interval(archive: Archive, extent: _Extent, time: TimeRange | None) -> tuple[str, str]:
    if not extent.rows:
        raise ArchiveError(
            str(archive.path), got="no tiles", expected="at least one", next_step="Embed something into it first."
        )
    if time is not None and None not in time:
        start, end = time
        assert start is not None
        assert end is not None
        return _utc(start), _utc(end)
    if extent.start_ms is None or extent.end_ms is None:
        raise ArchiveError(
            f"{archive.path}: time of the imagery",
            got="none of its tiles tells" if time is None else "an open range",
            expected="a start and an end, without which there is no STAC item",
            next_step="Tell it with --time START/END.",
        )
    return _utc(datetime.fromtimestamp(extent.start_ms / 1e3, UTC)), _utc(
        datetime.fromtimestamp(extent.end_ms / 1e3, UTC)
    )


def _utc(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _whole_box(extent: _Extent) -> Box:
    return enclosing_box(np.array(list(extent.boxes.values())).T)


def _geometry(extent: _Extent) -> dict[str, Any] | None:
    """The union of the scenes' boxes; the box around all of them where that has very many corners."""
    import shapely
    import shapely.geometry

    if not extent.boxes:
        return None
    rings = [ring for box in extent.boxes.values() for ring in Footprint.box(box).rings]
    area = shapely.union_all(shapely.polygons([np.array(ring) for ring in rings]))
    if shapely.get_num_coordinates(area) > _MOST_CORNERS:
        return dict(Footprint.box(_whole_box(extent)).geojson())
    parts = [shapely.geometry.polygon.orient(part) for part in shapely.get_parts(area)]
    whole = parts[0] if len(parts) == 1 else shapely.MultiPolygon(parts)
    return dict(json.loads(shapely.to_geojson(whole)))


def _identifier(archive: Archive) -> str:
    return Path(os.path.realpath(archive.path)).name or "archive"


def _href(target: Path, out: Path) -> str:
    return quote(os.path.relpath(os.path.realpath(target), os.path.realpath(out)))


def _link(rel: str, href: str, kind: str, *, title: str | None = None) -> dict[str, str]:
    link = {"rel": rel, "href": href if "/" in href else f"./{href}", "type": kind}
    return link if title is None else {**link, "title": title}
