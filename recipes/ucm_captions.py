"""Aligns `alidade-tiny` with UCM-Captions, all of its image tower learning; measured in the docs and never shipped.

    python recipes/ucm_captions.py --data PATH [--steps 700] [--run runs/ucm-captions]

UCM-Captions (Qu et al. 2016) states no licence, so neither its sentences nor weights that learned from them are
redistributed. The tower begins with what it learned without labels; sentences are all-MiniLM-L6-v2's. Measure with

    alidade eval zero-shot ucmerced --data PATH --names printed --model RUN/model
    alidade eval retrieval PATH/ucm_captions --model RUN/model
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from alidade.cli.train import TrainingBar
from alidade.models.registry import load
from alidade.models.text.loading import load_text_encoder
from alidade.training.align import AlignConfig, align
from alidade.training.align_batches import make_pairs
from alidade.training.captions.loading import read_captions

ENCODER = "all-MiniLM-L6-v2"
SIZES = ((256, 2), (208, 2), (160, 2), (256, 4), (192, 3))
"""(Side in pixels, area-averaging factor): 0.6 m to 1.2 m, where a step costs a quarter and less of 0.3 m."""


def main(
    data: Annotated[Path, typer.Option(help="The public data pack.")],
    model: Annotated[str, typer.Option(help="Where the image tower begins.")] = "alidade-tiny",
    run: Annotated[Path, typer.Option(help="Directory of the run.")] = Path("runs/ucm-captions"),
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps.")] = 700,
    batch: Annotated[int, typer.Option(min=2, help="Images a step.")] = 128,
    rate: Annotated[float, typer.Option(min=0, help="Peak learning rate.")] = 1e-3,
    keep: Annotated[float, typer.Option(help="Share of patches seen in training.")] = 0.5,
    seed: Annotated[int, typer.Option(min=0, help="Of every draw.")] = 0,
) -> None:
    """Train and save; a run that was stopped goes on."""
    console, image, text = Console(stderr=True), load(model, dtype=torch.float32), load_text_encoder(ENCODER)
    part = read_captions(data / "ucm_captions").part("train")
    console.print(f"{part.name}: {len(part):,} images; licence: {part.licence}")
    pairs = make_pairs(
        part.captions,
        (s.read() for s in part.images),
        image=image,
        text=text,
        image_learns=True,
        sizes=SIZES,
        jitter=0.2,
    )
    config = AlignConfig(
        steps=steps,
        batch=batch,
        peak_rate=rate,
        warm_up=max(1, steps // 20),
        image_tower="full",
        keep=keep,
        checkpoint_every=50,
        seed=seed,
    )
    with TrainingBar(steps, as_json=False, hidden=False) as bar:
        align(config, pairs, run, image=image, text=text, encoder=ENCODER, report=bar.show)
    console.print(f"saved in {run / 'model'}")


if __name__ == "__main__":
    typer.run(main)
