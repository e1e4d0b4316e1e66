"""Percentile bootstrap: how far a mean would move if other images had been drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alidade.errors import AlidadeError

DRAWS = 2000
_AT_ONCE = 50


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean with the 2.5 % and 97.5 % quantiles of its bootstrap distribution; ``n`` scores went in."""

    value: float
    low: float
    high: float
    n: int


def interval(scores: NDArray[Any], *, seed: int, groups: NDArray[Any] | None = None, draws: int = DRAWS) -> Interval:
    """The mean of ``scores`` with its 95 % percentile bootstrap interval (Efron 1979).

    Args:
        scores: ``[N]``, such as 1 where an image was classified right and 0 elsewhere.
        seed: of the draws.
        groups: ``[N]``, what is drawn with replacement: scores of one group come and go together. Scores of windows
            of one scene are alike; drawn singly they would make the interval too narrow.
        draws: how many times.

    Raises:
        AlidadeError: no scores, scores that are not finite, or groups of another length.
    """
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
        raise _refuse(f"shape {values.shape}, {int((~np.isfinite(values)).sum())} of them not finite", "finite [N]")
    if groups is not None and np.shape(groups) != values.shape:
        raise _refuse(f"groups {np.shape(groups)} for scores {values.shape}", "one group per score")
    _, group = np.unique(np.arange(len(values)) if groups is None else groups, return_inverse=True)
    sizes, sums = np.bincount(group), np.bincount(group, weights=values)
    rng, means = np.random.default_rng(seed), []
    for start in range(0, draws, _AT_ONCE):
        drawn = rng.integers(len(sums), size=(min(_AT_ONCE, draws - start), len(sums)))
        means.append(sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1))
    low, high = np.quantile(np.concatenate(means), (0.025, 0.975))
    return Interval(value=float(values.mean()), low=float(low), high=float(high), n=len(values))


def _refuse(got: str, expected: str) -> AlidadeError:
    return AlidadeError("bootstrap", got=got, expected=expected, next_step="Pass one score per image.")
