"""``alidade eval zero-shot``, ``retrieval`` and ``quantised`` end to end, with words whose right answers are known."""

from __future__ import annotations

import csv
import json
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

from alidade.cli import evaluate
from alidade.cli.eval_words import convention_of
from alidade.errors import AlidadeError
from alidade.evaluation.datasets import eurosat_rgb as read_eurosat
from alidade.evaluation.datasets import ucmerced
from alidade.evaluation.features import features, model_encoder
from alidade.evaluation.knn import unit_rows
from alidade.evaluation.protocols import Stamp
from alidade.evaluation.quantised import agreement, flips, quantised_model
from alidade.evaluation.results import Result, append, load, to_markdown
from alidade.evaluation.retrieval import Captions, measure_recall
from alidade.evaluation.templates import class_names, templates
from alidade.evaluation.text_diagnostics import measure_vectors
from alidade.evaluation.zero_shot import Subject
from alidade.models.model import Model
from alidade.models.registry import SHIPPED
from alidade.models.registry import load as load_model
from alidade.models.text.bank import Bank
from alidade.models.text.class_names import UCMERCED
from alidade.models.text.encoder import EncodedText, check_texts
from alidade.models.words import TextHead, Words, WordsConfig
from alidade.training.captions.loading import read_captions
from alidade.training.captions.pictures import display_raster
from eval_pack import CLASSES, eurosat_rgb, picture, write_index
from eval_pack import ucmerced as write_ucmerced

LABELS = tuple(name.lower() for name in CLASSES)
PROMPT = "ground with {}"
PATTERNS = (*templates("msclip"), *templates("clip"), PROMPT, "{}")
SENTENCES = ("dry crop rows", "crop", "a forest", "forest and more forest", "open water", "water")


class Spotting:
    """A text encoder that knows three words: which class stands in a text, and a little of how long the text is."""

    identity = "spotting:1"
    dim = 4

    def encode(self, texts: list[str] | tuple[str, ...]) -> EncodedText:
        rows = [[*(float(label in text.lower()) for label in LABELS), len(text) / 1000] for text in check_texts(texts)]
        return EncodedText(vectors=np.array(rows, dtype=np.float32))


def network_only(folder: Path) -> Path:
    """alidade-tiny without any words."""
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(SHIPPED / "alidade-tiny" / name, folder / name)
    return folder


def with_words(folder: Path, pack: Path, order: tuple[int, ...] = (0, 1, 2)) -> Path:
    """alidade-tiny whose word for each class points to the mean of that class's pictures, or to another class's."""
    model = load_model(network_only(folder), dtype=torch.float32)
    images = read_eurosat(pack, "val")
    rows = unit_rows(features(model_encoder(model, images), images))
    means = np.stack([rows[images.labels == c].mean(axis=0) for c in order])
    head = TextHead(Spotting.dim, 0, model.dim)
    # ridge regression onto the means from what the norm makes of each class's shortest text
    with torch.no_grad():
        known = head.norm(torch.from_numpy(Spotting().encode(LABELS).vectors))
        head.layers.weight.copy_((torch.linalg.pinv(known) @ torch.from_numpy(means).float()).T)
        head.layers.bias.zero_()
    texts = {pattern.format(label) for pattern in PATTERNS for label in LABELS} | set(SENTENCES)
    bank = Bank.of(Spotting(), sorted(texts))
    config = WordsConfig(
        encoder="bank:nowhere.safetensors", text_identity=Spotting.identity, image_identity=model.identity,
        text_dim=Spotting.dim, hidden=0, dim=model.dim, prompt=PROMPT,
    )  # fmt: skip
    Words(config, head, bank).save(folder)
    return folder


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pack")
    eurosat_rgb(folder / "eurosat_rgb")
    write_ucmerced(folder / "ucm_captions")
    return folder


@pytest.fixture(scope="module")
def knowing(pack: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_words(tmp_path_factory.mktemp("knowing") / "model", pack)


@pytest.fixture(scope="module")
def confused(pack: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_words(tmp_path_factory.mktemp("confused") / "model", pack, (1, 2, 0))


def own_captions(folder: Path, *, labels: bool = False) -> Path:
    """Six pictures of val with two sentences each, one sentence shared by two of them; and one of train."""
    folder.mkdir()
    said = [(0, 1), (2, 3), (4, 5), (0, 0), (3, 2), (5, 4)]
    with (folder / "captions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "caption", "split", *(["label"] if labels else [])])
        for i, own in enumerate([*said, (0, 2)]):
            (folder / f"{i}.jpg").write_bytes(picture(i % 3, (64, 48), 100 + i))
            for s in own:
                label = [LABELS[i % 3]] if labels else []
                writer.writerow([f"{i}.jpg", SENTENCES[s], "val" if i < 6 else "train", *label])
    return folder


def ucm_captions(folder: Path) -> Path:
    """The pack's own layout: an index with five sentences and a label, and a zip archive of the pictures."""
    folder.mkdir()
    rows = []
    with zipfile.ZipFile(folder / "images_val.zip", "w") as file:
        for i in range(6):
            name = f"{LABELS[i % 3]}{i:02}.jpg"
            file.writestr(name, picture(i % 3, (64, 64), i))
            sentences = {f"caption_{n}": SENTENCES[2 * (i % 3) + n % 2] for n in range(1, 6)}
            common = {"file": name, "archive": "images_val.zip", "label": LABELS[i % 3], "split": "val"}
            rows.append(common | sentences)
    write_index(folder, rows)
    return folder


def run(*words: str) -> str:
    app = typer.Typer()
    app.callback()(lambda: None)
    evaluate.register(app)
    done = CliRunner().invoke(app, ["eval", *words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def measured(results: Path, *words: str) -> tuple[list[Result], str]:
    before = len(load(results)) if results.exists() else 0
    shown = run(*words, "--results", str(results), "--commit", "abc")
    return load(results)[before:], shown


def by_metric(rows: list[Result], model: str) -> dict[str, float]:
    return {r.metric: r.value for r in rows if r.model.startswith(model)}


# --- zero-shot


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


# --- retrieval


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


# --- 8 bits


def test_quantised_rows_are_those_of_the_quantised_model(pack: Path, knowing: Path, tmp_path: Path) -> None:
    rows, shown = measured(tmp_path / "r.jsonl", "quantised", "--data", str(pack), "--model", str(knowing))
    found = {r.metric: r for r in rows}
    model, images = load_model(knowing, dtype=torch.float32), read_eurosat(pack, "val")
    light = quantised_model(model)
    full, rough = (features(model_encoder(m, images), images) for m in (model, light))
    assert found["mean cosine"].value == pytest.approx(agreement(full, rough).mean(), abs=1e-6)
    assert found["smallest cosine"].value == pytest.approx(agreement(full, rough).min(), abs=1e-6)
    assert 0.9 < found["smallest cosine"].value < found["mean cosine"].value < 1
    targets = model.embed_text([PROMPT.format(name) for name in LABELS])
    assert found["top-1 flips"].value == flips(full, rough, targets).mean()
    assert found["top-1 flips"].condition == "class words"
    assert {r.model for r in rows} == {light.identity}
    speed = found["speed ratio"]
    assert 0 < speed.low <= speed.value <= speed.high
    assert speed.n == 7
    assert "threads" in speed.condition
    assert f"{found['mean cosine'].value:.4f}" in shown


def test_quantising_needs_no_words(pack: Path, tmp_path: Path) -> None:
    plain = network_only(tmp_path / "plain")
    rows, shown = measured(
        tmp_path / "r.jsonl", "quantised", "--data", str(pack), "--model", str(plain), "--images", "3"
    )
    found = {r.metric: r for r in rows}
    assert found["top-1 flips"].condition == "class means"
    assert found["mean cosine"].n == 3
    assert "flips among 3 class means" in shown


# --- results


ROW = Result(
    protocol="p", condition="as is", dataset="d/val", split_hash="0123456789ab", model="m", config_hash="ba9876543210",
    commit="abc", seed=0, n=10, metric="accuracy", value=0.5, low=0.25, high=0.75, time="2026-01-01T00:00:00+00:00",
)  # fmt: skip


@pytest.mark.parametrize(
    ("metric", "value", "unit", "cell"),
    [
        ("accuracy", 0.5, "%", "50.0 (25.0–75.0)"),
        ("sentences shared with another image", 0.5, "%", "50.0 (25.0–75.0)"),
        ("top-1 flips", 0.5, "%", "50.0 (25.0–75.0)"),
        ("alignment", 0.5, "", "0.5000 (0.2500–0.7500)"),
        ("mean cosine", 0.5, "", "0.5000 (0.2500–0.7500)"),
        ("speed ratio", 0.5, "", "0.5000 (0.2500–0.7500)"),
        ("hubness text→image (k = 10)", 0.5, "", "0.5000 (0.2500–0.7500)"),
        ("parameters", 884512.0, "", "884512 (884512–884512)"),
        ("training seconds", 49.95, "", "50.0 (49.7–50.2)"),
        ("uniformity of images", -3.0, "", "-3.0000 (-3.2500 to -2.7500)"),
    ],
)
def test_tables_print_shares_as_percent_and_numbers_as_they_are(
    metric: str, value: float, unit: str, cell: str
) -> None:
    row = replace(ROW, metric=metric, value=value, low=value - 0.25, high=value + 0.25)
    assert row.unit == unit
    text = to_markdown([row])
    assert f"| m | {cell} |" in text
    assert (f"Plain numbers, not percent: {metric}." in text) == (unit == "")


def test_rows_of_older_files_are_read(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    shutil.copyfile(Path(__file__).parents[1] / "docs/results/results.jsonl", path)
    old = load(path)
    assert {r.unit for r in old if r.protocol in ("5-NN", "linear probe", "cross-sensor retrieval")} == {"%"}
    append(path, [replace(ROW, metric="hubness text→image (k = 10)", value=3.5, high=4.0)])
    assert load(path)[:-1] == old
    assert load(path)[-1].shown == ("3.5000", "0.2500", "4.0000")


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
