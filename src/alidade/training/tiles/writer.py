"""The one writer of a tile store: creates it, repairs it after a kill, appends acknowledged shards."""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import re
import secrets
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from alidade.imagery.atomic import atomic_write, is_temporary
from alidade.training.tiles.leakage import Ground, Guard
from alidade.training.tiles.schema import (
    Header,
    Sample,
    StoreError,
    ViewSpec,
    check_sample,
    check_view_names,
    index_row,
    index_schema,
)
from alidade.training.tiles.store import Shard, TileStore, check_files, read_header, read_log

SHARD_SAMPLES = 4096
SHARD_BYTES = 256 * 2**20
"""``full`` holds from so many samples or bytes on; a caller may also append fewer."""

_LOCK = ".lock"
_SHARD_NAME = re.compile(r"\d{6,}")


class StoreWriter:
    """The one writer of a store: a context manager that creates or opens it, repairs it and appends to it.

    A shard is a directory that is built under a temporary name, synced, renamed, and then acknowledged by one
    synced line in the manifest. Killed at any moment, the next writer removes what was not acknowledged.

    Attributes:
        path: the store's directory.
        views, ground_m: what every sample holds.
        repairs: what was put right on entering, one sentence each.

    Args:
        path: the directory; it may not exist yet.
        views: the views by name; an existing store must have just these, in this order.
        ground_m: side of the ground square in metres, ``None`` for samples of another layout.

    Raises:
        StoreError: on entering: ``path`` is something else, has other views, is damaged, or another process is
            writing.
    """

    def __init__(self, path: str | Path, *, views: Mapping[str, ViewSpec], ground_m: float | None) -> None:
        check_view_names(views)
        self.path, self.views, self.ground_m = Path(path), dict(views), ground_m
        self.repairs: tuple[str, ...] = ()
        self._guard = Guard()
        self._split_of: dict[str, str] = {}
        self._settled: dict[str, set[str]] = {}
        self._shards: list[Shard] = []

    def __enter__(self) -> Self:
        _make_folder(self.path)
        self._lock = _lock(self.path)
        try:
            self._open()
        except BaseException:
            os.close(self._lock)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._lock)

    def __len__(self) -> int:
        """Acknowledged samples."""
        return len(self._split_of)

    def split_of(self, sample_id: str) -> str | None:
        """The split of a sample that is in the store, else ``None``."""
        return self._split_of.get(sample_id)

    def settled(self, plan: str) -> frozenset[str]:
        """Keys that an earlier run of the same plan found to give no sample."""
        return frozenset(self._settled.get(plan, ()))

    def conflict(self, ground: Ground) -> Ground | None:
        """A ground of another split in the store that shares ground with this one."""
        return self._guard.conflict(ground)

    def check_ground(self, ground: Ground) -> None:
        """Refuse a ground that lies in another split of the store already.

        Raises:
            StoreError: it would leak.
        """
        self._guard.check(ground, str(self.path))

    def append(self, samples: Sequence[Sample]) -> None:
        """Write one shard and acknowledge it; all of ``samples`` or, on an error, none.

        Raises:
            StoreError: a sample does not fit the views, is there already or would leak to another split; or the
                disk is full or refuses. Nothing torn is left, and the store stays usable.
        """
        if not samples:
            return
        self._check(samples)
        name = f"{int(self._shards[-1].name) + 1 if self._shards else 0:06d}"
        temporary = self.path / "shards" / f".{name}.{secrets.token_hex(4)}.alidade-part"
        final = self.path / "shards" / name
        try:
            temporary.mkdir()
            files = self._write_files(temporary, samples)
            _sync_folder(temporary)
            os.rename(temporary, final)
            _sync_folder(final.parent)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise _refused(final, error) from error
        event = {
            "kind": "shard", "shard": name, "samples": len(samples),
            "files": {file: list(facts) for file, facts in files.items()},
        }  # fmt: skip
        try:
            self._acknowledge(event)
        except StoreError:
            shutil.rmtree(final)
            raise
        self._shards.append(Shard(name=name, samples=len(samples), files=files))
        for sample in samples:
            self._take(sample.sample_id, Ground.of(sample))

    def settle(self, plan: str, keys: Sequence[str]) -> None:
        """Note that these keys give no sample under this plan, so that a second run need not try again.

        Raises:
            StoreError: the disk is full or refuses.
        """
        if keys:
            self._acknowledge({"kind": "settled", "plan": plan, "keys": list(keys)})
            self._settled.setdefault(plan, set()).update(keys)

    def _open(self) -> None:
        wanted = Header(views=self.views, ground_m=self.ground_m)
        if (self.path / "store.json").exists():
            _check_same(self.path, read_header(self.path), wanted)
        else:
            try:
                with atomic_write(self.path / "store.json") as temporary:
                    temporary.write_text(wanted.to_json(), encoding="utf-8")
            except OSError as error:
                raise _refused(self.path / "store.json", error) from error
        (self.path / "shards").mkdir(exist_ok=True)
        log = self.path / "manifest.jsonl"
        self._shards, self._settled, whole, torn = read_log(log)
        repairs = []
        if torn:
            os.truncate(log, whole)
            repairs.append(f"Dropped an unfinished last line ({torn} bytes) from the manifest.")
        check_files(self.path, self._shards)
        self.repairs = (*repairs, *self._remove_leftovers())
        index = TileStore(self.path, wanted, self._shards).index
        columns = ("sample_id", "square", "split", "xmin", "ymin", "xmax", "ymax")
        for sample_id, square, split, *box in zip(*(index[c].to_pylist() for c in columns), strict=True):
            west, south, east, north = box
            self._take(
                sample_id, Ground(key=square, split=split, bbox=None if west is None else (west, south, east, north))
            )

    def _take(self, sample_id: str, ground: Ground) -> None:
        self._split_of[sample_id] = ground.split
        self._guard.add(ground)

    def _remove_leftovers(self) -> list[str]:
        known = {s.name for s in self._shards}
        repairs = []
        for path in sorted([*self.path.iterdir(), *(self.path / "shards").iterdir()]):
            if is_temporary(path):
                repairs.append(f"Removed {path.name}: an unfinished part of a run that was interrupted.")
            elif path.parent.name == "shards" and _SHARD_NAME.fullmatch(path.name) and path.name not in known:
                repairs.append(f"Removed shard {path.name}: it was never acknowledged.")
            else:
                continue
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
        return repairs

    def _check(self, samples: Sequence[Sample]) -> None:
        new: set[str] = set()
        fresh = Guard()
        for sample in samples:
            check_sample(sample, self.views)
            if sample.sample_id in self._split_of or sample.sample_id in new:
                raise StoreError(
                    f"{self.path}: sample", got=f"{sample.sample_id!r} a second time", expected="each id once",
                    next_step="Leave out what the store has, or give other ids.",
                )  # fmt: skip
            ground = Ground.of(sample)
            self._guard.check(ground, sample.sample_id)
            fresh.check(ground, sample.sample_id)
            new.add(sample.sample_id)
            fresh.add(ground)

    def _write_files(self, folder: Path, samples: Sequence[Sample]) -> dict[str, tuple[int, str]]:
        """Write and sync a shard's files; their sizes and digests."""
        files = {}
        for name, spec in self.views.items():
            shape = (len(spec.bands), spec.side, spec.side)
            views = [s.views.get(name) for s in samples]
            files[f"{name}.npy"] = _write_array(
                folder / f"{name}.npy", shape, spec.dtype, [None if v is None else v.pixels for v in views]
            )
            files[f"{name}.valid.npy"] = _write_array(
                folder / f"{name}.valid.npy", shape[1:], "bool", [None if v is None else v.valid for v in views]
            )
        rows = [index_row(s, self.views) for s in samples]
        content = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows, schema=index_schema(self.views)), content, compression="zstd")
        files["index.parquet"] = _write_pieces(folder / "index.parquet", [content.getvalue()])
        return files

    def _acknowledge(self, event: dict[str, object]) -> None:
        line = json.dumps(event, ensure_ascii=False).encode() + b"\n"
        path = self.path / "manifest.jsonl"
        log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            size = os.fstat(log).st_size
            try:
                written = os.write(log, line)
                if written < len(line):
                    raise OSError(f"only {written} of {len(line)} bytes could be written")
                os.fsync(log)
            except OSError as error:
                os.ftruncate(log, size)
                raise _refused(path, error) from error
            if size == 0:
                _sync_folder(self.path)
        finally:
            os.close(log)


def full(samples: int, nbytes: int) -> bool:
    """Whether so many samples of so many bytes (``Sample.nbytes``) together should become a shard."""
    return samples >= SHARD_SAMPLES or nbytes >= SHARD_BYTES


def _write_array(path: Path, shape: tuple[int, ...], dtype: str, items: Sequence[Any]) -> tuple[int, str]:
    """One ``.npy`` of all items, zeros for ``None``; written piece by piece, so that nothing is copied whole."""
    head = io.BytesIO()
    kind = np.dtype(dtype)
    np.lib.format.write_array_header_1_0(
        head, {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": (len(items), *shape)}
    )
    zeros = np.zeros(shape, dtype=kind)
    pieces = [np.ascontiguousarray(zeros if item is None else item).data for item in items]
    return _write_pieces(path, [head.getvalue(), *pieces])


def _write_pieces(path: Path, pieces: Sequence[bytes | memoryview]) -> tuple[int, str]:
    digest, size = hashlib.sha256(), 0
    with path.open("xb") as file:
        for piece in pieces:
            file.write(piece)
            digest.update(piece)
            size += memoryview(piece).nbytes
        file.flush()
        os.fsync(file.fileno())
    return size, digest.hexdigest()


def _check_same(path: Path, found: Header, wanted: Header) -> None:
    if found.ground_m != wanted.ground_m:
        raise _other(path, f"squares of {found.ground_m} m", f"{wanted.ground_m} m")
    if list(found.views) != list(wanted.views):
        raise _other(path, f"views {', '.join(found.views)}", ", ".join(wanted.views))
    for name, spec in found.views.items():
        new = wanted.views[name]
        # nodata is only history; as NaN it would differ from itself
        parts = [(p.sensor, p.bands, p.side, p.dtype, [(e.unit, e.scale, e.offset) for e in p.encodings])
                 for p in (spec, new)]  # fmt: skip
        if parts[0] != parts[1]:
            raise _other(path, f"view {name} = {_told(spec)}", _told(new))


def _told(spec: ViewSpec) -> str:
    codes = sorted({f"{e.unit.value} = stored * {e.scale:g} {e.offset:+g}" for e in spec.encodings})
    return f"{spec.sensor} {','.join(spec.bands)} {spec.side} px {spec.dtype} ({'; '.join(codes)})"


def _other(path: Path, got: str, expected: str) -> StoreError:
    return StoreError(
        f"{path}: the store", got=got, expected=f"{expected}, as asked for now",
        next_step="Ask for the store's own views and squares, or name another --out.",
    )  # fmt: skip


def _make_folder(path: Path) -> None:
    if path.exists() and not path.is_dir():
        got = "a file"
    elif path.is_dir() and not (path / "store.json").exists() and any(path.iterdir()) and not (path / _LOCK).is_file():
        got = "a directory with other content"
    else:
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _refused(path, error) from error
        return
    raise StoreError(
        str(path), got=got, expected="a tile store, or a directory that does not exist yet",
        next_step="Name another --out.",
    )  # fmt: skip


def _lock(path: Path) -> int:
    """Descriptor of the lock; closing it, or the end of the process however it comes, gives the lock back."""
    try:
        lock = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise _refused(path / _LOCK, error) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        if not isinstance(error, BlockingIOError):
            raise _refused(path / _LOCK, error) from error
        raise StoreError(
            str(path), got="another process that is writing to it", expected="one writer at a time",
            next_step="Wait until the other `alidade tiles` has ended, then run this one again.",
        ) from None  # fmt: skip
    return lock


def _sync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _refused(path: Path, error: OSError) -> StoreError:
    return StoreError(
        f"{path}: writing", got=error.strerror or str(error), expected="room on the disk and permission to write",
        next_step="Make room or choose another --out, then run the same command again: it goes on from here.",
    )  # fmt: skip
