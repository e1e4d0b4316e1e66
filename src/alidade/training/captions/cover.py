"""Sentences from shares of land cover, and the shares from a map of classes.

A word of amount stands for each share: from 95 % nothing else is named; from 50 % it is "mostly" that; from 20 % there
is "some" of it, from 3 % "a little" ("a few" of a plural: a word that ends in one s), and what is below that is not
named. The limits are ours.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from alidade.training.captions.captioned import CaptionError

ALL, MOST, SOME, LITTLE = 0.95, 0.5, 0.2, 0.03

WORLDCOVER = {
    10: "trees", 20: "shrubs", 30: "grassland", 40: "cropland", 50: "buildings", 60: "bare ground",
    70: "snow and ice", 80: "water", 90: "wetland", 95: "mangroves", 100: "moss and lichen",
}  # fmt: skip
"""ESA WorldCover 10 m, v100 and v200 (D. Zanaga et al., 2021 and 2022, product user manual)."""

TERRAMESH = {
    1: "water", 2: "trees", 3: "flooded vegetation", 4: "cropland", 5: "buildings", 6: "bare ground",
    7: "snow and ice", 9: "rangeland",
}  # fmt: skip
"""TerraMesh LULC (arXiv:2504.11172): the classes of Esri's annual land cover (K. Karra et al., IGARSS 2021), counted
on from 1 without gaps; 0 is no data and 8 is cloud. The files name no classes. This order is Esri's own, and over the
four public example places NDVI and reflectance agree with it for water, trees, bare ground and snow."""

NO_COVER = (0, 255)
TERRAMESH_NO_COVER = (0, 8, 255)

_FRAMES = (
    "{}",
    "seen from above: {}",
    "a satellite image: {}",
    "an aerial view: {}",
    "land cover: {}",
    "the ground here: {}",
    "an area of land with {}",
)


def cover_shares(
    classes: NDArray[np.integer],
    words: Mapping[int, str],
    *,
    valid: NDArray[np.bool_] | None = None,
    no_cover: Collection[int] = NO_COVER,
) -> dict[str, float]:
    """Shares of the pixels that show land cover, by word, the largest first; together 1.

    Args:
        classes: class numbers ``[H, W]``.
        words: what they mean, such as ``WORLDCOVER``.
        valid: ``[H, W]``, all by default; the others are never counted.
        no_cover: numbers for no data and cloud, never counted.

    Raises:
        CaptionError: no whole numbers, masks of another shape, a number without a word, or no pixel to count.
    """
    if classes.dtype.kind not in "iu" or (valid is not None and valid.shape != classes.shape):
        mask = "" if valid is None else f" with a mask {valid.shape}"
        raise _bad(f"{classes.dtype} {classes.shape}{mask}", "whole numbers [rows, columns] and a mask as large")
    numbers, counts = np.unique(classes if valid is None else classes[valid], return_counts=True)
    kept = {int(n): int(c) for n, c in zip(numbers, counts, strict=True) if int(n) not in no_cover}
    if unknown := [n for n in kept if n not in words]:
        known = ", ".join(f"{n} {w}" for n, w in words.items())
        raise _bad(f"class {unknown[0]}", f"one of {known}")
    total = sum(kept.values())
    if total == 0:
        raise _bad("no pixel with land cover", "at least one")
    shares: dict[str, float] = {}
    for number, count in kept.items():
        shares[words[number]] = shares.get(words[number], 0.0) + count / total
    return dict(sorted(shares.items(), key=lambda pair: (-pair[1], pair[0])))


def cover_sentences(shares: Mapping[str, float]) -> tuple[str, ...]:
    """Every sentence for these shares, such as "mostly cropland, with some trees and a little water".

    The last ones name only what there is most of, since that is how people ask.

    Args:
        shares: 0 to 1 by word, together 1.

    Raises:
        CaptionError: a share outside 0 to 1, or they are not 1 together.
    """
    values = list(shares.values())
    if not values or min(values) < 0 or not 0.99 < sum(values) < 1.01:
        raise _bad(f"shares {dict(shares)}", "shares from 0 to 1 that are 1 together")
    ranked = sorted(shares.items(), key=lambda pair: (-pair[1], pair[0]))
    bodies = dict.fromkeys(_bodies(ranked))
    return tuple(frame.format(body) for body in bodies for frame in _FRAMES)


def cover_captions(shares: Mapping[str, float], rng: np.random.Generator, *, count: int = 5) -> tuple[str, ...]:
    """``count`` different sentences for these shares, fewer where there are fewer; the same ``rng``, the same ones.

    Raises:
        CaptionError: as ``cover_sentences``.
    """
    all_of = cover_sentences(shares)
    chosen = rng.choice(len(all_of), size=min(count, len(all_of)), replace=False)
    return tuple(all_of[int(i)] for i in chosen)


def _bodies(ranked: Sequence[tuple[str, float]]) -> list[str]:
    """What sentences are built around: the ways to say the shares, without a frame."""
    first, share = ranked[0]
    rest = [(word, s) for word, s in ranked[1:] if s >= LITTLE]
    if share >= ALL:
        return [first, f"nothing but {first}", f"only {first}", f"{first} everywhere"]
    if not rest:
        return [f"mostly {first}", f"mainly {first}", f"{first} for the most part"] if share >= MOST else [first]
    said = [_amount(word, s) for word, s in rest]
    names = [word for word, _ in rest]
    if share >= MOST:
        return [
            f"mostly {first}, with {_join(said)}",
            f"{first} with {_join(said)}",
            f"mainly {first}, and {_join(said)}",
            f"{first}, and less of {_join(names)}",
            f"mostly {first}",
        ]
    second, after = names[0], said[1:]
    tail = f", with {_join(after)}" if after else ""
    return [
        f"a mix of {first} and {second}{tail}",
        f"{first} and {second}{tail}",
        f"{first} beside {second}{tail}",
        f"part {first}, part {second}{tail}",
        f"{first} and {second}",
    ]


def _amount(word: str, share: float) -> str:
    if share >= SOME:
        return f"some {word}"
    plural = word.endswith("s") and not word.endswith("ss")
    return f"{'a few' if plural else 'a little'} {word}"


def _join(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _bad(got: str, expected: str) -> CaptionError:
    return CaptionError("land cover", got=got, expected=expected, next_step="Check the map of classes and its words.")
