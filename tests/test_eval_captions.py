"""``alidade eval retrieval`` end to end, with words whose right answers are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from alidade.errors import AlidadeError
from alidade.evaluation.protocols import Stamp
from alidade.evaluation.results import Result
from alidade.evaluation.retrieval import Captions, measure_recall
from alidade.evaluation.text_diagnostics import measure_vectors
from alidade.evaluation.zero_shot import Subject
from alidade.models.model import Model
from alidade.models.registry import load as load_model
from alidade.training.captions.loading import read_captions
from eval_word_models import measured, own_captions, ucm_captions, with_words, write_two_sets


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_two_sets(tmp_path_factory.mktemp("pack"))


@pytest.fixture(scope="module")
def knowing(pack: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_words(tmp_path_factory.mktemp("knowing") / "model", pack)


@pytest.fixture(scope="module")
def confused(pack: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_words(tmp_path_factory.mktemp("confused") / "model", pack, (1, 2, 0))


def by_hand(model: Model, folder: Path, subject: Subject) -> list[Result]:
    """The figures again, from the data set's own reader and ``Model.embed``, one image at a time."""
    part = read_captions(folder).part("val")
    texts = [s for own in part.captions for s in own]
    owners = np.repeat(np.arange(6), [len(own) for own in part.captions])
    captions = Captions(texts=tuple(texts), owners=owners, images=6)
    images = np.concatenate([model.embed(part.rgb(i)) for i in range(6)])
    vectors = model.embed_text(texts)
    rows = [*measure_recall(subject, images, vectors, captions)]
    return [*rows, *measure_vectors(subject, images, vectors, captions, k=6)]


def test_retrieval_of_the_packs_layout(confused: Path, tmp_path: Path) -> None:
    folder = ucm_captions(tmp_path / "ucm")
    rows, shown = measured(tmp_path / "r.jsonl", "retrieval", str(folder), "--model", str(confused))
    ours = [r for r in rows if r.model.startswith("alidade-tiny")]
    subject = Subject(dataset="x", split_hash="x", model="x", config="{}", stamp=Stamp(commit="c", seed=0))
    expected = by_hand(load_model(confused, dtype=torch.float32), folder, subject)
    assert [(r.condition, r.metric) for r in ours] == [(r.condition, r.metric) for r in expected]
    assert [r.value for r in ours] == pytest.approx([r.value for r in expected], abs=1e-5)
    assert {r.condition for r in ours} == {"strict", "identical sentences count", "as is"}
    trivial = {(r.model, r.condition, r.metric): r.value for r in rows}
    assert trivial["chance", "strict", "text→image R@1"] == pytest.approx(1 / 6)
    # two images a class: one that knows the class only finds the right one half the time
    assert trivial["class oracle", "strict", "text→image R@1"] == pytest.approx(1 / 2)
    assert trivial["class oracle", "identical sentences count", "mean recall"] == pytest.approx(1)
    assert trivial["ceiling of identical sentences", "strict", "text→image R@1"] == pytest.approx(1 / 2)
    assert {r.dataset for r in rows} == {"ucm-captions/val"}
    assert "6 images, 30 sentences, 6 different" in shown
    assert "ties by expected value" in shown
    # numbers that are no shares are not printed as percent
    line = next(line for line in shown.splitlines() if "modality gap" in line)
    gap = next(r for r in rows if r.metric == "modality gap")
    assert f"{gap.value:.4f}" in line
    assert "%" not in line


def test_retrieval_without_labels_has_no_oracle_and_needs_the_ground_distance(knowing: Path, tmp_path: Path) -> None:
    folder = own_captions(tmp_path / "mine")
    words = ("retrieval", str(folder), "--model", str(knowing))
    with pytest.raises(AlidadeError, match="--gsd"):
        measured(tmp_path / "none.jsonl", *words)
    rows, shown = measured(tmp_path / "r.jsonl", *words, "--gsd", "10")
    assert {r.model for r in rows if not r.model.startswith("alidade")} == {"chance", "ceiling of identical sentences"}
    assert "no class oracle" in shown
    found = {(r.condition, r.metric): r.value for r in rows if r.model.startswith("alidade")}
    # its words know the class and nothing finer, and each class has two pictures
    assert found["identical sentences count", "text→image R@5"] == 1.0
    assert found["strict", "text→image R@1"] == pytest.approx(0.5, abs=0.26)
    coarser, _ = measured(tmp_path / "r.jsonl", *words, "--gsd", "40")
    # what is told about the ground is part of a row's settings, and changes vectors
    hashes = {r.metric: r.config_hash for r in rows if r.model.startswith("alidade")}
    assert all(hashes[r.metric] != r.config_hash for r in coarser if r.model.startswith("alidade"))
    assert {r.split_hash for r in coarser} == {r.split_hash for r in rows}


def test_labels_beside_own_captions_give_an_oracle(knowing: Path, tmp_path: Path) -> None:
    folder = own_captions(tmp_path / "mine", labels=True)
    rows, _ = measured(
        tmp_path / "r.jsonl", "retrieval", str(folder), "--model", str(knowing), "--gsd", "10", "--part", "val"
    )
    assert "class oracle" in {r.model for r in rows}


def test_another_sentence_is_another_split(knowing: Path, tmp_path: Path) -> None:
    folder = own_captions(tmp_path / "mine")
    words = ("retrieval", str(folder), "--model", str(knowing), "--gsd", "10")
    first, _ = measured(tmp_path / "r.jsonl", *words)
    path = folder / "captions.csv"
    path.write_text(path.read_text().replace("open water", "water"))
    second, _ = measured(tmp_path / "r.jsonl", *words)
    assert first[0].split_hash != second[0].split_hash


def test_captions_without_the_part_are_told(knowing: Path, tmp_path: Path) -> None:
    folder = own_captions(tmp_path / "mine")
    common = ("retrieval", str(folder), "--model", str(knowing))
    for words, message in (
        (("--part", "test"), "split: got 'test', expected one of train, val"),
        (("--part", "all"), "--part: got 'all'"),
        (("--bands", "red"), "--bands: got 'red'"),
        (("--layout", "mine"), "layout: got 'mine'"),
    ):
        with pytest.raises(AlidadeError, match=message):
            measured(tmp_path / "r.jsonl", *common, *words)
    with pytest.raises(AlidadeError, match="no such folder"):
        measured(tmp_path / "r.jsonl", "retrieval", str(tmp_path / "nowhere"), "--model", str(knowing))
