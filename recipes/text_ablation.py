"""Which text vectors align best: instruction or none, pooled or not; mean, first or last token; MiniLM or causal LM.

    python recipes/text_ablation.py --data PATH [--seeds 5] [--causal DIRECTORY]

A text head is trained on frozen image embeddings of `alidade-tiny` with UCM-Captions' train part, once for each setting
and seed, on the same batches; rows are recall and zero-shot accuracy on its val part, images at 0.6 m. The captions
state no licence, so heads are measured and thrown away. `--causal` adds a Hugging Face language model.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import torch
import typer
from rich.console import Console

from alidade.cli.eval_words import _captions_hash, _sentences
from alidade.evaluation.datasets import Images, ucmerced
from alidade.evaluation.features import Features, features, model_encoder
from alidade.evaluation.protocols import Stamp
from alidade.evaluation.results import Result, append, commit_of
from alidade.evaluation.retrieval import measure_recall
from alidade.evaluation.zero_shot import Subject, class_words, measure_zero_shot
from alidade.models.model import Model
from alidade.models.registry import load
from alidade.models.text.causal import CausalConfig
from alidade.models.text.encoder import TextEncoder
from alidade.models.text.loading import load_text_encoder
from alidade.models.text.sentence import SentenceConfig
from alidade.training.align import AlignConfig, align
from alidade.training.align_batches import Pairs, Sentences
from alidade.training.align_images import ImageVectors
from alidade.training.captions.captioned import Captioned
from alidade.training.captions.loading import read_captions

ROOT = Path(__file__).parents[1]
INSTRUCTION = "Represent what an aerial image shows:"
SENTENCE = {
    "as saved (mean)": SentenceConfig(),
    "first token": SentenceConfig(pooling="bos"),
    "last token": SentenceConfig(pooling="eos"),
    "mean, instruction not pooled": SentenceConfig(instruction=INSTRUCTION),
    "mean, instruction pooled": SentenceConfig(instruction=INSTRUCTION, pool_instruction=True),
    "last token, instruction": SentenceConfig(pooling="eos", instruction=INSTRUCTION),
}
"""Settings of all-MiniLM-L6-v2."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Part:
    """One part of the data set: image embeddings at 0.6 m, sentences, classes."""

    vectors: Features
    captions: Captioned
    images: Images


def main(
    data: Annotated[Path, typer.Option(help="The public data pack.")],
    causal: Annotated[str | None, typer.Option(help="Directory or name of a causal language model.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each setting.")] = 5,
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps of a run.")] = 100,
    batch: Annotated[int, typer.Option(min=2, help="Images a step.")] = 256,
    results: Annotated[Path, typer.Option(help="Results file to append to.")] = ROOT / "docs/results/results.jsonl",
) -> None:
    """Measure every setting with every seed."""
    console, model = Console(stderr=True), load(dtype=torch.float32)
    train, val = (part_of(model, data, name) for name in ("train", "val"))
    for name, config in (SENTENCE | causal_settings(causal)).items():
        encoder = load_text_encoder(config)
        for seed in range(seeds):
            rows = list(run(model, encoder, name, train, val, seed=seed, steps=steps, batch=batch))
            append(results, rows)
            told = (r for r in rows if r.metric in ("mean recall", "accuracy"))
            found = ", ".join(f"{r.condition} {r.metric} {r.cell}" for r in told)
            console.print(f"{name}, seed {seed}: {found}")


def causal_settings(name: str | None) -> dict[str, SentenceConfig | CausalConfig]:
    """Settings of a causal language model, where one is named."""
    if name is None:
        return {}
    return {
        "causal, mean": CausalConfig(name=name),
        "causal, mean, instruction not pooled": CausalConfig(name=name, instruction=INSTRUCTION),
        "causal, mean, instruction pooled": CausalConfig(name=name, instruction=INSTRUCTION, pool_instruction=True),
        "causal, end token, instruction": CausalConfig(name=name, pooling="eos", instruction=INSTRUCTION),
        "bidirectional, mean": CausalConfig(name=name, attention="bidirectional"),
        "bidirectional, begin token": CausalConfig(name=name, attention="bidirectional", pooling="bos"),
    }


def part_of(model: Model, data: Path, name: str) -> Part:
    """Embeddings of the images, halved, in the order of the captions."""
    images, captions = ucmerced(data, name), read_captions(data / "ucm_captions").part(name)
    n, c, h, w = images.pixels.shape
    mean = images.pixels.reshape(n, c, h // 2, 2, w // 2, 2).mean((3, 5))
    halved = replace(images, pixels=mean.round().astype(images.pixels.dtype), gsd_m=images.gsd_m * 2)
    return Part(vectors=features(model_encoder(model, halved), halved), captions=captions, images=images)


def run(
    model: Model, encoder: TextEncoder, name: str, train: Part, val: Part, *, seed: int, steps: int, batch: int
) -> Iterator[Result]:
    """Train one head and measure it."""
    pairs = Pairs(
        images=ImageVectors(
            vectors=torch.from_numpy(train.vectors).unsqueeze(0), encoder=model.identity, identity="UCM-Captions, 0.6 m"
        ),
        sentences=Sentences.read(train.captions.captions, encoder),
        text_vectors=True,
    )
    config = AlignConfig(steps=steps, batch=batch, peak_rate=1e-3, warm_up=steps // 20, hidden=512, seed=seed)
    with TemporaryDirectory() as folder:
        words = align(config, pairs, Path(folder), image=model, text=encoder, encoder=name)
    told = _sentences(val.captions)
    subject = Subject(
        dataset="ucm-captions/val, 0.6 m",
        split_hash=_captions_hash(val.captions, "val"),
        model=f"{model.identity} + text: {name}",
        config=json.dumps({"text": encoder.identity, "recipe": config.text()}),
        stamp=Stamp(commit=commit_of(ROOT), seed=seed),
    )
    vectors = words.embed([told.texts[i] for i in told.first])[told.sentences]
    yield from measure_recall(subject, val.vectors, vectors, told)
    classes = class_words(words.embed, val.images.classes, template_set="msclip", convention="printed")
    yield from measure_zero_shot(subject, val.vectors, val.images.labels, classes)


if __name__ == "__main__":
    typer.run(main)
