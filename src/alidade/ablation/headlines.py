"""The measures that the page reports, named before anything was measured."""

from __future__ import annotations

from dataclasses import dataclass

from alidade.ablation.hidden import ALONE, IN_CONTEXT
from alidade.ablation.measure import GSD_CURVE, KNN, PROBE, RECONSTRUCTION, RETRIEVAL, SIDES, SIZE_CURVE
from alidade.ablation.run import PREFIX
from alidade.ablation.scores import Key

EUROSAT, AERIAL, ALL_BANDS, PAIRS = "eurosat-rgb/val", "ucmerced/val", "eurosat100/val", "ca-tx-aligned/val"
GSD_POINTS = ("12.5 %", "25 %", "50 %", "100 %")
SIZE_POINTS = tuple(f"{side} px" for side in SIDES)


@dataclass(frozen=True, kw_only=True)
class Headline:
    """One measure.

    Attributes:
        title: of its column.
        key: of its scores.
        better: 1 when more is better, -1 when less is.
        scale, digits: how values are shown.
        relational: whether it asks for relations between places, sensors or scales, and not for an image's class.
    """

    title: str
    key: Key
    better: int
    scale: float = 100.0
    digits: int = 1
    relational: bool = False


def gsd_key(point: str, truthful: bool) -> Key:
    """The number of EuroSAT at a share of its resolution, against the native gallery."""
    told = "truthful" if truthful else "wrong"
    return PREFIX + GSD_CURVE, EUROSAT, f"{point}, GSD {told}, gallery native", "accuracy"


def size_key(point: str, truthful: bool) -> Key:
    """The number of UC Merced at a size; nobody is told a wrong ground sample distance there."""
    return PREFIX + SIZE_CURVE, AERIAL, point if truthful else "", "accuracy"


def _accuracy(protocol: str, name: str, dataset: str) -> Headline:
    return Headline(title=f"{name}, {protocol}, %", key=(PREFIX + protocol, dataset, "as is", "accuracy"), better=1)


def _error(title: str, point: str) -> Headline:
    key = (PREFIX + RECONSTRUCTION, AERIAL, point, "error")
    return Headline(title=title, key=key, better=-1, scale=1.0, digits=3, relational=True)


HEADLINES = (
    *(
        Headline(
            title=f"SAR and optical, {metric}, %",
            key=(PREFIX + RETRIEVAL, PAIRS, "as is", metric),
            better=1,
            relational=True,
        )
        for metric in ("R@1", "R@10")
    ),
    _error("reconstruction error at 0.3 m", ALONE),
    _error("the same within 1.2 m ground", IN_CONTEXT),
    *(
        _accuracy(protocol, name, dataset)
        for name, dataset in (("UC Merced", AERIAL), ("EuroSAT RGB", EUROSAT), ("EuroSAT100", ALL_BANDS))
        for protocol in (KNN, PROBE)
    ),
)
