"""``alidade export``: an archive for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from alidade.cli import options as opt


def register(app: typer.Typer) -> None:
    """Add ``export`` to the application."""
    app.command()(export)


def export(
    archive: Annotated[Path, typer.Argument(help="Directory of the archive.")],
    stac: Annotated[
        Path, typer.Option("--stac", metavar="OUT_DIR", help="Write a STAC collection, item and model item here.")
    ],
    time: Annotated[
        str | None, typer.Option(metavar="START/END", help="When the imagery was taken, if its files do not tell.")
    ] = None,
    model: opt.ModelName = None,
    weights: opt.Weights = None,
    as_json: opt.Json = False,
) -> None:
    """Describe an archive as a STAC item that links to its shards, its scenes and the model that made it."""
    from alidade.cli.output import out, show_json
    from alidade.imagery.polygon import check_shapely
    from alidade.models.registry import DEFAULT, SHIPPED, load
    from alidade.models.weights import WEIGHTS
    from alidade.search.archive import Archive
    from alidade.search.filters import parse_time
    from alidade.search.stac_item import counted, write_stac

    check_shapely("alidade export --stac")
    moments = None if time is None else parse_time(time)
    opened = Archive.open(archive)
    name = model or DEFAULT
    loaded = load(name, weights=weights)
    folder = SHIPPED / name if (SHIPPED / name).is_dir() else Path(name)
    file = folder / WEIGHTS if weights is None else Path(weights)
    item = write_stac(opened, loaded, stac, weights=file, time=moments)
    if as_json:
        show_json({"item": str(item), "rows": opened.rows, "model": loaded.identity})
    else:
        out.print(f"{counted(opened.rows, 'tile')} described: {item}")
