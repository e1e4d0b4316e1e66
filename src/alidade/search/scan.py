"""The exact scanner: every live row compared with the query, no index, nothing approximate."""

from __future__ import annotations

import time as clock
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from alidade.errors import ArchiveError
from alidade.imagery.footprint import Box, Footprint, bbox_mask
from alidade.search.archive import Archive
from alidade.search.filters import Filter, TimeRange, check_k, check_point
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
        scanned: rows in the archive.
        seconds: time for conditions, scores and ranking.
    """

    table: pa.Table
    model: str
    query: dict[str, object]
    vector: npt.NDArray[np.float32]
    matches: int
    scanned: int
    seconds: float

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
        self._boxes = _box_columns(self.table)
        times = self.table["time"].combine_chunks()
        self._has_time = times.is_valid().to_numpy(zero_copy_only=False)
        self._times_ms = times.cast(pa.int64()).fill_null(0).to_numpy()
        sensors = self.table["sensor"].combine_chunks()
        sensors = sensors if pa.types.is_dictionary(sensors.type) else sensors.dictionary_encode()
        self._sensor_names = sensors.dictionary.to_pylist()
        self._sensor_codes = sensors.indices.to_numpy()
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
        began = clock.perf_counter()
        self._check_model(model)
        vector = unit_rows(np.asarray(query)[None], dim=self.archive.header.dim, what="query")[0]
        conditions = Filter(bbox=bbox, time=time, sensor=sensor)
        mask = conditions.mask(self._boxes, self._times_ms, self._has_time, self._sensor_codes, self._sensor_names)
        rows = None if mask is None else np.flatnonzero(mask)
        order, scores = self._rank(vector, check_k(k), rows)
        return Hits(
            table=self.table.take(order).append_column("score", pa.array(scores, pa.float32())),
            model=self.archive.header.model,
            query={"like": describe, "k": k, **conditions.describe()},
            vector=vector,
            matches=len(self) if rows is None else len(rows),
            scanned=len(self),
            seconds=clock.perf_counter() - began,
        )

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
        return frozenset(self._sensor_names[code] for code in np.unique(self._sensor_codes))

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
        mask = bbox_mask(self._boxes[0], self._boxes[1], self._boxes[2], self._boxes[3], (lon, lat, lon, lat))
        found = []
        for index in np.flatnonzero(mask).tolist():
            footprint = Footprint(wkb_rings(self.table["geometry"][index].as_py()))
            if footprint.contains(lon, lat):
                distance = _distance(footprint.centre(), lon, lat)
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

    def _check_model(self, model: str | None) -> None:
        mine = self.archive.header.model
        if model is not None and model != mine:
            raise ArchiveError(
                f"{self.archive.path}: model of the query",
                got=model,
                expected=f"{mine}, with which this archive was made",
                next_step="Load that model for the query: embeddings of two models cannot be compared.",
            )

    def _rank(
        self, vector: npt.NDArray[np.float32], k: int, rows: npt.NDArray[np.intp] | None
    ) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float64]]:
        """Row indices and scores of the best ``k``."""
        rough = self._vectors.scores(vector, rows)
        if rough.size > k:
            worst = np.partition(rough, rough.size - k)[rough.size - k]
            near = np.flatnonzero(rough >= worst - 2 * ROUGH_ERROR)
        else:
            near = np.arange(rough.size)
        near = near if rows is None else rows[near]
        exact = self._vectors.exact_scores(vector, near)
        if exact.size > k:
            tied = exact >= np.partition(exact, exact.size - k)[exact.size - k]
            near, exact = near[tied], exact[tied]
        ids = np.array(self.table["id"].take(near).to_pylist(), dtype=str)
        order = np.lexsort((ids, -exact))[:k]
        return near[order], exact[order]

    def _extent(self) -> str:
        placed = ~np.isnan(self._boxes[0])
        if not placed.any():
            return "none of its tiles has a place"
        west, south, east, north = self._boxes[:, placed]
        if (west > east).any():
            return f"latitudes {south.min():.4f} to {north.max():.4f}, across the antimeridian"
        latitudes = f"latitudes {south.min():.4f} to {north.max():.4f}"
        return f"longitudes {west.min():.4f} to {east.max():.4f}, {latitudes}"


def _box_columns(table: pa.Table) -> npt.NDArray[np.float64]:
    boxes = table["bbox"].combine_chunks()
    absent = boxes.is_null().to_numpy(zero_copy_only=False)
    columns = [boxes.field(side).to_numpy(zero_copy_only=False) for side in ("xmin", "ymin", "xmax", "ymax")]
    return np.where(absent, np.nan, np.stack([np.asarray(c, dtype=np.float64) for c in columns]))


def _distance(centre: tuple[float, float], lon: float, lat: float) -> float:
    """Great-circle distance in radians (haversine), rounded so that neighbours do not win by the last bit."""
    (x0, y0), (x1, y1) = np.radians(centre), np.radians((lon, lat))
    half = np.sin((y1 - y0) / 2) ** 2 + np.cos(y0) * np.cos(y1) * np.sin((x1 - x0) / 2) ** 2
    return round(float(2 * np.arcsin(np.sqrt(half))), 12)
