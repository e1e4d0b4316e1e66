"""Models whose words' right answers are known, captions beside pictures, and ``alidade eval`` run on them."""

from __future__ import annotations

import csv
import shutil
import zipfile
from pathlib import Path

import numpy as np
import torch
import typer
from typer.testing import CliRunner

from alidade.cli import evaluate
from alidade.evaluation.datasets import eurosat_rgb as read_eurosat
from alidade.evaluation.features import features, model_encoder
from alidade.evaluation.knn import unit_rows
from alidade.evaluation.results import Result, load
from alidade.evaluation.templates import templates
from alidade.models.registry import SHIPPED
from alidade.models.registry import load as load_model
from alidade.models.text.bank import Bank
from alidade.models.text.encoder import EncodedText, check_texts
from alidade.models.words import TextHead, Words, WordsConfig
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


def write_two_sets(folder: Path) -> Path:
    """EuroSAT RGB and UC Merced, a few pictures each."""
    eurosat_rgb(folder / "eurosat_rgb")
    write_ucmerced(folder / "ucm_captions")
    return folder


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
