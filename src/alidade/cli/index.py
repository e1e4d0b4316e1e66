"""``alidade index``: what makes searches of big archives fast."""

from __future__ import annotations

from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from alidade.cli import options as opt
from alidade.errors import AlidadeError


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(index)


def index(
    archive: Annotated[Path, typer.Argument(help="Directory of the archive.")],
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Make it anew, even if it is up to date.")] = False,
    to: Annotated[
        str | None,
        typer.Option("--to", metavar="URL", help="Copy what is new into PostgreSQL instead: postgresql://me@host/db"),
    ] = None,
    as_json: opt.Json = False,
) -> None:
    """Make or update the index of an archive, so that searches of very many tiles stay fast."""
    if to is not None and rebuild:
        raise AlidadeError(
            "--rebuild", got="--to beside it", expected="one of them", next_step="A database is updated, never rebuilt."
        )
    if to is None:
        check_extra("lancedb", "search")
        _index_here(archive, rebuild=rebuild, as_json=as_json)
    else:
        check_extra("psycopg", "postgres")
        _index_there(archive, to, as_json=as_json)


def check_extra(package: str, extra: str) -> None:
    """Refuse to index in an installation without what it takes.

    Raises:
        AlidadeError: naming the extra.
    """
    if find_spec(package) is None:
        raise AlidadeError(
            "alidade index",
            got=f"an installation without {package}",
            expected=f"the extra `{extra}`",
            next_step=f'Install it: pip install "alidade[{extra}]" (in a clone: pip install -e ".[{extra}]").',
        )


def _index_here(archive: Path, *, rebuild: bool, as_json: bool) -> None:
    from alidade.cli.output import RowsBar, err, out, show_json
    from alidade.search.index_build import build_index

    try:
        with RowsBar("rows", "looking at the index") as bar:
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


def _index_there(archive: Path, url: str, *, as_json: bool) -> None:
    from alidade.cli.output import RowsBar, err, out, show_json
    from alidade.search.postgres_load import index_to

    try:
        with RowsBar("rows", "looking at the database") as bar:
            summary = index_to(archive, url, bar)
    except KeyboardInterrupt:
        err.print("stopped by Ctrl-C; the same command goes on from what the database holds")
        raise typer.Exit(130) from None
    if as_json:
        show_json(asdict(summary))
        return
    how = "with an index of vectors" if summary.indexed else "compared one by one, being few"
    out.print(
        f"{summary.rows:,} rows of {summary.shards:,} shards copied and {summary.removed:,} shards removed in "
        f"{summary.seconds:.1f} s; the database holds {summary.total:,} rows of {summary.model}, {how}."
    )
