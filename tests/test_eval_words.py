"""``alidade eval zero-shot`` end to end, with words whose right answers are known; and what its commands refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from alidade.cli.eval_words import convention_of
from alidade.errors import AlidadeError
from alidade.evaluation.datasets import eurosat_rgb as read_eurosat
from alidade.evaluation.datasets import ucmerced
from alidade.evaluation.features import features, model_encoder
from alidade.evaluation.knn import unit_rows
from alidade.evaluation.results import Result
from alidade.evaluation.templates import class_names, templates
from alidade.models.registry import load as load_model
from alidade.models.text.class_names import UCMERCED
from alidade.training.captions.pictures import display_raster
from eval_word_models import PROMPT, by_metric, measured, network_only, with_words, write_two_sets


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_two_sets(tmp_path_factory.mktemp("pack"))


@pytest.fixture(scope="module")
def knowing(pack: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_words(tmp_path_factory.mktemp("knowing") / "model", pack)


@pytest.fixture(scope="module")
def confused(pack: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_words(tmp_path_factory.mktemp("confused") / "model", pack, (1, 2, 0))


def test_words_that_point_to_their_class_find_it(pack: Path, knowing: Path, tmp_path: Path) -> None:
    rows, shown = measured(
        tmp_path / "r.jsonl", "zero-shot", "eurosat-rgb", "--data", str(pack), "--model", str(knowing)
    )
    overall = {"accuracy": 1.0, "balanced accuracy": 1.0}
    found = {"mAP@100 over hits": 1.0, "mAP@100 over min(100, relevant)": 1.0}
    assert by_metric(rows, "alidade-tiny") == overall | found
    third = pytest.approx(1 / 3)
    assert by_metric(rows, "most frequent") == {"accuracy": third, "balanced accuracy": third}
    chance = by_metric(rows, "chance")
    assert (chance["accuracy"], chance["balanced accuracy"]) == (third, third)
    assert 1 / 3 < chance["mAP@100 over hits"] < 1
    assert {(r.dataset, r.commit, r.condition) for r in rows} == {("eurosat-rgb/val", "abc", "as is")}
    assert len({r.split_hash for r in rows}) == 1
    # the protocol stands with the numbers: patterns, names, ties, split
    assert "templates: 50, the first 'a satellite image showing {}.'" in shown
    assert "classes: 3, crop, forest, water" in shown
    assert "templates msclip (50), classes crop, forest, water, equal scores share" in shown
    assert f"eurosat-rgb/val, split {rows[0].split_hash}" in shown
    assert "text by spotting:1" in shown
    assert "100.0 %" in shown


def test_words_of_other_classes_find_nothing_and_each_model_has_its_name(
    pack: Path, knowing: Path, confused: Path, tmp_path: Path
) -> None:
    models = ("--model", str(knowing), "--model", str(confused))
    rows, _ = measured(
        tmp_path / "r.jsonl", "zero-shot", "eurosat-rgb", "--data", str(pack), *models, "--templates", "clip",
        "--on", "test",
    )  # fmt: skip
    accuracy = [(r.model, r.value) for r in rows if r.metric == "accuracy" and r.model.startswith("alidade-tiny")]
    # one network, two sets of words
    assert [value for _, value in accuracy] == [1.0, 0.0]
    assert len({name for name, _ in accuracy}) == 2
    assert {r.dataset for r in rows} == {"eurosat-rgb/test"}
    # trivial rows of one protocol stand once however many models there are
    assert sum(r.model == "chance" for r in rows) == 4
    assert "(3)" in rows[0].protocol


def test_own_prompt_is_a_protocol_of_its_own(pack: Path, knowing: Path, tmp_path: Path) -> None:
    rows, shown = measured(
        tmp_path / "r.jsonl", "zero-shot", "eurosat-rgb", "--data", str(pack), "--model", str(knowing),
        "--templates", "prompt", "--way", "balanced", "--names", "folders",
    )  # fmt: skip
    assert f"templates {PROMPT} (1), classes" in rows[0].protocol
    assert f"templates: 1, the first {PROMPT!r}" in shown
    ours = {r.metric: r for r in rows if r.model.startswith("alidade-tiny")}
    assert ours["accuracy"].condition == "transductive: balanced"
    assert ours["accuracy"].value == 1.0


def test_a_model_is_measured_as_it_embeds(pack: Path, knowing: Path) -> None:
    """Two ways lead from pixels to vectors; words are learnt by one and measured by the other."""
    model = load_model(knowing, dtype=torch.float32)
    images = read_eurosat(pack, "val")
    rasters = [display_raster(image, gsd_m=10.0, source="made") for image in images.pixels]
    measured_by = unit_rows(features(model_encoder(model, images), images))
    assert (unit_rows(model.embed(rasters)) * measured_by).sum(axis=1) == pytest.approx(1, abs=1e-6)


def test_json_holds_the_rows(pack: Path, knowing: Path, tmp_path: Path) -> None:
    rows, shown = measured(
        tmp_path / "r.jsonl", "zero-shot", "ucmerced", "--data", str(pack), "--model", str(knowing), "--json",
        "--templates", "clip",
    )  # fmt: skip
    assert [Result(**row) for row in json.loads(shown)] == rows
    assert ucmerced(pack, "val").name == rows[0].dataset


def test_names_of_uc_merced_are_words() -> None:
    assert convention_of("ucmerced", "words") == "printed"
    assert convention_of("ucmerced", "folders") == "folders"
    assert convention_of("eurosat-rgb", "words") == "words"
    names = class_names(tuple(UCMERCED), "printed")
    assert len(names) == 21
    assert {"mobile home park", "dense residential area", "storage tanks"} <= set(names)
    assert class_names(("SeaLake", "solar_panel"), "printed") == ("sea or lake", "solar panel")
    with pytest.raises(AlidadeError, match="none of them empty"):
        class_names((" _ ",), "printed")


@pytest.mark.parametrize("pattern", ["no place", "{} and {}", "{} {x}", "{", "{0}"])
def test_a_prompt_has_one_place_for_the_class(pattern: str) -> None:
    assert templates("a field of {}") == ("a field of {}",)
    with pytest.raises(AlidadeError, match="a pattern with one {} for the class"):
        templates(pattern)


# --- wrong inputs


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("zero-shot", "eurosat"), "data set: got 'eurosat', expected one of eurosat-rgb"),
        (("zero-shot", "eurosat-rgb", "--templates", "openai"), "--templates: got 'openai', expected one of msclip"),
        (("zero-shot", "eurosat-rgb", "--names", "mine"), "--names: got 'mine', expected one of words, folders"),
        (("zero-shot", "eurosat-rgb", "--way", "psychic"), "--way: got 'psychic', expected one of inductive"),
        (("zero-shot", "eurosat-rgb", "--on", "train"), "--on: got 'train', expected one of val, test"),
        (("quantised", "--dataset", "eurosat"), "--dataset: got 'eurosat'"),
        (("quantised", "--on", "all"), "--on: got 'all'"),
        (("quantised", "--images", "7"), "7 images asked for, expected 1 to 6"),
        (("zero-shot", "ucmerced", "--on", "test"), "part: got 'test'"),
    ],
)
def test_wrong_words_are_told(pack: Path, knowing: Path, tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    results = tmp_path / "r.jsonl"
    with pytest.raises(AlidadeError, match=message):
        measured(results, *words, "--data", str(pack), "--model", str(knowing))
    assert not results.exists()


def test_a_model_without_words_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    plain = network_only(tmp_path / "plain")
    for words in (("zero-shot", "eurosat-rgb", "--data", str(tmp_path)), ("retrieval", str(tmp_path / "nowhere"))):
        with pytest.raises(AlidadeError, match=r"got a model without words.*alidade train align"):
            measured(tmp_path / "r.jsonl", *words, "--model", str(plain))


def test_a_class_that_the_bank_lacks_is_named_before_images_are_encoded(
    pack: Path, knowing: Path, tmp_path: Path
) -> None:
    words = ("zero-shot", "eurosat-rgb", "--data", str(pack), "--model", str(knowing), "--templates", "rs5m")
    with pytest.raises(AlidadeError, match="a remote sensing image of many crop"):
        measured(tmp_path / "r.jsonl", *words)
    assert not (tmp_path / "r.jsonl").exists()
