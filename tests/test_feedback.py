"""Examples as a query: the written rules in plain numpy, an independent ridge regression, and what must not matter."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from alidade.errors import ArchiveError
from alidade.search.feedback import PROBE_FROM, example_vector, probe, rocchio, unit

DIM = 24


def units(rng: np.random.Generator, count: int, dim: int = DIM, around: np.ndarray | None = None) -> np.ndarray:
    vectors = rng.standard_normal((count, dim)) + (0.0 if around is None else 4.0 * around)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(11)


def test_rocchio_is_the_written_rule(rng: np.random.Generator) -> None:
    liked, disliked = units(rng, 3), units(rng, 2)
    expected = liked.mean(0, dtype=float) + (liked.mean(0, dtype=float) - disliked.mean(0, dtype=float))
    np.testing.assert_allclose(rocchio(liked, disliked), expected / np.linalg.norm(expected), atol=1e-7)


@pytest.mark.parametrize(("likes", "dislikes"), [(7, 5), (5, 90), (60, 3)], ids=["few", "many", "uneven"])
def test_the_probe_is_ridge_regression_towards_rocchio(rng: np.random.Generator, likes: int, dislikes: int) -> None:
    """Against scikit-learn: a ridge towards w0 is a ridge towards zero of what w0 leaves over."""
    liked, disliked = units(rng, likes).astype(float), units(rng, dislikes).astype(float)
    rows, targets = np.concatenate([liked, disliked]), np.repeat([1.0, -1.0], [likes, dislikes])
    weights = np.repeat([0.5 / likes, 0.5 / dislikes], [likes, dislikes])
    middle = (liked.mean(0) + disliked.mean(0)) / 2
    variance = float((weights[:, None] * (rows - middle) ** 2).sum()) / min(len(rows), DIM)
    start = 3.0 * rocchio(liked, disliked)
    rest = Ridge(alpha=variance, solver="svd").fit(rows, targets - rows @ start, sample_weight=weights)
    expected = start + rest.coef_
    np.testing.assert_allclose(probe(liked, disliked), expected / np.linalg.norm(expected), atol=1e-6)


def test_both_sides_of_the_closed_form_agree(rng: np.random.Generator) -> None:
    """One label more than dimensions takes the other formula; a repeated set of labels is the same question."""
    liked, disliked = units(rng, 6, dim=16), units(rng, 6, dim=16)
    repeated = probe(np.repeat(liked, 3, axis=0), np.repeat(disliked, 3, axis=0))
    rows = np.concatenate([liked, disliked]).astype(float)
    weights = np.full(12, 1 / 12)
    middle = (liked.mean(0, dtype=float) + disliked.mean(0, dtype=float)) / 2
    variance = float((weights[:, None] * (rows - middle) ** 2).sum()) / 16
    start = 3.0 * rocchio(liked, disliked)
    targets = np.repeat([1.0, -1.0], 6) - rows @ start
    rest = Ridge(alpha=variance, solver="svd").fit(rows, targets, sample_weight=weights)
    expected = start + rest.coef_
    np.testing.assert_allclose(repeated, expected / np.linalg.norm(expected), atol=1e-6)


def test_which_rule_holds_when(rng: np.random.Generator) -> None:
    liked, disliked = units(rng, 12), units(rng, 12)
    vector, how = example_vector(liked, disliked[:0])
    assert how == "mean"
    np.testing.assert_allclose(vector, unit(liked.mean(0, dtype=float)), atol=1e-7)
    vector, how = example_vector(liked[:1], disliked[: PROBE_FROM - 2])
    assert how == "rocchio"
    np.testing.assert_array_equal(vector, rocchio(liked[:1], disliked[: PROBE_FROM - 2]))
    vector, how = example_vector(liked[:1], disliked[: PROBE_FROM - 1])
    assert how == "probe"
    np.testing.assert_array_equal(vector, probe(liked[:1], disliked[: PROBE_FROM - 1]))


def test_the_same_labels_give_the_same_bytes_and_order_does_not_matter(rng: np.random.Generator) -> None:
    liked, disliked = units(rng, 9), units(rng, 8)
    first = probe(liked, disliked)
    assert first.tobytes() == probe(liked.copy(), disliked.copy()).tobytes()
    np.testing.assert_allclose(first, probe(liked[::-1], disliked[rng.permutation(8)]), atol=1e-12)
    assert np.linalg.norm(first) == pytest.approx(1.0)


def test_labels_find_their_class_better_than_the_likes_alone(rng: np.random.Generator) -> None:
    """Classes that share most of what they are: what tells them apart is what dislikes are for."""
    common, apart = np.eye(DIM)[0], np.eye(DIM)[1]
    mine, others = units(rng, 300, around=common + 0.5 * apart), units(rng, 2_000, around=common - 0.5 * apart)
    rows = np.concatenate([mine[20:], others[20:]]).astype(float)
    truth = np.repeat([True, False], [280, 1_980])

    def average_precision(query: np.ndarray) -> float:
        ranked = truth[np.argsort(-(rows @ query))]
        return float((np.cumsum(ranked)[ranked] / (np.flatnonzero(ranked) + 1)).mean())

    alone = average_precision(example_vector(mine[:20], others[:0])[0])
    few = average_precision(example_vector(mine[:4], others[:4])[0])
    probed = average_precision(example_vector(mine[:20], others[:20])[0])
    assert alone + 0.05 < few < probed
    assert probed > 0.9


def test_one_like_among_equal_dislikes_still_has_a_direction() -> None:
    same = np.tile(np.eye(DIM)[:1], (12, 1))
    np.testing.assert_allclose(example_vector(same[:1], same[1:])[0], np.eye(DIM)[0], atol=1e-7)


def test_examples_that_cancel_out_are_refused() -> None:
    east, west = np.eye(DIM)[:1], -np.eye(DIM)[:1]
    with pytest.raises(ArchiveError, match="likes and dislikes that cancel out"):
        example_vector(np.concatenate([east, west]), east[:0])
    with pytest.raises(ArchiveError, match="likes and dislikes that cancel out"):
        rocchio(np.concatenate([east, np.eye(DIM)[1:2]]), np.concatenate([2 * east, 2 * np.eye(DIM)[1:2]]))
