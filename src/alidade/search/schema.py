"""The columns of an archive, and how rows become the bytes of a GeoParquet 1.1 shard and come back."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from alidade.errors import ArchiveError
from alidade.imagery.footprint import Footprint

FORMAT_VERSION = 1
"""Version of the directory layout, the manifest and the columns together."""
EMBEDDING_DTYPE = "float16"
NOTE_KEY = b"alidade"
"""Key of the shard's own note (coverage, model identity) in the Parquet footer, beside ``geo``."""
REPEATED_TEXT = ("sensor", "source", "source_id", "model")
"""Text columns with few distinct values: dictionary-encoded in the file and in memory."""
_BBOX = pa.struct([pa.field(side, pa.float64(), nullable=False) for side in ("xmin", "ymin", "xmax", "ymax")])


@dataclass(frozen=True, kw_only=True, eq=False)
class TileRow:
    """One embedded tile.

    Attributes:
        id: unique in the archive: ``source_id-row-col``.
        footprint: ``None`` when the raster has no CRS.
        time: aware, UTC; ``None`` when the file does not tell.
        gsd_m: true ground metres per pixel.
        valid_share: share of the window's own pixels that hold data, 0–1 (padding is not counted).
        cloud_share: share of the valid pixels that look like cloud, 0–1; ``None`` where it cannot be told.
        source: path as it was given.
        source_id: see :func:`alidade.search.sources.identify`.
        row, col, height, width: the window in pixels of the source, clipped to the scene.
        embedding: ``[D]`` float32; brought to unit length before it is stored as float16.
    """

    id: str
    footprint: Footprint | None
    time: datetime | None
    sensor: str
    gsd_m: float
    valid_share: float
    cloud_share: float | None
    source: str
    source_id: str
    row: int
    col: int
    height: int
    width: int
    embedding: np.ndarray


def shard_schema(dim: int) -> pa.Schema:
    """The columns of a shard of ``dim``-dimensional embeddings.

    ``bbox`` follows RFC 7946 section 5.2: ``xmin > xmax`` says that the tile crosses the antimeridian.
    """
    vector = pa.list_(pa.field("element", pa.float16(), nullable=False), dim)
    return pa.schema(
        [
            pa.field("id", pa.string(), nullable=False),
            pa.field("geometry", pa.binary()),
            pa.field("bbox", _BBOX),
            pa.field("time", pa.timestamp("ms", tz="UTC")),
            pa.field("sensor", pa.string(), nullable=False),
            pa.field("gsd_m", pa.float32(), nullable=False),
            pa.field("valid_share", pa.float32(), nullable=False),
            pa.field("cloud_share", pa.float32()),
            pa.field("source", pa.string(), nullable=False),
            pa.field("source_id", pa.string(), nullable=False),
            *(pa.field(name, pa.int32(), nullable=False) for name in ("row", "col", "height", "width")),
            pa.field("model", pa.string(), nullable=False),
            pa.field("embedding", vector, nullable=False),
        ]
    )


def rows_to_table(rows: Sequence[TileRow], *, model: str, dim: int) -> pa.Table:
    """Rows as a table of :func:`shard_schema`.

    Raises:
        ArchiveError: an embedding has another length, or holds NaN, infinity or only zeros.
    """
    schema = shard_schema(dim)
    if not rows:
        return schema.empty_table()
    vectors = unit_rows(np.stack([r.embedding for r in rows]), dim=dim, what="embeddings from the model")
    boxes = [None if r.footprint is None else r.footprint.bbox() for r in rows]
    columns: dict[str, Any] = {
        name: [getattr(r, name) for r in rows]
        for name in schema.names
        if name not in ("geometry", "bbox", "model", "embedding")
    }
    columns["geometry"] = [None if r.footprint is None else r.footprint.wkb() for r in rows]
    columns["bbox"] = [None if b is None else dict(zip(_BBOX.names, b, strict=True)) for b in boxes]
    columns["model"] = [model] * len(rows)
    flat = pa.array(vectors.astype(np.float16).reshape(-1))
    columns["embedding"] = pa.FixedSizeListArray.from_arrays(flat, type=schema.field("embedding").type)
    arrays = [
        c if isinstance(c, pa.Array) else pa.array(c, type=schema.field(name).type)
        for name, c in ((name, columns[name]) for name in schema.names)
    ]
    return pa.Table.from_arrays(arrays, schema=schema)


def unit_rows(vectors: np.ndarray, *, dim: int, what: str) -> np.ndarray:
    """``vectors`` ``[N, dim]`` as float32 rows of unit length.

    Raises:
        ArchiveError: another shape, or a row that has no direction (zero, NaN, infinite).
    """
    if vectors.ndim != 2 or vectors.shape[1] != dim:
        raise ArchiveError(
            f"{what}: shape",
            got=list(vectors.shape),
            expected=f"[N, {dim}]",
            next_step="Use the model that made this archive.",
        )
    wide = vectors.astype(np.float64)
    lengths = np.sqrt((wide * wide).sum(axis=1))
    bad = np.flatnonzero(~np.isfinite(lengths) | (lengths == 0))
    if bad.size:
        raise ArchiveError(
            what,
            got=f"length {lengths[bad[0]]} in row {bad[0]}",
            expected="finite vectors that are not zero",
            next_step="Check the input for invalid pixels and the weights for NaN.",
        )
    return np.asarray((wide / lengths[:, None]).astype(np.float32))


def embeddings_of(table: pa.Table) -> np.ndarray:
    """The ``embedding`` column as one contiguous float16 array ``[N, D]``."""
    column = table.column("embedding")
    dim = column.type.list_size
    parts = [chunk.flatten().to_numpy(zero_copy_only=True).reshape(-1, dim) for chunk in column.chunks if len(chunk)]
    return np.concatenate(parts) if parts else np.empty((0, dim), np.float16)


def geo_metadata(table: pa.Table) -> bytes:
    """GeoParquet 1.1.0 file metadata for a table with ``geometry`` (WKB) and ``bbox`` columns.

    The CRS key is left out, which means OGC:CRS84 (longitude, latitude); rings are counter-clockwise.
    """
    column: dict[str, Any] = {
        "encoding": "WKB",
        "geometry_types": sorted({_wkb_type(g) for g in table.column("geometry").to_pylist() if g is not None}),
        "orientation": "counterclockwise",
        "edges": "planar",
        "covering": {"bbox": {side: ["bbox", side] for side in _BBOX.names}},
    }
    boxes = [b for b in table.column("bbox").to_pylist() if b is not None]
    if boxes:
        # a file with a crossing tile claims all longitudes: true, and no reader can misread it
        crossing = any(b["xmin"] > b["xmax"] for b in boxes)
        west = -180.0 if crossing else min(b["xmin"] for b in boxes)
        east = 180.0 if crossing else max(b["xmax"] for b in boxes)
        column["bbox"] = [west, min(b["ymin"] for b in boxes), east, max(b["ymax"] for b in boxes)]
    return json.dumps({"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}).encode()


def table_bytes(table: pa.Table, note: Mapping[str, object]) -> bytes:
    """A GeoParquet file in memory: ZSTD, page checksums, ``note`` as JSON in the footer."""
    table = table.replace_schema_metadata({b"geo": geo_metadata(table), NOTE_KEY: json.dumps(note).encode()})
    sink = pa.BufferOutputStream()
    pq.write_table(
        table,
        sink,
        compression="zstd",
        # random mantissas do not repeat: a dictionary of float16 values would only cost time and size
        use_dictionary=[c for c in REPEATED_TEXT if c in table.column_names],
        write_page_checksum=True,
    )
    return bytes(sink.getvalue())


def parse_table(data: bytes, what: str) -> tuple[pa.Table, dict[str, Any]]:
    """A shard's table and its footer note.

    Raises:
        ArchiveError: not Parquet, damaged, or without alidade's note.
    """
    try:
        file = pq.ParquetFile(
            pa.BufferReader(data), read_dictionary=list(REPEATED_TEXT), page_checksum_verification=True
        )
        table = file.read()
        note = json.loads((file.schema_arrow.metadata or {})[NOTE_KEY])
    except (pa.ArrowException, OSError, KeyError, ValueError, RecursionError) as error:
        raise damaged(what, f"unreadable data ({_first_line(error)})") from error
    if not isinstance(note, dict):
        raise damaged(what, "a note that is no object")
    return table, note


def stored_rows(path: str | os.PathLike[str]) -> int:
    """Rows of a shard by its footer; no column is read.

    Raises:
        ArchiveError: it cannot be read, or is not Parquet.
    """
    try:
        return int(pq.read_metadata(path).num_rows)
    except (pa.ArrowException, OSError) as error:
        raise damaged(os.fspath(path), f"unreadable data ({_first_line(error)})") from error


def check_columns(schema: pa.Schema, dim: int, what: str) -> None:
    """See that a shard has the columns of :func:`shard_schema`, dictionary-encoded or not.

    Raises:
        ArchiveError: other columns, or one of another type.
    """
    plain = [f.with_type(f.type.value_type) if pa.types.is_dictionary(f.type) else f for f in schema]
    wanted = list(shard_schema(dim))
    if [f.name for f in plain] != [f.name for f in wanted]:
        raise damaged(what, f"columns {', '.join(schema.names)}")
    for found, expected in zip(plain, wanted, strict=True):
        if not found.equals(expected):
            raise damaged(what, f"column {found.name} of type {found.type} instead of {expected.type}")


def damaged(what: str, got: str) -> ArchiveError:
    """The error for a shard that cannot be trusted."""
    return ArchiveError(
        what,
        got=got,
        expected="the shard as it was acknowledged",
        next_step="Restore the file from a copy, or embed into a new archive.",
    )


def wkb_rings(wkb: bytes) -> tuple[tuple[tuple[float, float], ...], ...]:
    """Outer rings of a little-endian WKB Polygon or MultiPolygon, as :class:`Footprint` writes them.

    Raises:
        ArchiveError: another geometry type or byte order, a polygon with holes, or too few bytes.
    """
    try:
        order, kind, count = struct.unpack_from("<BII", wkb)
        if order != 1 or kind not in (3, 6):
            raise damaged("geometry", f"WKB type {kind} in byte order {order}")
        if kind == 3:
            return (_ring(wkb, 0)[0],)
        rings, at = [], 9
        for _ in range(count):
            ring, at = _ring(wkb, at)
            rings.append(ring)
        return tuple(rings)
    except struct.error as error:
        raise damaged("geometry", f"truncated WKB of {len(wkb)} bytes") from error


def _ring(wkb: bytes, at: int) -> tuple[tuple[tuple[float, float], ...], int]:
    order, kind, rings, points = struct.unpack_from("<BIII", wkb, at)
    if (order, kind, rings) != (1, 3, 1):
        raise damaged("geometry", f"a WKB polygon with {rings} rings")
    values = struct.unpack_from(f"<{2 * points}d", wkb, at + 13)
    return tuple(zip(values[::2], values[1::2], strict=True)), at + 13 + 16 * points


def _wkb_type(wkb: bytes) -> str:
    return {3: "Polygon", 6: "MultiPolygon"}[struct.unpack_from("<I", wkb, 1)[0]]


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
