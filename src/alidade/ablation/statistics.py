"""Bootstrap over seeds and images together, and the table of everything measured in one setting."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from alidade.ablation.config import REFERENCE, UNTRAINED
from alidade.ablation.run import COMPUTE, PREFIX, TRIVIAL
from alidade.ablation.scores import Key, Run, Scored
from alidade.errors import AlidadeError
from alidade.evaluation.results import Result, ResultsError, latest
from alidade.models.positions import VARIANTS

DRAWS = 10_000
LEVEL = 0.95
_DRAWN_WITH = 0


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over seeds and images.

    Attributes:
        value: the mean.
        low, high: its 95 % interval.
        strict_low, strict_high: the interval widened for several comparisons at once (Bonferroni).
        seeds, n: how many seeds and scores went in.
    """

    value: float
    low: float
    high: float
    strict_low: float
    strict_high: float
    seeds: int
    n: int

    @property
    def sign(self) -> int:
        """1 above zero, -1 below, 0 where the widened interval holds zero."""
        return 1 if self.strict_low > 0 else -1 if self.strict_high < 0 else 0


def estimate(scores: NDArray[np.float64], groups: NDArray[np.int64] | None = None, *, comparisons: int = 1) -> Estimate:
    """The mean of scores ``[S, N]`` with percentile bootstrap intervals.

    Each draw takes S of the seeds and N of the images (or groups of them), both with replacement; the images are the
    same for all seeds, as they were in the measurement. With one seed only images are drawn.

    Args:
        scores: of S seeds on the same N images, or differences of two variants' scores.
        groups: ``[N]``, images that are drawn together.
        comparisons: how many intervals are to hold together in the widened one.

    Raises:
        AlidadeError: no scores, or groups of another length.
    """
    if scores.ndim != 2 or 0 in scores.shape or (groups is not None and groups.shape != scores.shape[1:]):
        raise AlidadeError(
            "bootstrap over seeds and images",
            got=f"scores {scores.shape}, groups {None if groups is None else groups.shape}",
            expected="scores [seeds, images] and one group per image",
            next_step="Pass scores of the same images for all seeds.",
        )
    seeds, n = scores.shape
    _, group = np.unique(np.arange(n) if groups is None else groups, return_inverse=True)
    sizes = np.bincount(group)
    sums = np.stack([np.bincount(group, weights=row) for row in scores])
    drawn, chosen = _counts(len(sizes)), _counts(seeds)
    # images weigh by how often they were drawn, seeds likewise: [draws, seeds]
    by_seed = (drawn @ sums.T) / (drawn @ sizes)[:, None]
    means = (by_seed * chosen).sum(axis=1) / seeds
    tail = (1 - LEVEL) / 2
    wanted = (tail, 1 - tail, tail / comparisons, 1 - tail / comparisons)
    low, high, strict_low, strict_high = (float(q) for q in np.quantile(means, wanted))
    value = float(scores.mean())
    return Estimate(value=value, low=low, high=high, strict_low=strict_low, strict_high=strict_high, seeds=seeds, n=n)


@lru_cache(maxsize=16)
def _counts(parts: int) -> NDArray[np.float64]:
    """How often each of ``parts`` is drawn, ``[DRAWS, parts]``: the same draws for every row of a table."""
    rng = np.random.default_rng((_DRAWN_WITH, parts))
    return rng.multinomial(parts, np.full(parts, 1 / parts), size=DRAWS).astype(np.float64)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """All results of one setting, by what they mean.

    Attributes:
        hash: of the setting.
        rows: results by number and then (label, seed).
        scored: scores by number and then (label, seed).
        compute: figures of runs by metric and then (label, seed).
        variants: that were trained, in the order of ``VARIANTS``.
        others: hashes of further settings in the file, which are left out.
    """

    hash: str
    rows: Mapping[Key, Mapping[tuple[str, int], Result]]
    scored: Mapping[Key, Mapping[tuple[str, int], Scored]]
    compute: Mapping[str, Mapping[tuple[str, int], float]]
    variants: tuple[str, ...]
    others: tuple[str, ...]

    def seeds(self, key: Key, label: str) -> list[int]:
        """Seeds that a label was measured with."""
        return sorted(seed for name, seed in self.rows.get(key, {}) if name == label)

    def mean(self, key: Key, label: str) -> Estimate | None:
        """The mean over seeds; None where it was not measured."""
        seeds = self.seeds(key, label)
        return self._estimate(key, [[label]] * len(seeds), seeds, 1) if seeds else None

    def difference(self, key: Key, label: str, other: str, comparisons: int) -> Estimate | None:
        """``label`` minus ``other``, over the seeds and images that both have; None where there is none."""
        seeds = sorted(set(self.seeds(key, label)) & set(self.seeds(key, other)))
        return self._estimate(key, [[label, other]] * len(seeds), seeds, comparisons) if seeds else None

    def _estimate(self, key: Key, labels: Sequence[list[str]], seeds: list[int], comparisons: int) -> Estimate:
        scored = self.scored[key]
        stacks = []
        for names, seed in zip(labels, seeds, strict=True):
            first, *rest = (scored[(name, seed)].scores for name in names)
            stacks.append(first - sum(rest, np.zeros_like(first)))
        return estimate(np.stack(stacks), scored[(labels[0][0], seeds[0])].groups, comparisons=comparisons)


def setting_of(results: Iterable[Result], scores: Mapping[Run, Mapping[Key, Scored]], chosen: str | None) -> Setting:
    """The ablation's results of one setting: the chosen one, or the one that was measured last.

    Raises:
        ResultsError: no result of the ablation or of that setting, or a result whose scores are not there.
    """
    own = [r for r in latest(results) if r.protocol.startswith(PREFIX)]
    hashes = list(dict.fromkeys(r.config_hash for r in sorted(own, key=lambda r: r.time)))
    if not hashes or (chosen is not None and chosen not in hashes):
        raise ResultsError(
            "bias ablation",
            got=f"no result of setting {chosen}" if chosen else "no result of it in the file",
            expected=f"one of {', '.join(hashes)}" if hashes else "rows of `alidade ablate bias`",
            next_step="Run `alidade ablate bias` first, or name another file with --results.",
        )
    setting = chosen or hashes[-1]
    rows: dict[Key, dict[tuple[str, int], Result]] = {}
    scored: dict[Key, dict[tuple[str, int], Scored]] = {}
    compute: dict[str, dict[tuple[str, int], float]] = {}
    closed = {(r.condition, r.seed) for r in own if r.protocol == COMPUTE and r.config_hash == setting}
    labels: set[str] = set()
    for r in (r for r in own if r.config_hash == setting):
        label, _, point = r.condition.partition(", ")
        if r.protocol == COMPUTE:
            compute.setdefault(r.metric, {})[(label, r.seed)] = r.value
            continue
        run = label if label in VARIANTS or label == UNTRAINED else TRIVIAL
        if (run, r.seed) not in closed:
            # a run that was stopped while it was measured; the next one measures it anew
            continue
        key = (r.protocol, r.dataset, point or "as is", r.metric)
        found = scores.get((setting, label, r.seed), {}).get(key)
        if found is None:
            raise ResultsError(
                f"bias ablation: {r.condition}, seed {r.seed}",
                got="a result without its scores",
                expected="the file of scores that was written beside the results",
                next_step="Keep both files together, as they were written.",
            )
        labels.add(label)
        rows.setdefault(key, {})[(label, r.seed)] = r
        scored.setdefault(key, {})[(label, r.seed)] = found
    variants = tuple(v for v in VARIANTS if v in labels)
    if not variants:
        raise ResultsError(
            f"bias ablation, setting {setting}",
            got="no variant that was measured to the end",
            expected=f"one or more of {', '.join(VARIANTS)}; {REFERENCE} to compare with",
            next_step="Run `alidade ablate bias` again: it goes on where it stopped.",
        )
    others = tuple(h for h in hashes if h != setting)
    return Setting(hash=setting, rows=rows, scored=scored, compute=compute, variants=variants, others=others)
