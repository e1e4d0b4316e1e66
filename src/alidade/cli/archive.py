"""``alidade embed`` and ``alidade search``: fill an archive, and ask it."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import typer

from alidade.cli.output import Bar, err, out, show_json, show_model, show_table
from alidade.errors import AlidadeError, ArchiveError
from alidade.imagery.files import Declared, open_raster
from alidade.imagery.polygon import read_geojson
from alidade.imagery.quicklook import Colours, of_raster
from alidade.imagery.raster import Raster
from alidade.imagery.windows import Window
from alidade.models.model import Model
from alidade.models.registry import DEFAULT, load
from alidade.search import export
from alidade.search.archive import Archive
from alidade.search.embed import EmbedSummary
from alidade.search.embed import embed as embed_archive
from alidade.search.engine import Engine
from alidade.search.filters import Filter, parse_bbox, parse_gsd, parse_point, parse_time
from alidade.search.picture import draw_result, row_colours
from alidade.search.plan import Shard
from alidade.search.query import KnownTexts, QueryImage, Question, TextModel, answer, check_space, words_of
from alidade.search.scan import Hits, Scanner
from alidade.search.store import ExactStore
from alidade.search.words import encode_text, found_otherwise


@dataclass(frozen=True, kw_only=True)
class Query:
    """What the user asks; texts as typed, and checked here: before anything is loaded.

    Attributes:
        like, not_like: one image file, or several.
        at: ``"LON,LAT"``.
        text, not_text: words.
        more, less: ids of tiles.
        bbox, time, gsd: see ``search.filters``.
        polygon: a GeoJSON file.
        sensor: a sensor id.
        new_only: whether the tiles of ``more`` and ``less`` are left out of the answer.
        declared: what the user says about the image files.

    Raises:
        AlidadeError: nothing asked, or an option that cannot be understood.
    """

    like: str | tuple[str, ...] | None = None
    not_like: tuple[str, ...] = ()
    at: str | None = None
    text: str | None = None
    not_text: str | None = None
    more: tuple[str, ...] = ()
    less: tuple[str, ...] = ()
    bbox: str | None = None
    polygon: Path | None = None
    time: str | None = None
    sensor: str | None = None
    gsd: str | None = None
    k: int = 10
    new_only: bool = False
    declared: Declared = field(default_factory=Declared)
    question: Question = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Read every text once; see the class for what is refused."""
        liked = (self.like,) if isinstance(self.like, str) else self.like or ()
        try:
            question = self._question(liked)
        except ArchiveError as error:
            if error.what != "query":
                raise
            raise AlidadeError(
                "query",
                got=error.got,
                expected="one or more of --text WORDS, --like FILE, --at LON,LAT and --more ID",
                next_step="Say what the tiles should be like.",
            ) from None
        object.__setattr__(self, "question", question)

    def _question(self, liked: Sequence[str]) -> Question:
        return Question(
            text=self.text,
            negative_text=self.not_text,
            images=_to_embed(liked),
            negative_images=_to_embed(self.not_like),
            place=None if self.at is None else parse_point(self.at),
            positive=self.more,
            negative=self.less,
            conditions=Filter(
                bbox=None if self.bbox is None else parse_bbox(self.bbox),
                time=None if self.time is None else parse_time(self.time),
                sensor=self.sensor,
                polygon=None if self.polygon is None else read_geojson(self.polygon),
                gsd=None if self.gsd is None else parse_gsd(self.gsd),
            ),
            k=self.k,
            keep_labelled=not self.new_only,
        )

    @property
    def needs_model(self) -> bool:
        """Whether words or images are to be embedded."""
        asked = self.question
        return asked.text is not None or asked.negative_text is not None or bool(asked.images + asked.negative_images)


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
    shard: Shard | None = None,
    engine: Engine | None = None,
) -> None:
    """Embed and report. Exit code 2 when any source failed, after the others are done; 130 after Ctrl-C.

    Raises:
        AlidadeError: nothing could be embedded at all (see ``search.embed.embed``).
    """
    try:
        loaded = load(model or DEFAULT, weights=weights)
        show_model(loaded)
        with Bar() as bar:
            summary = embed_archive(
                paths, archive, loaded, declared=declared, tile=tile, batch=batch, progress=bar, shard=shard,
                engine=engine,
            )  # fmt: skip
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
    ids: bool = False,
) -> None:
    """Search, show or write the answer, then draw it. A default picture that cannot be written is no failure.

    Raises:
        AlidadeError: a format or file name that does not fit, an archive that cannot be read, or results or an
            asked-for picture that cannot be written.
    """
    check_output(form, out, picture)
    scanner = Scanner(Archive.open(archive))
    hits, colours = ask(scanner, query, model=model, weights=weights)
    show(hits, form, out, ids=ids or bool(query.more or query.less))
    drawn = picture or (out.with_name(f"{out.name}.png") if out else archive / "last-search.png")
    try:
        draw_result(_for_picture(hits, query), scanner, drawn, query=colours, declared=query.declared)
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
    """The answer, and a picture of what it shall be like: the first image, the tile at the place or the first liked.

    Args:
        scanner: over the archive.
        query: what is asked.
        model: name or directory, for words and images; the shipped one by default.
        weights: for the CROMA names.
        loaded: a model that is there already.
    """
    store, question = ExactStore(scanner), query.question
    known: Model | None = None
    words: str | None = None
    pictures: list[Colours] = []
    if query.needs_model:
        known = loaded or load(model or DEFAULT, weights=weights)
        check_space(store, known.identity)
        question = _embedded(scanner, query, known, pictures)
        if known.words is not None:
            words = words_of(model or known.network.config.name, known.words.config.text_identity)
    shown = None
    if query.at is not None:
        shown = scanner.at(*parse_point(query.at)).row
    elif query.more:
        shown = store.rows(query.more[:1]).drop_columns(["embedding"]).to_pylist()[0]
    if shown is not None and not pictures:
        try:
            pictures.append(row_colours(scanner, shown, query.declared))
        except AlidadeError as error:
            err.print(f"no picture of the query: {error}")
    asked = [text for text in (question.text, question.negative_text) if text is not None]
    texts: TextModel | None = known
    if asked and known is not None:
        read = encode_text(known, asked)
        texts = KnownTexts(known.identity, dict(zip(asked, read.vectors, strict=True)))
        if read.note:
            err.print(read.note)
    hits = answer(question, store, texts, words=words)
    if asked and known is not None:
        rows = hits.table.select(["source", "source_id"]).to_pylist()
        files = [scanner.archive.locate(row["source"], row["source_id"]) for row in rows]
        if note := found_otherwise(known, files, query.declared):
            err.print(note)
    return hits, pictures[0] if pictures else None


def _to_embed(files: Sequence[str]) -> tuple[QueryImage, ...]:
    """Images that have a name and no vector yet."""
    return tuple(QueryImage(name=file, vector=np.empty(0, np.float32)) for file in files)


def _embedded(scanner: Scanner, query: Query, model: Model, pictures: list[Colours]) -> Question:
    """The question with its images embedded; the pictures of those that the answer shall be like are added."""
    asked, foreign = query.question, set()
    sides: list[tuple[QueryImage, ...]] = []
    for images in (asked.images, asked.negative_images):
        rasters = [read_query(image.name, query.declared, scanner.archive.header.tile) for image in images]
        foreign |= {raster.sensor.id for raster in rasters if scanner.sensors - {raster.sensor.id}}
        vectors = model.embed(rasters) if rasters else ()
        sides.append(tuple(QueryImage(name=Path(i.name).name, vector=v) for i, v in zip(images, vectors, strict=True)))
        if images is asked.images:
            pictures.extend(of_raster(raster) for raster in rasters[:1])
    if foreign and not model.aligned and query.sensor is None:
        name = sorted(foreign)[0]
        err.print(
            f"note: {model.identity} has not learned to compare sensors: scores between {name} and other "
            f"sensors mean nothing. Add --only-sensor {name}."
        )
    return replace(asked, images=sides[0], negative_images=sides[1])


def _for_picture(hits: Hits, query: Query) -> Hits:
    """The answer with what was asked in the few words that a picture has room for."""
    shown = {"like": hits.query["like"], "k": hits.query["k"], **query.question.conditions.describe()}
    if query.question.conditions.polygon is not None:
        shown["polygon"] = f"of {query.question.conditions.polygon.corners:,} corners"
    return replace(hits, query=shown)


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


def show(hits: Hits, form: str, path: Path | None, *, ids: bool = False) -> None:
    """The answer on stdout, or in a file; a table with the tiles' ids where they are asked for."""
    if path is not None:
        export.write(hits, path, None if form == "table" else form)
        err.print(f"{len(hits)} results: {path}")
    elif form == "table":
        header = (*export.TABLE_HEADER, *(["id"] if ids else []))
        show_table(header, export.table_rows(hits, ids=ids))
        err.print(footer(hits), style="dim")
    elif form == "json":
        show_json(export.to_json(hits))
    elif form == "geojson":
        show_json(export.to_geojson(hits))
    elif form == "csv":
        typer.echo(export.to_csv(hits), nl=False)
    else:
        sys.stdout.buffer.write(export.to_parquet(hits))


def footer(hits: Hits) -> str:
    """One line under a table: how many of how many, exact or not, how long it took, and whose words were used."""
    how = "exact" if hits.exact else f"approximate, {hits.scanned:,} compared"
    line = f"{len(hits):,} of {hits.matches:,} matching tiles, {how}, {1e3 * hits.seconds:.0f} ms"
    return line + (f"; words of {hits.query['words']}" if "words" in hits.query else "")
