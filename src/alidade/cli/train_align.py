"""``alidade train align``: words for a model."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from alidade.cli import options as opt
from alidade.errors import AlidadeError

if TYPE_CHECKING:
    from alidade.imagery.raster import Raster
    from alidade.training.align import AlignConfig
    from alidade.training.align_batches import Pairs
    from alidade.training.align_images import ImageEncoder
    from alidade.training.captions.captioned import Captioned

VISION = "vision:"
BANDS = ("rgb", "all")


def register_align(train_group: typer.Typer) -> None:
    """Add ``align`` to the commands of ``alidade train``."""
    train_group.command("align")(align)


def align(
    dataset: Annotated[Path, typer.Argument(help="Folder of images with captions; its layout is found out.")],
    out: Annotated[Path, typer.Option("--out", help="Directory of the run; the same command resumes it.")],
    model: Annotated[
        str, typer.Option("--model", help="Image tower: model name or directory, or vision:NAME_OR_DIR (Hugging Face).")
    ] = "alidade-tiny",
    text: Annotated[
        str, typer.Option("--text", help="Text encoder: a sentence-transformers name or directory, causal:NAME_OR_DIR.")
    ] = "all-MiniLM-L6-v2",
    image_tower: Annotated[str, typer.Option("--image", help="Image tower: frozen, lora or full.")] = "frozen",
    text_tower: Annotated[str, typer.Option("--text-tower", help="Text tower: frozen, lora or full.")] = "frozen",
    loss: Annotated[str, typer.Option(help="infonce or siglip.")] = "infonce",
    hidden: Annotated[int, typer.Option(min=0, help="Width of the text head; 0 for one linear layer.")] = 512,
    layout: Annotated[str | None, typer.Option(help="Layout of the data set, where several fit.")] = None,
    split: Annotated[str, typer.Option(help="Part to train on: train, val or test.")] = "train",
    bands: Annotated[str, typer.Option(help="rgb, or all that the images have (for multispectral towers).")] = "rgb",
    gsd: opt.Gsd = None,
    epochs: Annotated[int, typer.Option(min=1, help="How often each image is seen.")] = 30,
    steps: Annotated[int | None, typer.Option(min=1, help="Optimiser steps, instead of --epochs.")] = None,
    batch: Annotated[int, typer.Option(min=2, help="Images per step and process.")] = 256,
    rate: Annotated[float, typer.Option(min=0, help="Peak learning rate.")] = 1e-3,
    keep: Annotated[float, typer.Option(min=0.05, max=1, help="Share of patches a learning image tower sees.")] = 1.0,
    chunk: Annotated[int, typer.Option(min=0, help="Images that learning towers embed at a time; 0: all.")] = 0,
    rank: Annotated[int, typer.Option(min=1, help="Of LoRA.")] = 8,
    alpha: Annotated[float, typer.Option(min=0, help="Of LoRA.")] = 16.0,
    cuts: Annotated[int, typer.Option(min=0, help="Random parts of each image that a frozen tower sees, too.")] = 0,
    side: Annotated[int, typer.Option(min=1, help="Pixels of random parts; of all that a learning tower sees.")] = 128,
    jitter: Annotated[float, typer.Option(min=0, help="Change of light that a learning image tower sees.")] = 0.1,
    prompt: Annotated[str, typer.Option(help="Sentence around a bare class name, with {} in it.")] = "{}",
    cache: Annotated[Path | None, typer.Option("--cache", help="Directory that remembers text vectors.")] = None,
    download: Annotated[bool, typer.Option("--download", help="Fetch Hugging Face models that are not here.")] = False,
    precision: Annotated[str, typer.Option(help="auto, float32 or bfloat16.")] = "auto",
    seed: Annotated[int, typer.Option(min=0, help="Of everything random.")] = 0,
    checkpoint_every: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = 500,
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON per step on stdout.")] = False,
) -> None:
    """Teach a model words: align its image embeddings with a text encoder on images with captions.

    Frozen towers are computed once, so that only the text head trains. Several processes: torchrun --nproc-per-node N
    --no-python alidade train align ...
    """
    from alidade.cli.train import TrainingBar, check_extra, choose, one_of

    check_extra("alidade train align")
    one_of("--bands", bands, BANDS)
    from alidade.cli.output import err
    from alidade.cli.output import out as stdout
    from alidade.models.text.loading import load_text_encoder
    from alidade.training.align import AlignConfig
    from alidade.training.align import align as run
    from alidade.training.align_batches import make_pairs

    chosen = choose(precision)
    part = read_part(dataset, layout, split, gsd)
    check_batch(batch, len(part), split)
    number = steps or max(1, epochs * len(part) // (batch * processes()))
    config = AlignConfig(
        image_tower=image_tower,
        text_tower=text_tower,
        loss=loss,
        hidden=hidden,
        keep=keep,
        chunk=chunk,
        rank=rank,
        alpha=alpha,
        prompt=prompt,
        steps=number,
        batch=batch,
        peak_rate=rate,
        warm_up=min(200, max(1, number // 10)),
        precision=str(chosen.dtype).removeprefix("torch."),
        seed=seed,
        checkpoint_every=checkpoint_every,
    )
    image, encoder = image_encoder(model, download=download), load_text_encoder(text, cache=cache, download=download)
    first = os.environ.get("RANK", "0") == "0"
    with err.status(f"{len(part):,} images", spinner="dots") as status:
        if not first:
            status.stop()
        pairs = make_pairs(
            part.captions,
            rasters(part, bands),
            image=image,
            text=encoder,
            image_learns=image_tower != "frozen",
            text_learns=text_tower != "frozen",
            cuts=cuts,
            sizes=((side, 1), (side, 2)) if side % 2 == 0 else ((side, 1),),
            jitter=jitter,
            seed=seed,
            progress=lambda done: status.update(f"{done:,} of {len(part):,} images"),
        )
    if first:
        tell(pairs, config, chosen.reason)
    with TrainingBar(config.steps, as_json=as_json, hidden=not first) as bar:
        run(config, pairs, out, image=image, text=encoder, encoder=text, report=bar.show)
    if first:
        (err if as_json else stdout).print(f"model saved: {out / 'model'} (load it with --model {out / 'model'})")


def read_part(dataset: Path, layout: str | None, split: str, gsd: float | None) -> Captioned:
    """One part of an image-text data set.

    Raises:
        CaptionError: no such data set, layout or part.
    """
    from alidade.imagery.files import Declared
    from alidade.training.captions.lists import Options
    from alidade.training.captions.loading import read_captions

    return read_captions(dataset, Options(declared=Declared(gsd_m=gsd)), layout=layout).part(split)


def check_batch(batch: int, images: int, split: str) -> None:
    """Refuse a batch that would hold an image twice, before anything is computed.

    Raises:
        AlidadeError: it would.
    """
    if batch * processes() > images:
        raise AlidadeError(
            "--batch",
            got=f"{batch} images in each of {processes()} processes",
            expected=f"at most the {images} of split {split!r}: an image is no stranger to itself",
            next_step="Choose a smaller batch.",
        )


def processes() -> int:
    """How many torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def image_encoder(name: str, *, download: bool) -> ImageEncoder:
    """The image tower of this name.

    Raises:
        WeightsError, ModelError: there is none.
    """
    import torch

    if name.startswith(VISION):
        from alidade.models.vision import VisionConfig, VisionEncoder

        return VisionEncoder(VisionConfig(name=name.removeprefix(VISION), download=download))
    from alidade.models.registry import load

    # its weights are saved again beside the words
    return load(name, dtype=torch.float32)


def rasters(part: Captioned, bands: str) -> Iterator[Raster]:
    """The images, read one by one.

    Raises:
        CaptionError: an image without the bands that are asked for.
    """
    return (part.rgb(i) if bands == "rgb" else image.read() for i, image in enumerate(part.images))


def tell(pairs: Pairs, config: AlignConfig, reason: str) -> None:
    """What the run begins with, and which sentences were not read whole, on stderr."""
    from alidade.cli.output import err

    sentences = pairs.sentences
    err.print(f"{len(pairs):,} images, {len(sentences.texts):,} different sentences; {config.precision}: {reason}")
    if sentences.cut:
        err.print(
            f"{sentences.cut:,} of {len(sentences.texts):,} sentences are longer than the text encoder reads: "
            "their ends were cut off",
            style="yellow",
        )
    err.print("stop with Ctrl-C; the same command goes on")
