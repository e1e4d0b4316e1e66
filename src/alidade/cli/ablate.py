"""``alidade ablate``: the comparison of positions, run by run, and its page."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from alidade.cli.evaluate import RESULTS, Commit
from alidade.errors import AlidadeError

if TYPE_CHECKING:
    from alidade.evaluation.results import Result
    from alidade.training.loop import Report

PAGE = Path("docs/results/bias-ablation.md")
Into = Annotated[Path, typer.Option("--results", help="Results file; lines are added, scores to the file beside it.")]


def register(app: typer.Typer) -> None:
    """Add ``ablate`` and its commands to the application."""
    group = typer.Typer(help="Compare ways for attention to know places.", no_args_is_help=True)
    group.command("bias")(bias)
    group.command("document")(document)
    app.add_typer(group, name="ablate")


def bias(
    data: Annotated[Path, typer.Option("--data", help="Folder of the public data pack.")],
    variants: Annotated[str | None, typer.Option(help="Names with commas between. [default: all]")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds 0 to N - 1.")] = 5,
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps of a run.")] = 200,
    batch: Annotated[int, typer.Option(min=2, help="Samples a step.")] = 64,
    width: Annotated[int, typer.Option(min=16, help="Of the network.")] = 96,
    depth: Annotated[int, typer.Option(min=1, help="Its layers.")] = 3,
    heads: Annotated[int, typer.Option(min=1, help="Its attention heads.")] = 4,
    labels: Annotated[int, typer.Option(min=10, help="Training images of EuroSAT RGB for 5-NN and probe.")] = 2000,
    queries: Annotated[int, typer.Option(min=10, help="Its validation images that are reported on.")] = 1000,
    aerial_labels: Annotated[int, typer.Option(min=21, help="Training images of UC Merced for 5-NN and probe.")] = 210,
    results: Into = RESULTS,
    run: Annotated[Path, typer.Option("--run", help="Folder of the training runs.")] = Path("runs/bias-ablation"),
    commit: Commit = None,
) -> None:
    """Train and measure every variant with every seed; what is in the results file is skipped.

    Stopped at any moment, the same command goes on.
    """
    from alidade.cli.train import check_extra

    check_extra("alidade ablate bias")
    from alidade.ablation.config import AblationConfig
    from alidade.ablation.run import run_ablation
    from alidade.evaluation.results import commit_of
    from alidade.models.positions import VARIANTS

    config = AblationConfig(
        variants=tuple(VARIANTS) if variants is None else tuple(v.strip() for v in variants.split(",")),
        seeds=seeds,
        steps=steps,
        batch=batch,
        width=width,
        depth=depth,
        heads=heads,
        labels=labels,
        queries=queries,
        aerial_labels=aerial_labels,
    )
    if width % (4 * heads):
        raise AlidadeError(
            "--width",
            got=f"{width} for {heads} heads",
            expected="a multiple of four times the heads: rotary positions turn pairs along two axes",
            next_step="Choose another width or number of heads.",
        )
    code = commit or commit_of(Path(__file__).parents[1])
    done = 0
    with AblationBar() as bar:
        for _ in run_ablation(config, data, results=results, folder=run, commit=code, shown=bar):
            done += 1
    typer.echo(f"{done} runs measured, setting {config.hash()}, in {results}")


def document(
    results: Into = RESULTS,
    out: Annotated[Path, typer.Option("--out", help="The page; plots are written beside it.")] = PAGE,
    setting: Annotated[str | None, typer.Option(help="Hash of the setting. [default: measured last]")] = None,
) -> None:
    """Write the page and its plots from the results file and the scores beside it; nothing is measured."""
    check_plots()
    from alidade.ablation.document import write_document

    for path in write_document(results, out, setting=setting):
        typer.echo(path.as_posix())


def check_plots() -> None:
    """Refuse to draw in an installation without matplotlib.

    Raises:
        AlidadeError: naming the extra.
    """
    from importlib.util import find_spec

    if find_spec("matplotlib") is None:
        raise AlidadeError(
            "alidade ablate document",
            got="an installation without matplotlib",
            expected="the extra `bench`",
            next_step="Install it: pip install 'alidade[bench]' (in a clone: pip install -e '.[bench]').",
        )


class AblationBar:
    """Runs done, the present run's step and rate, and time left over all runs; a line per finished run."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        from alidade.cli.output import err

        self._err = err
        columns = (TextColumn("runs"), MofNCompleteColumn(), BarColumn(bar_width=20), TextColumn("{task.fields[told]}"))
        self._bar = Progress(*columns, console=err)
        self._task = self._bar.add_task("ablation", total=None, told="reading the data")
        self._runs = self._steps = self._done = 0
        self._began = self._run_began = time.monotonic()

    def __enter__(self) -> AblationBar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def begun(self, runs: int, steps: int) -> None:
        """Show the totals."""
        self._runs, self._steps = runs, steps
        self._began = self._run_began = time.monotonic()
        self._bar.update(self._task, total=runs)

    def training(self, label: str, seed: int, report: Report) -> None:
        """Show the step, the rate and the time left."""
        told = f"{label}, seed {seed}: step {report.step} of {self._steps}, {report.samples_per_second:,.0f} samples/s"
        self._bar.update(self._task, told=f"{told}, {self._left()}")

    def finished(self, label: str, seed: int, rows: list[Result]) -> None:
        """Move on, and print the run's line."""
        self._done += 1
        seconds, self._run_began = time.monotonic() - self._run_began, time.monotonic()
        own = {(r.protocol, r.dataset, r.metric): r.value for r in rows if r.condition == label}
        shown = [
            f"{name} {100 * own[key]:.1f} %"
            for name, key in (
                ("R@1", ("bias ablation: cross-sensor retrieval", "ca-tx-aligned/val", "R@1")),
                ("UC Merced 5-NN", ("bias ablation: 5-NN", "ucmerced/val", "accuracy")),
                ("EuroSAT 5-NN", ("bias ablation: 5-NN", "eurosat-rgb/val", "accuracy")),
            )
            if key in own
        ]
        self._err.print(", ".join([f"{label}, seed {seed}: {seconds:.0f} s", *shown]))
        self._bar.update(self._task, completed=self._done, told=f"measuring, {self._left()}")

    def _left(self) -> str:
        if self._done == 0:
            return "time left unknown before the first run ends"
        # trivial and untrained rows take less than a run: the estimate settles with the first trained ones
        each = (time.monotonic() - self._began) / self._done
        left = each * (self._runs - self._done) - (time.monotonic() - self._run_began)
        return f"about {max(0.0, left) / 60:.0f} min left"
