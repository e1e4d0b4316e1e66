"""Nearest neighbours, linear probe, bootstrap and retrieval against closed forms and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import linear_model as linear
from sklearn import neighbors as neighbours

from alidade.errors import AlidadeError
from alidade.evaluation.bootstrap import interval
from alidade.evaluation.crosssensor import choose_bridge, fit_bridge, ranks, recalls
from alidade.evaluation.knn import knn_predict
from alidade.evaluation.probe import choose_probe, fit_probe, hold_out


def blobs(n: int, classes: int, dim: int, seed: int, spread: float = 1.5) -> tuple[np.ndarray, np.ndarray]:
    centres = np.random.default_rng(99).normal(size=(classes, dim))
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=n)
    return (centres[labels] + spread * rng.normal(size=(n, dim))).astype(np.float32), labels.astype(np.int64)


@pytest.mark.parametrize("k", [1, 4, 5])
def test_knn_is_scikit_learns(k: int) -> None:
    x, y = blobs(700, 6, 16, 0)
    queries, _ = blobs(600, 6, 16, 1)
    reference = neighbours.KNeighborsClassifier(n_neighbors=k, metric="cosine", algorithm="brute")
    reference.fit(x.astype(np.float64), y)
    assert np.array_equal(knn_predict(x, y, queries, k=k), reference.predict(queries.astype(np.float64)))


def test_knn_votes_tie_to_the_lowest_class_and_equal_neighbours_to_the_earliest() -> None:
    x = np.array([[1, 0], [1, 0], [0, 1], [0, 1]], dtype=np.float32)
    assert knn_predict(x, np.array([3, 3, 1, 1]), np.array([[1, 1]], dtype=np.float32), k=4) == [1]
    # four equally near: the two earliest are of class 2
    same = np.ones((4, 2), dtype=np.float32)
    assert knn_predict(same, np.array([2, 2, 0, 0]), np.array([[1, 1]], dtype=np.float32), k=3) == [2]


def test_knn_takes_the_angle_not_the_length() -> None:
    x = np.array([[100, 0], [0, 1]], dtype=np.float32)
    assert knn_predict(x, np.array([0, 1]), np.array([[0.1, 0.2]], dtype=np.float32), k=1) == [1]


def test_knn_refuses_more_neighbours_than_there_are() -> None:
    with pytest.raises(AlidadeError, match=r"k = 5.*at least k of them"):
        knn_predict(np.ones((3, 2), np.float32), np.zeros(3, np.int64), np.ones((1, 2), np.float32))


def test_probe_is_scikit_learns() -> None:
    x, y = blobs(900, 5, 24, 0, spread=2.0)
    queries, truth = blobs(2000, 5, 24, 1, spread=2.0)
    for c in (0.01, 1.0):
        ours = fit_probe(x, y, c=c, classes=5)
        standard = (x - x.mean(axis=0)) / x.std(axis=0)
        theirs = linear.LogisticRegression(C=c, max_iter=5000, tol=1e-8).fit(standard.astype(np.float64), y)
        predicted = theirs.predict((queries - x.mean(axis=0)) / x.std(axis=0))
        assert abs((ours.predict(queries) == truth).mean() - (predicted == truth).mean()) < 0.005
        np.testing.assert_allclose(ours.weight.numpy(), theirs.coef_, atol=2e-3)


def test_probe_balance_of_two_classes_has_a_closed_form() -> None:
    """Without any feature that varies only the bias is left: the classes' log odds."""
    labels = np.array([0] * 30 + [1] * 10)
    probe = fit_probe(np.ones((40, 3), dtype=np.float32), labels, c=1.0, classes=2)
    assert float(probe.bias[0] - probe.bias[1]) == pytest.approx(np.log(3), abs=1e-4)
    assert float(probe.weight.abs().max()) == 0


def test_probe_strength_is_chosen_on_validation() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 40)).astype(np.float32), rng.integers(2, size=60).astype(np.int64)
    x[:, 0] += 3 * y
    queries, truth = rng.normal(size=(3000, 40)).astype(np.float32), rng.integers(2, size=3000).astype(np.int64)
    queries[:, 0] += 3 * truth
    scores = {
        c: float((fit_probe(x, y, c=c, classes=2).predict(queries) == truth).mean()) for c in (1e-4, 1e-2, 1.0, 1e3)
    }
    chosen = choose_probe((x, y), (queries, truth), classes=2, strengths=tuple(scores))
    assert scores[chosen.c] == max(scores.values()) > scores[1e3] + 0.01


def test_probe_refuses_a_label_out_of_range() -> None:
    with pytest.raises(AlidadeError, match="labels 0 to 1"):
        fit_probe(np.ones((3, 2), np.float32), np.array([0, 1, 2]), c=1.0, classes=2)


def test_held_out_part_has_every_class_and_no_training_image() -> None:
    labels = np.array([0] * 50 + [1] * 10 + [2] * 2)
    fit, chosen = hold_out(labels, share=0.2, seed=0)
    assert not set(fit) & set(chosen)
    assert sorted([*fit, *chosen]) == list(range(62))
    assert np.bincount(labels[chosen]).tolist() == [10, 2, 1]


def test_interval_has_the_width_of_the_binomial() -> None:
    scores = (np.arange(1000) < 700).astype(float)
    found = interval(scores, seed=0)
    half = 1.96 * np.sqrt(0.7 * 0.3 / 1000)
    assert (found.value, found.n) == (0.7, 1000)
    assert found.high - found.value == pytest.approx(half, rel=0.1)
    assert found.value - found.low == pytest.approx(half, rel=0.1)
    assert found == interval(scores, seed=0)
    assert found != interval(scores, seed=1)


def test_interval_by_group_is_as_wide_as_the_groups_are_few() -> None:
    """Ten scenes of 100 equal windows hold ten facts, not a thousand."""
    scores = np.repeat([1.0, 0, 1, 0, 1, 1, 0, 0, 1, 0], 100)
    groups = np.repeat(np.arange(10), 100)
    alone, together = interval(scores, seed=0), interval(scores, seed=0, groups=groups)
    assert together.value == alone.value == 0.5
    assert (together.high - together.low) / (alone.high - alone.low) == pytest.approx(10, rel=0.15)


@pytest.mark.parametrize("scores", [np.array([]), np.array([0.5, np.nan])])
def test_interval_refuses_nothing_and_nan(scores: np.ndarray) -> None:
    with pytest.raises(AlidadeError, match="one score per image"):
        interval(scores, seed=0)


def test_ranks_by_hand() -> None:
    gallery = np.array([[1, 0], [0, 1], [1, 1]], dtype=np.float32)
    queries = np.array([[1, 0.1], [1, 0.1], [1, 0.9]], dtype=np.float32)
    assert ranks(queries, gallery).tolist() == [1, 3, 1]


def test_equal_features_are_no_find() -> None:
    same = np.ones((50, 4), dtype=np.float32)
    assert set(ranks(same, same)) == {50}


def test_random_features_recall_at_chance() -> None:
    rng = np.random.default_rng(0)
    sar, optical = (rng.normal(size=(2000, 8)).astype(np.float32) for _ in range(2))
    found = {(r.direction, r.depth): r.interval for r in recalls(sar, optical, np.arange(2000) // 20, seed=0)}
    assert len(found) == 4
    for (_, depth), interval_ in found.items():
        assert interval_.low <= depth / 2000 <= interval_.high


def test_bridge_finds_what_two_sensors_share() -> None:
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(600, 6))
    mixes = [rng.normal(size=(6, 12)), rng.normal(size=(6, 20))]
    sar, optical = ((shared @ m + 0.1 * rng.normal(size=(600, m.shape[1]))).astype(np.float32) for m in mixes)
    fitted = fit_bridge(sar[:400], optical[:400], ridge=0.01)
    a, b = fitted.apply(sar[400:], optical[400:])
    assert (ranks(a, b) == 1).mean() > 0.9
    # the map holds for the ground it was fitted to be like, not for shuffled pairs
    assert (ranks(a, np.roll(b, 1, axis=0)) == 1).mean() < 0.05
    assert choose_bridge(sar, optical, np.arange(600) // 30).ridge < 1.0


def test_bridge_refuses_unpaired_rows() -> None:
    with pytest.raises(AlidadeError, match="3 radar and 4 optical rows"):
        fit_bridge(np.ones((3, 2), np.float32), np.ones((4, 2), np.float32), ridge=0.1)
