"""``alidade eval physics``: what a model's RGB features tell of near infrared."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from alidade.cli import options as opt
from alidade.cli.evaluate import RESULTS, Baselines, Commit, Into, Models, Seed, record
from alidade.errors import AlidadeError


def register_physics(group: typer.Typer) -> None:
    """Add ``physics`` to the commands of ``alidade eval``."""
    group.command("physics")(physics)


def physics(
    scenes: Annotated[Path, typer.Argument(help="Folder of NAIP scenes of one place with near infrared.")],
    model: Models = None,
    baseline: Baselines = None,
    against: Annotated[
        str | None, typer.Option("--against", help="Model whose R² is taken off that of the others, in further rows.")
    ] = None,
    test_years: Annotated[
        str | None, typer.Option(help="Years left out together, such as 2018,2020. [default: each by itself]")
    ] = None,
    side: Annotated[int, typer.Option(min=8, help="Side of the tiles in pixels.")] = 64,
    seed: Seed = 0,
    results: Into = RESULTS,
    commit: Commit = None,
    as_json: opt.Json = False,
) -> None:
    """R² of NDVI and NDWI, which need near infrared, from RGB features in years that were not fitted to."""
    from alidade.cli.evaluate import _encoders, _stamp
    from alidade.evaluation.physics_regression import measure_physics, naip_tiles

    years = parse_years(test_years)
    tiles = naip_tiles(scenes, side=side)
    first = None if against is None else next(_encoders(tiles.images, [against], None, seed))
    encoders = list(_encoders(tiles.images, model, baseline, seed))
    rows = measure_physics(encoders, tiles, _stamp(seed, commit), test_years=years, against=first)
    record(rows, results, as_json=as_json)


def parse_years(text: str | None) -> tuple[int, ...]:
    """Years from ``"2018,2020"``.

    Raises:
        AlidadeError: something that is no year.
    """
    parts = [part.strip() for part in text.split(",")] if text else []
    if not all(part.isascii() and part.isdigit() and len(part) == 4 for part in parts):
        raise AlidadeError(
            "--test-years", got=repr(text), expected="years such as 2018,2020", next_step="Write them so."
        )
    return tuple(map(int, parts))
