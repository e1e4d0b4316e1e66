"""The index as searches see it: which rows meet conditions, which are near a vector, and what they are."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from alidade.search.archive import Archive
from alidade.search.filters import Filter
from alidade.search.index_columns import NAMES, SIDES, ColumnsInMemory, columns_of
from alidade.search.index_format import (
    BASIS,
    LENGTHS,
    STALE,
    TABLE,
    VECTORS,
    IndexHeader,
    check_whole,
    connect,
    digest_of,
    lance_errors,
    read_index_header,
    unusable,
)
from alidade.search.index_where import quoted, where
from alidade.search.scan import unknown_ids
from alidade.search.schema import shard_schema
from alidade.search.vectors import Vectors

Rows = npt.NDArray[np.intp]
MEMORY_ROWS = 8_000_000
"""Indexes of up to so many rows keep the columns that conditions look at in memory (330 MB at most).

Of a million rows, 100,000 that touch a box are found in about 10 ms there, and in 53 ms by LanceDB; to count them takes
LanceDB 9 ms. Beyond, its bitmaps of cells win: they leave rows of other places alone.
"""
_IDS_AT_ONCE = 1000
_RESULTS = 50


class Index:
    """An archive's index, opened. It goes on to show what it showed then.

    Attributes:
        header: see :class:`IndexHeader`.
        vectors: the embeddings, mapped into memory.

    Args:
        archive: as it was opened.
        header: what to open.
        folder: the generation's directory.

    Raises:
        IndexUnusable: its files cannot be read.
        AlidadeError: LanceDB is not installed.
    """

    def __init__(self, archive: Archive, header: IndexHeader, folder: Path) -> None:
        self._archive, self.header = archive, header
        with lance_errors(archive.path):
            self._table = connect(folder).open_table(TABLE)
            self._table.checkout(header.version)
            if self._table.count_rows() != header.rows:
                raise unusable(archive.path, "a damaged one (another number of rows)")
            self._basis = np.load(folder / BASIS) if header.short else np.empty((0, header.dim), np.float32)
            stored = _mapped(folder / VECTORS, np.dtype(np.float16), (header.rows, header.dim))
            self.vectors = Vectors(stored, _mapped(folder / LENGTHS, np.dtype(np.float32), (header.rows,)))
            self._columns = self._in_memory() if header.rows <= MEMORY_ROWS else None
        self._nothing = columns_of(pa.table({"number": pa.array([], pa.int64())}), header.sensors)

    @classmethod
    def open(cls, archive: Archive) -> Index:
        """The archive's own index.

        Raises:
            IndexUnusable: there is none, it is of another state of the archive, or damaged; the message says which.
        """
        header = read_index_header(archive.path)
        if find_spec("lancedb") is None:
            raise unusable(archive.path, "an installation without lancedb (the extra `search`)")
        if header.digest != digest_of(archive):
            raise unusable(archive.path, STALE)
        check_whole(archive.path, header)
        return cls(archive, header, archive.path / header.folder)

    def __len__(self) -> int:
        return self.header.rows

    @property
    def in_memory(self) -> bool:
        """Whether conditions are looked at in memory, so that to find rows is no more work than to count them."""
        return self._columns is not None

    def count(self, conditions: Filter) -> int:
        """How many rows meet the conditions.

        Raises:
            ArchiveError: no row has the sensor asked for.
            IndexUnusable: the index can no longer be read.
        """
        if self._columns is not None or conditions.polygon is not None:
            return len(self.matching(conditions))
        condition = self._where(conditions)
        with lance_errors(self._archive.path):
            return len(self) if condition is None else int(self._table.count_rows(condition))

    def matching(self, conditions: Filter) -> Rows:
        """Numbers of the rows that meet the conditions, ascending.

        Raises:
            ArchiveError, IndexUnusable: as for :meth:`count`.
        """
        if self._columns is not None and conditions.polygon is None:
            return self._columns.matching(conditions)
        condition = self._where(conditions)
        if condition is None:
            return np.arange(len(self))
        wanted = ["number"] if conditions.polygon is None else ["number", *SIDES, "geometry"]
        with lance_errors(self._archive.path):
            found = self._table.search().where(condition).select(wanted).limit(len(self)).to_arrow()
        rows = found["number"].to_numpy().astype(np.intp)
        if conditions.polygon is not None:
            places = columns_of(found, self.header.sensors, found["geometry"])
            rows = rows[Filter(polygon=conditions.polygon).mask(places)]
        return np.sort(rows)

    def share(self, vector: npt.NDArray[np.float32]) -> float:
        """How much of a unit vector ``[D]`` the short one holds: its squared length, 0 to 1."""
        short = self._basis @ vector
        return float(short @ short)

    def nearest(self, vector: npt.NDArray[np.float32], k: int, conditions: Filter) -> Rows:
        """Numbers of about ``refine * k`` rows that meet the conditions and are near a vector by the short vectors.

        A polygon is not looked at. Partitions are searched without an upper bound until so many rows have been found:
        with a bound, narrow conditions would lose most of them.

        Raises:
            ArchiveError, IndexUnusable: as for :meth:`count`.
        """
        header = self.header
        times = -(-k // _RESULTS)
        return self.candidates(vector, self.wanted(k), header.probes * times, self._where(conditions))

    def wanted(self, k: int) -> int:
        """How many rows :meth:`nearest` looks for."""
        return self.header.refine * max(k, _RESULTS)

    def candidates(self, vector: npt.NDArray[np.float32], count: int, probes: int, condition: str | None) -> Rows:
        """The ``count`` rows with the nearest short vectors, in at least ``probes`` partitions.

        Raises:
            IndexUnusable: the index can no longer be read.
        """
        with lance_errors(self._archive.path):
            asked: Any = self._table.search(self._basis @ vector, vector_column_name="short")
            asked = asked.limit(min(count, len(self))).select(["number", "_distance"])
            asked = asked.minimum_nprobes(max(1, min(probes, self.header.partitions))).maximum_nprobes(0)
            if condition is not None:
                asked = asked.where(condition, prefilter=True)
            return np.array(asked.to_arrow()["number"].to_numpy(), dtype=np.intp)

    def take(self, rows: Rows) -> pa.Table:
        """The rows with these numbers, in this order, with the archive's columns but ``embedding``.

        Raises:
            IndexUnusable: the index can no longer be read.
        """
        with lance_errors(self._archive.path):
            found = self._table.take_offsets(rows.tolist()).to_arrow()
        return _as_stored(found, rows, self)

    def rows_of(self, ids: Sequence[str]) -> Rows:
        """Numbers of the rows with these ids, in this order.

        Raises:
            ArchiveError: an id that no row has.
            IndexUnusable: the index can no longer be read.
        """
        known: dict[str, int] = {}
        different = list(dict.fromkeys(ids))
        for start in range(0, len(different), _IDS_AT_ONCE):
            some = ", ".join(map(quoted, different[start : start + _IDS_AT_ONCE]))
            with lance_errors(self._archive.path):
                asked = self._table.search().where(f"id IN ({some})").select(["id", "number"]).limit(_IDS_AT_ONCE)
                found = asked.to_arrow()
            known.update(zip(found["id"].to_pylist(), found["number"].to_pylist(), strict=True))
        if missing := [i for i in different if i not in known]:
            raise unknown_ids(str(self._archive.path), missing)
        return np.array([known[i] for i in ids], dtype=np.intp)

    def _in_memory(self) -> ColumnsInMemory:
        found = self._table.search().select(["number", *NAMES]).limit(max(1, len(self))).to_arrow()
        if not np.array_equal(found["number"].to_numpy(), np.arange(len(self))):
            raise self.broken("rows in another order")
        return ColumnsInMemory(columns_of(found, self.header.sensors))

    def _where(self, conditions: Filter) -> str | None:
        # refuses a sensor that no row has
        Filter(sensor=conditions.sensor).mask(self._nothing)
        return where(conditions)

    def broken(self, got: str) -> Exception:
        """The error for an index that contradicts itself."""
        return unusable(self._archive.path, f"a damaged one ({got})")


def _mapped(path: object, dtype: np.dtype[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """A file in memory as far as it is used; private, so that torch takes it, and never written."""
    if shape[0] == 0:
        return np.empty(shape, dtype)
    return np.memmap(str(path), dtype=dtype, mode="c", shape=shape)


def _as_stored(found: pa.Table, rows: Rows, index: Index) -> pa.Table:
    """LanceDB's rows as an archive has them, in the order of ``rows``."""
    order = pc.index_in(pa.array(rows, pa.int64()), found["number"].combine_chunks())
    if order.null_count:
        raise index.broken("rows that are not where they were written")
    table = found.take(order).combine_chunks()
    schema = shard_schema(index.header.dim)
    nowhere = table["xmin"].combine_chunks().is_null()
    box = schema.field("bbox").type
    sides = [table[side].combine_chunks().fill_null(0.0) for side in SIDES]
    boxes = pa.StructArray.from_arrays(sides, fields=list(box), mask=nowhere)
    made = {"bbox": boxes, "time": table["time_ms"].cast(schema.field("time").type)}
    fields = [f for f in schema if f.name != "embedding"]
    return pa.table([made[f.name] if f.name in made else table[f.name] for f in fields], schema=pa.schema(fields))
