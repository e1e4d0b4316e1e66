"""Templates, class names, class vectors and zero-shot scores, against closed forms and scikit-learn."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
from sklearn import metrics

from alidade.errors import AlidadeError
from alidade.evaluation.datasets import Images
from alidade.evaluation.features import Encoder, features
from alidade.evaluation.protocols import Stamp
from alidade.evaluation.results import Result, to_markdown
from alidade.evaluation.templates import TEMPLATES, class_names, templates
from alidade.evaluation.zero_shot import (
    BALANCED,
    CENTRED,
    ClassWords,
    Subject,
    balanced_interval,
    class_scores,
    class_words,
    cosines,
    measure_several,
    measure_zero_shot,
    measure_zero_shot_chance,
    present,
    top_one,
)
from alidade.imagery.bands import Encoding, Unit
from alidade.imagery.sensors import sensor

SUBJECT = Subject(
    dataset="made/test", split_hash="0123456789ab", model="toy", config="{}", stamp=Stamp(commit="abc", seed=0)
)
CLASSES = ("Forest", "River", "SeaLake")


class CountingText:
    """A direction per text from its hash; counts what it was asked for."""

    def __init__(self, dim: int = 16) -> None:
        self.dim, self.calls, self.texts = dim, 0, list[str]()

    def __call__(self, texts: list[str], /) -> np.ndarray:
        self.calls += 1
        self.texts += texts
        seeds = [int.from_bytes(hashlib.sha256(t.encode()).digest()[:4], "big") for t in texts]
        return np.stack([np.random.default_rng(s).normal(size=self.dim) for s in seeds]).astype(np.float32)


def words(vectors: np.ndarray, names: tuple[str, ...] | None = None) -> ClassWords:
    named = names or tuple(f"class {i}" for i in range(len(vectors)))
    return ClassWords(names=named, templates="clip", vectors=np.asarray(vectors, dtype=np.float64))


def values(rows: list[Result]) -> dict[tuple[str, str], float]:
    return {(r.model, r.metric): r.value for r in rows}


# --- templates and names


@pytest.mark.parametrize(
    ("name", "count", "pinned"),
    [
        ("msclip", 50, "2bf112a215490c779e08cbf13ca669d5343d9d10f676030b78dcb84ca3e9b1a0"),
        ("rs5m", 105, "9e3e484cf2d6d0da197e71fc0b0dcdad8899dc4a92eef73aa12ebd1b448e1abc"),
        ("clip", 3, "0953ea3fd8c1f0d51cce8bbfc2a2e0397b142df8f487ec40e62ecafd3b37d8ac"),
    ],
)
def test_templates_are_the_published_ones(name: str, count: int, pinned: str) -> None:
    """The hashes are of the lists in MS-CLIP's code, sorted, one a line, with {} for the class.

    Read in the fork louisgrosse/MS-CLIP-FORK: msclip and clip at 8d156e8, rs5m at 0f3778b.
    """
    found = templates(name)
    assert len(found) == len(set(found)) == count
    assert hashlib.sha256("\n".join(sorted(found)).encode()).hexdigest() == pinned


def test_every_template_takes_one_name() -> None:
    for found in TEMPLATES.values():
        assert all(t.count("{}") == 1 and t.format("a {brace}").count("a {brace}") == 1 for t in found)


def test_an_unknown_template_set_names_the_known_ones() -> None:
    with pytest.raises(AlidadeError, match="got 'openai', expected one of msclip, rs5m, clip"):
        templates("openai")


@pytest.mark.parametrize(
    ("convention", "expected"),
    [
        ("words", ("annual crop", "sea lake", "low resolution", "tenniscourt")),
        ("folders", ("annualcrop", "sea lake", "low resolution", "tenniscourt")),
        ("as is", ("AnnualCrop", "Sea/Lake", "low_resolution", "tenniscourt")),
    ],
)
def test_class_names(convention: str, expected: tuple[str, ...]) -> None:
    assert class_names(("AnnualCrop", "Sea/Lake", "low_resolution", "tenniscourt"), convention) == expected


def test_names_that_repeat_are_refused_also_when_only_the_convention_makes_them_equal() -> None:
    for labels in (("river", "forest", "River"), ("SeaLake", "sea_lake")):
        with pytest.raises(AlidadeError, match="more than once, expected each class once"):
            class_names(labels)
    assert class_names(("SeaLake", "sea_lake"), "as is") == ("SeaLake", "sea_lake")
    with pytest.raises(AlidadeError, match="none of them empty"):
        class_names(("river", " "))
    with pytest.raises(AlidadeError, match="expected one of words, folders, as is"):
        class_names(("river",), "snake")


# --- class vectors


def test_class_vectors_are_normalised_averaged_and_normalised() -> None:
    """A long vector must not outweigh the other templates."""
    directions = {"of a ": [9.0, 0.0, 0.0], "of the ": [0.0, 0.1, 0.0], "of ": [0.0, 0.0, 3.0]}

    def encode(texts: list[str], /) -> np.ndarray:
        return np.array([next(v for k, v in directions.items() if k in t) for t in texts], dtype=np.float32)

    found = class_words(encode, ("river",), template_set="clip")
    np.testing.assert_allclose(found.vectors, np.full((1, 3), 3**-0.5), atol=1e-7)
    assert found.told == "templates clip (3), classes river"


def test_n_images_cost_n_image_passes_and_c_times_t_text_passes() -> None:
    seen = []

    def embed(pixels: np.ndarray, gsd_m: np.ndarray, /) -> np.ndarray:
        seen.append(len(pixels))
        return pixels.reshape(len(pixels), -1)[:, :16].astype(np.float32)

    found = sensor("generic-rgb").with_gsd(1.0)
    images = Images(
        name="made/test",
        ids=tuple(map(str, range(150))),
        pixels=np.random.default_rng(0).integers(1, 255, size=(150, 3, 4, 4), dtype=np.uint8),
        labels=np.arange(150) % 3,
        classes=CLASSES,
        gsd_m=np.ones(150),
        sensor=found,
        bands=found.bands,
        encodings=(Encoding(unit=Unit.DISPLAY),) * 3,
    )
    text = CountingText()
    vectors = features(Encoder(identity="toy", config="{}", embed=embed), images)
    rows = list(measure_zero_shot(SUBJECT, vectors, images.labels, class_words(text, images.classes)))
    assert len(rows) == 2
    assert sum(seen) == len(images)
    assert (text.calls, len(text.texts), len(set(text.texts))) == (3, 3 * 50, 3 * 50)
    assert "a satellite image of the sea lake." in text.texts


@pytest.mark.parametrize("bad", [np.zeros((3, 4)), np.full((3, 4), np.nan), np.ones((2, 4)), np.ones(3)])
def test_prompt_vectors_that_are_none_are_refused(bad: np.ndarray) -> None:
    with pytest.raises(AlidadeError, match="prompts of class 'river'.*3 finite vectors"):
        class_words(lambda texts: bad, ("River",), template_set="clip")


# --- scores


def test_cosines_of_equal_rows_are_equal_to_the_last_bit() -> None:
    rng = np.random.default_rng(0)
    gallery = np.repeat(rng.normal(size=(7, 33)), 5, axis=0).astype(np.float32)[rng.permutation(35)]
    queries = rng.normal(size=(13, 33)).astype(np.float32)
    found = cosines(queries, gallery)
    expected = (queries @ gallery.T) / np.outer(np.linalg.norm(queries, axis=1), np.linalg.norm(gallery, axis=1))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert all(len(set(row.tolist())) == 7 for row in found)


def test_accuracies_are_scikit_learns() -> None:
    rng = np.random.default_rng(1)
    labels = rng.choice(5, size=600, p=[0.5, 0.2, 0.15, 0.1, 0.05])
    centres = rng.normal(size=(5, 12))
    images = (centres[labels] + 1.5 * rng.normal(size=(600, 12))).astype(np.float32)
    said = class_scores(images, words(centres)).argmax(axis=1)
    found = {r.metric: r for r in measure_zero_shot(SUBJECT, images, labels, words(centres))}
    assert found["accuracy"].value == pytest.approx(metrics.accuracy_score(labels, said))
    assert found["balanced accuracy"].value == pytest.approx(metrics.balanced_accuracy_score(labels, said))
    assert all(r.low < r.value < r.high and r.n == 600 for r in found.values())


def test_logits_are_a_hundred_times_the_cosine() -> None:
    images, classes = np.array([[3.0, 0.0]], np.float32), np.array([[1.0, 0.0], [0.6, 0.8]])
    np.testing.assert_allclose(class_scores(images, words(classes)), [[100.0, 60.0]])


def test_balanced_interval_has_the_width_of_drawing_by_class_and_stays_below_one() -> None:
    labels = np.repeat([0, 1], [900, 100])
    correct = np.concatenate([np.arange(900) < 450, np.arange(100) < 50]).astype(float)
    found = balanced_interval(correct, labels, seed=0)
    half = 1.96 * 0.5 * np.sqrt(0.25 / 900 + 0.25 / 100)
    assert found.value == 0.5
    assert found.high - found.low == pytest.approx(2 * half, rel=0.1)
    perfect = balanced_interval(np.ones(1000), labels, seed=0)
    assert (perfect.low, perfect.value, perfect.high) == (1.0, 1.0, 1.0)


def test_constant_vectors_get_chance() -> None:
    labels = np.arange(40) % 4
    same = np.ones((40, 8), np.float32)
    rows = list(measure_zero_shot(SUBJECT, same, labels, words(np.ones((4, 8)))))
    rows += list(measure_zero_shot_chance(SUBJECT, labels, words(np.ones((4, 8)))))
    assert values(rows) == {
        ("toy", "accuracy"): 0.25,
        ("toy", "balanced accuracy"): 0.25,
        ("chance", "accuracy"): 0.25,
        ("chance", "balanced accuracy"): 0.25,
    }
    assert top_one(np.array([[1.0, 1.0, 0.0]] * 2), np.array([0, 2])).tolist() == [0.5, 0.0]


def test_labels_and_vectors_that_do_not_fit_are_refused() -> None:
    two = words(np.eye(2))
    for labels in (np.array([0, 1, 2]), np.array([0, -1, 1]), np.array([0, 1])):
        with pytest.raises(AlidadeError, match="labels: got .*one per image, 0 to 1"):
            list(measure_zero_shot(SUBJECT, np.ones((3, 2), np.float32), labels, two))
    with pytest.raises(AlidadeError, match="cosines"):
        class_scores(np.ones((3, 5), np.float32), two)
    with pytest.raises(AlidadeError, match="cosines"):
        class_scores(np.full((3, 2), np.nan, np.float32), two)
    with pytest.raises(AlidadeError, match="expected one of as is, transductive"):
        class_scores(np.ones((3, 2), np.float32), two, way="magic")


# --- transductive


def blobs_off_centre(n: int, seed: int) -> tuple[np.ndarray, np.ndarray, ClassWords]:
    """Four classes that a common offset of the images hides: the modality gap in small."""
    rng = np.random.default_rng(seed)
    centres, labels = np.eye(4, 10), np.arange(n) % 4
    images = centres[labels] + 0.2 * rng.normal(size=(n, 10))
    offset = np.zeros(10)
    offset[0], offset[9] = 1.5, 2.0
    return (images + offset).astype(np.float32), labels, words(centres)


def test_transductive_ways_undo_an_offset_and_depend_on_all_images() -> None:
    images, labels, classes = blobs_off_centre(400, 0)
    share = {
        way: top_one(class_scores(images, classes, way=way), labels).mean() for way in ("as is", CENTRED, BALANCED)
    }
    assert share["as is"] < 0.3
    assert min(share[CENTRED], share[BALANCED]) > 0.85
    alone = class_scores(images[:100], classes)
    np.testing.assert_allclose(alone, class_scores(images, classes)[:100])
    for way in (CENTRED, BALANCED):
        others = images[labels > 0]
        assert not np.allclose(
            class_scores(others, classes, way=way), class_scores(images, classes, way=way)[labels > 0]
        )


def test_balancing_makes_classes_equally_heavy_and_is_wrong_where_they_are_not() -> None:
    images, labels, classes = blobs_off_centre(400, 1)
    probability = np.exp(class_scores(images, classes, way=BALANCED))
    np.testing.assert_allclose(probability.sum(axis=1), 1.0)
    np.testing.assert_allclose(probability.sum(axis=0), 100.0, rtol=0.05)
    rare = np.flatnonzero((labels == 0) | (np.arange(400) < 12))
    said = class_scores(images[rare], classes, way=BALANCED).argmax(axis=1)
    assert (said == 0).mean() < 0.4 < (labels[rare] == 0).mean()


def test_the_way_is_the_rows_condition() -> None:
    images, labels, classes = blobs_off_centre(80, 2)
    ways = {
        r.condition for way in ("as is", CENTRED) for r in measure_zero_shot(SUBJECT, images, labels, classes, way=way)
    }
    assert ways == {"as is", CENTRED}


# --- several classes an image


def test_multi_label_rule_by_hand() -> None:
    # 3 > (1+2)/2; 1 < (3+2)/2; 2 = (3+1)/2 is not above; a constant row has nothing
    scores = np.array([[3.0, 1.0, 2.0], [0.1, 0.1, 0.1], [-1.0, -2.0, -6.0]])
    assert present(scores).tolist() == [[True, False, False], [False] * 3, [True, True, False]]
    # nineteen equal scores whose sum is rounded
    assert not present(np.tile(np.linspace(-33.3, 33.3, 101)[:, None], 19)).any()
    with pytest.raises(AlidadeError, match="1 class, expected two or more"):
        present(np.ones((4, 1)))


def test_multi_label_accuracy_is_the_mean_over_classes_and_nothing_is_there_has_its_row() -> None:
    rng = np.random.default_rng(3)
    images, classes = rng.normal(size=(200, 8)).astype(np.float32), words(rng.normal(size=(19, 8)))
    truth = rng.random((200, 19)) < 0.15
    scores = class_scores(images, classes)
    by_class = []
    for c in range(19):
        others = np.delete(scores, c, axis=1).mean(axis=1)
        by_class.append(((scores[:, c] > others) == truth[:, c]).mean())
    found = values(list(measure_several(SUBJECT, images, truth, classes)))
    assert found["toy", "mean class accuracy"] == pytest.approx(np.mean(by_class))
    assert found["nothing is there", "mean class accuracy"] == pytest.approx(1 - truth.mean())
    with pytest.raises(AlidadeError, match=r"bool \[200, 19\]"):
        list(measure_several(SUBJECT, images, truth.astype(int), classes))


# --- rows


def test_rows_say_templates_classes_and_ties_and_share_a_table_with_chance() -> None:
    images, labels, _ = blobs_off_centre(40, 4)
    named = class_words(CountingText(10), (*CLASSES, "AnnualCrop"), template_set="clip", convention="folders")
    rows = list(measure_zero_shot(SUBJECT, images, labels, named))
    rows += list(measure_zero_shot_chance(SUBJECT, labels, named))
    protocol = "zero-shot, templates clip (3), classes forest, river, sealake, annualcrop, equal scores share"
    assert {r.protocol for r in rows} == {protocol}
    table = to_markdown(rows)
    assert table.count("## made/test") == 1
    assert "| chance | 25.0 (25.0–25.0) | 25.0 (25.0–25.0) |" in table


def test_another_config_is_another_row() -> None:
    images, labels, classes = blobs_off_centre(40, 5)
    one, other = (
        next(measure_zero_shot(replace(SUBJECT, config=json.dumps({"cells": c})), images, labels, classes))
        for c in (1, 2)
    )
    assert one.config_hash != other.config_hash
