"""``alidade train``: make models."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from alidade.errors import AlidadeError

if TYPE_CHECKING:
    from alidade.training.pretrain import Report


def register(app: typer.Typer) -> None:
    """Add ``train`` and its commands to the application."""
    train = typer.Typer(help="Make models from aligned tiles.", no_args_is_help=True)
    train.command()(pretrain)
    # a group even while it has one command
    train.callback()(lambda: None)
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
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    checkpoint_every: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = 500,
) -> None:
    """Pretrain on aligned tiles: contrast of every pair of sensors, and masked reconstruction of each."""
    if missing := [name for name in ("accelerate", "tensorboard") if find_spec(name) is None]:
        raise AlidadeError(
            "alidade train",
            got=f"an installation without {' and '.join(missing)}",
            expected="the extra `train`",
            next_step="Install it: pip install 'alidade[train]' (in a clone: pip install -e '.[train]').",
        )
    from alidade.cli.output import err
    from alidade.cli.output import out as stdout
    from alidade.training.pretrain import PretrainConfig
    from alidade.training.pretrain import pretrain as run
    from alidade.training.store_batches import SIZES, StoreBatches, model_for
    from alidade.training.tiles.store import TileStore

    if size not in SIZES:
        raise AlidadeError("--size", got=repr(size), expected=f"one of {', '.join(SIZES)}", next_step="Choose one.")
    tiles = TileStore.open(store)
    data = StoreBatches(tiles, split=split, patch=patch)
    model = model_for(tiles, name, SIZES[size], patch)
    config = PretrainConfig(
        model=model,
        towers={view: view for view in tiles.views},
        steps=steps,
        batch=batch,
        accumulate=accumulate,
        peak_rate=rate,
        warm_up=min(200, max(1, steps // 10)),
        keep=keep,
        seed=seed,
        checkpoint_every=checkpoint_every,
    )
    err.print(f"{len(data):,} samples of {', '.join(tiles.views)}; stop with Ctrl-C, the same command goes on")
    with TrainingBar(steps) as bar:
        run(config, data, out, report=bar.show)
    stdout.print(f"model saved: {out / 'model'} (load it with --model {out / 'model'})")


class TrainingBar:
    """Steps done, losses, samples per second and time left."""

    def __init__(self, steps: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        from alidade.cli.output import err

        columns = (
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[told]}"),
            TimeRemainingColumn(),
        )
        self._bar = Progress(*columns, console=err)
        self._task = self._bar.add_task("training", total=steps, told="")

    def __enter__(self) -> TrainingBar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, report: Report) -> None:
        """Move to the report's step."""
        losses = ", ".join(f"{name} {value:.3f}" for name, value in report.losses.items())
        told = f"{losses}; {report.samples_per_second:,.0f} samples/s, {report.wait_share:.0%} waiting for data"
        self._bar.update(self._task, completed=report.step, told=told)
