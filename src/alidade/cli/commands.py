"""The verbs: inspect, embed, search, models, bench, demo."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from alidade.cli import ablate, classify, evaluate, export, index, serve, tiles, tiles_import, tiles_synthetic, train
from alidade.cli import embed_options as work
from alidade.cli import options as opt
from alidade.errors import AlidadeError


def register(app: typer.Typer) -> None:
    """Add all commands to the application."""
    for command in (inspect, embed, search, models, bench, demo):
        app.command()(command)
    classify.register(app)
    for module in (index, serve, export):
        module.register(app)
    group = tiles.register(app)
    tiles_import.register_import(group)
    tiles_synthetic.register_synthetic(group)
    train.register(app)
    evaluate.register(app)
    ablate.register(app)


def inspect(
    file: Annotated[str, typer.Argument(help="A GeoTIFF.")],
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
    """Say what a file is: sensor, bands, units, ground resolution, and how each was found out."""
    from alidade.cli.inspect import facts, show

    found = facts(file, opt.declared_from(sensor, bands, unit, scale, offset, nodata, taken, gsd))
    show(found, as_json=as_json)


def embed(
    paths: Annotated[list[str], typer.Argument(help="GeoTIFFs, or folders of them.")],
    out: Annotated[Path, typer.Option("--out", help="Directory of the archive; made or added to.")],
    model: opt.ModelName = None,
    weights: opt.Weights = None,
    tile: Annotated[int | None, typer.Option(help="Tile side in pixels. [default: the model's]")] = None,
    batch: Annotated[int, typer.Option(min=1, max=256, help="Tiles given to the model at once.")] = 16,
    shard: work.ShardText = None,
    workers: work.Workers = None,
    threads: work.Threads = None,
    engine: work.EngineName = "local",
    ray_address: work.RayAddress = None,
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
    """Embed every tile of the files into an archive; a second run embeds only what is missing."""
    from alidade.cli.archive import run_embed

    declared = opt.declared_from(sensor, bands, unit, scale, offset, nodata, taken, gsd)
    doer = work.engine_from(engine, workers=workers, threads=threads, address=ray_address, model=model, weights=weights)
    run_embed(
        paths, out, model=model, weights=weights, tile=tile, batch=batch, declared=declared, as_json=as_json,
        shard=work.parse_shard(shard), engine=doer,
    )  # fmt: skip


def search(
    archive: Annotated[Path, typer.Argument(help="Directory of the archive.")],
    text: Annotated[str | None, typer.Option(metavar="WORDS", help="Find tiles that show this.")] = None,
    not_text: Annotated[str | None, typer.Option(metavar="WORDS", help="What they do not show.")] = None,
    like: Annotated[
        list[str] | None, typer.Option(metavar="FILE", help="Find tiles like this GeoTIFF; may be repeated.")
    ] = None,
    not_like: Annotated[
        list[str] | None, typer.Option(metavar="FILE", help="And unlike this one; may be repeated.")
    ] = None,
    at: Annotated[str | None, typer.Option(metavar="LON,LAT", help="Find tiles like the one at this place.")] = None,
    more: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="More like this tile; may be repeated. See --ids.")
    ] = None,
    less: Annotated[list[str] | None, typer.Option(metavar="ID", help="Less like this tile; may be repeated.")] = None,
    new_only: Annotated[bool, typer.Option("--new-only", help="Leave the tiles of --more and --less out.")] = False,
    bbox: Annotated[str | None, typer.Option(metavar="W,S,E,N", help="Only tiles that touch this box.")] = None,
    polygon: Annotated[
        Path | None, typer.Option(metavar="FILE.geojson", help="Only tiles that touch this polygon.")
    ] = None,
    time: Annotated[str | None, typer.Option(metavar="START/END", help="Only tiles taken then.")] = None,
    only: Annotated[str | None, typer.Option("--only-sensor", help="Only tiles of this sensor.")] = None,
    only_gsd: Annotated[
        str | None, typer.Option(metavar="MIN,MAX", help="Only tiles of this ground resolution in metres per pixel.")
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="How many results.")] = 10,
    form: Annotated[str, typer.Option("--format", help="table, json, geojson, parquet or csv.")] = "table",
    ids: Annotated[
        bool, typer.Option("--ids", help="Show the tiles' ids in the table, for --more and --less.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Write the results here instead of stdout.")] = None,
    picture: Annotated[
        Path | None, typer.Option(help="Picture file. [default: OUT.png beside --out, or in the archive]")
    ] = None,
    model: opt.ModelName = None,
    weights: opt.Weights = None,
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
    """Find the tiles of an archive that show what words say, or are most like images, a place or other tiles.

    All of these can be combined: each kind weighs the same. What tiles shall not be like is taken off.
    """
    from alidade.cli.archive import Query, run_search

    query = Query(
        like=tuple(like or ()),
        not_like=tuple(not_like or ()),
        at=at,
        text=text,
        not_text=not_text,
        more=tuple(more or ()),
        less=tuple(less or ()),
        new_only=new_only,
        bbox=bbox,
        polygon=polygon,
        time=time,
        sensor=only,
        gsd=only_gsd,
        k=k,
        declared=opt.declared_from(sensor, bands, unit, scale, offset, nodata, taken, gsd),
    )
    form = "json" if as_json else form
    run_search(archive, query, form=form, out=out, picture=picture, model=model, weights=weights, ids=ids)


def models(as_json: opt.Json = False) -> None:
    """List the models that can be loaded by name."""
    from alidade.cli.output import out, show_json
    from alidade.models.registry import DEFAULT
    from alidade.models.registry import models as known

    if as_json:
        show_json({"default": DEFAULT, "models": known()})
        return
    for name in known():
        note = " (default)" if name == DEFAULT else "  (needs --weights PATH)" if name.startswith("croma") else ""
        out.print(name + note)


def bench(
    what: Annotated[str, typer.Argument(help="encoder, attention, train, store or index.")],
    rounds: Annotated[int, typer.Option(min=3, help="Measured rounds.")] = 7,
    size: Annotated[int, typer.Option(min=256, help="store: side of the generated scene in pixels.")] = 10_980,
    directory: Annotated[
        Path | None, typer.Option("--dir", help="store, index: where to generate. [default: temporary]")
    ] = None,
    layers: Annotated[int, typer.Option(min=1, help="train: layers of the optical towers; 12 as released.")] = 2,
    batch: Annotated[int, typer.Option(min=1, help="train: samples of a step; 24 as released.")] = 4,
    made_rows: Annotated[int, typer.Option("--rows", min=1000, help="index: rows of the made archive.")] = 1_000_000,
    as_json: opt.Json = False,
) -> None:
    """Measure speed on this machine: ratios within one run, beside their targets."""
    from alidade.cli.output import show_bench, show_json

    if what == "encoder":
        from alidade.evaluation.bench_encoder import bench_encoder

        rows = bench_encoder(rounds=rounds)
    elif what == "attention":
        from alidade.evaluation.bench_attention import bench_attention

        rows = bench_attention(rounds=rounds)
    elif what == "train":
        train.check_extra("alidade bench train")
        from alidade.cli.bench_train import run_bench_train

        rows = run_bench_train(layers=layers, batch=batch, rounds=rounds)
    elif what == "store":
        from alidade.search.store_bench import bench_store

        rows = bench_store(size=size, directory=directory)
    elif what == "index":
        index.check_extra("lancedb", "search")
        from alidade.search.bench_index import bench_index

        rows = bench_index(rows=made_rows, rounds=rounds, directory=directory)
    else:
        known = "encoder, attention, train, store or index"
        raise AlidadeError("bench", got=repr(what), expected=known, next_step="Name one of these.")
    if as_json:
        show_json([asdict(row) for row in rows])
    else:
        show_bench(rows)


def demo(
    data: Annotated[Path | None, typer.Option(help="Sample scenes. [default: samples/ of this repository]")] = None,
    out: Annotated[Path, typer.Option(help="Where the archive and the pictures go.")] = Path("demo-out"),
    as_json: opt.Json = False,
) -> None:
    """Embed the sample scenes and search them: the main job, in under a minute."""
    from alidade.cli.demo import run_demo

    run_demo(data, out, as_json=as_json)
