"""``alidade embed`` and ``alidade search``: fill an archive, and ask it."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

import typer

from alidade.cli.output import Bar, err, out, show_json, show_model, show_table
from alidade.errors import AlidadeError, ArchiveError
from alidade.imagery.files import Declared, open_raster
from alidade.imagery.quicklook import Colours, of_raster
from alidade.imagery.raster import Raster
from alidade.imagery.windows import Window
from alidade.models.model import Model
from alidade.models.registry import DEFAULT, load
from alidade.search import export
from alidade.search.archive import Archive
from alidade.search.embed import EmbedSummary
from alidade.search.embed import embed as embed_archive
from alidade.search.filters import Filter, check_k, parse_bbox, parse_point, parse_time
from alidade.search.picture import draw_result, row_colours
from alidade.search.scan import Hits, Scanner


@dataclass(frozen=True, kw_only=True)
class Query:
    """What the user asks; texts as typed, and checked here: before anything is loaded.

    Raises:
        AlidadeError: none or several of ``like``, ``at`` and ``text``, or an option that cannot be understood.
    """

    like: str | None = None
    at: str | None = None
    text: str | None = None
    bbox: str | None = None
    time: str | None = None
    sensor: str | None = None
    k: int = 10
    declared: Declared = field(default_factory=Declared)

    def __post_init__(self) -> None:
        """Read every text once; see the class for what is refused."""
        asked = {"--text": self.text, "--like": self.like, "--at": self.at}
        given = [option for option, value in asked.items() if value is not None]
        if len(given) != 1:
            raise AlidadeError(
                "query",
                got=" and ".join(given) or "none of --text, --like and --at",
                expected="one of --text WORDS, --like FILE and --at LON,LAT",
                next_step="Say what the tiles should be like.",
            )
        check_k(self.k)
        if self.at is not None:
            parse_point(self.at)
        self.conditions()

    def conditions(self) -> Filter:
        """What narrows the search."""
        return Filter(
            bbox=None if self.bbox is None else parse_bbox(self.bbox),
            time=None if self.time is None else parse_time(self.time),
            sensor=self.sensor,
        )


def run_embed(
    paths: list[str],
    archive: Path,
    *,
    model: str | None,
    weights: str | None,
    tile: int | None,
    batch: int,
    declared: Declared,
    as_json: bool,
) -> None:
    """Embed and report. Exit code 2 when any source failed, after the others are done; 130 after Ctrl-C.

    Raises:
        AlidadeError: nothing could be embedded at all (see ``search.embed.embed``).
    """
    try:
        loaded = load(model or DEFAULT, weights=weights)
        show_model(loaded)
        with Bar() as bar:
            summary = embed_archive(paths, archive, loaded, declared=declared, tile=tile, batch=batch, progress=bar)
    except KeyboardInterrupt:
        err.print(f"stopped by Ctrl-C; the same command goes on from what {archive} holds")
        raise typer.Exit(130) from None
    report(summary, as_json=as_json)
    if summary.failures:
        raise typer.Exit(2)


def report(summary: EmbedSummary, *, as_json: bool) -> None:
    """The run in one line, repairs before it and failures after it; or everything as JSON."""
    if as_json:
        show_json(asdict(summary) | {"tiles_per_second": summary.tiles_per_second})
        return
    for repair in summary.repairs:
        err.print(f"repaired: {repair}")
    out.print(summary.sentence())
    for failure in summary.failures:
        err.print(f"failed: {failure.message}")


def run_search(
    archive: Path,
    query: Query,
    *,
    form: str,
    out: Path | None,
    picture: Path | None,
    model: str | None,
    weights: str | None,
) -> None:
    """Search, show or write the answer, then draw it. A default picture that cannot be written is no failure.

    Raises:
        AlidadeError: a format or file name that does not fit, an archive that cannot be read, or results or an
            asked-for picture that cannot be written.
    """
    check_output(form, out, picture)
    scanner = Scanner(Archive.open(archive))
    hits, colours = ask(scanner, query, model=model, weights=weights)
    show(hits, form, out)
    drawn = picture or (out.with_name(f"{out.name}.png") if out else archive / "last-search.png")
    try:
        draw_result(hits, scanner, drawn, query=colours, declared=query.declared)
    except ArchiveError as error:
        if picture is not None:
            raise
        err.print(f"no picture: {error}")
        return
    err.print(f"picture: {drawn}")


def check_output(form: str, out: Path | None, picture: Path | None) -> None:
    """See that the answer can go where it shall go, as far as names tell.

    Raises:
        AlidadeError: an unknown format, a file name that does not fit it, Parquet on a terminal, or the picture in
            place of the results.
    """
    if form not in ("table", *export.FORMATS):
        raise AlidadeError(
            "--format",
            got=repr(form),
            expected=f"table, {', '.join(export.FORMATS)}",
            next_step="Choose one of these.",
        )
    if out is not None:
        export.kind_of(out, None if form == "table" else form)
    elif form == "parquet" and sys.stdout.isatty():
        # Parquet is bytes: a pipe can take them, a terminal cannot
        raise AlidadeError(
            "--format parquet", got="a terminal", expected="a file or a pipe", next_step="Add --out FILE."
        )
    if picture is not None and out is not None and os.path.realpath(picture) == os.path.realpath(out):
        raise AlidadeError(
            "--picture", got=str(picture), expected="another file than --out", next_step="Give it its own name."
        )


def ask(
    scanner: Scanner,
    query: Query,
    *,
    model: str | None = None,
    weights: str | None = None,
    loaded: Model | None = None,
) -> tuple[Hits, Colours | None]:
    """The answer, and the query's own picture where there is one.

    Args:
        scanner: over the archive.
        query: by image or by place, not both.
        model: name or directory for queries by image; the archive's own by default.
        weights: for the CROMA names.
        loaded: a model that is there already.
    """
    declared = query.declared
    colours: Colours | None = None
    if query.at is not None:
        place = scanner.at(*parse_point(query.at))
        vector, name = place.embedding, f"the tile at {query.at}"
        try:
            colours = row_colours(scanner, place.row, declared)
        except AlidadeError as error:
            err.print(f"no picture of the query: {error}")
        identity = scanner.archive.header.model
    else:
        known = loaded or load(model or DEFAULT, weights=weights)
        identity = known.identity
        if query.text is not None:
            vector, name = known.embed_text([query.text])[0], f'"{query.text}"'
        else:
            assert query.like is not None
            raster = read_query(query.like, declared, scanner.archive.header.tile)
            vector, colours, name = known.embed(raster)[0], of_raster(raster), Path(query.like).name
            if not known.aligned and query.sensor is None and scanner.sensors - {raster.sensor.id}:
                err.print(
                    f"note: {identity} has not learned to compare sensors: scores between {raster.sensor.id} and other "
                    f"sensors mean nothing. Add --only-sensor {raster.sensor.id}."
                )
    conditions = query.conditions()
    hits = scanner.search(
        vector,
        query.k,
        bbox=conditions.bbox,
        time=conditions.time,
        sensor=conditions.sensor,
        model=identity,
        describe=name,
    )
    return hits, colours


def read_query(path: str, declared: Declared, tile: int) -> Raster:
    """The query image: the whole file, or its centre where it exceeds a tile."""
    with open_raster(path, declared) as file:
        height, width = min(tile, file.grid.height), min(tile, file.grid.width)
        if (height, width) != (file.grid.height, file.grid.width):
            err.print(f"{path} is larger than a tile: its central {width} x {height} px are the query")
        window = Window(
            row=(file.grid.height - height) // 2,
            col=(file.grid.width - width) // 2,
            height=height,
            width=width,
        )
        return file.read(window)


def show(hits: Hits, form: str, path: Path | None) -> None:
    """The answer on stdout, or in a file."""
    if path is not None:
        export.write(hits, path, None if form == "table" else form)
        err.print(f"{len(hits)} results: {path}")
    elif form == "table":
        show_table(export.TABLE_HEADER, export.table_rows(hits))
        err.print(f"{len(hits)} of {hits.matches:,} matching tiles, exact, {1e3 * hits.seconds:.0f} ms", style="dim")
    elif form == "json":
        show_json(export.to_json(hits))
    elif form == "geojson":
        show_json(export.to_geojson(hits))
    else:
        sys.stdout.buffer.write(export.to_parquet(hits))
