"""``alidade train``: make models."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from alidade.errors import AlidadeError

if TYPE_CHECKING:
    from rich.console import Group

    from alidade.models.precision import Precision
    from alidade.training.loop import Report

PRECISIONS = ("auto", "float32", "bfloat16")


def register(app: typer.Typer) -> None:
    """Add ``train`` and its commands to the application."""
    from alidade.cli.train_align import register_align
    from alidade.cli.train_distill import register_distill

    train = typer.Typer(help="Make models: pretrain, distil, align with words.", no_args_is_help=True)
    train.command()(pretrain)
    register_distill(train)
    register_align(train)
    app.add_typer(train, name="train")


def pretrain(
    store: Annotated[Path, typer.Argument(help="A tile store, made by `alidade tiles build`.")],
    out: Annotated[Path, typer.Option("--out", help="Directory of the run; the same command resumes it.")],
    name: Annotated[str, typer.Option(help="Name of the model.")] = "my-model",
    size: Annotated[str, typer.Option(help="tiny, small or base.")] = "tiny",
    patch: Annotated[int, typer.Option(min=1, help="Patch side in pixels.")] = 8,
    split: Annotated[str, typer.Option(help="Samples to train on.")] = "train",
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps.")] = 10_000,
    batch: Annotated[int, typer.Option(min=2, help="Samples per step and process.")] = 64,
    accumulate: Annotated[int, typer.Option(min=1, help="Batches per step.")] = 1,
    rate: Annotated[float, typer.Option(min=0, help="Peak learning rate.")] = 1e-3,
    keep: Annotated[float, typer.Option(min=0.05, max=0.95, help="Share of patches that encoders see.")] = 0.6,
    precision: Annotated[
        str, typer.Option(help="auto, float32 or bfloat16; auto takes bfloat16 where the hardware multiplies it.")
    ] = "auto",
    shard: Annotated[
        bool, typer.Option("--shard", help="Under torchrun: each process holds only its share of the weights (FSDP2).")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of everything random.")] = 0,
    checkpoint_every: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = 500,
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON per step on stdout.")] = False,
) -> None:
    """Pretrain on aligned tiles: contrast of every pair of sensors, and masked reconstruction of each.

    Several processes: torchrun --nproc-per-node N --no-python alidade train pretrain ...
    """
    check_extra("alidade train pretrain")
    from alidade.cli.output import err
    from alidade.cli.output import out as stdout
    from alidade.training.pretrain import PretrainConfig
    from alidade.training.pretrain import pretrain as run
    from alidade.training.store_batches import SIZES, StoreBatches, model_for
    from alidade.training.tiles.store import TileStore

    one_of("--size", size, SIZES)
    chosen = choose(precision)
    tiles = TileStore.open(store)
    data = StoreBatches(tiles, split=split, patch=patch)
    if batch > len(data):
        raise AlidadeError(
            "--batch",
            got=f"{batch} samples",
            expected=f"at most the {len(data)} of split {split!r}: a sample is no stranger to itself",
            next_step="Choose a smaller batch, or build more tiles.",
        )
    config = PretrainConfig(
        model=model_for(tiles, name, SIZES[size], patch),
        towers={view: view for view in tiles.views},
        steps=steps,
        batch=batch,
        accumulate=accumulate,
        peak_rate=rate,
        warm_up=min(200, max(1, steps // 10)),
        keep=keep,
        precision=str(chosen.dtype).removeprefix("torch."),
        seed=seed,
        checkpoint_every=checkpoint_every,
    )
    # torchrun's other processes say nothing: their bars would write over this one's
    if first := os.environ.get("RANK", "0") == "0":
        err.print(f"{len(data):,} samples of {', '.join(tiles.views)}; {config.precision}: {chosen.reason}")
        err.print("stop with Ctrl-C; the same command goes on")
    with TrainingBar(steps, as_json=as_json, hidden=not first) as bar:
        run(config, data, out, shard=shard, report=bar.show)
    if first:
        (err if as_json else stdout).print(f"model saved: {out / 'model'} (load it with --model {out / 'model'})")


def check_extra(command: str) -> None:
    """Refuse to train in an installation without what only training needs.

    Args:
        command: what was asked for, such as ``"alidade train pretrain"``.

    Raises:
        AlidadeError: naming the missing packages.
    """
    if missing := [name for name in ("accelerate", "tensorboard") if find_spec(name) is None]:
        raise AlidadeError(
            command,
            got=f"an installation without {' and '.join(missing)}",
            expected="the extra `train`",
            next_step="Install it: pip install 'alidade[train]' (in a clone: pip install -e '.[train]').",
        )


def one_of(option: str, value: str, names: Iterable[str]) -> None:
    """Refuse a value that is none of the names.

    Raises:
        AlidadeError: naming them.
    """
    if value not in names:
        raise AlidadeError(option, got=repr(value), expected=f"one of {', '.join(names)}", next_step="Choose one.")


def choose(precision: str) -> Precision:
    """The format of matrix products that ``--precision`` asks for.

    Raises:
        AlidadeError: a name that is none of ``PRECISIONS``.
    """
    import torch

    from alidade.models.precision import Precision, choose_precision

    one_of("--precision", precision, PRECISIONS)
    if precision == "auto":
        return choose_precision("cuda" if torch.cuda.is_available() else "cpu")
    return Precision(torch.float32 if precision == "float32" else torch.bfloat16, "asked for")


class TrainingBar:
    """Steps done, losses, samples per second and time left, on stderr; each report as a line of JSON on stdout."""

    def __init__(self, steps: int, *, as_json: bool, hidden: bool) -> None:
        from rich.live import Live
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        from alidade.cli.output import err

        columns = (
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[told]}"),
            TimeRemainingColumn(),
            TextColumn("left"),
        )
        self._steps, self._as_json, self._hidden, self._losses = steps, as_json, hidden, ""
        self._bar = Progress(*columns, console=err)
        self._task = self._bar.add_task("training", total=steps, told="")
        # losses have a line of their own: with many views they would push the time left off the edge
        self._live = Live(get_renderable=self._lines, console=err, refresh_per_second=4)

    def __enter__(self) -> TrainingBar:
        if not self._hidden:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if not self._hidden:
            self._live.stop()

    def show(self, report: Report) -> None:
        """Move to the report's step, and print it where that is asked for."""
        self._losses = ", ".join(f"{name} {value:.3f}" for name, value in report.losses.items())
        told = f"{report.samples_per_second:,.0f} samples/s, {report.wait_share:.1%} waiting for data"
        self._bar.update(self._task, completed=report.step, told=told)
        if self._as_json:
            typer.echo(json.dumps({"steps": self._steps} | asdict(report)))

    def _lines(self) -> Group:
        from rich.console import Group
        from rich.text import Text

        return Group(self._bar, Text(self._losses, overflow="fold"))
