"""What the vectors of images and sentences look like, beside what they find: alignment, uniformity, gap and hubs.

All take vectors of any length and look at their directions only. These figures describe one model's vectors; they rank
models less surely than recall does.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from alidade.errors import AlidadeError
from alidade.evaluation.bootstrap import Interval, interval
from alidade.evaluation.features import Features
from alidade.evaluation.knn import unit_rows
from alidade.evaluation.results import Result
from alidade.evaluation.retrieval import TO_IMAGE, TO_TEXT, Captions
from alidade.evaluation.zero_shot import Subject, cosines, exactly

NEIGHBOURS = 10
TEMPERATURE = 2.0
PROTOCOL = "vectors of images and sentences"
_AT_ONCE = 256


def alignment(images: Features, texts: Features) -> NDArray[np.float64]:
    """Squared distances ``[P]`` of the unit vectors of pairs; their mean is the alignment of Wang and Isola (2020).

    ``l_align = E ||x - y||^2`` (their alpha = 2), which is ``2 - 2 cos``: 0 where pairs coincide, 2 where they are at
    right angles, 4 where they are opposite.

    Args:
        images: ``[P, D]``.
        texts: ``[P, D]``, row by row of the same pairs.

    Raises:
        AlidadeError: shapes that differ, no pair, or numbers that are not finite.
    """
    _check(images, texts)
    if images.shape != texts.shape:
        raise _refuse(f"{images.shape} and {texts.shape}", "one text per image, row by row")
    return np.asarray(((unit_rows(images) - unit_rows(texts)) ** 2).sum(axis=1))


def uniformity(vectors: Features) -> float:
    """How evenly directions are spread: ``log E exp(-2 ||x - y||^2)`` over distinct rows (Wang and Isola 2020, t = 2).

    0 where all are one direction; -4 for random directions in many dimensions; nothing is below -8.

    Args:
        vectors: ``[N, D]``, two rows or more.

    Raises:
        AlidadeError: fewer rows, or numbers that are not finite.
    """
    _check(vectors)
    n, total = len(vectors), 0.0
    if n < 2:
        raise _refuse(f"{n} row", "two or more")
    rows = unit_rows(vectors)
    squares = (rows**2).sum(axis=1)
    for start in range(0, n, _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        apart = squares[part, None] + squares - 2 * rows[part] @ rows.T
        total += float(np.exp(-TEMPERATURE * np.maximum(apart, 0.0)).sum())
    # each row's distance to itself is 0 and no pair
    return float(np.log(max(total - n, np.finfo(np.float64).tiny) / (n * (n - 1))))


def modality_gap(images: Features, texts: Features) -> float:
    """Distance between the mean unit vectors of images and of texts, 0 to 2 (Liang et al. 2022).

    Args:
        images: ``[N, D]``.
        texts: ``[M, D]``.

    Raises:
        AlidadeError: other lengths, no rows, or numbers that are not finite.
    """
    _check(images, texts)
    return float(np.linalg.norm(unit_rows(images).mean(axis=0) - unit_rows(texts).mean(axis=0)))


def occurrences(queries: Features, gallery: Features, *, k: int = NEIGHBOURS) -> NDArray[np.float64]:
    """How often each gallery row ``[G]`` is among the ``k`` most similar to a query; their sum is ``k`` times queries.

    Rows that are equally similar at the last place share what is left of it.

    Args:
        queries: ``[Q, D]``.
        gallery: ``[G, D]``.
        k: neighbours.

    Raises:
        AlidadeError: shapes that do not fit, or fewer gallery rows than ``k``.
    """
    if not 1 <= k <= len(gallery):
        raise _refuse(f"k = {k} of {len(gallery)} rows", "at least k rows")
    out = np.zeros(len(gallery))
    for start in range(0, len(queries), _AT_ONCE):
        similarity = cosines(queries[start : start + _AT_ONCE], gallery)
        last = np.partition(similarity, -k, axis=1)[:, [-k]]
        nearer, equal = similarity > last, similarity == last
        left = k - nearer.sum(axis=1, keepdims=True)
        out += (nearer + equal * left / equal.sum(axis=1, keepdims=True)).sum(axis=0)
    return out


def hubness(queries: Features, gallery: Features, *, k: int = NEIGHBOURS) -> float:
    """Skewness of ``occurrences``: ``E (N_k - mean)^3 / std^3`` (Radovanovic, Nanopoulos and Ivanovic 2010).

    0 where every row is found equally often; far above 0 where a few hubs answer many queries. Directions that crowd
    around their mean make hubs, the more so the more dimensions there are; evenly spread ones make none.

    Args:
        queries: ``[Q, D]``.
        gallery: ``[G, D]``.
        k: neighbours.

    Raises:
        AlidadeError: as ``occurrences``.
    """
    counts = occurrences(queries, gallery, k=k)
    away = counts - counts.mean()
    spread = away.std()
    # counts that differ by rounding only are no hubs
    return float((away**3).mean() / spread**3) if spread > 1e-9 * counts.mean() else 0.0


def shared_sentences(captions: Captions) -> NDArray[np.bool_]:
    """``[M]``: whether another image owns the very same sentence, so that nothing can find the right one for sure."""
    return np.asarray(((captions.owned > 0).sum(axis=1) > 1)[captions.sentences])


def measure_vectors(
    subject: Subject, images: Features, vectors: Features, captions: Captions, *, k: int = NEIGHBOURS
) -> Iterator[Result]:
    """The rows that stand beside a retrieval table.

    Alignment has an interval over images. The others are no means over images but statements about this very set of
    vectors; their interval is the value itself. Sentences that repeat are taken once, except in alignment: otherwise
    uniformity and hubs would measure how often a data set repeats itself.

    Args:
        subject: for the rows.
        images: ``[N, D]``.
        vectors: ``[M, D]`` of the captions.
        captions: whose they are.
        k: neighbours of the hubs; at most the number of images and of sentences.

    Raises:
        AlidadeError: inputs that do not fit.
    """
    if len(images) != captions.images or len(vectors) != len(captions.texts):
        raise _refuse(
            f"{len(images)} image and {len(vectors)} text vectors",
            f"{captions.images} and {len(captions.texts)}, as the captions say",
        )
    seed, owners = subject.stamp.seed, captions.owners
    texts = vectors[captions.first]
    found: dict[str, Interval] = {
        "alignment": interval(alignment(images[owners], vectors), seed=seed, groups=owners),
        "uniformity of images": exactly(uniformity(images), len(images)),
        "uniformity of sentences": exactly(uniformity(texts), len(texts)),
        "modality gap": exactly(modality_gap(images, texts), len(images) + len(texts)),
        f"hubness {TO_IMAGE} (k = {k})": exactly(hubness(texts, images, k=k), len(texts)),
        f"hubness {TO_TEXT} (k = {k})": exactly(hubness(images, texts, k=k), len(images)),
        "sentences shared with another image": interval(shared_sentences(captions), seed=seed, groups=owners),
    }
    for metric, value in found.items():
        yield subject.row(value, protocol=PROTOCOL, metric=metric, settings={"k": k, "t": TEMPERATURE})


def _check(*parts: Features) -> None:
    fits = all(p.ndim == 2 and len(p) and p.shape[1] == parts[0].shape[1] for p in parts)
    if not fits or not all(np.isfinite(p).all() for p in parts):
        shapes = " and ".join(str(p.shape) for p in parts)
        raise _refuse(f"{shapes}, or numbers that are not finite", "finite vectors [N, D] of one length")


def _refuse(got: str, expected: str) -> AlidadeError:
    return AlidadeError("diagnostics of vectors", got=got, expected=expected, next_step="Check the encoders' vectors.")
