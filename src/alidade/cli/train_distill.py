"""``alidade train distill``: a student of RGB learns what teachers with more bands, or with radar, know."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from alidade.cli import options as opt
from alidade.errors import AlidadeError

if TYPE_CHECKING:
    from alidade.models.model import Model
    from alidade.models.scale_alibi import ScaleAlibi
    from alidade.training.distill_batches import Squares
    from alidade.training.teachers import Teacher

NONE = "none"
SENTINEL_2 = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")
PACK_BANDS: dict[str, dict[str, tuple[str, ...]]] = {
    "optical": {"sentinel-2-l1c": (*SENTINEL_2, "B10"), "sentinel-2-l2a": SENTINEL_2},
    "sar": {"display-vh": ("VH",)},
}
"""What the data pack has squares for, by teacher: bands by sensor. Radar is California's."""
PACK_MARK = Path("eurosat_ms", "index.csv")


def register_distill(train_group: typer.Typer) -> None:
    """Add ``distill`` to the commands of ``alidade train``."""
    train_group.command("distill")(distill)


def distill(
    data: Annotated[Path, typer.Argument(help="A tile store with views for student and teachers, or the data pack.")],
    out: Annotated[Path, typer.Option("--out", help="Directory of the run; the same command resumes it.")],
    teacher: Annotated[
        str, typer.Option("--teacher", help="Towers that teach, such as optical or optical,sar; none: contrast alone.")
    ] = "optical",
    teacher_model: Annotated[
        str | None, typer.Option("--teacher-model", help="Whose towers: model name or directory. [default: --student]")
    ] = None,
    weights: opt.Weights = None,
    pool: Annotated[
        str, typer.Option(help="What teaches: embedding (with the head), or tokens (their mean).")
    ] = "tokens",
    student: Annotated[str, typer.Option("--student", help="What the student starts as.")] = "alidade-tiny",
    tower: Annotated[str, typer.Option(help="Tower that is the student.")] = "rgb",
    student_view: Annotated[str | None, typer.Option(help="The student's view of a store, where several do.")] = None,
    squares: Annotated[
        str | None, typer.Option(help="Pack only: optical, sar or both, to learn on. [default: those of --teacher]")
    ] = None,
    side: Annotated[int, typer.Option(min=8, help="Pack only: side of a square in pixels.")] = 64,
    samples: Annotated[Path | None, typer.Option(help="Pack only: folder of sample scenes to add.")] = None,
    split: Annotated[str, typer.Option(help="Store only: samples to train on.")] = "train",
    name: Annotated[str, typer.Option(help="Name of the model.")] = "my-student",
    learns: Annotated[str, typer.Option(help="tower, or head (on a frozen tower).")] = "tower",
    contrast: Annotated[
        float | None, typer.Option(min=0, help="Weight of the student's own contrast. [default: 0; 1 without teacher]")
    ] = None,
    keep: Annotated[float, typer.Option(min=0, help="Weight of staying near the starting embedding.")] = 0.0,
    global_views: Annotated[int, typer.Option(min=1, help="Large crops of a square.")] = 2,
    local_views: Annotated[int, typer.Option(min=0, help="Small crops of a square.")] = 4,
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps.")] = 2000,
    batch: Annotated[int, typer.Option(min=2, help="Squares per step and process.")] = 64,
    accumulate: Annotated[int, typer.Option(min=1, help="Batches per step.")] = 1,
    rate: Annotated[float, typer.Option(min=0, help="Peak learning rate.")] = 3e-4,
    precision: Annotated[str, typer.Option(help="auto, float32 or bfloat16.")] = "auto",
    seed: Annotated[int, typer.Option(min=0, help="Of everything random.")] = 0,
    checkpoint_every: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = 500,
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON per step on stdout.")] = False,
) -> None:
    """Distil frozen teachers that see more than RGB into an RGB student (SATtxt's first stage).

    Several processes: torchrun --nproc-per-node N --no-python alidade train distill ...
    """
    from alidade.cli.train import TrainingBar, check_extra, choose

    check_extra("alidade train distill")
    from alidade.cli.output import err
    from alidade.cli.output import out as stdout
    from alidade.training.distill import DistillConfig
    from alidade.training.distill import distill as run
    from alidade.training.distill_batches import CropBatches, Crops
    from alidade.training.teachers import TowerTeacher

    chosen, names = choose(precision), teacher_names(teacher)
    pupil, master = load_networks(student, teacher_model, weights)
    teachers: list[Teacher] = [TowerTeacher(master, name, pool=pool) for name in names]
    found = (
        pack_squares(data, pupil, tower, master.network, pack_names(squares, names), side=side, samples=samples)
        if (data / PACK_MARK).is_file()
        else store_squares(data, pupil, tower, teachers, split=split, student_view=student_view)
    )
    crops = Crops(global_views=global_views, local_views=local_views)
    batches = CropBatches(found, crops, patch=pupil.tower(tower).patch)
    config = DistillConfig(
        name=name,
        tower=tower,
        learns=learns,
        contrast_weight=(0.0 if teachers else 1.0) if contrast is None else contrast,
        keep_weight=keep,
        steps=steps,
        batch=batch,
        accumulate=accumulate,
        peak_rate=rate,
        warm_up=(rise := min(200, max(1, steps // 10))),
        sharpen_steps=rise,
        precision=str(chosen.dtype).removeprefix("torch."),
        seed=seed,
        checkpoint_every=checkpoint_every,
    )
    # torchrun's other processes say nothing: their bars would write over this one's
    if first := os.environ.get("RANK", "0") == "0":
        told = ", ".join(t.identity for t in teachers) or "no teacher: the student's own contrast alone"
        err.print(f"{len(batches):,} squares; {told}; {config.precision}: {chosen.reason}")
        err.print("stop with Ctrl-C; the same command goes on")
    with TrainingBar(steps, as_json=as_json, hidden=not first) as bar:
        run(config, batches, out, network=pupil, teachers=teachers, report=bar.show)
    if first:
        (err if as_json else stdout).print(f"model saved: {out / 'model'} (load it with --model {out / 'model'})")


def teacher_names(text: str) -> tuple[str, ...]:
    """The towers that ``--teacher`` names, none for ``none``.

    Raises:
        AlidadeError: an empty name, or ``none`` beside others.
    """
    names = tuple(name.strip() for name in text.split(","))
    if names == (NONE,):
        return ()
    if "" in names or NONE in names:
        raise AlidadeError(
            "--teacher", got=repr(text), expected="towers such as optical,sar, or none alone", next_step="Write it so."
        )
    return names


def load_networks(student: str, teacher_model: str | None, weights: str | None) -> tuple[ScaleAlibi, Model]:
    """The network that the student starts as, and the model whose towers teach.

    Raises:
        WeightsError: a model that there is not.
    """
    import torch

    from alidade.models.registry import load

    # float32: it is trained on and saved again
    pupil = load(student, dtype=torch.float32)
    if teacher_model is None:
        return pupil.network, pupil
    return pupil.network, load(teacher_model, weights=weights, dtype=torch.float32)


def store_squares(
    path: Path,
    pupil: ScaleAlibi,
    tower: str,
    teachers: list[Teacher],
    *,
    split: str,
    student_view: str | None,
) -> list[Squares]:
    """The samples of a tile store.

    Raises:
        AlidadeError: no store, or one without views for student and teachers.
    """
    from alidade.training.distill_batches import StoreSquares
    from alidade.training.tiles.store import TileStore

    how = pupil.tower(tower).normalizations
    store = TileStore.open(path)
    return [StoreSquares(store, split=split, student=how, teachers=teachers, student_view=student_view)]


def pack_names(asked: str | None, teachers: tuple[str, ...]) -> tuple[str, ...]:
    """Which squares of the data pack are learned on: those asked for, those of the teachers, or all without teacher.

    Raises:
        AlidadeError: squares that the pack has not.
    """
    wanted = tuple(asked.split(",")) if asked else teachers or tuple(PACK_BANDS)
    if unknown := sorted(set(wanted) - set(PACK_BANDS)):
        raise AlidadeError(
            "squares of the data pack",
            got=", ".join(unknown),
            expected=f"one or more of {', '.join(PACK_BANDS)}",
            next_step="Name these with --squares, or train on a tile store.",
        )
    return wanted


def pack_squares(
    data: Path,
    pupil: ScaleAlibi,
    tower: str,
    master: ScaleAlibi,
    names: tuple[str, ...],
    *,
    side: int,
    samples: Path | None,
) -> list[Squares]:
    """Squares of the data pack's train parts, each read as the student and the teacher read it.

    Raises:
        AlidadeError: a file is missing or damaged, or a tower is missing or does not take the pack's sensors.
    """
    from alidade.ablation.pack_sources import all_bands, multispectral, stack
    from alidade.evaluation.pairs import california_texas
    from alidade.training.distill_batches import SourceSquares
    from alidade.training.image_batches import Cut, Source
    from alidade.training.teachers import reading

    rgb, found = pupil.tower(tower), list[Source]()
    for name in names:
        reads = master.tower(name)
        for sensor, bands in PACK_BANDS[name].items():
            reading(f"teacher {name}", reads.normalizations, sensor, bands)
        if name == "optical":
            levels = multispectral(data, samples, reads, rgb)
            found += [all_bands(level, 1.0, images) for level, images in levels.items()]
            continue
        pairs = california_texas(data, "train", window=512)
        stacks = {"sar": stack(reads, pairs.sar), "rgb": stack(rgb, pairs.optical)}
        cuts = {n: Cut(stack=n, sizes=((side, 1),)) for n in stacks}
        found.append(Source(name="california", weight=1.0, stacks=stacks, views=cuts, together=True))
    return [SourceSquares(source, side=side) for source in found]
