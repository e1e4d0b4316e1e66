"""The exact scanner: every live row compared with the query, no index, nothing approximate."""

from __future__ import annotations

import time as clock
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from alidade.errors import ArchiveError
from alidade.imagery.footprint import Box, Footprint, bbox_mask
from alidade.search.archive import Archive
from alidade.search.filters import Columns, Filter, TimeRange, check_k, check_point
from alidade.search.schema import embeddings_of, shard_schema, unit_rows, wkb_rings
from alidade.search.vectors import ROUGH_ERROR, Vectors


@dataclass(frozen=True, kw_only=True, eq=False)
class Hits:
    """The answer to one query.

    Attributes:
        table: the rows, best first, with every column of the archive except ``embedding``, and ``score``
            (float32, cosine, -1 to 1).
        model: identity of the embedding space.
        query: what was asked, as plain values; exports carry it.
        vector: the query as a unit vector ``[D]`` float32.
        matches: rows that met the conditions, of which ``table`` holds the best.
        scanned: rows whose stored vectors were compared with the query; an index's short vectors do not count.
        seconds: time for conditions, scores and ranking.
        exact: whether every match was compared; otherwise an index chose which of them were.
    """

    table: pa.Table
    model: str
    query: dict[str, object]
    vector: npt.NDArray[np.float32]
    matches: int
    scanned: int
    seconds: float
    exact: bool = True

    def __len__(self) -> int:
        return int(self.table.num_rows)


@dataclass(frozen=True, kw_only=True, eq=False)
class Place:
    """The tile at a point: its ``row`` (plain values by column name) and ``embedding`` ``[D]`` float32."""

    row: dict[str, object]
    embedding: np.ndarray


@dataclass(eq=False)
class Scanner:
    """An archive's rows in memory: embeddings as float16 ``[N, D]``, the other columns as a table.

    One million rows of 256 dimensions take about 0.8 GB. The scanner sees the archive as it was opened.

    Raises:
        ArchiveError: a shard is damaged.
    """

    archive: Archive
    table: pa.Table = field(init=False)
    embeddings: npt.NDArray[np.float16] = field(init=False)

    def __post_init__(self) -> None:
        dim = self.archive.header.dim
        tables, total, at = [], self.archive.rows, 0
        self.archive.check_rows()
        self.embeddings = np.empty((total, dim), np.float16)
        for table in self.archive.tables():
            self.embeddings[at : at + table.num_rows] = embeddings_of(table)
            at += table.num_rows
            tables.append(table.drop_columns(["embedding"]))
        schema = shard_schema(dim)
        empty = schema.empty_table().drop_columns(["embedding"])
        self.table = pa.concat_tables(tables or [empty]).unify_dictionaries().combine_chunks()
        self._columns = Columns.of(self.table)
        self._vectors = Vectors(self.embeddings)

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def search(
        self,
        query: npt.ArrayLike,
        k: int = 10,
        bbox: Box | None = None,
        time: TimeRange | None = None,
        sensor: str | None = None,
        *,
        model: str | None = None,
        describe: str = "a vector",
    ) -> Hits:
        """The ``k`` rows most like ``query``, by exact cosine; equal scores are ordered by id.

        Args:
            query: ``[D]``, any length but zero.
            k: how many; all matches when there are fewer.
            bbox: see :class:`Filter`, as for ``time`` and ``sensor``.
            time: both ends are included.
            sensor: sensor id.
            model: identity of the model that made ``query``; compared with the archive's when given.
            describe: what the query is, in words, for exports.

        Raises:
            ArchiveError: a query of another dimension or model, or without direction (zero, NaN); a ``k``
                below 1; a sensor that the archive does not have; a bad time.
            GridError: a bad box.
        """
        self._check_model(model)
        return self.find(query, k, Filter(bbox=bbox, time=time, sensor=sensor), describe=describe)

    def find(self, query: npt.ArrayLike, k: int, conditions: Filter, *, describe: str = "a vector") -> Hits:
        """As :meth:`search`, with the conditions as one value.

        Raises:
            ArchiveError: as for :meth:`search`.
        """
        began = clock.perf_counter()
        vector = unit_rows(np.asarray(query)[None], dim=self.archive.header.dim, what="query")[0]
        rows = self._matching(conditions)
        near, exact = leaders(self._vectors, vector, check_k(k), rows)
        best = in_order(self.table["id"].take(near), exact)[:k]
        order, scores = near[best], exact[best]
        matches = len(self) if rows is None else len(rows)
        return Hits(
            table=self.table.take(order).append_column("score", pa.array(scores, pa.float32())),
            model=self.archive.header.model,
            query={"like": describe, "k": k, **conditions.describe()},
            vector=vector,
            matches=matches,
            scanned=matches,
            seconds=clock.perf_counter() - began,
        )

    def count(self, conditions: Filter) -> int:
        """How many rows meet the conditions.

        Raises:
            ArchiveError: a sensor that the archive does not have.
        """
        rows = self._matching(conditions)
        return len(self) if rows is None else len(rows)

    def rows(self, ids: Sequence[str]) -> pa.Table:
        """Every column of these rows, ``embedding`` too, in the order asked.

        Raises:
            ArchiveError: an id that no row has.
        """
        wanted = pa.array(ids, pa.string())
        found = pc.index_in(wanted, self.table["id"])
        if found.null_count:
            raise unknown_ids(str(self.archive.path), wanted.filter(pc.is_null(found)).to_pylist())
        order = found.to_numpy().astype(np.intp)
        return with_embeddings(self.table.take(order), self.embeddings[order])

    def scores(self, query: npt.ArrayLike, rows: npt.NDArray[np.intp] | None = None) -> npt.NDArray[np.float32]:
        """Cosines of ``query`` ``[D]`` with all rows, or with ``rows`` ``[M]``, in float32 (exact to 1e-5).

        Raises:
            ArchiveError: a query of another dimension or without direction.
        """
        vector = unit_rows(np.asarray(query)[None], dim=self.archive.header.dim, what="query")[0]
        return self._vectors.scores(vector, rows)

    @property
    def sensors(self) -> frozenset[str]:
        """Ids of the sensors that have rows."""
        names, codes = self._columns.sensor_names, self._columns.sensor_codes
        return frozenset(names[code] for code in np.unique(codes))

    def rows_of(self, source_id: str) -> npt.NDArray[np.intp]:
        """Indices ``[M]`` of the rows of one source."""
        return np.flatnonzero(pc.equal(self.table["source_id"], source_id).to_numpy())

    def at(self, lon: float, lat: float) -> Place:
        """The tile whose footprint contains a point (degrees); of several, the one with the nearest centre.

        Raises:
            GridError: not a point on Earth.
            ArchiveError: no tile there; the message tells the archive's extent.
        """
        lon, lat = check_point(lon, lat)
        west, south, east, north = self._columns.boxes
        mask = bbox_mask(west, south, east, north, (lon, lat, lon, lat))
        found = []
        for index in np.flatnonzero(mask).tolist():
            footprint = Footprint(wkb_rings(self.table["geometry"][index].as_py()))
            if footprint.contains(lon, lat):
                distance = great_circle(footprint.centre(), (lon, lat))
                found.append((distance, self.table["id"][index].as_py(), index))
        if not found:
            raise ArchiveError(
                f"{self.archive.path}: tile at {lon:g},{lat:g}",
                got="none",
                expected=f"a point inside the archive ({self._extent()})",
                next_step="Choose a point inside one of its scenes.",
            )
        index = min(found)[2]
        return Place(row=self.table.slice(index, 1).to_pylist()[0], embedding=self.embeddings[index].astype(np.float32))

    def _matching(self, conditions: Filter) -> npt.NDArray[np.intp] | None:
        """Indices of the rows that meet the conditions; ``None`` when all do because there is none."""
        mask = conditions.mask(self._columns)
        return None if mask is None else np.flatnonzero(mask)

    def _check_model(self, model: str | None) -> None:
        mine = self.archive.header.model
        if model is not None and model != mine:
            raise ArchiveError(
                f"{self.archive.path}: model of the query",
                got=model,
                expected=f"{mine}, with which this archive was made",
                next_step="Load that model for the query: embeddings of two models cannot be compared.",
            )

    def _extent(self) -> str:
        boxes = self._columns.boxes
        placed = ~np.isnan(boxes[0])
        if not placed.any():
            return "none of its tiles has a place"
        west, south, east, north = boxes[:, placed]
        if (west > east).any():
            return f"latitudes {south.min():.4f} to {north.max():.4f}, across the antimeridian"
        latitudes = f"latitudes {south.min():.4f} to {north.max():.4f}"
        return f"longitudes {west.min():.4f} to {east.max():.4f}, {latitudes}"


def leaders(
    vectors: Vectors, vector: npt.NDArray[np.float32], k: int, rows: npt.NDArray[np.intp] | None
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float64]]:
    """The best ``k`` of ``rows`` (of all for ``None``), and all others with the score of the last of them.

    Returns:
        Indices ``[M]`` in no order, and their exact cosines with the unit vector ``vector`` ``[D]``.
    """
    rough = vectors.scores(vector, rows)
    if rough.size > k:
        worst = np.partition(rough, rough.size - k)[rough.size - k]
        near = np.flatnonzero(rough >= worst - 2 * ROUGH_ERROR)
    else:
        near = np.arange(rough.size)
    near = near if rows is None else rows[near]
    exact = vectors.exact_scores(vector, near)
    if exact.size > k:
        tied = exact >= np.partition(exact, exact.size - k)[exact.size - k]
        near, exact = near[tied], exact[tied]
    return near, exact


def in_order(ids: pa.Array | pa.ChunkedArray, scores: npt.NDArray[np.float64]) -> npt.NDArray[np.intp]:
    """The order of an answer: the best score first, equal scores by id."""
    return np.lexsort((np.array(ids.to_pylist(), dtype=str), -scores))


def with_embeddings(table: pa.Table, embeddings: npt.NDArray[np.float16]) -> pa.Table:
    """``table`` with the column ``embedding`` from ``[N, D]`` behind the others, as shards have it."""
    kind = shard_schema(embeddings.shape[1]).field("embedding")
    flat = pa.array(np.ascontiguousarray(embeddings).reshape(-1))
    return table.append_column(kind, pa.FixedSizeListArray.from_arrays(flat, type=kind.type))


def unknown_ids(where: str, ids: Sequence[str]) -> ArchiveError:
    """The error for ids that a store does not have."""
    shown = ", ".join(repr(i) for i in ids[:3]) + (f" and {len(ids) - 3:,} more" if len(ids) > 3 else "")
    return ArchiveError(
        f"{where}: tile id",
        got=shown,
        expected="ids of tiles in this archive",
        next_step="Take ids from a search of the same archive: a tile that was embedded again has another id.",
    )


def great_circle(a: tuple[float, float], b: tuple[float, float]) -> float:
    """Distance of two (longitude, latitude) in degrees, in radians (haversine).

    Rounded so that neighbours do not win by the last bit.
    """
    (x0, y0), (x1, y1) = np.radians(a), np.radians(b)
    half = np.sin((y1 - y0) / 2) ** 2 + np.cos(y0) * np.cos(y1) * np.sin((x1 - x0) / 2) ** 2
    return round(float(2 * np.arcsin(np.sqrt(half))), 12)
