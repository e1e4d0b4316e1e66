"""A new index tried on queries whose true answer is known: how wide it has to look, and how good it is then."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from alidade.search.index import Index
from alidade.search.index_format import IndexHeader
from alidade.search.scan import leaders

GOAL = 0.995
"""Recall@50 that a trial must reach: the promise is 0.99."""
K = 50
_EFFORTS = ((8, 10), (16, 20), (32, 40), (64, 80))
_QUERIES, _FEW_QUERIES = 24, 8
_MANY_ROWS = 5_000_000
_NOISE = 0.3
_MARGIN = 0.9


def find_effort(index: Index) -> IndexHeader:
    """The header with the least effort (probes and refinement) that finds the true best 50 of trial queries.

    The queries are stored rows with noise, and means of two rows. Where no effort is enough, ``probes`` and ``refine``
    stay 0, and every query is compared with every match.
    """
    queries = trial_queries(index, _FEW_QUERIES if len(index) > _MANY_ROWS else _QUERIES)
    bars = [leaders(index.vectors, query, K, None)[1].min() for query in queries]
    header, recall = index.header, 0.0
    for probes, refine in _EFFORTS:
        recall = float(np.mean([_recall(index, q, bar, probes, refine) for q, bar in zip(queries, bars, strict=True)]))
        if recall >= GOAL:
            least = _MARGIN * min(index.share(query) for query in queries)
            return replace(header, probes=probes, refine=refine, recall=recall, least_share=least)
    return replace(header, recall=recall)


def trial_queries(index: Index, count: int) -> npt.NDArray[np.float32]:
    """Unit vectors ``[count, D]``: two thirds are single rows with noise, the others means of two rows."""
    rng = np.random.default_rng(0)
    dim = index.header.dim
    rows = index.vectors.stored[np.sort(rng.choice(len(index), 2 * count))].astype(np.float32)
    rows = rng.permutation(rows)
    noise = rng.standard_normal((count, dim), dtype=np.float32) * (_NOISE / dim**0.5)
    pairs = np.arange(count) % 3 == 2
    queries = rows[:count] + np.where(pairs[:, None], rows[count:], noise)
    return np.asarray(queries / np.linalg.norm(queries, axis=1, keepdims=True), dtype=np.float32)


def _recall(index: Index, query: npt.NDArray[np.float32], bar: float, probes: int, refine: int) -> float:
    found = index.candidates(query, refine * K, probes, None)
    scores = index.vectors.exact_scores(query, found)
    return min(1.0, float((scores >= bar).sum()) / min(K, len(index)))
