"""Stored float16 vectors in memory, and the cosine of one query with all or some of them."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import numpy.typing as npt
import torch

Rows = npt.NDArray[np.intp]

ROUGH_ERROR = 1e-5
"""Bound on the error of ``Vectors.scores``: a float32 product of unit vectors of up to a few thousand numbers."""
# 1,024 rows of 256 numbers are 1 MiB as float32: they stay in a core's own cache between conversion and product
_PIECE_BYTES = 1_048_576
_TASKS_PER_WORKER = 8
_EXACT_ROWS = 65_536


class Vectors:
    """Vectors ``[N, D]`` of about unit length, kept as float16.

    Work is shared out among threads that each run plain single-threaded operations. The usual way, one
    operation shared by all cores, makes the cores wait for each other after every piece: with another process
    busy, one million rows took over ten seconds that way, and 115 ms this way (45 ms on idle cores, both).

    Args:
        stored: ``[N, D]``.
        inverse_lengths: ``[N]``, one over the length of each row; by default every row is read to find them.
    """

    def __init__(self, stored: npt.NDArray[np.float16], inverse_lengths: npt.NDArray[np.float32] | None = None) -> None:
        self.stored = stored
        self._tensor = torch.from_numpy(stored)
        self._pool = _single_threaded_workers()
        self._piece = max(64, _PIECE_BYTES // (4 * stored.shape[1]))
        if inverse_lengths is not None:
            self._inverse_lengths = torch.from_numpy(inverse_lengths)
            return
        self._inverse_lengths = torch.empty(len(stored))
        self._share_out(len(stored), self._measure)

    def scores(self, query: npt.NDArray[np.float32], rows: Rows | None = None) -> npt.NDArray[np.float32]:
        """Cosines with the unit vector ``query`` ``[D]``, of all rows or of ``rows`` ``[M]``; see ``ROUGH_ERROR``."""
        vector = torch.from_numpy(query)
        index = None if rows is None else torch.from_numpy(rows)
        total = len(self._tensor) if index is None else len(index)
        out = torch.empty(total)

        def work(start: int, stop: int, narrow: torch.Tensor, wide: torch.Tensor) -> None:
            if index is None:
                part = self._tensor[start:stop]
            else:
                part = torch.index_select(self._tensor, 0, index[start:stop], out=narrow[: stop - start])
            torch.mv(wide[: stop - start].copy_(part), vector, out=out[start:stop])

        self._share_out(total, work)
        out *= self._inverse_lengths if index is None else self._inverse_lengths[index]
        return np.asarray(out.numpy())

    def exact_scores(self, query: npt.NDArray[np.float32], rows: Rows) -> npt.NDArray[np.float64]:
        """Cosines in float64, summed in one order for every row, so that equal rows get equal scores."""
        vector = query.astype(np.float64)
        vector /= np.sqrt((vector * vector).sum())
        out = np.empty(len(rows))
        for start in range(0, len(rows), _EXACT_ROWS):
            part = self.stored[rows[start : start + _EXACT_ROWS]].astype(np.float64)
            lengths = np.sqrt((part * part).sum(axis=1))
            out[start : start + _EXACT_ROWS] = (part * vector).sum(axis=1) / lengths
        return out

    def _measure(self, start: int, stop: int, narrow: torch.Tensor, wide: torch.Tensor) -> None:
        part = wide[: stop - start].copy_(self._tensor[start:stop])
        # rounding to float16 moves lengths by up to 0.05 %
        self._inverse_lengths[start:stop] = torch.linalg.vector_norm(part, dim=1).reciprocal()

    def _share_out(self, total: int, work: Callable[[int, int, torch.Tensor, torch.Tensor], None]) -> None:
        """``work(start, stop, narrow, wide)`` over pieces of ``range(total)`` that fit a core's cache.

        ``narrow`` (float16) and ``wide`` (float32) are room for one piece, used again for the next.
        """
        task = max(self._piece, -(-total // (_TASKS_PER_WORKER * torch.get_num_threads())))

        def run(first: int) -> None:
            narrow = torch.empty((self._piece, self.stored.shape[1]), dtype=torch.float16)
            wide = torch.empty((self._piece, self.stored.shape[1]))
            last = min(first + task, total)
            for start in range(first, last, self._piece):
                work(start, min(start + self._piece, last), narrow, wide)

        list(self._pool.map(run, range(0, total, task)))


def _single_threaded_workers() -> ThreadPoolExecutor:
    """As many threads as torch would use, each of which runs its own operations alone."""
    count = torch.get_num_threads()
    pool = ThreadPoolExecutor(count, "alidade-scan", initializer=torch.set_num_threads, initargs=(1,))
    all_started = Barrier(count)
    list(pool.map(lambda _: all_started.wait(), range(count)))
    # their setting is their own, but threads born later would inherit the last one made
    torch.set_num_threads(count)
    return pool
