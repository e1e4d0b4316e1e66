"""Recall with several and with identical sentences, mAP@100 in both conventions, and the rows of no model."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from sklearn import metrics

from alidade.errors import AlidadeError
from alidade.evaluation.protocols import Stamp
from alidade.evaluation.results import Result, to_markdown
from alidade.evaluation.retrieval import (
    IDENTICAL,
    OVER_HITS,
    OVER_RELEVANT,
    STRICT,
    TO_IMAGE,
    TO_TEXT,
    Captions,
    average_precision,
    ceiling,
    measure_class_retrieval,
    measure_recall,
    measure_trivial_recall,
    standing,
)
from alidade.evaluation.zero_shot import ClassWords, Subject

SUBJECT = Subject(
    dataset="made/val", split_hash="0123456789ab", model="toy", config="{}", stamp=Stamp(commit="abc", seed=0)
)
RULES = [(d, r) for d in (TO_IMAGE, TO_TEXT) for r in (STRICT, IDENTICAL)]


def made(images: int, each: int, seed: int, sentences: int) -> tuple[np.ndarray, np.ndarray, Captions]:
    """Noisy images and captions; few sentences, so that many are shared. Captions stand in random order."""
    rng = np.random.default_rng(seed)
    meaning = rng.normal(size=(sentences, 12))
    owners = rng.permutation(np.repeat(np.arange(images), each))
    said = (owners * 7 + rng.integers(4, size=len(owners))) % sentences
    vectors = meaning[said].astype(np.float32)
    pixels = np.stack([meaning[said[owners == i]].mean(axis=0) for i in range(images)])
    pixels += 0.8 * rng.normal(size=pixels.shape)
    return (
        pixels.astype(np.float32),
        vectors,
        Captions(texts=tuple(f"place {s}" for s in said), owners=owners, images=images),
    )


def brute(similarity: np.ndarray, right: Callable[[int, int], bool], depth: int, draws: int, seed: int) -> np.ndarray:
    """Recall per query by really shuffling the answers and sorting them."""
    rng, out = np.random.default_rng(seed), np.zeros(len(similarity))
    for _ in range(draws):
        order = rng.permutation(similarity.shape[1])
        for q, row in enumerate(similarity):
            first = sorted(order.tolist(), key=lambda g, row=row: -row[g])[:depth]
            out[q] += any(right(q, g) for g in first) / draws
    return out


def by_name(rows: list[Result]) -> dict[tuple[str, str, str], Result]:
    return {(r.model, r.condition, r.metric): r for r in rows}


# --- recall


@pytest.mark.parametrize(("direction", "rule"), RULES)
def test_recall_is_that_of_shuffling_and_sorting(direction: str, rule: str) -> None:
    images, vectors, captions = made(14, 3, 0, sentences=9)
    unit = [v / np.linalg.norm(v, axis=1, keepdims=True) for v in (vectors.astype(np.float64), images)]
    similarity = np.round(unit[0] @ unit[1].T, 9)

    def right(caption: int, image: int) -> bool:
        same = {captions.texts[c] for c in np.flatnonzero(captions.owners == image)}
        return captions.owners[caption] == image if rule == STRICT else captions.texts[caption] in same

    stands = standing(images, vectors, captions, direction=direction, rule=rule)
    for depth in (1, 5, 10):
        found = stands.found(depth)
        if direction == TO_IMAGE:
            expected = brute(similarity, right, depth, 1, 0)
            # no two images are equal here, so nothing is left to chance
            np.testing.assert_allclose(found, expected, atol=1e-12)
        else:
            expected = brute(similarity.T, lambda i, c: right(c, i), depth, 300, 0)
            assert 0 < ((0 < found) & (found < 1)).sum() or rule == IDENTICAL
            np.testing.assert_allclose(found, expected, atol=0.12)
            assert found.mean() == pytest.approx(expected.mean(), abs=0.02)


def test_identical_sentences_are_right_for_every_image_that_owns_them() -> None:
    """Worked by hand: two ponds with one sentence; the model takes the wrong one."""
    captions = Captions(texts=("a pond .", "a  pond .", "a road ."), owners=np.array([0, 1, 2]), images=3)
    images = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]], np.float32)
    vectors = np.array([[1, 0], [1, 0], [0, 1]], np.float32)
    found = {
        rule: {
            direction: standing(images, vectors, captions, direction=direction, rule=rule).found(1).tolist()
            for direction in (TO_IMAGE, TO_TEXT)
        }
        for rule in (STRICT, IDENTICAL)
    }
    assert found[STRICT] == {TO_IMAGE: [1, 0, 1], TO_TEXT: [0.5, 0.5, 1]}
    assert found[IDENTICAL] == {TO_IMAGE: [1, 1, 1], TO_TEXT: [1, 1, 1]}


def test_noise_between_identical_sentences_decides_nothing() -> None:
    images, vectors, captions = made(20, 5, 1, sentences=6)
    moved = vectors + 1e-6 * np.random.default_rng(0).normal(size=vectors.shape).astype(np.float32)
    first = captions.first[captions.sentences]
    clean = standing(images, moved[first], captions, direction=TO_TEXT, rule=STRICT).found(1)
    noisy = standing(images, moved, captions, direction=TO_TEXT, rule=STRICT).found(1)
    assert np.array_equal(clean, noisy)


def test_constant_vectors_get_chance_exactly() -> None:
    n, each = 30, 5
    captions = Captions(
        texts=tuple(f"sentence {i}" for i in range(n * each)), owners=np.repeat(np.arange(n), each), images=n
    )
    found = by_name(list(measure_recall(SUBJECT, np.ones((n, 7)), np.full((n * each, 7), 0.3), captions)))
    for depth in (1, 5, 10):
        assert found["toy", STRICT, f"{TO_IMAGE} R@{depth}"].value == pytest.approx(depth / n)
        missed = np.prod([(n * each - each - i) / (n * each - i) for i in range(depth)])
        assert found["toy", STRICT, f"{TO_TEXT} R@{depth}"].value == pytest.approx(1 - missed)
    assert found["toy", STRICT, "mean recall"].value < 0.2


def test_recall_takes_every_image_in_one_batch_or_many(monkeypatch: pytest.MonkeyPatch) -> None:
    images, vectors, captions = made(40, 5, 2, sentences=25)
    whole = [standing(images, vectors, captions, direction=d, rule=r).found(5) for d, r in RULES]
    monkeypatch.setattr("alidade.evaluation.retrieval._AT_ONCE", 7)
    parts = [standing(images, vectors, captions, direction=d, rule=r).found(5) for d, r in RULES]
    assert all(np.array_equal(a, b) for a, b in zip(whole, parts, strict=True))


def test_rows_of_recall() -> None:
    images, vectors, captions = made(60, 5, 3, sentences=40)
    rows = list(measure_recall(SUBJECT, images, vectors, captions))
    assert len(rows) == 2 * 7
    assert {r.protocol for r in rows} == {"image-text retrieval, ties by expected value"}
    found = by_name(rows)
    for rule in (STRICT, IDENTICAL):
        six = [found["toy", rule, f"{d} R@{k}"].value for d in (TO_IMAGE, TO_TEXT) for k in (1, 5, 10)]
        mean = found["toy", rule, "mean recall"]
        assert mean.value == pytest.approx(np.mean(six))
        assert mean.low < mean.value < mean.high
        assert six[0] <= six[1] <= six[2]
    strict, lenient = (found["toy", rule, f"{TO_IMAGE} R@1"] for rule in (STRICT, IDENTICAL))
    assert strict.value < lenient.value
    assert strict.n == 300
    assert "identical sentences count: mean recall" in to_markdown(rows)


def test_captions_of_one_image_are_drawn_together() -> None:
    """Five equal captions an image are one fact, not five: the interval is as wide as that of the images."""
    n = 80
    captions = Captions(texts=tuple(f"{i % n}" for i in range(5 * n)), owners=np.arange(5 * n) % n, images=n)
    rng = np.random.default_rng(0)
    images, texts = rng.normal(size=(n, 4)).astype(np.float32), rng.normal(size=(n, 4)).astype(np.float32)
    texts[: n // 2] = images[: n // 2]
    row = by_name(list(measure_recall(SUBJECT, images, np.tile(texts, (5, 1)), captions)))[
        "toy", STRICT, f"{TO_IMAGE} R@1"
    ]
    half = 1.96 * np.sqrt(row.value * (1 - row.value) / n)
    assert row.high - row.low == pytest.approx(2 * half, rel=0.15)


# --- rows of no model


def test_class_oracle_is_drawing_within_the_class() -> None:
    n, each, labels = 40, 2, np.arange(40) % 4
    captions = Captions(texts=tuple(map(str, range(n * each))), owners=np.repeat(np.arange(n), each), images=n)
    found = by_name(list(measure_trivial_recall(SUBJECT, captions, labels)))
    for depth in (1, 5, 10):
        assert found["class oracle", STRICT, f"{TO_IMAGE} R@{depth}"].value == pytest.approx(depth / 10)
        missed = np.prod([(18 - i) / (20 - i) for i in range(depth)])
        assert found["class oracle", STRICT, f"{TO_TEXT} R@{depth}"].value == pytest.approx(1 - missed)
        assert found["chance", STRICT, f"{TO_IMAGE} R@{depth}"].value == pytest.approx(depth / n)
        assert found["ceiling of identical sentences", STRICT, f"{TO_TEXT} R@{depth}"].value == 1.0
    assert found["class oracle", STRICT, "mean recall"].value > found["chance", STRICT, "mean recall"].value
    with pytest.raises(AlidadeError, match="one for each of 40 images"):
        list(measure_trivial_recall(SUBJECT, captions, labels[:-1]))


def test_class_oracle_is_perfect_where_all_of_a_class_share_their_sentences() -> None:
    labels = np.arange(40) % 4
    captions = Captions(texts=tuple(f"class {c}" for c in labels), owners=np.arange(40), images=40)
    found = by_name(list(measure_trivial_recall(SUBJECT, captions, labels)))
    assert found["class oracle", IDENTICAL, "mean recall"].value == 1.0
    assert found["class oracle", STRICT, f"{TO_IMAGE} R@1"].value == pytest.approx(0.1)
    assert found["chance", IDENTICAL, f"{TO_IMAGE} R@1"].value == pytest.approx(0.25)
    assert found["ceiling of identical sentences", STRICT, f"{TO_IMAGE} R@5"].value == pytest.approx(0.5)


def test_ceiling_by_hand() -> None:
    """One sentence owned twice by image 0 and once by 1, one of image 1 alone."""
    captions = Captions(texts=("pond",) * 3 + ("road",), owners=np.array([0, 0, 1, 1]), images=2)
    # asking "pond" three times, the best first answer is image 0, right twice
    assert ceiling(captions, TO_IMAGE, 1).tolist() == pytest.approx([2 / 3] * 3 + [1.0])
    assert ceiling(captions, TO_IMAGE, 2).tolist() == [1.0] * 4
    # image 0 draws among three equal captions of which two are its own; image 1 has a sentence of its own
    assert ceiling(captions, TO_TEXT, 1).tolist() == pytest.approx([2 / 3, 1.0])


@pytest.mark.parametrize("seed", range(3))
def test_no_ranking_beats_the_ceiling(seed: int) -> None:
    _, _, captions = made(6, 2, seed, sentences=4)
    for depth in (1, 2):
        best = 0.0
        # all orders of six images for one sentence at a time are all there is
        for s in range(captions.owned.shape[0]):
            queries = np.flatnonzero(captions.sentences == s)
            best += max(
                sum(captions.owners[q] in order[:depth] for q in queries) for order in itertools.permutations(range(6))
            )
        assert ceiling(captions, TO_IMAGE, depth).sum() == pytest.approx(best)
    # vectors of the sentences themselves as images reach no more from images either
    images = np.eye(captions.owned.shape[0], dtype=np.float32)[captions.owned.argmax(axis=0)]
    vectors = np.eye(captions.owned.shape[0], dtype=np.float32)[captions.sentences]
    found = standing(images, vectors, captions, direction=TO_TEXT, rule=STRICT).found(1)
    assert (found <= ceiling(captions, TO_TEXT, 1) + 1e-12).all()


# --- class words to images


@pytest.mark.parametrize(
    ("relevant", "over_hits", "over_relevant"),
    [
        ([1, 0, 0, 0], 1.0, 1.0),
        ([0, 1, 0, 0], 1 / 2, 1 / 2),
        ([1, 0, 1, 0], (1 + 2 / 3) / 2, (1 + 2 / 3) / 2),
        ([0, 0, 0, 1], 1 / 4, 1 / 4),
    ],
)
def test_average_precision_by_hand(relevant: list[int], over_hits: float, over_relevant: float) -> None:
    scores, told = np.array([4.0, 3, 2, 1]), np.array(relevant, dtype=bool)
    assert average_precision(scores, told, over_hits=True) == pytest.approx(over_hits)
    assert average_precision(scores, told, over_hits=False) == pytest.approx(over_relevant)


def test_one_hit_among_a_hundred_scores_one_over_hits_and_a_hundredth_over_relevant() -> None:
    """801 relevant images of which the first hundred hold one, at rank 1: the two conventions differ by a hundred."""
    relevant = np.zeros(1000, dtype=bool)
    relevant[0], relevant[200:] = True, True
    scores = -np.arange(1000.0)
    assert average_precision(scores, relevant, over_hits=True) == 1.0
    assert average_precision(scores, relevant, over_hits=False) == pytest.approx(0.01)
    nothing = np.arange(1000) >= 200
    assert (
        average_precision(scores, nothing, over_hits=True) == average_precision(scores, nothing, over_hits=False) == 0
    )


@pytest.mark.parametrize("seed", range(5))
def test_average_precision_of_a_full_list_is_scikit_learns(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores, relevant = rng.normal(size=90), rng.random(90) < 0.3
    expected = metrics.average_precision_score(relevant, scores)
    assert average_precision(scores, relevant, over_hits=False) == pytest.approx(expected)
    assert average_precision(scores, relevant, over_hits=True) == pytest.approx(expected)


@pytest.mark.parametrize("over_hits", [True, False])
@pytest.mark.parametrize(
    ("depth", "scores"), [(100, [2, 1, 1, 1, 1, 0]), (3, [2, 1, 1, 1, 1, 0]), (3, [1] * 6), (1, [3, 3, 1, 1, 0, 0])]
)
def test_average_precision_of_ties_is_the_mean_over_all_orders(
    monkeypatch: pytest.MonkeyPatch, depth: int, scores: list[int], over_hits: bool
) -> None:
    monkeypatch.setattr("alidade.evaluation.retrieval.DEPTH", depth)
    relevant = np.array([False, True, False, True, True, False])
    out = []
    for order in itertools.permutations(range(6)):
        if sorted(order, key=lambda i: -scores[i]) != list(order):
            continue
        hits = [relevant[i] for i in order][:depth]
        total = sum(sum(hits[: r + 1]) / (r + 1) for r, hit in enumerate(hits) if hit)
        out.append(total / ((sum(hits) if over_hits else min(depth, 3)) or 1))
    assert average_precision(np.array(scores, float), relevant, over_hits=over_hits) == pytest.approx(np.mean(out))


def test_rows_of_class_retrieval_have_both_conventions_and_chance() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(600) % 3
    relevant = labels[:, None] == np.arange(3)
    words = ClassWords(names=("river", "forest", "lake"), templates="msclip", vectors=np.eye(3, 8))
    images = (np.eye(3, 8)[labels] + 0.5 * rng.normal(size=(600, 8))).astype(np.float32)
    found = {(r.model, r.metric): r for r in measure_class_retrieval(SUBJECT, images, relevant, words)}
    assert set(found) == {(m, v) for m in ("toy", "chance") for v in (OVER_HITS, OVER_RELEVANT)}
    row = found["toy", OVER_HITS]
    assert (
        row.protocol
        == "class words → images, templates msclip (50), classes river, forest, lake, ties by expected value"
    )
    assert row.n == 3
    # H is at most 100 = min(100, 200)
    assert found["toy", OVER_RELEVANT].value <= row.value
    assert row.value > 0.7 > 0.4 > found["chance", OVER_HITS].value > 1 / 3
    same = {(r.model, r.metric): r.value for r in measure_class_retrieval(SUBJECT, np.ones((600, 8)), relevant, words)}
    for metric in (OVER_HITS, OVER_RELEVANT):
        assert same["toy", metric] == pytest.approx(same["chance", metric])


# --- refusals


def test_bad_captions_are_refused() -> None:
    two = np.array([0, 1])
    for texts, owners, images, told in (
        (("a", " "), two, 2, r"an empty sentence \(number 1\)"),
        (("a",), two, 2, "1 sentences, owners"),
        (("a", "b"), two, 3, "at least one sentence for each image"),
        (("a", "b"), two, 1, "none for others"),
    ):
        with pytest.raises(AlidadeError, match=told):
            Captions(texts=texts, owners=owners, images=images)


def test_vectors_that_do_not_fit_are_refused() -> None:
    images, vectors, captions = made(5, 2, 0, sentences=3)
    with pytest.raises(AlidadeError, match="4 image and 10 text vectors, expected 5 and 10"):
        list(measure_recall(SUBJECT, images[:4], vectors, captions))
    with pytest.raises(AlidadeError, match="cosines"):
        list(measure_recall(SUBJECT, images[:, :3], vectors, captions))
    with pytest.raises(AlidadeError, match="sideways"):
        standing(images, vectors, captions, direction="sideways", rule=STRICT)
    with pytest.raises(AlidadeError, match="something to find"):
        average_precision(np.ones(3), np.zeros(3, dtype=bool), over_hits=True)
    words = ClassWords(names=("river", "moor"), templates="clip", vectors=np.eye(2, 12))
    with pytest.raises(AlidadeError, match="no image of moor"):
        list(measure_class_retrieval(SUBJECT, images, np.array([[True, False]] * 5), words))
    with pytest.raises(AlidadeError, match=r"bool \[5, 2\]"):
        list(measure_class_retrieval(SUBJECT, images, np.ones((5, 2)), words))
