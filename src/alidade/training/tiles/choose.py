"""Which scene of each sensor goes into a sample, when several show the square."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A scene that shows a square.

    Attributes:
        view: the view it would fill.
        scene: its place in the list of scenes.
        share: about which share of the square it covers, 0 to 1.
        time: moment of acquisition, ``None`` when unknown.
    """

    view: str
    scene: int
    share: float
    time: datetime | None


def choose(candidates: Iterable[Candidate], max_gap_days: float | None = None) -> dict[str, Candidate]:
    """One scene per view: as many views as can be had, and among those the smallest gap between any two dates.

    Exact: for each scene as the earliest one, every other view's earliest scene from then on is the best that it
    can do. Ties go to the scenes that cover more, then to the earlier ones. Scenes without a time cannot be shown to
    lie within ``max_gap_days`` and are then left out; without that limit they fill views that have no other scene.

    Args:
        candidates: all that show the square.
        max_gap_days: the most that two dates may lie apart.

    Returns:
        The chosen scene by view; views without one are missing.
    """
    everything = list(candidates)
    timed = sorted(
        ((c.time, -c.share, c.scene, c) for c in everything if c.time is not None), key=lambda item: item[:3]
    )
    limit = None if max_gap_days is None else timedelta(days=max_gap_days)
    best: dict[str, Candidate] = {}
    best_score: tuple[int, timedelta, float] | None = None
    for place, (begin, _, _, _) in enumerate(timed):
        chosen: dict[str, Candidate] = {}
        end = begin
        for time, _, _, candidate in timed[place:]:
            if limit is not None and time - begin > limit:
                break
            if candidate.view not in chosen:
                chosen[candidate.view] = candidate
                end = time
        score = (-len(chosen), end - begin, -sum(c.share for c in chosen.values()))
        if best_score is None or score < best_score:
            best, best_score = chosen, score
    if limit is None:
        for candidate in sorted((c for c in everything if c.time is None), key=lambda c: (-c.share, c.scene)):
            if candidate.view not in best:
                best = {**best, candidate.view: candidate}
    return best
