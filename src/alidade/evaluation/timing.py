"""Fair timing on a noisy machine: variants take turns round by round, and results are ratios within one run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of a benchmark.

    Attributes:
        name: what was measured.
        value: the figure.
        unit: its unit (``"x"`` for ratios, ``"%"``, ``"img/s"`` ...).
        target: what the project asks for, in words; empty for figures that only give context.
        ok: whether the target holds; None for context.
    """

    name: str
    value: float
    unit: str
    target: str = ""
    ok: bool | None = None


@dataclass(frozen=True)
class Timed:
    """Seconds of one variant over all rounds."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle round."""
        return statistics.median(self.seconds)

    @property
    def best(self) -> float:
        """The fastest round."""
        return min(self.seconds)


def take_turns(variants: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, Timed]:
    """Run every variant once per round after one unmeasured round; the order turns with each round."""
    names = list(variants)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for name in names:
        variants[name]()
    for number in range(rounds):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            start = time.perf_counter()
            variants[name]()
            seconds[name].append(time.perf_counter() - start)
    return {name: Timed(tuple(values)) for name, values in seconds.items()}


def median_ratio(a: Timed, b: Timed) -> float:
    """The median over rounds of a's time over b's in the same round: drift of the machine cancels."""
    return statistics.median(x / y for x, y in zip(a.seconds, b.seconds, strict=True))
