"""A disk cache around any text encoder: what has been encoded once needs no language model again.

    directory/
      cache.json               what this directory is
      <16 hex digits>/         one encoder: a hash of its identity
        encoder.json           the identity, the dimension
        vectors.bin            float32 rows
        keys.bin               one record per row: SHA-256 of the text, CRC-32 of the row, whether the text was cut

Both files only grow. Rows are written and synced before their records, so a record acknowledges a row; what a process
killed in between has left behind its last record is cut away by the next writer. Writers take turns (``lock``), readers
need no lock. A row that does not fit its checksum counts as missing: it is computed again and the newer record wins.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from alidade.imagery.atomic import atomic_write, is_temporary
from alidade.models.text.encoder import EncodedText, TextEncoder, TextError, check_texts

FORMAT = {"format": "alidade-text-cache", "version": 1}
CHUNK = 1024
"""Texts that are encoded and written at once: the most that a kill can lose."""
_RECORD = np.dtype([("text", "V32"), ("sum", "<u4"), ("cut", "<u4")])

Row = NDArray[np.float32]


class CachedEncoder:
    """A ``TextEncoder`` that remembers on disk.

    ``inner`` is asked only for texts that are not there; the encoders of this package load their model when they are
    first asked to encode, so a list that is wholly cached loads none (its files are read once, for the identity).
    Several processes may use one directory at a time, and several encoders: each has its own folder.

    Args:
        inner: the encoder.
        directory: made when the first vector is written.

    Attributes:
        hits: texts found so far; a text that occurs twice in one call counts once.
        misses: texts that were encoded.
        damaged: rows that did not fit their checksum and were encoded again (counted among the misses too).

    Raises:
        TextError: ``directory`` is there and is no cache, or its folder belongs to another encoder.
    """

    def __init__(self, inner: TextEncoder, directory: Path) -> None:
        self.inner, self.directory = inner, Path(directory)
        self.hits = self.misses = self.damaged = 0
        _check_directory(self.directory)
        self._shelf = _Shelf(self.directory / _digest(inner.identity).hex()[:16], inner.identity)

    def __repr__(self) -> str:
        return f"CachedEncoder({self.inner!r}, {str(self.directory)!r})"

    @property
    def identity(self) -> str:
        """The inner encoder's."""
        return self.inner.identity

    @property
    def dim(self) -> int:
        """Length of a vector; asks the inner encoder only while nothing is cached."""
        return self._shelf.dim or self.inner.dim

    def encode(self, texts: Sequence[str]) -> EncodedText:
        """One vector per text, ``[N, D]`` float32, bit for bit what the inner encoder gave.

        Raises:
            TextError: of the inner encoder; or the cache cannot be read or written.
        """
        items = check_texts(texts)
        keys = {text: _digest(text) for text in items}
        known = self._look_up(keys)
        self.hits += len(known)
        missing = [text for text in keys if text not in known]
        for start in range(0, len(missing), CHUNK):
            part = missing[start : start + CHUNK]
            fresh = self.inner.encode(part)
            self.misses += len(part)
            _check_directory(self.directory, make=True)
            cut = [i in set(fresh.cut) for i in range(len(part))]
            self._shelf.append([keys[t] for t in part], fresh.vectors, cut)
            known.update({t: (v, c) for t, v, c in zip(part, fresh.vectors, cut, strict=True)})
        found = [known[text] for text in items]
        return EncodedText(
            vectors=np.stack([vector for vector, _ in found]), cut=tuple(i for i, (_, cut) in enumerate(found) if cut)
        )

    def _look_up(self, keys: dict[str, bytes]) -> dict[str, tuple[Row, bool]]:
        rows = self._shelf.read(list(keys.values()))
        self.damaged += sum(row is None for row in rows.values())
        found = {text: rows.get(key) for text, key in keys.items()}
        return {text: row for text, row in found.items() if row is not None}


class _Shelf:
    """The rows of one encoder."""

    def __init__(self, folder: Path, identity: str) -> None:
        self.folder, self.identity = folder, identity
        self.dim = 0
        self._rows: dict[bytes, int] = {}
        self._seen = 0
        if folder.exists():
            self._open()

    def _open(self) -> None:
        """Take the dimension from encoder.json, once.

        Raises:
            TextError: it is missing or damaged, or names another encoder.
        """
        if self.dim:
            return
        about = self.folder / "encoder.json"
        try:
            told = json.loads(about.read_text(encoding="utf-8"))
            identity, dim = told["identity"], told["dim"]
        except FileNotFoundError:
            if any(not is_temporary(p) and p.name != "lock" for p in self.folder.iterdir()):
                raise _refusal(about, "no such file", "one beside keys.bin") from None
            return
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise _refusal(about, f"{type(error).__name__}: {error}", "identity and dimension in JSON") from error
        if identity != self.identity or type(dim) is not int or dim < 1:
            raise _refusal(about, f"{dim!r} numbers of {identity!r}", f"vectors of {self.identity!r}")
        self.dim = dim

    def read(self, keys: Sequence[bytes]) -> dict[bytes, tuple[Row, bool] | None]:
        """The rows that are there, by key; None for one that does not fit its checksum, which is then forgotten."""
        if not self.folder.exists():
            return {}
        self._open()
        if not self.dim:
            return {}
        found: dict[bytes, tuple[Row, bool] | None] = {}
        with _disk(self.folder, "reading"):
            records = self._refresh()
            if not self._seen:
                return {}
            with (self.folder / "vectors.bin").open("rb") as vectors:
                for key in keys:
                    row = self._rows.get(key)
                    if row is None:
                        continue
                    data = os.pread(vectors.fileno(), 4 * self.dim, 4 * self.dim * row)
                    record = records[row]
                    whole = len(data) == 4 * self.dim and record["sum"] == _checksum(key, data, int(record["cut"]))
                    found[key] = (np.frombuffer(data, dtype="<f4"), bool(record["cut"])) if whole else None
        for key in (k for k, row in found.items() if row is None):
            del self._rows[key]
        return found

    def _refresh(self) -> NDArray[np.void]:
        """All acknowledged records; takes those into the index that came since the last look."""
        try:
            records = np.frombuffer(self._whole_records(), dtype=_RECORD)
        except FileNotFoundError:
            records = np.zeros(0, dtype=_RECORD)
        if len(records) < self._seen:  # another process has emptied the cache
            self._rows, self._seen = {}, 0
        for row, key in enumerate(records["text"][self._seen :].tolist(), start=self._seen):
            self._rows[key] = row
        self._seen = len(records)
        return records

    def _whole_records(self) -> bytes:
        data = (self.folder / "keys.bin").read_bytes()
        rows = min(len(data) // _RECORD.itemsize, (self.folder / "vectors.bin").stat().st_size // (4 * self.dim))
        return data[: rows * _RECORD.itemsize]

    def append(self, keys: Sequence[bytes], vectors: NDArray[np.float32], cut: Sequence[bool]) -> None:
        """Add rows that no other process has added in the meantime, and sync them to the disk."""
        with _disk(self.folder, "writing"):
            self.folder.mkdir(exist_ok=True)
            with _locked(self.folder / "lock"):
                self._open()
                if not self.dim:
                    about = {"identity": self.identity, "dim": int(vectors.shape[1])}
                    with atomic_write(self.folder / "encoder.json") as temporary:
                        temporary.write_text(json.dumps(about) + "\n", encoding="utf-8")
                    self.dim = int(vectors.shape[1])
                if vectors.shape[1] != self.dim:
                    raise _refusal(self.folder, f"{vectors.shape[1]} numbers a vector", f"{self.dim}, as those stored")
                self._refresh()
                new = [i for i, key in enumerate(keys) if key not in self._rows]
                self._write([keys[i] for i in new], vectors[new], [cut[i] for i in new])

    def _write(self, keys: Sequence[bytes], vectors: NDArray[np.float32], cut: Sequence[bool]) -> None:
        rows = [np.ascontiguousarray(v, dtype="<f4").tobytes() for v in vectors]
        records = np.zeros(len(keys), dtype=_RECORD)
        for i, (key, row) in enumerate(zip(keys, rows, strict=True)):
            records[i] = (np.void(key), _checksum(key, row, int(cut[i])), int(cut[i]))
        _append(self.folder / "vectors.bin", b"".join(rows), at=self._seen * 4 * self.dim)
        _append(self.folder / "keys.bin", records.tobytes(), at=self._seen * _RECORD.itemsize)
        self._refresh()


def _append(path: Path, data: bytes, *, at: int) -> None:
    """Write ``data`` at byte ``at``, where the acknowledged content ends, and cut away what lay behind."""
    with path.open("r+b" if path.exists() else "w+b") as file:
        file.truncate(at)
        file.seek(at)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _checksum(key: bytes, row: bytes, cut: int) -> int:
    return zlib.crc32(row, zlib.crc32(key + cut.to_bytes(4, "little")))


def _check_directory(directory: Path, *, make: bool = False) -> None:
    """Refuse a directory with other content; make an empty or missing one a cache, if asked to.

    Raises:
        TextError: it is no cache, or cannot be read or written.
    """
    about = directory / "cache.json"
    with _disk(directory, "opening"):
        if make:
            directory.mkdir(parents=True, exist_ok=True)
        if not directory.exists():
            return
        if about.exists():
            try:
                told = json.loads(about.read_text(encoding="utf-8"))
            except ValueError:
                told = "no JSON"
            if told != FORMAT:
                raise _refusal(about, f"{told!r:.80}", json.dumps(FORMAT))
        elif not directory.is_dir() or any(not is_temporary(p) for p in directory.iterdir()):
            raise _refusal(directory, "something else than a text cache", "a cache, or a new or empty directory")
        elif make:
            with atomic_write(about) as temporary:
                temporary.write_text(json.dumps(FORMAT) + "\n", encoding="utf-8")


def _refusal(path: Path, got: str, expected: str) -> TextError:
    return TextError(
        f"{path}: text cache",
        got=got,
        expected=expected,
        next_step="Name another directory, or delete this one: a cache can be made again.",
    )


@contextmanager
def _disk(path: Path, doing: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise TextError(
            f"{path}: {doing} the text cache",
            got=error.strerror or type(error).__name__,
            expected="a disk with room, and permission",
            next_step="Make room or name another directory.",
        ) from error


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
