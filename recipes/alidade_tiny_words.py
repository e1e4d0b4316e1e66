"""Teaches `alidade-tiny` words: a text head on its frozen image embeddings, from openly licensed pixels and own words.

    python recipes/alidade_tiny_words.py --data PATH [--steps 3000] [--run runs/alidade-tiny-words]

`--without eurosat --weights COPY` leaves a data set's labels out, for a zero-shot figure that saw none of them.

Sentences are of our own: class words of the train parts of EuroSAT RGB and UC Merced in a small grammar
(`training/captions/labels.py`), and what the near infrared band says of water and plants in NAIP and Sentinel-2 sample
scenes (`training/captions/physics.py`). Vectors of sentences are all-MiniLM-L6-v2's. A bank of common words is stored
beside the head, so that they need no language model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from rich.console import Console

from alidade.cli.train import TrainingBar
from alidade.evaluation.datasets import Images, eurosat_rgb, ucmerced
from alidade.evaluation.features import features, model_encoder
from alidade.evaluation.knn import unit_rows
from alidade.imagery.files import read
from alidade.imagery.raster import Raster
from alidade.imagery.windows import tile_windows
from alidade.models.model import Model
from alidade.models.registry import load
from alidade.models.text.bank import Bank
from alidade.models.text.loading import load_text_encoder
from alidade.models.words import BANK, CONFIG, HEAD
from alidade.training.align import AlignConfig, align
from alidade.training.align_batches import Pairs, Sentences
from alidade.training.align_images import ImageVectors
from alidade.training.captions.labels import class_words, label_captions, sentences
from alidade.training.captions.physics import physics_captions

ROOT = Path(__file__).parents[1]
ENCODER = "all-MiniLM-L6-v2"
REPEATS = {"eurosat": 1, "ucmerced": 4, "physics": 10}
"""How often an image is drawn in an epoch: the data sets are of very different sizes."""
Part = tuple[NDArray[np.float32], list[list[str]]]
"""Unit vectors ``[N, D]`` of images, and sentences of each."""
COMMON = (
    "water", "open water", "deep water", "a lake", "a pond", "sea", "ocean", "a coast", "a wetland", "a swamp",
    "trees", "dense forest", "sparse trees", "an orchard", "a vineyard", "grass", "grassland", "a meadow", "a pasture",
    "crops", "cropland", "farmland", "fields", "bare soil", "bare ground", "sand", "rock", "desert", "snow", "ice",
    "clouds", "a town", "a city", "a village", "a settlement", "buildings", "houses", "a building", "factories",
    "an industrial area", "a warehouse", "a street", "a road", "roads", "a motorway", "a railway", "a bridge",
    "ships", "boats", "a port", "cars", "aeroplanes", "a sports field", "mountains", "a valley", "an island",
)  # fmt: skip


def main(
    data: Annotated[Path, typer.Option(help="The public data pack.")],
    samples: Annotated[Path, typer.Option(help="Folder of sample scenes.")] = ROOT / "samples",
    weights: Annotated[Path, typer.Option(help="The model; words are put beside it.")] = ROOT
    / "src/alidade/weights/alidade-tiny",
    run: Annotated[Path, typer.Option(help="Directory of the run.")] = Path("runs/alidade-tiny-words"),
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps.")] = 3000,
    batch: Annotated[int, typer.Option(min=2, help="Images a step.")] = 512,
    without: Annotated[str, typer.Option(help="eurosat or ucmerced: its labels are left out.")] = "",
) -> None:
    """Train the head and save it with the bank."""
    console, model, text = Console(stderr=True), load(weights, dtype=torch.float32), load_text_encoder(ENCODER)
    rng = np.random.default_rng(0)
    parts = [*labelled(model, data, rng, without), *physical(model, samples, rng)]
    vectors = torch.from_numpy(np.concatenate([v for v, _ in parts]))
    captions = [own for _, said in parts for own in said]
    console.print(f"{len(captions):,} images, {len({s for own in captions for s in own}):,} different sentences")
    pairs = Pairs(
        images=ImageVectors(
            vectors=vectors.unsqueeze(0), encoder=model.identity, identity=f"{len(vectors)} of the pack and the samples"
        ),
        sentences=Sentences.read(captions, text),
        text_vectors=True,
    )
    config = AlignConfig(steps=steps, batch=batch, peak_rate=1e-3, warm_up=steps // 20, hidden=1024)
    with TrainingBar(steps, as_json=False, hidden=False) as bar:
        align(config, pairs, run, image=model, text=text, encoder=ENCODER, report=bar.show)
    for name in (CONFIG, HEAD):
        (weights / name).write_bytes((run / "model" / name).read_bytes())
    Bank.of(text, bank_words(data), half=True).save(weights / BANK)
    console.print(f"words of {load(weights).identity} saved in {weights}")


def labelled(model: Model, data: Path, rng: np.random.Generator, without: str = "") -> Iterator[Part]:
    """Vectors and sentences of the train parts of EuroSAT RGB and, whole and halved, of UC Merced."""
    for name, images in (("eurosat", eurosat_rgb(data, "train")), ("ucmerced", ucmerced(data, "train"))):
        if name == without:
            continue
        labels = [images.classes[label] for label in images.labels]
        vectors = [unit_rows(features(model_encoder(model, images), images))]
        if name == "ucmerced":
            vectors.append(unit_rows(features(model_encoder(model, images), halved(images))))
        for found in vectors:
            for _ in range(REPEATS[name]):
                yield found, [list(own) for own in label_captions(labels, rng, count=8)]


def halved(images: Images) -> Images:
    """The images at twice their ground sample distance."""
    n, c, h, w = images.pixels.shape
    mean = images.pixels.reshape(n, c, h // 2, 2, w // 2, 2).mean((3, 5))
    return replace(images, pixels=mean.round().astype(images.pixels.dtype), gsd_m=images.gsd_m * 2)


def physical(model: Model, samples: Path, rng: np.random.Generator) -> Iterator[Part]:
    """Vectors and sentences of tiles of NAIP and Sentinel-2 scenes, by all their bands and by red, green and blue."""
    paths = [path for folder in ("naip", "sentinel-2") for path in sorted((samples / folder).glob("*.tif"))]
    tiles = [tile for path in paths for tile in tiled(read(path))]
    for chosen in (tiles, [visible(tile) for tile in tiles]):
        vectors = model.embed(chosen)
        for _ in range(REPEATS["physics"]):
            yield vectors, [list(physics_captions(tile, rng)) for tile in tiles]


def tiled(raster: Raster) -> Iterator[Raster]:
    """Tiles of 128 px, or the whole of a smaller image."""
    side = min(128, raster.grid.height, raster.grid.width)
    return (raster.crop(window) for window in tile_windows(raster.grid.height, raster.grid.width, side))


def visible(raster: Raster) -> Raster:
    """Red, green and blue alone."""
    return raster.select([raster.sensor.band(name).name for name in ("red", "green", "blue")])


def bank_words(data: Path) -> list[str]:
    """Common words, and each class's printed name, phrases and plain sentences."""
    classes = [*eurosat_rgb(data, "train").classes, *ucmerced(data, "train").classes]
    said = [w for c in classes for w in (class_words(c).printed, *class_words(c).phrases)]
    plain = [s for c in classes for s in sentences(c)[:4]]
    return list(dict.fromkeys([*COMMON, *said, *plain]))


if __name__ == "__main__":
    typer.run(main)
