"""Retrieval with words: sentences to images and back with several sentences an image, and class words to images.

Identical sentences. In UCM-Captions, RSICD and the like, images share sentences word for word. ``strict`` asks for
the very image (or one of its own sentences) even so; ``identical sentences count`` takes every image that owns the
sentence, and every sentence that reads the same, as right. Sentences are identical when they are so up to white space.

Ties. Answers that are equally similar stand in random order, and what is reported is the expected value over that
order, computed exactly. Constant vectors then get chance, and a perfect classifier that knows nothing finer gets its
fair share.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alidade.errors import AlidadeError
from alidade.evaluation.bootstrap import DRAWS, Interval, interval
from alidade.evaluation.features import Features
from alidade.evaluation.results import Result
from alidade.evaluation.zero_shot import ClassWords, Subject, cosines, exactly

DEPTHS = (1, 5, 10)
TO_IMAGE, TO_TEXT = "text→image", "image→text"
STRICT, IDENTICAL = "strict", "identical sentences count"
DEPTH = 100
OVER_HITS, OVER_RELEVANT = f"mAP@{DEPTH} over hits", f"mAP@{DEPTH} over min({DEPTH}, relevant)"
PROTOCOL = "image-text retrieval, ties by expected value"
_AT_ONCE = 256


@dataclass(frozen=True, kw_only=True, eq=False)
class Captions:
    """Sentences and whose they are.

    Attributes:
        texts: ``[M]``.
        owners: ``[M]``, the image that each describes, from 0.
        images: how many images there are; each owns a sentence.

    Raises:
        AlidadeError: counts that do not fit, an empty sentence, an owner that is no image, or an image without any.
    """

    texts: tuple[str, ...]
    owners: NDArray[np.int64]
    images: int

    def __post_init__(self) -> None:
        if self.owners.shape != (len(self.texts),) or not self.texts:
            raise _refuse(f"{len(self.texts)} sentences, owners {self.owners.shape}", "one owner per sentence")
        if empty := [i for i, text in enumerate(self.texts) if not text.strip()]:
            raise _refuse(f"an empty sentence (number {empty[0]})", "words in each")
        if set(self.owners.tolist()) != set(range(self.images)):
            raise _refuse(
                f"sentences of {len(set(self.owners.tolist()))} images, numbers {self.owners.min()} to "
                f"{self.owners.max()}, for {self.images} images",
                "at least one sentence for each image and none for others",
            )

    @cached_property
    def sentences(self) -> NDArray[np.int64]:
        """``[M]``: equal numbers where sentences are identical."""
        known: dict[str, int] = {}
        return np.array([known.setdefault(" ".join(text.split()), len(known)) for text in self.texts])

    @cached_property
    def first(self) -> NDArray[np.int64]:
        """``[S]``: the first caption that reads as each sentence."""
        return np.unique(self.sentences, return_index=True)[1]

    @cached_property
    def owned(self) -> NDArray[np.int16]:
        """``[S, N]``: how often each image owns each sentence."""
        out = np.zeros((self.sentences.max() + 1, self.images), dtype=np.int16)
        np.add.at(out, (self.sentences, self.owners), 1)
        return out

    def right(self, captions: NDArray[np.int64], images: NDArray[np.int64], rule: str) -> NDArray[np.bool_]:
        """``[len(captions), len(images)]``: whether a caption and an image are an answer to each other."""
        if rule == IDENTICAL:
            return self.owned[np.ix_(self.sentences[captions], images)] > 0
        return np.asarray(self.owners[captions, None] == images)


@dataclass(frozen=True, kw_only=True, eq=False)
class Standing:
    """Of each query's most similar right answers ``[Q]``: wrong answers ahead of them, and who stands beside.

    Attributes:
        ahead: wrong answers that are more similar.
        wrong: wrong answers that are equally similar.
        right: right answers that are so; 1 or more.
    """

    ahead: NDArray[np.int64]
    wrong: NDArray[np.int64]
    right: NDArray[np.int64]

    def found(self, depth: int) -> NDArray[np.float64]:
        """The chance ``[Q]`` that a right answer is among the first ``depth`` when equal ones are shuffled."""
        slots, missed = depth - self.ahead, np.ones(len(self.ahead))
        for i in range(depth):
            left = np.maximum(self.right + self.wrong - i, 1)
            missed *= np.where(i < slots, np.maximum(self.wrong - i, 0) / left, 1.0)
        return 1 - missed


def standing(images: Features, vectors: Features, captions: Captions, *, direction: str, rule: str) -> Standing:
    """Where the right answers of all queries stand.

    Args:
        images: ``[N, D]``.
        vectors: ``[M, D]`` of the captions. Identical sentences take the vector of the first, so that batching by
            length, which moves the last digits, decides nothing.
        captions: whose they are.
        direction: ``TO_IMAGE`` (the queries are captions) or ``TO_TEXT`` (they are images).
        rule: ``STRICT`` or ``IDENTICAL``.

    Raises:
        AlidadeError: inputs that do not fit.
    """
    if len(images) != captions.images or len(vectors) != len(captions.texts):
        raise _refuse(
            f"{len(images)} image and {len(vectors)} text vectors",
            f"{captions.images} and {len(captions.texts)}, as the captions say",
        )
    if direction not in (TO_IMAGE, TO_TEXT) or rule not in (STRICT, IDENTICAL):
        raise _refuse(f"{direction!r}, {rule!r}", f"{TO_IMAGE} or {TO_TEXT}, {STRICT} or {IDENTICAL}")
    texts = vectors[captions.first][captions.sentences]
    queries, gallery = (texts, images) if direction == TO_IMAGE else (images, texts)
    every, parts = np.arange(len(gallery)), []
    for start in range(0, len(queries), _AT_ONCE):
        asked = np.arange(start, min(start + _AT_ONCE, len(queries)))
        to_image = direction == TO_IMAGE
        right = captions.right(asked, every, rule) if to_image else captions.right(every, asked, rule).T
        parts.append(_stand(cosines(queries[asked], gallery), right))
    return Standing(**{name: np.concatenate([p[name] for p in parts]) for name in ("ahead", "wrong", "right")})


def _stand(similarity: NDArray[np.float64], right: NDArray[np.bool_]) -> dict[str, NDArray[np.int64]]:
    best = np.where(right, similarity, -np.inf).max(axis=1, keepdims=True)
    equal = similarity == best
    return {
        "ahead": ((similarity > best) & ~right).sum(axis=1),
        "wrong": (equal & ~right).sum(axis=1),
        "right": (equal & right).sum(axis=1),
    }


def ceiling(captions: Captions, direction: str, depth: int) -> NDArray[np.float64]:
    """The most that any model can expect at each query under the strict rule, as it cannot part identical sentences.

    From a sentence: it ranks the same images first whoever asks, so best those that own it most often; the share of
    the sentence's captions that belong to its ``depth`` most frequent owners. From an image: it puts one of its
    sentences first, best the one that is its own for the largest part, and draws among those that read the same.

    Returns:
        ``[M]`` from sentences, ``[N]`` from images.
    """
    owned = captions.owned
    total = owned.sum(axis=1)
    if direction == TO_IMAGE:
        most = -np.sort(-owned, axis=1)[:, :depth].sum(axis=1)
        return np.asarray((most / total)[captions.sentences])
    out = np.zeros(captions.images)
    for sentence, image in zip(*np.nonzero(owned), strict=True):
        mine = owned[[sentence], image].astype(np.int64)
        stands = Standing(ahead=np.zeros(1, np.int64), wrong=total[[sentence]] - mine, right=mine)
        out[image] = max(out[image], stands.found(depth)[0])
    return out


Found = dict[tuple[str, int], NDArray[np.float64]]


def _all_found(images: Features, vectors: Features, captions: Captions, rule: str) -> Found:
    out: Found = {}
    for direction in (TO_IMAGE, TO_TEXT):
        stands = standing(images, vectors, captions, direction=direction, rule=rule)
        out |= {(direction, depth): stands.found(depth) for depth in DEPTHS}
    return out


def _rows(subject: Subject, found: Found, captions: Captions, rule: str) -> Iterator[Result]:
    seed = subject.stamp.seed
    for (direction, depth), scores in found.items():
        # captions of one image are alike, so images are drawn, not captions
        drawn = interval(scores, seed=seed, groups=captions.owners if direction == TO_IMAGE else None)
        yield subject.row(drawn, protocol=PROTOCOL, condition=rule, metric=f"{direction} R@{depth}")
    mean = _mean_recall(found, captions.owners, seed)
    yield subject.row(mean, protocol=PROTOCOL, condition=rule, metric="mean recall")


def _mean_recall(found: Found, owners: NDArray[np.int64], seed: int) -> Interval:
    asked, answered = (np.mean([found[d, k] for k in DEPTHS], axis=0) for d in (TO_IMAGE, TO_TEXT))
    counts, sums, rng = np.bincount(owners), np.bincount(owners, weights=asked), np.random.default_rng(seed)
    means = []
    for _ in range(DRAWS):
        drawn = rng.integers(len(counts), size=len(counts))
        means.append((sums[drawn].sum() / counts[drawn].sum() + answered[drawn].mean()) / 2)
    low, high = np.quantile(means, (0.025, 0.975))
    value = float((asked.mean() + answered.mean()) / 2)
    return Interval(value=value, low=float(low), high=float(high), n=len(counts))


def measure_recall(subject: Subject, images: Features, vectors: Features, captions: Captions) -> Iterator[Result]:
    """Recall at 1, 5 and 10 both ways and the mean of the six, under both rules on identical sentences.

    Args:
        subject: for the rows.
        images: ``[N, D]``.
        vectors: ``[M, D]`` of the captions.
        captions: whose they are.

    Raises:
        AlidadeError: inputs that do not fit.
    """
    for rule in (STRICT, IDENTICAL):
        yield from _rows(subject, _all_found(images, vectors, captions, rule), captions, rule)


def measure_trivial_recall(subject: Subject, captions: Captions, labels: NDArray[np.int64]) -> Iterator[Result]:
    """The rows to read a retrieval table by, under both rules, of no model at all.

    ``chance``: every answer equally similar. ``class oracle``: knows each image's class without error and nothing
    finer, so that everything of that class is tied. ``ceiling of identical sentences``: see ``ceiling``; where
    identical sentences count it is 1 and has no row.

    Args:
        subject: of the table that these rows stand in.
        captions: whose they are.
        labels: ``[N]``, the images' classes.

    Raises:
        AlidadeError: not one class per image.
    """
    if labels.shape != (captions.images,):
        raise _refuse(f"classes {labels.shape}", f"one for each of {captions.images} images")
    same = np.ones((captions.images, 1), dtype=np.float32)
    known = np.eye(labels.max() + 1, dtype=np.float32)[labels]
    for name, vectors in (("chance", same), ("class oracle", known)):
        for rule in (STRICT, IDENTICAL):
            found = _all_found(vectors, vectors[captions.owners], captions, rule)
            yield from _rows(subject.trivial(name), found, captions, rule)
    top = {(d, k): ceiling(captions, d, k) for d in (TO_IMAGE, TO_TEXT) for k in DEPTHS}
    yield from _rows(subject.trivial("ceiling of identical sentences"), top, captions, STRICT)


def average_precision(scores: NDArray[Any], relevant: NDArray[np.bool_], *, over_hits: bool) -> float:
    """Average precision in the first 100, expected over random order of equal scores.

    With the ranks ``r_1 < ... < r_H`` of the H relevant images among the first 100 it is ``(1 / d) sum_h h / r_h``, and
    0 without any. Two conventions of ``d`` go by the same name, so a figure needs its own:

    Args:
        scores: ``[N]``.
        relevant: ``[N]``.
        over_hits: ``d = H``, as torchmetrics' and so MS-CLIP's code has it: one hit at rank 1 scores 1 however many
            relevant images were missed. Else ``d = min(100, number of relevant images)``.

    Raises:
        AlidadeError: shapes that differ, or nothing relevant.
    """
    if scores.shape != relevant.shape or scores.ndim != 1 or not relevant.any():
        raise _refuse(
            f"scores {scores.shape}, {int(relevant.sum())} relevant", "equal shapes [N] and something to find"
        )
    _, groups = np.unique(-scores, return_inverse=True)
    sizes, rights = np.bincount(groups), np.bincount(groups, weights=relevant).astype(np.int64)
    most, ahead, hits, total = min(DEPTH, int(relevant.sum())), 0, 0, 0.0
    for size, right in zip(sizes.tolist(), rights.tolist(), strict=True):
        if ahead + size > DEPTH:
            break
        total += _precisions(ahead, hits, size, right)
        ahead, hits = ahead + size, hits + right
    else:
        return total / ((hits if over_hits else most) or 1)
    slots, out = DEPTH - ahead, 0.0
    for more in range(min(slots, right) + 1):
        # hypergeometric: so many of the equal ones that are relevant come before the cut
        chance = math.comb(right, more) * math.comb(size - right, slots - more) / math.comb(size, slots)
        expected = total + _precisions(ahead, hits, slots, more)
        out += chance * expected / ((hits + more if over_hits else most) or 1)
    return out


def _precisions(ahead: int, hits: int, size: int, right: int) -> float:
    """Expected sum of precisions at the ``right`` relevant ones among ``size`` in random order behind ``ahead``."""
    others = (right - 1) / max(size - 1, 1)
    return sum(right / size * (hits + 1 + i * others) / (ahead + i + 1) for i in range(size)) if right else 0.0


def measure_class_retrieval(
    subject: Subject, images: Features, relevant: NDArray[np.bool_], words: ClassWords
) -> Iterator[Result]:
    """Class words as queries over all images: mAP@100 in both conventions, with chance beside it.

    The interval draws classes: it says how the figure would move with other words, and is wide where they are few.

    Args:
        subject: for the rows.
        images: ``[N, D]``.
        relevant: ``[N, C]``, which images have which class; ``labels[:, None] == np.arange(C)`` where each has one.
        words: of ``zero_shot.class_words``.

    Raises:
        AlidadeError: shapes that do not fit, or a class that no image has.
    """
    if relevant.shape != (len(images), len(words.names)) or relevant.dtype != np.bool_:
        raise _refuse(f"{relevant.dtype} {relevant.shape}", f"bool [{len(images)}, {len(words.names)}]")
    if missing := [name for c, name in enumerate(words.names) if not relevant[:, c].any()]:
        raise _refuse(f"no image of {', '.join(missing)}", "an image of each class")
    protocol = f"class words → images, {words.told}, ties by expected value"
    rows = {OVER_HITS: True, OVER_RELEVANT: False}
    similarity, flat = cosines(words.vectors, images), np.zeros(len(images))
    for metric, over_hits in rows.items():
        classes = range(len(words.names))
        found = [average_precision(similarity[c], relevant[:, c], over_hits=over_hits) for c in classes]
        blind = [average_precision(flat, relevant[:, c], over_hits=over_hits) for c in classes]
        drawn = interval(np.array(found), seed=subject.stamp.seed)
        yield subject.row(drawn, protocol=protocol, metric=metric)
        chance = exactly(float(np.mean(blind)), len(blind))
        yield subject.trivial("chance").row(chance, protocol=protocol, metric=metric)


def _refuse(got: str, expected: str) -> AlidadeError:
    return AlidadeError(
        "image-text retrieval", got=got, expected=expected, next_step="Check vectors and captions against each other."
    )
