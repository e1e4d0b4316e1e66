"""``alidade index``: what makes searches of big archives fast."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from alidade.cli import options as opt


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(index)


def index(
    archive: Annotated[Path, typer.Argument(help="Directory of the archive.")],
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Make it anew, even if it is up to date.")] = False,
    as_json: opt.Json = False,
) -> None:
    """Make or update the index of an archive, so that searches of very many tiles stay fast."""
    from alidade.cli.output import CountBar, err, out, show_json
    from alidade.search.index_build import build_index

    class Bar(CountBar):
        """The bar; implements ``search.index_build.IndexProgress``."""

        def started(self, *, rows: int, doing: str) -> None:
            """Show what goes on."""
            if rows:
                self.begin(rows, doing)
            else:
                self._bar.update(self._task, description=doing)

        def advanced(self, *, rows: int) -> None:
            """Move on."""
            self.advance(rows)

    try:
        with Bar("rows", "looking at the index") as bar:
            summary = build_index(archive, rebuild=rebuild, progress=bar)
    except KeyboardInterrupt:
        err.print(f"stopped by Ctrl-C; the index that {archive} had is as it was")
        raise typer.Exit(130) from None
    if as_json:
        show_json(asdict(summary))
        return
    for repair in summary.repairs:
        err.print(f"repaired: {repair}")
    out.print(summary.sentence())
