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
    from alidade.training.align_images import ImageEncoder, Sizes
    from alidade.training.captions.captioned import Captioned

VISION = "vision:"
BANDS = ("all", "rgb")
"""What is read of each image. Words are asked of what ``embed`` and ``classify`` read, and these give a model all the
bands that it takes: another choice would teach words about inputs that no archive of the same images has."""
BATCH = 256
"""Images per step where there are as many."""


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
    pooling: Annotated[
        str | None, typer.Option(help="Of the text encoder: mean, bos or eos. [default: as saved; causal: mean]")
    ] = None,
    instruction: Annotated[str | None, typer.Option(help="Stands in front of every text.")] = None,
    pool_instruction: Annotated[bool, typer.Option("--pool-instruction", help="The mean takes it in.")] = False,
    attention: Annotated[str | None, typer.Option(help="Of causal:...: causal or bidirectional.")] = None,
    max_length: Annotated[
        int | None, typer.Option(help="Most tokens of a text. [default: its own; causal: 512]")
    ] = None,
    text_precision: Annotated[
        str | None, typer.Option(help="Of causal:...: float32, bfloat16; int8, nf4 (CUDA). [default: float32]")
    ] = None,
    text_tower: Annotated[str, typer.Option("--text-tower", help="Text tower: frozen, lora or full.")] = "frozen",
    loss: Annotated[str, typer.Option(help="infonce or siglip.")] = "infonce",
    hidden: Annotated[int, typer.Option(min=0, help="Width of the text head; 0 for one linear layer.")] = 512,
    layout: Annotated[str | None, typer.Option(help="Layout of the data set, where several fit.")] = None,
    split: Annotated[str, typer.Option(help="Part to train on: train, val or test.")] = "train",
    bands: Annotated[
        str, typer.Option(help="all that the model takes of an image, as embed reads it; or rgb of every image.")
    ] = "all",
    gsd: opt.Gsd = None,
    epochs: Annotated[int, typer.Option(min=1, help="How often each image is seen.")] = 30,
    steps: Annotated[int | None, typer.Option(min=1, help="Optimiser steps, instead of --epochs.")] = None,
    batch: Annotated[
        int | None,
        typer.Option(min=2, help="Images per step and process. [default: 256, or all where there are fewer]"),
    ] = None,
    rate: Annotated[float, typer.Option(min=0, help="Peak learning rate.")] = 1e-3,
    keep: Annotated[float, typer.Option(min=0.05, max=1, help="Share of patches a learning image tower sees.")] = 1.0,
    chunk: Annotated[int, typer.Option(min=0, help="Images that learning towers embed at a time; 0: all.")] = 0,
    rank: Annotated[int, typer.Option(min=1, help="Of LoRA.")] = 8,
    alpha: Annotated[float, typer.Option(min=0, help="Of LoRA.")] = 16.0,
    cuts: Annotated[int, typer.Option(min=0, help="Random parts of each image that a frozen tower sees, too.")] = 0,
    sizes: Annotated[
        str, typer.Option(help="Sides in pixels of random parts, and of all that a learning tower sees; see above.")
    ] = "128,128/2",
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

    Frozen towers are computed once, so that only the text head trains. --sizes 256,208,128/2 cuts squares of 256, 208
    or 128 px, the last averaged to 64 px of twice the ground; one size is drawn a batch, one that stands twice twice as
    often. Settings of the text encoder are saved with the words. Several processes: torchrun --nproc-per-node N
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
    squares = parse_sizes(sizes)
    settings = text_settings(pooling, instruction, pool_instruction, attention, max_length, text_precision)
    part = read_part(dataset, layout, split, gsd)
    images = choose_batch(batch, len(part), split)
    number = steps or max(1, epochs * len(part) // (images * processes()))
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
        batch=images,
        peak_rate=rate,
        warm_up=min(200, max(1, number // 10)),
        precision=str(chosen.dtype).removeprefix("torch."),
        seed=seed,
        checkpoint_every=checkpoint_every,
    )
    image = image_encoder(model, download=download)
    encoder = load_text_encoder(text, settings=settings, cache=cache, download=download)
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
            sizes=squares,
            jitter=jitter,
            seed=seed,
            progress=lambda done: status.update(f"{done:,} of {len(part):,} images"),
        )
    if first:
        if batch is None and images < BATCH:
            err.print(f"batch of {images}: for the usual {BATCH} there are too few images (--batch sets it)")
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


def choose_batch(asked: int | None, images: int, split: str) -> int:
    """Images per step and process: what was asked for, or as many as there are up to ``BATCH``.

    Args:
        asked: by ``--batch``.
        images: in the data set's part.
        split: name of that part.

    Raises:
        AlidadeError: a batch that would hold an image twice, or images for no batch of two.
    """
    most = images // processes()
    if asked is None and most >= 2:
        return min(BATCH, most)
    if asked is None or asked > most:
        where = f" in each of {processes()} processes" if processes() > 1 else ""
        raise AlidadeError(
            "--batch",
            got=f"{2 if asked is None else asked} images{where}",
            expected=f"at most the {images} of split {split!r}: an image is no stranger to itself",
            next_step="Choose a smaller batch." if most >= 2 else "Caption more images.",
        )
    return asked


def parse_sizes(text: str) -> Sizes:
    """``"256,128/2"`` as (side in pixels, area-averaging factor): ``((256, 1), (128, 2))``.

    Raises:
        AlidadeError: it is not written so.
    """
    found = []
    for part in text.split(","):
        side, slash, factor = (word.strip() for word in part.partition("/"))
        if not (side.isdecimal() and (factor.isdecimal() or not slash)):
            raise AlidadeError(
                "--sizes",
                got=repr(text),
                expected="sides in pixels with commas between, /N behind one that is averaged: 256,208,128/2",
                next_step="Write them so.",
            )
        found.append((int(side), int(factor) if slash else 1))
    return tuple(found)


def text_settings(
    pooling: str | None,
    instruction: str | None,
    pool_instruction: bool,
    attention: str | None,
    max_length: int | None,
    precision: str | None,
) -> dict[str, str | int | bool | None]:
    """What the options say about the text encoder; what they leave out stays at its defaults.

    Raises:
        AlidadeError: an instruction that is to be pooled where there is none, or where one token is pooled.
    """
    if pool_instruction and (instruction is None or pooling in ("bos", "eos")):
        raise AlidadeError(
            "--pool-instruction",
            got="no --instruction" if instruction is None else f"--pooling {pooling}",
            expected="an instruction and a mean that can take it in",
            next_step="Leave it out, or give --instruction and no other pooling than mean.",
        )
    given = {
        "pooling": pooling,
        "instruction": instruction,
        "pool_instruction": pool_instruction or None,
        "attention": attention,
        "max_length": max_length,
        "precision": precision,
    }
    return {name: value for name, value in given.items() if value is not None}


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

    Args:
        part: whose images.
        bands: one of ``BANDS``.

    Raises:
        CaptionError: an image without the bands that are asked for.
    """
    return (part.rgb(i) if bands == "rgb" else image.read() for i, image in enumerate(part.images))


def tell(pairs: Pairs, config: AlignConfig, reason: str) -> None:
    """What the run begins with, and which sentences and images were not taken as they are, on stderr."""
    from alidade.cli.output import err
    from alidade.training.align_images import ImageCuts

    sentences = pairs.sentences
    err.print(f"{len(pairs):,} images, {len(sentences.texts):,} different sentences; {config.precision}: {reason}")
    if sentences.cut:
        err.print(
            f"{sentences.cut:,} of {len(sentences.texts):,} sentences are longer than the text encoder reads: "
            "their ends were cut off",
            style="yellow",
        )
    if isinstance(pairs.images, ImageCuts) and pairs.images.padded:
        err.print(
            f"{pairs.images.padded:,} of {len(pairs):,} images are smaller than the largest cut: the rest of it has no "
            "data (--sizes names the cuts)",
            style="yellow",
        )
    err.print("stop with Ctrl-C; the same command goes on")
