"""``alidade classify``: which of the classes that the user names do files show."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from alidade.cli import options as opt
from alidade.errors import AlidadeError

if TYPE_CHECKING:
    from alidade.cli.output import CountBar
    from alidade.search.class_map import ClassMap
    from alidade.search.classify import Classified, FileClasses

_SHOWN = 4
"""Classes that a line of the table names."""


class FilesBar:
    """A bar over files; implements ``Progress`` of ``search.classify`` and ``search.class_map``.

    Args:
        bar: what shows it.
        doing: what happens to the files.
    """

    def __init__(self, bar: CountBar, doing: str) -> None:
        self._bar, self._doing = bar, doing

    def started(self, *, tiles: int, sources: int) -> None:
        """Show the totals."""
        self._bar.begin(tiles, f"{self._doing} {sources:,} file{'' if sources == 1 else 's'}")

    def advanced(self, *, tiles: int, source: str) -> None:
        """Move on."""
        self._bar.advance(tiles)


def register(app: typer.Typer) -> None:
    """Add ``classify`` to the application."""
    app.command()(classify)


def classify(
    paths: Annotated[list[str], typer.Argument(metavar="FILE...", help="GeoTIFFs, or folders of them.")],
    classes: Annotated[str, typer.Option("--classes", help='Names with commas between: "river,forest,airport".')],
    map_to: Annotated[
        Path | None, typer.Option("--map", metavar="OUT.tif", help="Map one file's classes, a pixel a patch.")
    ] = None,
    probabilities: Annotated[
        Path | None, typer.Option(metavar="OUT.tif", help="With --map: every class's probability, a band each.")
    ] = None,
    window: Annotated[
        int | None, typer.Option(help="With --map: pixels that the model sees at once. [default: half its own tile]")
    ] = None,
    overlap: Annotated[
        int | None, typer.Option(min=1, max=16, help="With --map: windows that see a patch, each way; 2 is fast.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write every tile's class here: a .geojson or .csv file.")] = None,
    model: opt.ModelName = None,
    weights: opt.Weights = None,
    tile: Annotated[
        int | None, typer.Option(help="Tile side in pixels, whole patches; no matter for --map. [default: the model's]")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, max=256, help="Tiles given to the model at once.")] = 16,
    sensor: opt.SensorName = None,
    bands: opt.Bands = None,
    unit: opt.UnitName = None,
    scale: opt.Scale = None,
    offset: opt.Offset = None,
    nodata: opt.Nodata = None,
    taken: opt.Taken = None,
    gsd: opt.Gsd = None,
    as_json: opt.Json = False,
) -> None:
    """Tell which of the named classes files show; any words will do, no training.

    Probabilities are shares among the named classes: an image that shows none of them gets one all the same. Exit code
    2 when any file failed, after the others are done.
    """
    from alidade.cli.output import CountBar, err, show_json, show_model
    from alidade.models.registry import DEFAULT, load
    from alidade.search.class_export import check_ending, to_json, write, write_map, write_probabilities
    from alidade.search.class_map import OVERLAP, map_classes
    from alidade.search.classify import class_names
    from alidade.search.classify import classify as classify_files
    from alidade.search.sources import expand

    names = class_names(classes)
    files, _ = expand(paths)
    if out is not None:
        check_ending(out)
    _check_places(files, {"--map": map_to, "--probabilities": probabilities, "--out": out})
    declared = opt.declared_from(sensor, bands, unit, scale, offset, nodata, taken, gsd)
    loaded = load(model or DEFAULT, weights=weights)
    show_model(loaded)
    with CountBar("tiles", "reading headers") as bar:
        progress = FilesBar(bar, "classifying")
        found = classify_files(paths, loaded, names, declared=declared, tile=tile, batch=batch, progress=progress)
    for note in found.notes:
        err.print(note, style="yellow")
    mapped = None
    if map_to is not None and found.files:
        with CountBar("windows", "reading") as bar:
            mapped = map_classes(
                files[0],
                loaded,
                found.classes,
                declared=declared,
                window=window,
                overlap=overlap or OVERLAP,
                probabilities=probabilities is not None,
                progress=FilesBar(bar, "mapping"),
            )
        if probabilities is not None:
            write_probabilities(mapped, probabilities)
        write_map(mapped, map_to)
    if out is not None:
        write(found, out)
    if as_json:
        show_json(to_json(found) | {"map": _map_facts(mapped, map_to)})
    else:
        _show(found, mapped, map_to)
    for failure in found.failures:
        err.print(f"failed: {failure.message}")
    if found.failures:
        raise typer.Exit(2)


def _check_places(files: list[str], places: dict[str, Path | None]) -> None:
    """See that results can go where they shall go, as far as names tell: before anything is loaded."""
    if places["--map"] is not None and len(files) != 1:
        raise AlidadeError(
            "--map", got=f"{len(files)} files", expected="one file", next_step="Map them one after the other."
        )
    if places["--probabilities"] is not None and places["--map"] is None:
        raise AlidadeError(
            "--probabilities", got="no --map", expected="both", next_step="Add --map OUT.tif, or leave it out."
        )
    taken = {os.path.realpath(file): f"the file {file}" for file in files}
    for option, place in places.items():
        if place is None:
            continue
        other = taken.setdefault(os.path.realpath(place), option)
        if other != option:
            raise AlidadeError(
                option, got=f"{place}, which is {other}", expected="another file", next_step="Give it its own name."
            )


def _show(found: Classified, mapped: ClassMap | None, path: Path | None) -> None:
    from alidade.cli.output import err, show_table

    names = found.classes.names
    if found.files:
        columns = ("file", "class", "probability", "tiles", "shares of tiles")
        show_table(columns, [_line(names, file) for file in found.files])
    err.print(f"read as: {', '.join(found.classes.sentences)}", style="dim")
    if mapped is not None:
        facts = _map_facts(mapped, path) or {}
        shares = _shares(sorted(mapped.shares.items(), key=lambda item: -item[1]))
        err.print(f"map: {path}, {facts['width']} x {facts['height']} px of {facts['pixel_m']:.3g} m: {shares}")


def _line(names: tuple[str, ...], file: FileClasses) -> tuple[str, str, str, str, str]:
    most = sorted(zip(names, file.shares, strict=True), key=lambda item: -item[1])
    best = float(file.probabilities[file.best])
    # a text, so that the table keeps two digits
    return Path(file.source).name, names[file.best], f"{best:.2f}", f"{len(file.tiles):,}", _shares(most)


def _shares(most: list[tuple[str, float]]) -> str:
    """The largest shares in words."""
    shown = [f"{name} {share:.0%}" for name, share in most if share > 0]
    return ", ".join(shown[:_SHOWN]) + (", ..." if len(shown) > _SHOWN else "")


def _map_facts(mapped: ClassMap | None, path: Path | None) -> dict[str, object] | None:
    if mapped is None:
        return None
    height, width = mapped.numbers.shape
    shares = {name: round(share, 4) for name, share in mapped.shares.items()}
    return {
        "path": str(path),
        "width": width,
        "height": height,
        "patch": mapped.patch,
        "pixel_m": mapped.grid.mean_gsd_m(),
        "shares": shares,
    }
