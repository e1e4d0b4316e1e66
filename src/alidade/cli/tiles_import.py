"""``alidade tiles import``: take data sets in the layouts that people already have into a tile store."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from alidade.cli import options as opt
from alidade.errors import AlidadeError

if TYPE_CHECKING:
    from alidade.training.tiles.importing import ImportSummary
    from alidade.training.tiles.layouts import Options

_SHOWN = 20
"""Failures that are printed one by one; ``--json`` holds all."""

Value = TypeVar("Value")


def register_import(app: typer.Typer) -> None:
    """Add ``import`` to the application ``alidade tiles``."""
    app.command(name="import")(import_)


def import_(
    layout: Annotated[str, typer.Argument(help="pairs, bigearthnet-mm, sen12ms, terramesh or pmtiles.")],
    path: Annotated[str, typer.Argument(help="The data set's folder.")],
    out: Annotated[Path, typer.Option("--out", help="Directory of the store; made or added to.")],
    view: Annotated[
        list[str] | None,
        typer.Option(
            "--view",
            metavar="NAME[=SENSOR[:BANDS][@METRES]]",
            help="A view to take; repeat. For pairs, what its files are: bands in file order, - for one to leave out; "
            "metres per pixel where they have no CRS. [default: the store's, else all]",
        ),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            help="A split's name, shares (train=0.8,val=0.1,test=0.1), or own: the data set's. [default: own where it "
            "has splits, else train]"
        ),
    ] = None,
    min_views: Annotated[
        int | None, typer.Option(min=1, help="Views a sample needs. [default: 2; all for bigearthnet-mm]")
    ] = None,
    min_valid: Annotated[float, typer.Option(min=0.0, max=1.0, help="The least share of valid pixels a view.")] = 0.0,
    pattern: Annotated[
        str | None,
        typer.Option(
            help="pairs: regular expression of the paths, with (?P<key>...), and view, split, date if need be."
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="pairs: goes before the keys in the store. [default: the folder's name]")
    ] = None,
    cut: Annotated[int, typer.Option(min=1, help="pairs: cut every file into CUT x CUT pieces.")] = 1,
    unit: Annotated[
        list[str] | None, typer.Option("--unit", metavar="VIEW=UNIT", help="pairs: dB or power, for radar; repeat.")
    ] = None,
    scale: Annotated[
        list[str] | None, typer.Option("--scale", metavar="VIEW=NUMBER", help="pairs: value = stored * SCALE + OFFSET.")
    ] = None,
    offset: Annotated[
        list[str] | None,
        typer.Option("--offset", metavar="VIEW=NUMBER", help="pairs, terramesh: see --scale; Sentinel-2: 0 or -0.1."),
    ] = None,
    nodata: Annotated[
        list[str] | None, typer.Option("--nodata", metavar="VIEW=NUMBER", help="pairs: number that means no data.")
    ] = None,
    as_json: opt.Json = False,
) -> None:
    """Take a data set into a store as it is, nothing resampled; a second run takes what is missing."""
    from alidade.cli.output import ImportBar
    from alidade.cli.tiles import parse_split
    from alidade.training.tiles.importing import import_tiles

    names, options = _options(layout, view or (), pattern, name, cut, unit, scale, offset, nodata)
    with ImportBar() as bar:
        summary = import_tiles(
            layout, path, out, options, views=names, split=None if split is None else parse_split(split),
            min_views=min_views, min_valid=min_valid, progress=bar,
        )  # fmt: skip
    _report(summary, as_json=as_json)
    if summary.failures:
        raise typer.Exit(2)


def _options(
    layout: str,
    view: Sequence[str],
    pattern: str | None,
    name: str | None,
    cut: int,
    unit: Sequence[str] | None,
    scale: Sequence[str] | None,
    offset: Sequence[str] | None,
    nodata: Sequence[str] | None,
) -> tuple[list[str] | None, Options]:
    """The names of the views to take, and what the layout is told."""
    from alidade.cli.tiles import parse_view
    from alidade.training.tiles.layouts import Options
    from alidade.training.tiles.scenes import View

    views = [parse_view(text) if "=" in text else View(name=text, sensor="") for text in view]
    options = Options(
        # other layouts know what their views are: only a sensor given there is an option to refuse
        views=tuple(v for v in views if v.sensor or layout == "pairs"),
        pattern=pattern,
        name=name,
        cut=cut,
        units=_by_view("--unit", unit, opt.parse_unit, "s1=dB"),
        scales=_by_view("--scale", scale, float, "s2=0.0001"),
        offsets=_by_view("--offset", offset, float, "s2=-0.1"),
        nodata=_by_view("--nodata", nodata, float, "s2=0"),
    )
    return [v.name for v in views] or None, options


def _by_view(
    option: str, texts: Sequence[str] | None, parse: Callable[[str], Value], example: str
) -> Mapping[str, Value]:
    """``VIEW=VALUE`` texts as values by view name."""
    found: dict[str, Value] = {}
    for text in texts or ():
        name, equals, value = text.partition("=")
        try:
            if not equals or not name or name in found:
                raise ValueError
            found[name] = parse(value)
        except AlidadeError:
            raise
        except ValueError:
            raise AlidadeError(
                option, got=repr(text), expected="VIEW=VALUE, each view once", next_step=f"Write it like {example}."
            ) from None
    return found


def _report(summary: ImportSummary, *, as_json: bool) -> None:
    from alidade.cli.output import err, out, show_json

    if as_json:
        show_json(asdict(summary))
        return
    for repair in summary.repairs:
        err.print(f"repaired: {repair}")
    out.print(summary.sentence())
    for failure in summary.failures[:_SHOWN]:
        err.print(f"failed: {failure.message}")
    if len(summary.failures) > _SHOWN:
        err.print(f"failed: {len(summary.failures) - _SHOWN:,} more (--json lists all)")
