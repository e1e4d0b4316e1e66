"""``alidade tiles synthesize``: a store of a made-up world."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from alidade.cli import options as opt


def register_synthetic(app: typer.Typer) -> None:
    """Add ``synthesize`` to the ``tiles`` group."""
    app.command()(synthesize)


def synthesize(
    out: Annotated[Path, typer.Option("--out", help="Directory of the store; made or added to.")],
    count: Annotated[int, typer.Option("-n", min=1, help="How many samples the store shall have of this split.")] = 256,
    seed: Annotated[int, typer.Option(help="Another number is another world.")] = 0,
    split: Annotated[str, typer.Option(help="train, val or test; or shares: train=0.8,val=0.1,test=0.1.")] = "train",
    square: Annotated[float, typer.Option(help="Side of a square in metres: 0.625 times a power of two.")] = 1280.0,
    as_json: opt.Json = False,
) -> None:
    """Make samples of a made-up world, for tests and first runs; stores of it are marked and kept out of results."""
    from alidade.cli.output import CountBar, show_json
    from alidade.cli.output import out as stdout
    from alidade.cli.tiles import parse_split
    from alidade.training.synthetic.make import synthesize as make

    with CountBar("samples", "making land", count) as bar:
        made = make(out, count, seed=seed, split=parse_split(split), square_m=square, progress=bar.advance)
    if as_json:
        show_json(asdict(made))
        return
    splits = ", ".join(f"{name} {number:,}" for name, number in sorted(made.splits.items()))
    stdout.print(f"{made.written:,} synthetic samples made in {made.seconds:.1f} s, {made.present:,} there ({splits})")
