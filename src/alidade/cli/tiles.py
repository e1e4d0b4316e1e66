"""``alidade tiles``: make, look at and describe stores of aligned training tiles."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from alidade.cli import options as opt
from alidade.errors import AlidadeError

if TYPE_CHECKING:
    from alidade.imagery.files import Declared
    from alidade.training.tiles.build import BuildSummary, Listing
    from alidade.training.tiles.plan import Split
    from alidade.training.tiles.scenes import View
    from alidade.training.tiles.store import TileStore

_VIEW = re.compile(r"(?P<name>[^=:@]+)=(?P<sensor>[^=:@]+)(:(?P<bands>[^=:@]+))?(@(?P<gsd>[^=:@]+))?")

SplitName = Annotated[str | None, typer.Option("--split", help="Only samples of this split.")]
MaxDateGap = Annotated[
    float | None, typer.Option("--max-date-gap", min=0.0, help="The most days between any two views of a sample.")
]
MaxCloud = Annotated[
    float | None, typer.Option("--max-cloud", min=0.0, max=1.0, help="The most cloud in any view, as a share.")
]


def register(app: typer.Typer) -> typer.Typer:
    """Add ``tiles`` with its commands to the application; returns it, so that others can add theirs."""
    tiles = typer.Typer(help="Aligned training tiles: every sensor over one ground square.", no_args_is_help=True)
    for command in (build, show, info):
        tiles.command()(command)
    app.add_typer(tiles, name="tiles")
    return tiles


def build(
    out: Annotated[Path, typer.Option("--out", help="Directory of the store; made or added to.")],
    paths: Annotated[list[str] | None, typer.Argument(help="GeoTIFFs of any sensors, or folders of them.")] = None,
    stac: Annotated[
        str | None, typer.Option(help="STAC API, catalogue, collection or item (address or path) instead of files.")
    ] = None,
    collection: Annotated[list[str] | None, typer.Option(help="With --stac: a collection's id; repeat.")] = None,
    bbox: Annotated[
        str | None, typer.Option(metavar="W,S,E,N", help="With --stac: only items in this box, degrees.")
    ] = None,
    period: Annotated[
        str | None, typer.Option("--datetime", metavar="A/B", help="With --stac: only items of this period.")
    ] = None,
    max_items: Annotated[int, typer.Option(min=1, help="With --stac: take no more items than these.")] = 1000,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(help="With --stac: ask no hosts but these and the catalogue's; repeat. [default: public ones]"),
    ] = None,
    view: Annotated[
        list[str] | None,
        typer.Option(
            "--view",
            metavar="NAME=SENSOR[:BANDS][@METRES]",
            help="A view, such as s2=sentinel-2-l2a:B02,B03,B04@10; repeat. [default: the store's, else every sensor]",
        ),
    ] = None,
    square: Annotated[float, typer.Option(help="Side of a square in metres: 0.625 times a power of two.")] = 1280.0,
    split: Annotated[str, typer.Option(help="A split's name, or shares: train=0.8,val=0.1,test=0.1.")] = "train",
    min_views: Annotated[
        int | None, typer.Option(min=1, help="Views a sample needs. [default: 2, or 1 if there is one view]")
    ] = None,
    max_date_gap: MaxDateGap = None,
    max_cloud: MaxCloud = None,
    min_valid: Annotated[float, typer.Option(min=0.0, max=1.0, help="The least share of valid pixels a view.")] = 0.9,
    sensor: opt.SensorName = None,
    bands: opt.Bands = None,
    unit: opt.UnitName = None,
    scale: opt.Scale = None,
    offset: opt.Offset = None,
    nodata: opt.Nodata = None,
    taken: opt.Taken = None,
    as_json: opt.Json = False,
) -> None:
    """Make samples of every ground square that enough sensors cover; a second run makes what is missing."""
    from alidade.cli.output import TilesBar
    from alidade.training.tiles.build import build_tiles

    declared = opt.declared_from(sensor, bands, unit, scale, offset, nodata, taken, None)
    views = [parse_view(text) for text in view] if view else None
    search = Search(stac, collection or [], bbox, period, max_items, allow_host or [])
    with TilesBar() as bar:
        summary = build_tiles(
            search.sources(paths or [], max_cloud, declared, views), out, views,
            square_m=square, split=parse_split(split), min_views=min_views, max_date_gap_days=max_date_gap,
            max_cloud=max_cloud, min_valid=min_valid, declared=declared, progress=bar,
        )  # fmt: skip
    _report(summary, as_json=as_json)
    if summary.failures:
        raise typer.Exit(2)


def show(
    store: Annotated[Path, typer.Argument(help="Directory of the store.")],
    out: Annotated[Path, typer.Option("--out", help="Picture to write.")] = Path("tiles.png"),
    count: Annotated[int, typer.Option("-n", min=1, max=64, help="How many samples.")] = 8,
    seed: Annotated[int, typer.Option(help="Draws other samples.")] = 0,
    split: SplitName = None,
    require: Annotated[list[str] | None, typer.Option(help="Only samples that have this view; repeat.")] = None,
    max_date_gap: MaxDateGap = None,
    max_cloud: MaxCloud = None,
    as_json: opt.Json = False,
) -> None:
    """Draw samples side by side, every view over the same ground."""
    from alidade.cli.output import err, show_json
    from alidade.training.tiles.show import draw_samples, pick
    from alidade.training.tiles.store import TileStore

    opened = TileStore.open(store)
    passing = opened.select(
        split=split, max_date_gap_days=max_date_gap, max_cloud=max_cloud, require=tuple(require or ())
    )
    ids = pick(passing, count, seed)
    draw_samples(opened, ids, out)
    if as_json:
        names = opened.index["sample_id"].take(ids).to_pylist()
        show_json({"picture": str(out), "ids": ids.tolist(), "samples": names, "matching": len(passing)})
    else:
        err.print(f"{len(ids)} of {len(passing):,} matching samples: {out}")


def info(
    store: Annotated[Path, typer.Argument(help="Directory of the store.")],
    verify: Annotated[bool, typer.Option("--verify", help="Read every byte and compare it with its digest.")] = False,
    as_json: opt.Json = False,
) -> None:
    """Say what a store holds: views, splits, date gaps, clouds."""
    from alidade.cli.output import out, show_json, show_table
    from alidade.training.tiles.store import TileStore

    opened = TileStore.open(store)
    if verify:
        opened.verify()
    found = facts(opened)
    if as_json:
        show_json(found | {"verified": verify})
        return
    ground = "" if opened.ground_m is None else f" of {opened.ground_m:g} m"
    shards = "1 shard" if len(opened.shards) == 1 else f"{len(opened.shards):,} shards"
    splits = ", ".join(f"{name} {count:,}" for name, count in found["splits"].items()) or "none"
    out.print(f"{len(opened):,} samples{ground} in {shards}, {found['bytes'] / 1e6:,.1f} MB")
    out.print(f"splits: {splits}")
    if found["synthetic"]:
        out.print("synthetic: made up by code, for tests and first runs; not for results")
    gaps = found["date_gap_days"]
    if gaps:
        out.print(f"days between views: median {gaps['median']:.2f}, at most {gaps['max']:.2f}")
    show_table(
        ("view", "sensor", "bands", "px", "metres", "type", "samples", "valid", "cloud"),
        [
            (
                name, v["sensor"], ",".join(v["bands"]), v["side"],
                "" if v["gsd_m"] is None else f"{v['gsd_m']:.3f}", v["dtype"], v["samples"],
                "" if v["valid_share"] is None else f"{v['valid_share']:.1%}",
                "" if v["cloud_share"] is None else f"{v['cloud_share']:.1%}",
            )
            for name, v in found["views"].items()
        ],
    )  # fmt: skip
    if verify:
        out.print("every file is as it was acknowledged")


def facts(store: TileStore) -> dict[str, Any]:
    """What ``info`` tells, as plain values; means over the samples that have them."""
    import pyarrow.compute as pc

    index = store.index
    views = {}
    for name, spec in store.views.items():
        mean = {c: pc.mean(index[f"{name}.{c}"]).as_py() for c in ("gsd_x", "gsd_y", "valid_share", "cloud_share")}
        x, y = mean["gsd_x"], mean["gsd_y"]
        views[name] = {
            "sensor": spec.sensor, "bands": list(spec.bands), "side": spec.side, "dtype": spec.dtype,
            "gsd_m": None if x is None or y is None else (x * y) ** 0.5,
            "samples": pc.sum(index[f"{name}.present"]).as_py() or 0,
            "valid_share": mean["valid_share"], "cloud_share": mean["cloud_share"],
        }  # fmt: skip
    gaps = index["date_gap_days"].drop_null().to_pylist()
    return {
        "path": str(store.path),
        "samples": len(store),
        "shards": len(store.shards),
        "bytes": sum(size for shard in store.shards for size, _ in shard.files.values()),
        "ground_m": store.ground_m,
        "synthetic": store.synthetic,
        "splits": dict(sorted(Counter(index["split"].to_pylist()).items())),
        "date_gap_days": {"median": sorted(gaps)[len(gaps) // 2], "max": max(gaps)} if gaps else None,
        "views": views,
    }


class Search(NamedTuple):
    """The options of ``build`` that ask a catalogue."""

    stac: str | None
    collections: list[str]
    bbox: str | None
    period: str | None
    max_items: int
    hosts: list[str]

    def sources(
        self, paths: list[str], max_cloud: float | None, declared: Declared, views: list[View] | None
    ) -> list[str] | Listing:
        """The files as they are, or the scenes that the catalogue lists.

        Raises:
            AlidadeError: files and a catalogue, options that ask a catalogue without one, or a box that is none.
        """
        searched = bool(self.collections or self.bbox or self.period or self.hosts)
        if (self.stac is not None and paths) or (self.stac is None and searched):
            raise AlidadeError(
                "tiles build", got="a search without --stac" if self.stac is None else "files and --stac",
                expected="files, or a catalogue with --stac", next_step="Pass one of them.",
            )  # fmt: skip
        if self.stac is None:
            return paths
        from alidade.training.tiles.stac import StacQuery, stac_listing

        query = StacQuery(
            place=self.stac, collections=tuple(self.collections), bbox=parse_box(self.bbox) if self.bbox else None,
            period=self.period, max_items=self.max_items, max_cloud=max_cloud, hosts=frozenset(self.hosts),
        )  # fmt: skip
        return stac_listing(query, declared, views)


def parse_box(text: str) -> tuple[float, float, float, float]:
    """``W,S,E,N`` in degrees.

    Raises:
        AlidadeError: not four numbers.
    """
    try:
        west, south, east, north = map(float, text.split(","))
    except ValueError:
        raise AlidadeError(
            "--bbox", got=repr(text), expected="four numbers: west,south,east,north",
            next_step="Write it like 12.0,47.5,12.5,48.0 (and --bbox=-122,... where it begins with a minus).",
        ) from None  # fmt: skip
    return west, south, east, north


def parse_view(text: str) -> View:
    """``NAME=SENSOR[:BANDS][@METRES]`` as a view.

    Raises:
        AlidadeError: it is not written so.
    """
    from alidade.training.tiles.scenes import View

    found = _VIEW.fullmatch(text)
    try:
        if found is None:
            raise ValueError
        gsd = None if found["gsd"] is None else float(found["gsd"])
        if gsd is not None and not 0.0 < gsd < float("inf"):
            raise ValueError
    except ValueError:
        raise AlidadeError(
            "--view", got=repr(text), expected="NAME=SENSOR[:BANDS][@METRES]",
            next_step="Write it like s2=sentinel-2-l2a:B02,B03,B04@10.",
        ) from None  # fmt: skip
    bands = None if found["bands"] is None else tuple(name.strip() for name in found["bands"].split(","))
    return View(name=found["name"], sensor=found["sensor"], bands=bands, gsd_m=gsd)


def parse_split(text: str) -> Split:
    """A name, or ``NAME=SHARE,NAME=SHARE``.

    Raises:
        AlidadeError: a share that is no number, or a name twice.
    """
    if "=" not in text:
        return text
    pairs = [part.partition("=") for part in text.split(",")]
    try:
        shares = {name.strip(): float(share) for name, _, share in pairs}
        if len(shares) != len(pairs):
            raise ValueError
    except ValueError:
        raise AlidadeError(
            "--split", got=repr(text), expected="a name, or names with shares",
            next_step="Write it like train=0.8,val=0.1,test=0.1.",
        ) from None  # fmt: skip
    return shares


def _report(summary: BuildSummary, *, as_json: bool) -> None:
    from alidade.cli.output import err, out, show_json

    if as_json:
        show_json(asdict(summary))
        return
    for repair in summary.repairs:
        err.print(f"repaired: {repair}")
    out.print(summary.sentence())
    for failure in summary.failures:
        err.print(f"failed: {failure.message}")
