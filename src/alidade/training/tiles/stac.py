"""Scenes from a STAC API or a static catalogue: items chosen, understood and listed; pixels are fetched later."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np

from alidade.errors import AlidadeError, RasterError
from alidade.imagery.bands import Encoding, Sensor
from alidade.imagery.clouds import SCL_BAND
from alidade.imagery.files import Declared, RasterFile, open_raster
from alidade.imagery.grid import Grid
from alidade.imagery.header import Header
from alidade.imagery.identify import identify
from alidade.imagery.offset import told_offset
from alidade.imagery.remote import Door, bare, is_address, refused
from alidade.imagery.sensors import sensor as sensor_of
from alidade.training.tiles.build import Listing
from alidade.training.tiles.scenes import Failure, Part, Scene, View
from alidade.training.tiles.stac_items import (
    AssetFacts,
    bands_of_asset,
    choose_assets,
    facts_of,
    raster_assets,
    sensor_of_item,
    time_of,
)

if TYPE_CHECKING:
    from pystac import Item

    from alidade.training.tiles.stac_walk import Search

MAX_SCANNED = 100_000
"""So many items are looked at, whether they pass the filters or not."""

Box = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True)
class StacQuery:
    """What is asked of a catalogue.

    Attributes:
        place: address or path of a STAC API, catalogue, collection, item, or collection of items.
        collections: ids; none for all.
        bbox: (west, south, east, north) in degrees, west > east across the antimeridian.
        period: ISO 8601 ``"A/B"``, ``"../B"``, ``"A/.."`` or one moment or day.
        max_items: no more scenes than these.
        max_cloud: items with a larger ``eo:cloud_cover``, as a share, are left out; those without one are not.
        hosts: see ``Door``.
    """

    place: str
    collections: tuple[str, ...] = ()
    bbox: Box | None = None
    period: str | None = None
    max_items: int = 1000
    max_cloud: float | None = None
    hosts: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        """Refuse a box or a number of items that means nothing."""
        if self.bbox is not None:
            west, south, east, north = self.bbox
            if not (abs(west) <= 180.0 and abs(east) <= 180.0 and -90.0 <= south < north <= 90.0 and west != east):
                raise RasterError(
                    "bbox", got=",".join(f"{v:g}" for v in self.bbox),
                    expected="west,south,east,north in degrees, south below north", next_step="Pass --bbox so.",
                )  # fmt: skip
        if self.max_items < 1:
            raise RasterError("items", got=str(self.max_items), expected="at least 1", next_step="Pass --max-items so.")
        parse_period(self.period)


def stac_listing(query: StacQuery, declared: Declared | None = None, views: Sequence[View] | None = None) -> Listing:
    """The scenes of a catalogue, for ``build_tiles``; only metadata are fetched, and file headers where needed.

    Args:
        query: which items.
        declared: what the items do not say themselves, the same for all of them.
        views: what the samples shall hold; files without a band of theirs are not asked for.

    Raises:
        AlidadeError: ``pystac-client`` is not installed.
        RasterError: the catalogue's first page cannot be read, or ``declared`` names bands.
    """
    if missing := [name for name in ("pystac", "pystac_client") if find_spec(name) is None]:
        raise AlidadeError(
            "--stac", got=f"an installation without {' and '.join(missing)}", expected="the extra `stac`",
            next_step="Install it: pip install 'alidade[stac]' (in a clone: pip install -e '.[stac]').",
        )  # fmt: skip
    told = declared or Declared()
    if told.bands is not None:
        raise RasterError(
            "--bands", got="band names for all items", expected="the items' own", next_step="Leave --bands out."
        )
    reader = _Reader(query=query, declared=told, views=views, door=Door.to(query.place, query.hosts))
    return reader.listing()


@dataclass(kw_only=True)
class _Reader:
    query: StacQuery
    declared: Declared
    views: Sequence[View] | None
    door: Door
    scenes: list[Scene] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)

    def listing(self) -> Listing:
        for item, told in self._items():
            try:
                scene = self._scene(item, told)
            except AlidadeError as error:
                self._failed(told, error)
                continue
            if scene is not None:
                self.scenes.append(scene)
        return Listing(scenes=tuple(self.scenes), failures=tuple(self.failures), door=self.door)

    def _failed(self, told: str, error: AlidadeError) -> None:
        self.failures.append(Failure(source=told, message=str(error)))

    def _items(self) -> Iterator[tuple[Item, str]]:
        """The items that pass the filters, each once, with the name that messages and tables give it."""
        from pystac import Item, STACError, STACTypeError

        from alidade.training.tiles.stac_walk import items

        seen: set[str] = set()
        passed = 0
        for number, found in enumerate(items(self.query.place, self._search(), self.door, self._failed)):
            told = found.told
            if number >= MAX_SCANNED:
                self._failed(bare(self.query.place), _bounded(f"more than {MAX_SCANNED:,} items"))
                return
            try:
                item = Item.from_dict(found.item, href=found.base, preserve_dict=False)
                wanted = told not in seen and self._wanted(item)
            except (STACError, STACTypeError, ValueError, KeyError, TypeError, AttributeError) as error:
                reason = error if isinstance(error, AlidadeError) else _no_item(told, error)
                self._failed(told, reason)
                continue
            seen.add(told)
            if wanted:
                yield item, told
                passed += 1
                if passed >= self.query.max_items:
                    return

    def _search(self) -> Search:
        from alidade.training.tiles.stac_walk import Search

        begin, end = parse_period(self.query.period)
        return Search(collections=self.query.collections, bbox=self.query.bbox, begin=begin, end=end)

    def _wanted(self, item: Item) -> bool:
        query, properties = self.query, item.properties
        if query.collections and item.collection_id not in query.collections:
            return False
        if query.bbox is not None and (item.bbox is None or not _touch(query.bbox, item.bbox)):
            return False
        cloud = properties.get("eo:cloud_cover")
        if query.max_cloud is not None and isinstance(cloud, int | float) and cloud > 100.0 * query.max_cloud:
            return False
        begin, end = parse_period(query.period)
        first = item.datetime or item.common_metadata.start_datetime
        last = item.datetime or item.common_metadata.end_datetime
        return not ((begin and last and _utc(last) < begin) or (end and first and _utc(first) > end))

    def _scene(self, item: Item, told: str) -> Scene | None:
        document = {"properties": item.properties}
        time = self.declared.time or time_of(item.properties, told)
        assets = dict(raster_assets({key: asset.to_dict() for key, asset in item.assets.items()}))
        most = max((len(bands_of_asset(a)) for a in assets.values()), default=0)
        given = self.declared.sensor
        found = sensor_of(given) if given else sensor_of_item(item.properties, item.collection_id or "", most, told)
        if self.views is not None and found.id not in {sensor_of(v.sensor).id for v in self.views}:
            return None
        facts = [f for k, a in assets.items() if (f := facts_of(k, a, found, document, time, told)) is not None]
        chosen = choose_assets(facts, _wanted_bands(found, self.views))
        if not chosen:
            raise RasterError(
                f"{told}: assets", got=", ".join(item.assets) or "none",
                expected=f"GeoTIFFs of the bands of {found.id}",
                next_step="Name other bands with --view, or leave the item out.",
            )  # fmt: skip
        looked = [(self._look(one, item.get_self_href() or "", found), mine) for one, mine in chosen]
        finest = min((one.grid for one, _ in looked), key=lambda g: g.mean_gsd_m())
        state = [item.id, str(item.properties.get("updated")), *(f"{bare(o.path)} {o.encodings}" for o, _ in looked)]
        return Scene(
            source=told, state=json.dumps(state), sensor=found.id,
            bands={name: one.encodings[name] for one, mine in looked for name in mine},
            dtype=str(np.result_type(*(np.dtype(one.dtype) for one, _ in looked))),
            grid=finest, gsd_m=finest.mean_gsd_m(), time=time,
            parts=tuple(Part(path=one.path, bands=mine, said=one.facts.said) for one, mine in looked),
        )  # fmt: skip

    def _look(self, facts: AssetFacts, item_href: str, found: Sensor) -> _Looked:
        """What must be known before a square is chosen: from the item if it says all of it, else from the file."""
        path = _resolved(facts.href, item_href or self.query.place)
        if facts.dtype is not None and facts.grid is not None:
            count = len(facts.bands)
            plain = Header(
                path=bare(path), dtype=facts.dtype, descriptions=facts.bands, colours=("gray",) * count,
                units=(None,) * count, scales=(1.0,) * count, offsets=(0.0,) * count, nodata=None, tags={},
            )  # fmt: skip
            header = facts.said.over(plain)
            identity = identify(header, self.declared, lambda index: False)
            offset = told_offset(header) if found.id.startswith("sentinel-2-") else None
            encodings = {
                b.name: replace(e, offset=offset[0]) if e.offset is None and offset is not None else e
                for b, e in zip(identity.bands, identity.encodings, strict=True)
            }
            if all(e.offset is not None for e in encodings.values()):
                return _Looked(path=path, facts=facts, encodings=encodings, dtype=facts.dtype, grid=facts.grid)
        with closing(open_raster(path, self.declared, door=self.door, said=facts.said)) as file:
            _check_placed(file, path)
            known = dict(zip((b.name for b in file.bands), file.encodings, strict=True))
            return _Looked(path=path, facts=facts, encodings=known, dtype=str(file.dtype), grid=file.grid)


@dataclass(frozen=True, kw_only=True)
class _Looked:
    path: str
    facts: AssetFacts
    encodings: dict[str, Encoding]
    dtype: str
    grid: Grid


def parse_period(text: str | None) -> tuple[datetime | None, datetime | None]:
    """Begin and end of a period, both included; a day alone means all of it.

    Raises:
        RasterError: it cannot be read, or ends before it begins.
    """
    if text is None:
        return None, None
    parts = text.split("/")
    try:
        if not 1 <= len(parts) <= 2:
            raise ValueError
        begin, end = (_moment(part, last=last) for part, last in ((parts[0], False), (parts[-1], True)))
        if begin is not None and end is not None and begin > end:
            raise ValueError
    except (ValueError, OverflowError):
        raise RasterError(
            "--datetime", got=repr(text), expected="A/B, A/.., ../B or one day, as ISO 8601 writes them",
            next_step="Write it like 2024-05-01/2024-08-31.",
        ) from None  # fmt: skip
    return begin, end


def _moment(text: str, *, last: bool) -> datetime | None:
    if text in ("", ".."):
        return None
    moment = _utc(datetime.fromisoformat(text))
    whole_day = last and len(text) <= len("2024-05-01")
    return moment + timedelta(days=1, microseconds=-1) if whole_day else moment


def _utc(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def _touch(a: Box, found: Sequence[float]) -> bool:
    """Whether two boxes in degrees share a place; the second one may have heights."""
    half = len(found) // 2
    bw, bs, be, bn = found[0], found[1], found[half], found[half + 1]
    aw, as_, ae, an = a
    ae, be = ae + 360.0 * (ae < aw), be + 360.0 * (be < bw)
    return an >= bs and bn >= as_ and any(aw <= be + t and bw + t <= ae for t in (-360.0, 0.0, 360.0))


def _wanted_bands(found: Sensor, views: Sequence[View] | None) -> frozenset[str] | None:
    """The bands that views of the sensor name, and those that tell clouds; ``None`` for all."""
    mine = [v for v in views or () if sensor_of(v.sensor).id == found.id]
    if not mine or any(v.bands is None for v in mine):
        return None
    named = {name if name == SCL_BAND else found.band(name).name for v in mine for name in v.bands or ()}
    clouds = {b.name for b in found.bands if b.common_name in ("green", "red")} if found.kind == "optical" else set()
    return frozenset(named | clouds | ({SCL_BAND} if found.id == "sentinel-2-l2a" else set()))


def _resolved(href: str, item: str) -> str:
    from pystac.utils import make_absolute_href

    path = make_absolute_href(href, item, start_is_dir=False)
    if is_address(path):
        return path
    if is_address(item) or "://" in path:
        raise refused(path, "neither a file beside the catalogue nor an http address", "an http address")
    return os.path.abspath(path)


def _check_placed(file: RasterFile, path: str) -> None:
    if file.grid.crs is None:
        raise RasterError(
            f"{bare(path)}: CRS", got="none", expected="a place on the ground",
            next_step="Leave the item out: it cannot be aligned.",
        )  # fmt: skip


def _no_item(told: str, error: Exception) -> RasterError:
    return RasterError(
        told, got=f"{type(error).__name__}: {error}".rstrip("."), expected="a STAC item",
        next_step="Tell the catalogue's owner; the other items go on.",
    )  # fmt: skip


def _bounded(got: str) -> RasterError:
    return RasterError(
        "items", got=got, expected="a search that finds fewer", next_step="Narrow it: --collection, --bbox, --datetime."
    )
