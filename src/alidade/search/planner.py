"""Which way a question is answered: every match compared, or the index asked first; and what happens without it."""

from __future__ import annotations

import os
import time as clock
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Lock

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from alidade.errors import AlidadeError
from alidade.search.archive import Archive
from alidade.search.filters import Filter, check_k
from alidade.search.index import Index, Rows
from alidade.search.index_build import build_index
from alidade.search.index_format import FOLDER, HEADER, IndexUnusable
from alidade.search.scan import Hits, Scanner, in_order, leaders, with_embeddings
from alidade.search.schema import unit_rows
from alidade.search.store import ExactStore

FEW_ON_DISK = 100_000
"""Up to so many matches are compared one by one where LanceDB has to find them."""
_WORTHWHILE = 0.2

Say = Callable[[str], None]


class PlannedStore:
    """An archive's rows through its index, as a :class:`alidade.search.store.Store`.

    Matches are counted first. Few are compared one by one, and the answer is exact. Of many, the index brings
    candidates by their short vectors, which are then compared in full: their scores are exact, but a row may be missed.
    Conditions with a polygon, questions for very many results, and queries that short vectors hardly describe are
    always compared one by one.

    When the index is removed, replaced or damaged meanwhile, the exact scanner answers, and ``say`` is told.

    Attributes:
        archive: as it was opened.
        notes: what has been told.

    Args:
        archive: as it was opened.
        index: of that state of the archive; ``None`` when there is none.
        say: is told in a sentence when the way of searching changes.

    Raises:
        ArchiveError: there is no index, and a shard is damaged.
    """

    def __init__(self, archive: Archive, index: Index | None, say: Say | None = None) -> None:
        self.archive, self._index, self._say = archive, index, say
        self.notes: list[str] = []
        self._lock = Lock()
        self._exact: ExactStore | None = None
        self._seen = _seen(archive.path)
        if index is None:
            self._exact = ExactStore(Scanner(archive))

    @property
    def archive_id(self) -> str:
        """The archive's path."""
        return str(self.archive.path)

    @property
    def model(self) -> str:
        """Identity of the embedding space."""
        return self.archive.header.model

    @property
    def dim(self) -> int:
        """Length of the embeddings."""
        return self.archive.header.dim

    @property
    def indexed(self) -> int:
        """Rows that the index covers; 0 without one."""
        return 0 if self._index is None else len(self._index)

    @property
    def exact_limit(self) -> int | None:
        """Up to so many matches every one is compared; ``None``: always."""
        index = self._index
        return None if index is None or not index.header.refine else _limit(index)

    def __len__(self) -> int:
        return self.archive.rows

    def count(self, conditions: Filter) -> int:
        """See :class:`Store`."""
        index = self._usable()
        if index is not None:
            try:
                return index.count(conditions)
            except IndexUnusable as error:
                self._give_up(error)
        return self._scanner().count(conditions)

    def search(
        self, vector: npt.NDArray[np.float32], k: int, conditions: Filter, *, describe: str = "a vector"
    ) -> Hits:
        """See :class:`Store`."""
        index = self._usable()
        if index is not None:
            try:
                return _answer(index, vector, k, conditions, describe)
            except IndexUnusable as error:
                self._give_up(error)
        return self._scanner().search(vector, k, conditions, describe=describe)

    def rows(self, ids: Sequence[str]) -> pa.Table:
        """See :class:`Store`."""
        index = self._usable()
        if index is not None:
            try:
                rows = index.rows_of(ids)
                return with_embeddings(index.take(rows), index.vectors.stored[rows])
            except IndexUnusable as error:
                self._give_up(error)
        return self._scanner().rows(ids)

    def _usable(self) -> Index | None:
        """The index, after a look whether it is still the one that was opened."""
        with self._lock:
            seen = _seen(self.archive.path)
            if seen == self._seen:
                return self._index
            self._seen = seen
            had = self._index is not None
            try:
                self._index = Index.open(self.archive)
            except IndexUnusable as error:
                self._index = None
                if had:
                    self._tell(f"Searching without the index from now on: it was removed or replaced ({error.got}).")
            else:
                self._tell("Searching with the index that was made meanwhile.")
            return self._index

    def _give_up(self, error: IndexUnusable) -> None:
        with self._lock:
            if self._index is not None:
                self._index = None
                self._tell(f"Searching without the index from now on: {error}")

    def _tell(self, sentence: str) -> None:
        self.notes.append(sentence)
        if self._say is not None:
            self._say(sentence)

    def _scanner(self) -> ExactStore:
        with self._lock:
            if self._exact is None:
                self._exact = ExactStore(Scanner(self.archive))
            return self._exact


def open_store(path: str | Path, *, heal: bool = True, say: Say | None = None) -> PlannedStore:
    """An archive, searched through its index where it has one.

    Args:
        path: the archive.
        heal: bring an index that is behind the archive, or damaged, up to date first. Where there never was one, none
            is made.
        say: is told in a sentence what was mended, and why a search goes without the index.

    Raises:
        ArchiveError: no archive, or a damaged one.
    """
    archive = Archive.open(path)
    told: list[str] = []

    def tell(sentence: str) -> None:
        told.append(sentence)
        if say is not None:
            say(sentence)

    try:
        index: Index | None = Index.open(archive)
    except IndexUnusable as error:
        index = _healed(archive, error, tell) if heal and error.got != "none" else None
        if index is None and not told:
            tell(f"Searching without an index: got {error.got}. {error.next_step}")
    store = PlannedStore(archive, index, say)
    store.notes.extend(told)
    return store


def _healed(archive: Archive, error: IndexUnusable, tell: Say) -> Index | None:
    try:
        summary = build_index(archive.path)
        index = Index.open(archive)
    except AlidadeError as refused:
        tell(f"Searching without the index: {error.got}; mending it failed: {refused}")
        return None
    for sentence in summary.repairs or (f"The index was {error.got}. {summary.sentence()}",):
        tell(sentence)
    return index


def _answer(index: Index, query: npt.NDArray[np.float32], k: int, conditions: Filter, describe: str) -> Hits:
    began = clock.perf_counter()
    vector = unit_rows(np.asarray(query)[None], dim=index.header.dim, what="query")[0]
    check_k(k)
    rows, matches, exact = _to_compare(index, vector, k, conditions)
    near, scores = leaders(index.vectors, vector, k, rows)
    table = index.take(near)
    best = in_order(table["id"], scores)[:k]
    return Hits(
        table=table.take(best).append_column("score", pa.array(scores[best], pa.float32())),
        model=index.header.model,
        query={"like": describe, "k": k, **conditions.describe()},
        vector=vector,
        matches=matches,
        scanned=matches if rows is None else len(rows),
        seconds=clock.perf_counter() - began,
        exact=exact,
    )


def _to_compare(
    index: Index, vector: npt.NDArray[np.float32], k: int, conditions: Filter
) -> tuple[Rows | None, int, bool]:
    """The rows to compare in full (``None``: all), how many rows match, and whether those are all of them."""
    rows = index.matching(conditions) if index.in_memory or conditions.polygon is not None else None
    matches = index.count(conditions) if rows is None else len(rows)
    if rows is not None and conditions.polygon is not None:
        return rows, matches, True
    wide = index.header.refine > 0 and matches > _limit(index) and index.wanted(k) <= _WORTHWHILE * matches
    if wide and index.share(vector) >= index.header.least_share:
        found = index.nearest(vector, k, conditions)
        if len(found) >= min(k, matches):
            return found, matches, False
    if matches == len(index):
        return None, matches, True
    return index.matching(conditions) if rows is None else rows, matches, True


def _limit(index: Index) -> int:
    return index.header.exact_rows if index.in_memory else min(index.header.exact_rows, FEW_ON_DISK)


def _seen(archive: Path) -> tuple[int, int, int] | None:
    """What tells one header file from another; ``None`` when there is none."""
    try:
        status = os.stat(archive / FOLDER / HEADER)
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns
