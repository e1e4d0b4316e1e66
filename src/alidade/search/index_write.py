"""Rows of shards on their way into an index: embeddings into mapped files, everything else into LanceDB."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from alidade.search.archive import Archive
from alidade.search.index_columns import SIDES
from alidade.search.index_format import LENGTHS, TABLE, VECTORS
from alidade.search.index_where import cells_of
from alidade.search.manifest import Manifest
from alidade.search.schema import embeddings_of, shard_schema

if TYPE_CHECKING:
    from lancedb.db import DBConnection
    from lancedb.table import Table

BATCH_ROWS = 262_144
"""Rows that are handed to LanceDB at once: fewer make many small files, more take memory."""
_SAMPLE_SHARDS = 24
_SAMPLE_ROWS = 65_536
_LEAST_SHORT, _MOST_SHORT, _STEP = 32, 256, 16
_HELD = 0.85
_MOST_PARTITIONS = 4096

Basis = npt.NDArray[np.float32]


class RowsWriter:
    """Appends rows to the files of a generation; a context manager that flushes them when all are written.

    Attributes:
        table: the LanceDB table, once rows have been flushed.
        sensors: ids of the sensors seen.

    Args:
        database: of the generation.
        folder: the generation.
        dim: length of the embeddings.
        basis: ``[short, dim]``, or ``None`` to write no short vectors.
        first: number of the first row; 0 makes the table, anything else appends to it.

    Raises:
        OSError, RuntimeError, ValueError: on writing: the disk or LanceDB refuses.
    """

    def __init__(self, database: DBConnection, folder: Path, dim: int, basis: Basis | None, *, first: int) -> None:
        self._database, self._folder = database, folder
        self._basis, self._next = basis, first
        self._schema = _schema(dim, 0 if basis is None else len(basis))
        self._waiting: list[pa.Table] = []
        self.sensors: set[str] = set()
        self._made = first > 0
        self._files: list[BinaryIO] = []

    def __enter__(self) -> RowsWriter:
        self._files = [(self._folder / name).open("ab") for name in (VECTORS, LENGTHS)]
        if self._made:
            self.table: Table = self._database.open_table(TABLE)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._flush()
        finally:
            for file in self._files:
                file.close()

    def write(self, rows: pa.Table) -> None:
        """Append the rows of a shard, with all columns of :func:`shard_schema`."""
        vectors = embeddings_of(rows)
        if len(vectors):
            self._files[0].write(np.ascontiguousarray(vectors).tobytes())
            wide = vectors.astype(np.float32)
            self._files[1].write((1.0 / np.linalg.norm(wide, axis=1)).astype(np.float32).tobytes())
        self.sensors |= set(pc.unique(rows["sensor"].cast(pa.string())).to_pylist())
        self._waiting.append(_columns(rows, vectors, self._basis, self._next, self._schema))
        self._next += rows.num_rows
        if sum(t.num_rows for t in self._waiting) >= BATCH_ROWS:
            self._flush()

    def _flush(self) -> None:
        if not self._waiting and self._made:
            return
        rows = pa.concat_tables(self._waiting) if self._waiting else self._schema.empty_table()
        if self._made:
            self.table.add(rows)
        else:
            self.table = self._database.create_table(TABLE, rows)
            self._made = True
        self._waiting.clear()


def basis_of(archive: Archive, path: Path) -> Basis:
    """The directions ``[short, D]`` in which embeddings differ most, from a sample of shards; also saved to ``path``.

    They are eigenvectors of the second moment (not of the covariance: scores are cosines, so the mean counts), and as
    many as hold 85 % of the squared length.
    """
    shards = [s for s in archive.manifest.shards if s.live]
    picked = np.unique(np.linspace(0, len(shards) - 1, _SAMPLE_SHARDS).astype(int))
    sample = replace(archive, manifest=Manifest(shards=[shards[i] for i in picked]))
    share = -(-_SAMPLE_ROWS // len(picked))
    moment = np.zeros((archive.header.dim, archive.header.dim))
    for table in sample.tables():
        rows = embeddings_of(table)[:: max(1, table.num_rows // share)].astype(np.float64)
        moment += rows.T @ rows
    values, directions = np.linalg.eigh(moment)
    held = np.cumsum(values[::-1]) / values.sum()
    enough = int(np.searchsorted(held, _HELD)) + 1
    short = min(archive.header.dim, _MOST_SHORT, max(_LEAST_SHORT, -(-enough // _STEP) * _STEP))
    basis = np.ascontiguousarray(directions[:, ::-1][:, :short].T.astype(np.float32))
    np.save(path, basis)
    return basis


def read_basis(path: Path) -> Basis:
    """What :func:`basis_of` saved."""
    return np.asarray(np.load(path), dtype=np.float32)


def add_indexes(table: Table, rows: int, *, wide: bool) -> int:
    """LanceDB's own indexes: bitmaps of cells and sensors, a tree of ids, and partitions of the short vectors.

    The sides of the boxes, times and resolutions have none: a range of them holds a good part of all rows, and a list
    of so many rows takes longer to make (four B-trees: 65 to 130 ms of one core for a million rows) than it takes to
    look at the columns (22 ms), of those rows alone that the cells leave (6 to 10 ms).

    Returns:
        The partitions, 0 when not ``wide``.
    """
    from lancedb.index import Bitmap, BTree, IvfSq

    if rows == 0:
        return 0
    for column, config in (("cell", Bitmap()), ("sensor", Bitmap()), ("id", BTree())):
        table.create_index(column, config=config)
    if not wide:
        return 0
    partitions = max(2, min(_MOST_PARTITIONS, int(rows**0.5 / 4)))
    # LanceDB takes no int8 vectors: the column is float16, and the index keeps 8 bits of each number
    codes = IvfSq(distance_type="l2", num_partitions=partitions, max_iterations=10, sample_rate=64)
    table.create_index("short", config=codes)
    return partitions


def _schema(dim: int, short: int) -> pa.Schema:
    kept = [f for f in shard_schema(dim) if f.name not in ("bbox", "time", "embedding")]
    sides = [pa.field(side, pa.float64()) for side in SIDES]
    vector = [pa.field("short", pa.list_(pa.float16(), short))] if short else []
    numbers = [pa.field("number", pa.int64()), pa.field("cell", pa.int32()), pa.field("time_ms", pa.int64())]
    return pa.schema([*numbers, *sides, *kept, *vector])


def _columns(
    rows: pa.Table, vectors: npt.NDArray[np.float16], basis: Basis | None, first: int, schema: pa.Schema
) -> pa.Table:
    boxes = rows["bbox"].combine_chunks()
    nowhere = boxes.is_null()
    # a struct's fields do not know that the struct itself is null
    sides = {side: pc.if_else(nowhere, pa.scalar(None, pa.float64()), boxes.field(side)) for side in SIDES}
    corners = np.stack([sides[side].fill_null(np.nan).to_numpy(zero_copy_only=False) for side in SIDES])
    made: dict[str, Any] = {
        **sides,
        "number": pa.array(np.arange(first, first + rows.num_rows)),
        "cell": pa.array(cells_of(corners)),
        "time_ms": rows["time"].cast(pa.int64()),
    }
    if basis is not None:
        short = (vectors.astype(np.float32) @ basis.T).astype(np.float16)
        made["short"] = pa.FixedSizeListArray.from_arrays(pa.array(short.reshape(-1)), len(basis))
    arrays = [made[f.name] if f.name in made else rows[f.name].cast(f.type) for f in schema]
    return pa.table(arrays, schema=schema)
