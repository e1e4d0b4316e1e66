"""Zero-shot classification by words: class vectors from prompts, top-1 and multi-label scores, a transductive option.

An image is encoded once and a class once per template: n image passes and C x T text passes, never n x C. What is here
takes vectors; nothing loads a language model.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from alidade.errors import AlidadeError
from alidade.evaluation.bootstrap import DRAWS, Interval, interval
from alidade.evaluation.features import Features, digest
from alidade.evaluation.knn import unit_rows
from alidade.evaluation.protocols import Stamp
from alidade.evaluation.results import Result, now
from alidade.evaluation.templates import WORDS, class_names, templates

INDUCTIVE, CENTRED, BALANCED = "as is", "transductive: centred", "transductive: balanced"
WAYS = (INDUCTIVE, CENTRED, BALANCED)
"""How class scores are made; see ``class_scores``."""
SCALE = 100.0
"""Logits are this times the cosine, in the protocol as in CLIP."""
ROUNDS = 200
"""Of the balancing; each makes all classes equally heavy and then all images."""
TIES = "equal scores share"
_EQUAL = 1e-12


class Encode(Protocol):
    """Texts ``[N]`` to vectors ``[N, D]`` in the space of the image vectors, such as ``Model.embed_text``."""

    def __call__(self, texts: list[str], /) -> NDArray[Any]:
        """One vector per text; each depends on its own text only."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What every row of one measurement shares: whose vectors these are, and of which images.

    Attributes:
        dataset: data set and part, such as ``"eurosat-rgb/test"``.
        split_hash: of ``datasets.split_hash`` over all images that took part.
        model: the identity of what made the vectors, text encoder included.
        config: everything else that the vectors depend on, as JSON.
        stamp: of the run.
    """

    dataset: str
    split_hash: str
    model: str
    config: str
    stamp: Stamp

    def trivial(self, name: str) -> Subject:
        """The same images with no model behind the figures, for the rows that every model has to beat."""
        return replace(self, model=name, config="{}")

    def row(
        self,
        found: Interval,
        *,
        protocol: str,
        metric: str,
        condition: str = INDUCTIVE,
        settings: Mapping[str, object] | None = None,
    ) -> Result:
        """A complete row of results."""
        config = json.dumps({"encoder": self.config, "settings": settings or {}}, sort_keys=True)
        return Result(
            protocol=protocol,
            condition=condition,
            dataset=self.dataset,
            split_hash=self.split_hash,
            model=self.model,
            config_hash=digest(config),
            commit=self.stamp.commit,
            seed=self.stamp.seed,
            n=found.n,
            metric=metric,
            value=found.value,
            # equal scores that are no binary fractions have quantiles that differ from their mean in the last digit
            low=min(found.low, found.value),
            high=max(found.high, found.value),
            time=now(),
        )


def exactly(value: float, n: int) -> Interval:
    """A figure that was not drawn, such as chance: its interval is itself."""
    return Interval(value=value, low=value, high=value, n=n)


def cosines(queries: NDArray[Any], gallery: NDArray[Any]) -> NDArray[np.float64]:
    """Cosines ``[Q, G]``. Equal rows of the gallery have equal cosines to the last bit, so that ties are seen as ties.

    Raises:
        AlidadeError: no rows, other lengths, or numbers that are not finite.
    """
    fits = queries.ndim == gallery.ndim == 2 and queries.shape[1] == gallery.shape[1] and len(queries) and len(gallery)
    if not fits or not (np.isfinite(queries).all() and np.isfinite(gallery).all()):
        raise _refuse(
            "cosines", f"{queries.shape} and {gallery.shape}, or NaN", "finite [N, D] and [M, D]", "Check the encoders."
        )
    # adding 0 makes -0 a 0; a product of matrices may round equal columns differently, one column cannot differ
    rows, known = unit_rows(gallery) + 0.0, dict[bytes, int]()
    places = np.array([known.setdefault(row.tobytes(), len(known)) for row in rows])
    _, first = np.unique(places, return_index=True)
    return np.asarray((unit_rows(queries) @ rows[first].T)[:, places])


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassWords:
    """Classes as words and as vectors.

    Attributes:
        names: as they stand in the prompts; ``[C]``.
        templates: name of the set of templates.
        vectors: ``[C, D]`` of unit length.
    """

    names: tuple[str, ...]
    templates: str
    vectors: NDArray[np.float64]

    @property
    def told(self) -> str:
        """Templates and names for a protocol's string."""
        return f"templates {self.templates} ({len(templates(self.templates))}), classes {', '.join(self.names)}"


def class_words(
    encode: Encode, labels: tuple[str, ...], *, template_set: str = "msclip", convention: str = WORDS
) -> ClassWords:
    """Class vectors: every prompt's vector brought to unit length, their mean over the templates, and that again.

    This is the order of CLIP and MS-CLIP; RS5M takes the mean before the lengths are made equal.

    Args:
        encode: one call per class with all its prompts.
        labels: of the data set, in the order of the label numbers.
        template_set: a name of ``templates.TEMPLATES``.
        convention: how labels become names; see ``templates.class_names``.

    Raises:
        AlidadeError: labels that repeat, an unknown set or convention, or vectors that are not one per prompt, not
            finite or without a direction.
    """
    names, patterns = class_names(labels, convention), templates(template_set)
    out = []
    for name in names:
        found = np.asarray(encode([pattern.format(name) for pattern in patterns]))
        if found.ndim != 2 or len(found) != len(patterns) or not np.isfinite(found).all() or not found.any():
            raise _refuse(
                f"prompts of class {name!r}",
                f"vectors {found.shape}, {int((~np.isfinite(found)).sum())} numbers not finite",
                f"{len(patterns)} finite vectors, not all zero",
                "Check the text encoder.",
            )
        out.append(unit_rows(found).mean(axis=0))
    return ClassWords(names=names, templates=template_set, vectors=unit_rows(np.stack(out)))


def class_scores(images: Features, words: ClassWords, *, way: str = INDUCTIVE) -> NDArray[np.float64]:
    """Scores ``[N, C]`` of every class for every image; the highest is the class that is said.

    Args:
        images: ``[N, D]``.
        words: the classes.
        way: ``"as is"``: 100 times the cosine; an image's scores depend on that image alone. The transductive ways look
            at all ``N`` images at once, without their labels, so their figures are not zero-shot in the usual sense.
            ``"transductive: centred"``: the mean image vector and the mean class vector are taken away first, which
            closes the modality gap (Liang et al. 2022). ``"transductive: balanced"``: scores are log-probabilities that
            Sinkhorn's rounds (Cuturi 2013) have made equally heavy over the classes; it is told thereby that all
            classes are equally frequent, which helps only where they nearly are.

    Raises:
        AlidadeError: vectors of other lengths, not finite, or an unknown way.
    """
    if way not in WAYS:
        raise _refuse("zero-shot", repr(way), f"one of {', '.join(WAYS)}", "Choose one of these.")
    if way == CENTRED:
        rows = unit_rows(images)
        return SCALE * cosines(rows - rows.mean(axis=0), words.vectors - words.vectors.mean(axis=0))
    scores = SCALE * cosines(images, words.vectors)
    return _balanced(scores) if way == BALANCED else scores


def _balanced(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    out = scores.copy()
    for _ in range(ROUNDS):
        out -= _log_sum(out, axis=0) - np.log(len(out) / out.shape[1])
        out -= _log_sum(out, axis=1)
    return out


def _log_sum(values: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    top = values.max(axis=axis, keepdims=True)
    return np.asarray(top + np.log(np.exp(values - top).sum(axis=axis, keepdims=True)))


def top_one(scores: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Per image ``[N]``: 1 where its class has the highest score, 0 where not, 1/m where it is one of m that tie.

    Raises:
        AlidadeError: not one label of a class per image.
    """
    n, classes = scores.shape
    if labels.shape != (n,) or not np.isin(labels, np.arange(classes)).all():
        expected = f"one per image, 0 to {classes - 1}"
        raise _refuse("labels", f"{labels.shape} for scores {scores.shape}", expected, "Check both.")
    best = scores == scores.max(axis=1, keepdims=True)
    return np.asarray(best[np.arange(n), labels] / best.sum(axis=1))


def balanced_interval(correct: NDArray[np.float64], labels: NDArray[np.int64], *, seed: int) -> Interval:
    """The mean over the classes of the mean score in a class, with its bootstrap interval; images are drawn by class.

    Classes without an image do not count, as in scikit-learn's ``balanced_accuracy_score``.

    Args:
        correct: ``[N]`` of ``top_one``.
        labels: ``[N]``.
        seed: of the draws.
    """
    rng, shares, draws = np.random.default_rng(seed), [], []
    for c in np.unique(labels):
        mine = correct[labels == c]
        values, counts = np.unique(mine, return_counts=True)
        shares.append(mine.mean())
        # drawing images of a class with replacement draws the counts of its few different scores
        draws.append(rng.multinomial(len(mine), counts / len(mine), size=DRAWS) @ values / len(mine))
    low, high = np.quantile(np.mean(draws, axis=0), (0.025, 0.975))
    return Interval(value=float(np.mean(shares)), low=float(low), high=float(high), n=len(correct))


def present(scores: NDArray[np.float64]) -> NDArray[np.bool_]:
    """MS-CLIP's rule for images of several classes, ``[N, C]``: a class is there when it beats the mean of the others.

    A score that equals the mean does not beat it; below 1e-12 of the largest score a difference is rounding.

    Raises:
        AlidadeError: fewer than two classes.
    """
    classes = scores.shape[1]
    if classes < 2:
        raise _refuse("several classes an image", f"{classes} class", "two or more", "Name more classes.")
    others = (scores.sum(axis=1, keepdims=True) - scores) / (classes - 1)
    return np.asarray(scores > others + _EQUAL * np.abs(scores).max(initial=1.0))


def measure_zero_shot(
    subject: Subject, images: Features, labels: NDArray[np.int64], words: ClassWords, *, way: str = INDUCTIVE
) -> Iterator[Result]:
    """Accuracy and balanced accuracy (mean of the classes' recalls).

    Args:
        subject: for the rows.
        images: ``[N, D]``.
        labels: ``[N]``, numbers of ``words.names``.
        words: of ``class_words``.
        way: of ``class_scores``; it becomes the row's condition.

    Raises:
        AlidadeError: inputs that do not fit.
    """
    correct, seed = top_one(class_scores(images, words, way=way), labels), subject.stamp.seed
    rows = {
        "accuracy": interval(correct, seed=seed),
        "balanced accuracy": balanced_interval(correct, labels, seed=seed),
    }
    for metric, found in rows.items():
        yield subject.row(found, protocol=_protocol(words), condition=way, metric=metric, settings={"rounds": ROUNDS})


def measure_zero_shot_chance(subject: Subject, labels: NDArray[np.int64], words: ClassWords) -> Iterator[Result]:
    """What blind saying gets, exactly: one over the number of classes."""
    share = exactly(1 / len(words.names), len(labels))
    for metric in ("accuracy", "balanced accuracy"):
        yield subject.trivial("chance").row(share, protocol=_protocol(words), metric=metric)


def measure_several(
    subject: Subject, images: Features, truth: NDArray[np.bool_], words: ClassWords
) -> Iterator[Result]:
    """MS-CLIP's multi-label accuracy: the share of right decisions per class, averaged; and that of saying nothing.

    Most classes are absent from most images, so that "nothing is there" scores high; its row says how high.

    Args:
        subject: for the rows.
        images: ``[N, D]``.
        truth: ``[N, C]``, which classes an image has.
        words: of ``class_words``.

    Raises:
        AlidadeError: inputs that do not fit.
    """
    if truth.shape != (len(images), len(words.names)) or truth.dtype != np.bool_:
        expected = f"bool [{len(images)}, {len(words.names)}]"
        raise _refuse("several classes an image", f"{truth.dtype} {truth.shape}", expected, "Check the labels.")
    protocol = f"zero-shot, several classes an image, score above the mean of the others, {words.told}"
    said = present(class_scores(images, words))
    for who, decided in ((subject, said), (subject.trivial("nothing is there"), np.zeros_like(truth))):
        # every image decides every class, so the mean over images is the mean over classes
        right = interval((decided == truth).mean(axis=1), seed=subject.stamp.seed)
        yield who.row(right, protocol=protocol, metric="mean class accuracy")


def _protocol(words: ClassWords) -> str:
    return f"zero-shot, {words.told}, {TIES}"


def _refuse(what: str, got: str, expected: str, next_step: str) -> AlidadeError:
    return AlidadeError(what, got=got, expected=expected, next_step=next_step)
