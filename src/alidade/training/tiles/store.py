"""Reading a store of aligned training tiles: memory-mapped arrays, one per view and shard, and one index."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from alidade.imagery.normalize import Normalization
from alidade.training.tiles.schema import (
    EPOCH,
    Header,
    Sample,
    SampleView,
    StoreError,
    ViewSpec,
    header_from_json,
    index_schema,
)

__all__ = [
    "Sample", "SampleView", "Samples", "Shard", "StoreError", "TileStore", "ViewBatch", "ViewSpec", "normalise",
    "read_header", "read_log",
]  # fmt: skip

SYNTHETIC = "synthetic:"
"""Sources that begin so are made up by code (``alidade.training.synthetic``)."""

_MICROSECONDS_A_DAY = 86_400e6
_CHUNK = 2**22


@dataclass(frozen=True, kw_only=True)
class Shard:
    """An acknowledged shard: its folder's name, its samples, and (bytes, sha256) of each file in it."""

    name: str
    samples: int
    files: Mapping[str, tuple[int, str]]


@dataclass(frozen=True, kw_only=True, eq=False)
class ViewBatch:
    """One view of ``B`` samples.

    Attributes:
        pixels: stored numbers ``[B, C, S, S]``; zeros where the view is missing.
        valid: ``[B, S, S]`` bool; False where the view is missing.
        gsd_m: ``[B, 2]`` true ground metres per pixel along a row and down a column; NaN where missing.
        present: ``[B]`` bool.
        days: ``[B]`` float64, days since 2000-01-01 UTC; NaN where missing or unknown.
    """

    pixels: npt.NDArray[Any]
    valid: npt.NDArray[np.bool_]
    gsd_m: npt.NDArray[np.float64]
    present: npt.NDArray[np.bool_]
    days: npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Samples:
    """A batch: the ids asked for ``[B]``, in that order, and every view of the store."""

    ids: npt.NDArray[np.int64]
    views: dict[str, ViewBatch]

    def __len__(self) -> int:
        """The number of samples."""
        return len(self.ids)


class TileStore:
    """A store opened for reading. An id is a sample's position: 0 to ``len(store) - 1``.

    What has been acknowledged when the store is opened is what it holds; a writer that goes on beside it does
    not change it. May be handed to another process (only the path travels), and shared between threads.

    Attributes:
        path: the store's directory.
        views: by name, in the store's order.
        ground_m: side of the ground square in metres, ``None`` where the samples come from another layout.
        index: one row per sample, in the order of the ids.
        shards: what is acknowledged.
    """

    path: Path
    views: dict[str, ViewSpec]
    ground_m: float | None
    index: pa.Table
    shards: tuple[Shard, ...]

    def __init__(self, path: Path, header: Header, shards: Sequence[Shard]) -> None:
        self.path, self.views, self.ground_m, self.shards = path, header.views, header.ground_m, tuple(shards)
        schema = index_schema(self.views)
        tables = [_read_index(path / "shards" / s.name / "index.parquet", schema, s.samples) for s in self.shards]
        self.index = pa.concat_tables([schema.empty_table(), *tables]).combine_chunks()
        self._starts = np.cumsum([0, *(s.samples for s in self.shards)])
        self._columns = {name: self._facts(name) for name in self.views}
        self._arrays = [
            {name: self._map(shard, name, spec) for name, spec in self.views.items()} for shard in self.shards
        ]

    @classmethod
    def open(cls, path: str | Path) -> TileStore:
        """Open a store; every acknowledged file must be there with its size.

        Raises:
            StoreError: there is none, or it is damaged.
        """
        folder = Path(path)
        header = read_header(folder)
        shards, _, _, _ = read_log(folder / "manifest.jsonl")
        check_files(folder, shards)
        return cls(folder, header, shards)

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy in another process opens the store anew."""
        return TileStore.open, (self.path,)

    def __len__(self) -> int:
        """The number of samples."""
        return int(self._starts[-1])

    def sources(self) -> frozenset[str]:
        """Where the samples' pixels come from."""
        columns = [self.index[f"{name}.source"].unique().drop_null().to_pylist() for name in self.views]
        return frozenset(source for column in columns for source in column)

    @property
    def synthetic(self) -> bool:
        """Whether any sample is made up; such a store is for tests and first runs, not for results."""
        return any(source.startswith(SYNTHETIC) for source in self.sources())

    def select(
        self,
        *,
        split: str | None = None,
        max_date_gap_days: float | None = None,
        max_cloud: float | None = None,
        min_valid: float | None = None,
        require: Sequence[str] = (),
    ) -> npt.NDArray[np.int64]:
        """The ids of the samples that pass all filters, ascending.

        Args:
            split: name of the split.
            max_date_gap_days: the views lie at most so far apart; a sample whose gap is unknown does not pass.
            max_cloud: no view that is there is known to be cloudier; views whose cloud cannot be told pass.
            min_valid: every view that is there has at least this share of valid pixels.
            require: views that must be there.

        Raises:
            StoreError: a view that the store has not.
        """
        keep = np.ones(len(self), dtype=np.bool_)
        if split is not None:
            keep &= self.index["split"].to_numpy() == split
        if max_date_gap_days is not None:
            keep &= _reals(self.index, "date_gap_days") <= max_date_gap_days
        for name in self.views:
            if max_cloud is not None:
                keep &= ~(_reals(self.index, f"{name}.cloud_share") > max_cloud)
            if min_valid is not None:
                keep &= ~(_reals(self.index, f"{name}.valid_share") < min_valid)
        for name in require:
            if name not in self.views:
                raise StoreError(
                    f"{self.path}: view", got=repr(name), expected=f"one of {', '.join(self.views)}",
                    next_step="Require views that the store has.",
                )  # fmt: skip
            keep &= self._columns[name][0]
        return np.flatnonzero(keep)

    def __getitems__(self, ids: Sequence[int] | npt.NDArray[np.integer[Any]]) -> Samples:
        """A batch, in the order asked for; ids may repeat. The arrays are copies.

        Within each shard the rows are read in ascending order, so that a cold disk is read forwards.

        Raises:
            StoreError: an id that the store has not.
        """
        wanted = np.asarray(ids, dtype=np.int64).reshape(-1)
        if wanted.size and not (0 <= wanted.min() and wanted.max() < len(self)):
            raise StoreError(
                f"{self.path}: sample", got=f"ids from {wanted.min()} to {wanted.max()}",
                expected=f"0 to {len(self) - 1}", next_step="Ask for ids that `select` returns.",
            )  # fmt: skip
        order = np.argsort(wanted, kind="stable")
        in_order = wanted[order]
        ends = np.searchsorted(in_order, self._starts[1:])
        parts = []
        begin = 0
        for number, end in enumerate(ends):
            if end > begin:
                parts.append((number, in_order[begin:end] - self._starts[number], order[begin:end]))
            begin = int(end)
        return Samples(ids=wanted, views={name: self._batch(name, wanted, parts) for name in self.views})

    def __getitem__(self, sample: int) -> Samples:
        """One sample as a batch of one."""
        return self.__getitems__([sample])

    def verify(self) -> None:
        """Read every file and compare it with what was acknowledged.

        Raises:
            StoreError: a file has changed.
        """
        for shard in self.shards:
            for name, (_, digest) in shard.files.items():
                path = self.path / "shards" / shard.name / name
                if _digest(path) != digest:
                    raise _damaged(path, "other bytes than were written")

    def _batch(self, name: str, wanted: npt.NDArray[np.int64], parts: Sequence[tuple[int, Any, Any]]) -> ViewBatch:
        spec, (present, gsd, days) = self.views[name], self._columns[name]
        pixels = np.empty((len(wanted), len(spec.bands), spec.side, spec.side), dtype=spec.dtype)
        valid = np.empty((len(wanted), spec.side, spec.side), dtype=np.bool_)
        for number, rows, places in parts:
            stored, mask = self._arrays[number][name]
            # row by row, each straight to its place: gathering first would copy the batch twice
            for row, place in zip(rows.tolist(), places.tolist(), strict=True):
                pixels[place] = stored[row]
                valid[place] = mask[row]
        return ViewBatch(pixels=pixels, valid=valid, gsd_m=gsd[wanted], present=present[wanted], days=days[wanted])

    def _facts(self, name: str) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Presence ``[N]``, ground resolution ``[N, 2]`` and days ``[N]`` of a view."""
        time = self.index[f"{name}.time"].cast(pa.int64())
        days = _reals(pa.table({"time": time.cast(pa.float64())}), "time") / _MICROSECONDS_A_DAY
        epoch = EPOCH.timestamp() * 1e6 / _MICROSECONDS_A_DAY
        gsd = np.stack([_reals(self.index, f"{name}.gsd_{axis}") for axis in "xy"], axis=-1)
        return self.index[f"{name}.present"].to_numpy(), gsd, days - epoch

    def _map(self, shard: Shard, name: str, spec: ViewSpec) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
        folder = self.path / "shards" / shard.name
        shape = (shard.samples, len(spec.bands), spec.side, spec.side)
        pixels = _open_array(folder / f"{name}.npy", shape, spec.dtype)
        return pixels, _open_array(folder / f"{name}.valid.npy", (shape[0], *shape[2:]), "bool")


def normalise(
    spec: ViewSpec,
    pixels: npt.NDArray[Any],
    valid: npt.NDArray[np.bool_],
    *,
    method: str = "standard",
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Stored numbers of a view as a model's input, by the catalogue's fixed statistics.

    Args:
        spec: the view.
        pixels: ``[B, C, S, S]`` as they are stored.
        valid: ``[B, S, S]``.
        method: see ``Normalization``.

    Returns:
        Values ``[B, M, S, S]`` of the view's ``M`` measured bands (class bands are left out), and the pixels
        ``[B, S, S]`` they are good for; all others are 0.

    Raises:
        SensorError: a band or unit that the catalogue has no statistics for.
    """
    measured = list(spec.measured)
    normalization = _normalization(spec, method)
    chosen = pixels if len(measured) == len(spec.bands) else pixels[:, measured]
    encodings = [spec.encodings[i] for i in measured]
    return normalization.apply_batch(chosen, valid, encodings, source=f"view of {spec.sensor}")


@cache
def _normalization(spec: ViewSpec, method: str) -> Normalization:
    return Normalization.for_sensor(spec.the_sensor(), [spec.bands[i] for i in spec.measured], method)


def read_header(path: Path) -> Header:
    """What ``store.json`` in the directory ``path`` says.

    Raises:
        StoreError: there is none, or it cannot be read.
    """
    file = path / "store.json"
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        told = "no such file" if isinstance(error, FileNotFoundError | NotADirectoryError) else str(error)
        raise StoreError(
            str(path), got=told, expected="a store of tiles, with a readable store.json in it",
            next_step="Make one with `alidade tiles build`, or check the path.",
        ) from error  # fmt: skip
    return header_from_json(text, str(file))


def read_log(path: Path) -> tuple[list[Shard], dict[str, set[str]], int, int]:
    """What the manifest acknowledges.

    Returns:
        The shards; the keys that each plan has settled without a sample; the bytes up to the end of the last
        whole line; the bytes behind it, which were never acknowledged.

    Raises:
        StoreError: a whole line that cannot be understood.
    """
    shards: list[Shard] = []
    settled: dict[str, set[str]] = {}
    data = path.read_bytes() if path.exists() else b""
    whole = data.rfind(b"\n") + 1
    for number, line in enumerate(data[:whole].splitlines(), start=1):
        try:
            event = json.loads(line)
            if event["kind"] == "shard":
                files = {str(k): (int(size), str(digest)) for k, (size, digest) in event["files"].items()}
                if "/" in event["shard"] or any("/" in name for name in files):
                    raise ValueError("a path outside the store")
                shards.append(Shard(name=str(event["shard"]), samples=int(event["samples"]), files=files))
            elif event["kind"] == "settled":
                settled.setdefault(str(event["plan"]), set()).update(map(str, event["keys"]))
            else:
                raise ValueError(f"unknown kind {event['kind']!r}")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StoreError(
                f"{path}: line {number}", got=f"{type(error).__name__}: {error}",
                expected="one event of a tile store in JSON",
                next_step="Restore the manifest from a copy, or build the store again.",
            ) from error  # fmt: skip
    return shards, settled, whole, len(data) - whole


def check_files(path: Path, shards: Sequence[Shard]) -> None:
    """Whether every acknowledged file is there with its size.

    Raises:
        StoreError: one is not.
    """
    for shard in shards:
        for name, (size, _) in shard.files.items():
            file = path / "shards" / shard.name / name
            found = file.stat().st_size if file.is_file() else None
            if found != size:
                raise _damaged(file, "no such file" if found is None else f"{found:,} bytes, not {size:,}")


def _damaged(path: Path, got: str) -> StoreError:
    return StoreError(
        str(path), got=got, expected="the file as it was acknowledged",
        next_step="Restore it from a copy, or build the store again.",
    )  # fmt: skip


def _read_index(path: Path, schema: pa.Schema, rows: int) -> pa.Table:
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path, str(error).splitlines()[0]) from error
    if not table.schema.equals(schema) or table.num_rows != rows:
        raise _damaged(path, f"{table.num_rows} rows of other columns or number")
    return table


def _open_array(path: Path, shape: tuple[int, ...], dtype: str) -> npt.NDArray[Any]:
    try:
        array: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise _damaged(path, str(error)) from error
    if array.shape != shape or array.dtype != np.dtype(dtype):
        raise _damaged(path, f"{array.dtype} {array.shape}, not {dtype} {shape}")
    # a plain view of the mapping: indexing np.memmap itself builds a costly subclass each time
    return array.view(np.ndarray)


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_CHUNK):
            digest.update(piece)
    return digest.hexdigest()


def _reals(table: pa.Table, column: str) -> npt.NDArray[np.float64]:
    """A column as float64, null as NaN."""
    values: npt.NDArray[np.float64] = table[column].to_numpy(zero_copy_only=False).astype(np.float64)
    return values
