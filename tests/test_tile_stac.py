"""Tiles from STAC: items become scenes of several files, faults stay with their item, and no door is open by itself."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import socket
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
import typer
from affine import Affine
from typer.testing import CliRunner

from alidade.cli import tiles as cli
from alidade.errors import AlidadeError, RasterError
from alidade.imagery import remote
from alidade.imagery.files import open_raster, read
from alidade.imagery.relay import open_remote
from alidade.imagery.remote import Caller, Door
from alidade.training.tiles import stac
from alidade.training.tiles.build import BuildSummary, build_tiles
from alidade.training.tiles.scenes import View, expand
from alidade.training.tiles.schema import StoreError
from alidade.training.tiles.stac import StacQuery, parse_period, stac_listing
from alidade.training.tiles.store import TileStore
from make_fixtures import canary, write_tif

SAMPLES = Path(__file__).resolve().parents[1] / "samples"
DAY = datetime(2024, 6, 1, 10, tzinfo=UTC)
WEST, NORTH = 480_000.0, 5_299_200.0
BOX = (14.7, 47.8, 14.8, 47.9)
Json = dict[str, Any]


class Site:
    """A folder served on loopback with ranges, and a STAC API over some items with paging. ``asked`` lists requests."""

    def __init__(self, folder: Path) -> None:
        site = self
        self.folder, self.items, self.page = folder, [], 2
        self.asked: list[str] = []
        self.answers: dict[str, Callable[[BaseHTTPRequestHandler], bool]] = {}
        self.circular = False

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_GET(self) -> None:
                site.asked.append(f"{self.command} {self.path}")
                parts = urlsplit(self.path)
                special = site.answers.get(parts.path)
                if special is not None and special(self):
                    return
                if parts.path == "/api":
                    self.json(site.landing())
                elif parts.path == "/api/search":
                    self.json(site.search({k: v[0] for k, v in parse_qs(parts.query).items()}))
                else:
                    self.file(folder / parts.path.lstrip("/"))

            def do_POST(self) -> None:
                site.asked.append(f"{self.command} {self.path}")
                body = self.rfile.read(int(self.headers["Content-Length"]))
                self.json(site.search(json.loads(body), post=True))

            def json(self, value: object) -> None:
                self.send(200, json.dumps(value).encode(), {"Content-Type": "application/geo+json"})

            def file(self, path: Path) -> None:
                if not path.is_file():
                    self.send(404, b"", {})
                    return
                content = path.read_bytes()
                found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
                if found is None:
                    self.send(200, content, {})
                    return
                first, last = int(found[1]), min(int(found[2]), len(content) - 1)
                told = {"Content-Range": f"bytes {first}-{last}/{len(content)}"}
                self.send(206, content[first : last + 1], told)

            def send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(content))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *args: object) -> None:
                del format, args

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self.server.server_port}"

    def landing(self) -> Json:
        core = "https://api.stacspec.org/v1.0.0/"
        return {
            "type": "Catalog", "id": "site", "stac_version": "1.0.0", "description": "x",
            "conformsTo": [f"{core}core", f"{core}item-search"],
            "links": [
                {"rel": "root", "href": f"{self.address}/api"},
                {"rel": "search", "href": f"{self.address}/api/search", "type": "application/geo+json",
                 "method": self.method},
            ],
        }  # fmt: skip

    method = "POST"

    def search(self, asked: Json, *, post: bool = False) -> Json:
        collections = asked.get("collections") or []
        wanted = collections.split(",") if isinstance(collections, str) else collections
        matching = [i for i in self.items if not wanted or i["collection"] in wanted]
        start = int(asked.get("token", 0))
        features, following = matching[start : start + self.page], start + self.page
        if self.circular:
            following = 0
        links: list[Json] = []
        if following < len(matching):
            link: Json = {"rel": "next", "href": f"{self.address}/api/search"}
            if post:
                link |= {"method": "POST", "merge": True, "body": {"token": following}}
            else:
                link["href"] += f"?token={following}&collections={','.join(wanted)}"
            links.append(link)
        return {"type": "FeatureCollection", "features": features, "links": links}


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setattr(remote, "BACK_OFF_S", (0.01, 0.01))
    (tmp_path / "www").mkdir()
    made = Site(tmp_path / "www")
    thread = threading.Thread(target=made.server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield made
    made.server.shutdown()
    thread.join()
    made.server.server_close()


# --- items made by code


def cog(path: Path, value: int, *, gsd: float, crs: str = "EPSG:32633", noise: int = 40, at: Any = None) -> Path:
    """A one-band COG-like file of 2,560 m with numbers around ``value``, without names, tags or scale."""
    side = int(2560 / gsd)
    rng = np.random.default_rng(sum(map(ord, path.name)))
    pixels = (value + rng.integers(-noise, noise + 1, (1, side, side))).astype(np.uint16)
    transform = at or Affine(gsd, 0, WEST, 0, -gsd, NORTH)
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"tiled": True, "blockxsize": 128, "blockysize": 128}
    return write_tif(path, pixels, crs=crs, transform=transform, nodata=0, options=options)


def asset(href: str, name: str, common: str | None, gsd: float, *, proj: bool = True, **words: Any) -> Json:
    side = int(2560 / gsd)
    made: Json = {
        "href": href, "type": "image/tiff; application=geotiff; profile=cloud-optimized", "roles": ["data"],
        "eo:bands": [{"name": name, **({"common_name": common} if common else {})}],
        "raster:bands": [{"nodata": 0, "data_type": "uint16", "scale": 0.0001, "offset": words.pop("offset", -0.1)}],
    }  # fmt: skip
    if proj:
        made |= {"proj:shape": [side, side], "proj:transform": [gsd, 0, WEST, 0, -gsd, NORTH]}
    return made | words


def item(name: str, assets: dict[str, Json], *, days: float = 0.0, **properties: Any) -> Json:
    west, south, east, north = BOX
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    return {
        "type": "Feature", "stac_version": "1.0.0", "id": name, "collection": "sentinel-2-l2a",
        "stac_extensions": [
            "https://stac-extensions.github.io/eo/v1.1.0/schema.json",
            "https://stac-extensions.github.io/raster/v1.1.0/schema.json",
            "https://stac-extensions.github.io/projection/v1.1.0/schema.json",
        ],
        "geometry": {"type": "Polygon", "coordinates": [ring]}, "bbox": list(BOX), "links": [], "assets": assets,
        "properties": {
            "datetime": (DAY + timedelta(days=days)).isoformat(), "platform": "sentinel-2a", "proj:epsg": 32633,
            "s2:processing_baseline": "05.00", "eo:cloud_cover": 3.0, **properties,
        },
    }  # fmt: skip


LEVELS = {
    "B02": ("blue", 300, 10.0),
    "B03": ("green", 600, 10.0),
    "B04": ("red", 400, 10.0),
    "B11": ("swir16", 1900, 20.0),
}


def scene(folder: Path, name: str, *, added: int = 1000, days: float = 0.0, base: str = "", **properties: Any) -> Json:
    """A Sentinel-2 item as catalogues of COGs write it, one file per band at 10 and 20 m; relative hrefs."""
    assets: dict[str, Json] = {"thumbnail": {"href": "t.jpg", "type": "image/jpeg", "roles": ["thumbnail"]}}
    for band, (common, level, gsd) in LEVELS.items():
        cog(folder / name / f"{band}.tif", level + added, gsd=gsd)
        assets[common] = asset(f"{base}{name}/{band}.tif", common, common, gsd)
    return item(name, assets, days=days, **properties)


def put(path: Path, value: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value) if not isinstance(value, str) else value)
    return path


def catalogue(folder: Path, items: list[Json], *extra: Json, name: str = "catalog.json") -> Path:
    links: list[Json] = [{"rel": "self", "href": "./catalog.json"}, *extra]
    for one in items:
        put(folder / f"{one['id']}.json", one)
        links.append({"rel": "item", "href": f"./{one['id']}.json"})
    body = {"type": "Catalog", "id": "c", "stac_version": "1.0.0", "description": "x", "links": links}
    return put(folder / name, body)


VIEWS = [View(name="s2", sensor="sentinel-2-l2a", bands=("B04", "B03", "B11"), gsd_m=10.0)]


def build(place: object, out: Path, views: list[View] | None = VIEWS, **query: Any) -> BuildSummary:
    listing = stac_listing(StacQuery(place=str(place), **query), None, views)
    return build_tiles(listing, out, views, square_m=1280.0, min_views=1)


# --- what becomes of items


def test_files_of_several_resolutions_are_one_scene(site: Site, tmp_path: Path) -> None:
    catalogue(site.folder, [scene(site.folder, "a")])
    summary = build(f"{site.address}/catalog.json", tmp_path / "s")
    assert (summary.written, summary.failures) == (4, ())
    store = TileStore.open(tmp_path / "s")
    spec, batch = store.views["s2"], store.__getitems__(range(4)).views["s2"]
    assert [(e.scale, e.offset) for e in spec.encodings] == [(1e-4, -0.1)] * 3
    assert spec.dtype == "uint16"
    for row in range(4):
        means = batch.pixels[row].mean(axis=(1, 2))
        np.testing.assert_allclose(means, [1400, 1600, 2900], atol=8)
    # bit for bit where the grid is the square's own
    whole = read_pixels(site.folder / "a" / "B04.tif")
    index = store.index.to_pylist()
    north_west = next(
        n for n, r in enumerate(index) if r["square"].split("_")[2:] == ["375", str(int(NORTH / 1280) - 1)]
    )
    assert np.array_equal(batch.pixels[north_west][0], whole[:128, :128])
    assert {r["s2.source"] for r in index} == {f"{site.address}/a.json"}
    assert index[0]["s2.time"] == DAY
    asked = {a.split()[1] for a in site.asked if a.endswith(".tif")}
    assert asked == {f"/a/{b}.tif" for b in ("B03", "B04", "B11")}, "what no view wants is not fetched"


def read_pixels(path: Path) -> Any:
    import rasterio

    with rasterio.open(path) as dataset:
        return dataset.read(1)


def test_a_local_catalogue_needs_no_server_and_gives_the_same(site: Site, tmp_path: Path) -> None:
    place = catalogue(site.folder, [scene(site.folder, "a")])
    build(place, tmp_path / "local")
    build(f"{site.address}/catalog.json", tmp_path / "remote")
    local, far = (TileStore.open(tmp_path / n).__getitems__(range(4)).views["s2"] for n in ("local", "remote"))
    assert np.array_equal(local.pixels, far.pixels)
    for single in (site.folder / "a.json", put(tmp_path / "www" / "all.json", {"type": "FeatureCollection",
                   "features": [json.loads((site.folder / "a.json").read_text())]})):  # fmt: skip
        assert len(stac_listing(StacQuery(place=str(single))).scenes) == 1


@pytest.mark.parametrize("method", ["POST", "GET"])
def test_an_api_is_searched_page_by_page(site: Site, method: str) -> None:
    site.method = method
    site.items = [scene(site.folder, f"i{n}", days=n, base=f"{site.address}/") for n in range(5)]
    site.items.append({**site.items[0], "id": "other", "collection": "elsewhere"})
    listing = stac_listing(StacQuery(place=f"{site.address}/api", collections=("sentinel-2-l2a",)))
    assert len(listing.scenes) == 5
    assert [a for a in site.asked if a.startswith(f"{method} /api/search")].__len__() == 3
    few = stac_listing(StacQuery(place=f"{site.address}/api", max_items=2))
    assert len(few.scenes) == 2
    assert not [a for a in site.asked if a.endswith(".tif")], "the items tell all that listing needs"


def test_filters_are_kept_also_where_the_server_does_not(site: Site) -> None:
    cases = [scene(site.folder, f"i{n}", days=10.0 * n, **{"eo:cloud_cover": 20.0 * n}) for n in range(4)]
    place = str(catalogue(site.folder, cases))
    found = lambda **q: sorted(s.time.day for s in stac_listing(StacQuery(place=place, **q)).scenes if s.time)  # noqa: E731
    assert found() == [1, 1, 11, 21]
    assert found(max_cloud=0.2) == [1, 11]
    assert found(period="2024-06-11/2024-06-21") == [11, 21], "the last day whole"
    assert found(period="../2024-06-02") == [1]
    assert found(bbox=(14.75, 47.85, 15.0, 48.0)) == [1, 1, 11, 21]
    assert found(bbox=(16.0, 47.0, 17.0, 48.0)) == []
    assert found(bbox=(170.0, 47.0, -179.0, 48.0)) == []
    assert found(collections=("nothing",)) == []
    with pytest.raises(StoreError, match="scenes: got none that can be used, expected"):
        build(place, site.folder / "s", collections=("nothing",))


def test_periods() -> None:
    day = datetime(2024, 5, 1, tzinfo=UTC)
    assert parse_period("2024-05-01") == (day, day + timedelta(days=1, microseconds=-1))
    assert parse_period("2024-05-01T10:00:00Z/..") == (day + timedelta(hours=10), None)
    assert parse_period(None) == (None, None)
    for bad in ("yesterday", "2024-05-02/2024-05-01", "a/b/c", "2024-05-01/2024-13-01"):
        with pytest.raises(RasterError, match="--datetime"):
            parse_period(bad)
    for box in ((0.0, 5.0, 1.0, 4.0), (0.0, -91.0, 1.0, 4.0), (-200.0, 0.0, 1.0, 4.0)):
        with pytest.raises(RasterError, match="bbox"):
            StacQuery(place="x", bbox=box)
    with pytest.raises(RasterError, match="items: got 0"):
        StacQuery(place="x", max_items=0)


# --- the offset of Sentinel-2


def test_the_1000_is_taken_from_what_the_item_says_and_the_pixels_are_asked(site: Site, tmp_path: Path) -> None:
    applied = {"earthsearch:boa_offset_applied": True}
    cases = {
        "new": scene(site.folder, "new"),
        "applied": scene(site.folder, "applied", added=0, **applied),
        "old": scene(site.folder, "old", added=0, **{"s2:processing_baseline": "02.14"}),
    }
    for name, one in cases.items():
        put(site.folder / f"{name}.json", one)
        (found,) = stac_listing(StacQuery(place=str(site.folder / f"{name}.json")), None, VIEWS).scenes
        assert {e.offset for e in found.bands.values()} == {-0.1 if name == "new" else 0.0}, name
    place = catalogue(site.folder, list(cases.values()))
    summary = build(place, tmp_path / "s")
    assert summary.failures == ()
    spec = TileStore.open(tmp_path / "s").views["s2"]
    assert [e.offset for e in spec.encodings] == [-0.1] * 3
    values = TileStore.open(tmp_path / "s").__getitems__(range(4)).views["s2"].pixels.mean(axis=(0, 2, 3))
    np.testing.assert_allclose(values * 1e-4 - 0.1, [0.04, 0.06, 0.19], atol=1e-3)


def test_an_item_that_the_pixels_contradict_is_a_failure_of_its_own(site: Site, tmp_path: Path) -> None:
    good = scene(site.folder, "good", days=1)
    lying = scene(site.folder, "lying", added=0)  # baseline 05.00, but somebody has taken the 1000 away
    summary = build(catalogue(site.folder, [lying, good]), tmp_path / "s")
    (failure,) = summary.failures
    assert failure.source.endswith("lying.json")
    assert "-0.1 by the tag BOA_ADD_OFFSET=-1000, but stored numbers without 1000 added" in failure.message
    assert summary.written == 4


def test_items_that_say_little_have_their_files_looked_at(site: Site) -> None:
    one = scene(site.folder, "a")
    for made in one["assets"].values():
        for key in ("proj:shape", "proj:transform", "raster:bands"):
            made.pop(key, None)
    put(site.folder / "a.json", one)
    (found,) = stac_listing(StacQuery(place=f"{site.address}/a.json"), None, VIEWS).scenes
    assert (found.dtype, round(found.gsd_m), len(found.parts)) == ("uint16", 10, 3)
    assert found.bands["B04"].offset == -0.1


# --- faults


def test_each_items_fault_is_listed_and_the_others_go_on(site: Site, tmp_path: Path) -> None:
    names = ("fine", "gone", "cut", "timeless", "proj", "scale", "alien", "empty")
    made = {n: scene(site.folder, n, days=i) for i, n in enumerate(names)}
    (site.folder / "gone" / "B04.tif").unlink()
    cut = site.folder / "cut" / "B04.tif"
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 3])
    made["timeless"]["properties"]["datetime"] = None
    made["proj"]["assets"]["red"]["proj:shape"] = ["a", 3]
    made["scale"]["assets"]["red"]["raster:bands"][0]["offset"] = "much"
    made["alien"]["properties"] |= {"platform": "spot-6"}
    made["alien"]["collection"] = "x"
    made["empty"]["assets"] = {}
    place = catalogue(
        site.folder, list(made.values()), {"rel": "item", "href": "text.json"}, {"rel": "item", "href": "none.json"},
        {"rel": "item", "href": "list.json"}, {"rel": "child", "href": "odd.json"},
    )  # fmt: skip
    put(site.folder / "text.json", "<html>no json</html>")
    put(site.folder / "list.json", [1, 2])
    put(site.folder / "odd.json", {"type": "Feature", "id": "odd"})
    del place
    listing = stac_listing(StacQuery(place=f"{site.address}/catalog.json"), None, VIEWS)
    # each good-looking scene is made to be tried: the later ones only where the earlier ones fail
    seen = {Path(f.source).stem: f.message for f in listing.failures}
    assert set(seen) == {"timeless", "proj", "scale", "alien", "empty", "text", "none", "list", "odd"}
    assert "datetime" in seen["timeless"]
    assert "proj:code, proj:transform and proj:shape that fit together" in seen["proj"]
    assert "sensor: got platform 'spot-6'" in seen["alien"]
    assert "got none, expected GeoTIFFs of the bands of sentinel-2-l2a" in seen["empty"]
    assert "no JSON" in seen["text"]
    assert "status 404" in seen["none"]
    for name in ("gone", "cut"):
        summary = build(f"{site.address}/{name}.json", tmp_path / name)
        assert (summary.written, len(summary.failures)) == (0, 1)
        assert f"/{name}/B04.tif" in summary.failures[0].message
        assert ("404 Not Found" if name == "gone" else "damaged or cut short") in summary.failures[0].message
    assert all(len(f.message.splitlines()) == 1 for f in listing.failures)


def test_files_in_other_projections_are_laid_onto_the_same_ground(site: Site, tmp_path: Path) -> None:
    one = scene(site.folder, "a")
    from pyproj import Transformer

    x, y = Transformer.from_crs(32633, 32632, always_xy=True).transform(WEST - 400, NORTH + 600)
    path = site.folder / "a" / "B11.tif"
    side = 200
    pixels = np.full((1, side, side), 2900, np.uint16)
    write_tif(path, pixels, crs="EPSG:32632", transform=Affine(20, 0, x, 0, -20, y), nodata=0)
    words = {"proj:epsg": 32632, "proj:shape": [side, side], "proj:transform": [20, 0, x, 0, -20, y]}
    one["assets"]["swir16"] |= words
    summary = build(put(site.folder / "a.json", one), tmp_path / "s")
    assert summary.written == 4, summary.failures
    pixels = TileStore.open(tmp_path / "s").__getitems__(range(4)).views["s2"].pixels
    assert np.unique(pixels[:, 2]).tolist() == [2900]


def test_a_catalogue_that_links_to_itself_ends(site: Site) -> None:
    loop = [{"rel": "child", "href": h} for h in ("./catalog.json", "./b/catalog.json", f"{site.address}/catalog.json")]
    catalogue(site.folder / "b", [], {"rel": "child", "href": "../catalog.json"})
    catalogue(site.folder, [scene(site.folder, "a")], *loop)
    assert len(stac_listing(StacQuery(place=f"{site.address}/catalog.json")).scenes) == 1
    assert site.asked.count("GET /catalog.json") == 1


def test_a_huge_list_is_bounded_and_pages_that_repeat_are_noticed(site: Site) -> None:
    one = scene(site.folder, "a", base=f"{site.address}/")
    site.items = [{**one, "id": f"n{n}"} for n in range(5000)]
    assert len(stac_listing(StacQuery(place=f"{site.address}/api", max_items=7)).scenes) == 7
    assert len(site.asked) < 8
    site.circular, site.items = True, site.items[:4]
    with pytest.raises(RasterError, match="pages that come again and again"):
        stac_listing(StacQuery(place=f"{site.address}/api"))


def test_a_first_page_that_is_none_is_one_error(site: Site, tmp_path: Path) -> None:
    put(site.folder / "page.html", "<html>")
    for place, message in (
        (f"{site.address}/page.html", "no JSON"),
        (f"{site.address}/nothing", "status 404"),
        (str(tmp_path / "nothing.json"), "No such file"),
        ("ftp://example.org/c.json", "No such file"),
    ):
        with pytest.raises(RasterError, match=message):
            stac_listing(StacQuery(place=place))


@pytest.fixture
def closed() -> str:
    """An address on loopback at which nobody listens: a port that was free a moment ago."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{held.getsockname()[1]}/catalog.json"


def test_a_server_that_refuses_the_connection_is_one_plain_line(site: Site, closed: str, tmp_path: Path) -> None:
    reason = os.strerror(errno.ECONNREFUSED)
    said = f"{closed}: got {reason}, expected a server that answers. Check the address, or try again later."
    with pytest.raises(RasterError) as alone:
        stac_listing(StacQuery(place=closed))
    landing = site.landing()
    landing["links"][1]["href"] = closed
    put(site.folder / "api.json", landing)
    with pytest.raises(RasterError) as searched:
        stac_listing(StacQuery(place=f"{site.address}/api.json"))
    catalogue(site.folder, [scene(site.folder, "a")], {"rel": "child", "href": closed})
    linked = build(f"{site.address}/catalog.json", tmp_path / "s")
    assert (str(alone.value), str(searched.value)) == (said, said)
    assert (linked.written, [f.message for f in linked.failures]) == (4, [said])


@pytest.mark.parametrize("words", ["child", "next page"])
def test_a_page_that_may_not_be_fetched_says_so_once(site: Site, words: str) -> None:
    away = "https://example.org/c.json"
    if words == "child":
        catalogue(site.folder, [], {"rel": "child", "href": away})
        told = stac_listing(StacQuery(place=f"{site.address}/catalog.json")).failures[0].message
    else:
        landing = site.landing()
        landing["links"][1]["href"] = away
        with pytest.raises(RasterError) as error:
            stac_listing(StacQuery(place=str(put(site.folder / "api.json", landing))))
        told = str(error.value)
    assert told.count(": got ") == told.count(", expected ") == 1
    assert told.startswith(f"{away}: got the host example.org, which was not named")


def test_what_passes_is_tried_again_and_what_stays_is_told(site: Site, tmp_path: Path) -> None:
    catalogue(site.folder, [scene(site.folder, "a")])
    left = {"/a/B04.tif": 2, "/catalog.json": 1}

    def busy(handler: Any) -> bool:
        path = urlsplit(handler.path).path
        left[path] -= 1
        if left[path] >= 0:
            handler.send(503, b"", {"Retry-After": "0.01"})
        return left[path] >= 0

    site.answers = {path: busy for path in left}
    assert build(f"{site.address}/catalog.json", tmp_path / "s").written == 4
    left["/a/B04.tif"] = 10**9
    summary = build(f"{site.address}/catalog.json", tmp_path / "t")
    assert (summary.written, len(summary.failures)) == (0, 1)
    assert "503" in summary.failures[0].message
    assert site.asked.count("GET /a/B04.tif") < 200


def test_a_server_without_ranges_is_refused_before_the_file_is_fetched(site: Site) -> None:
    cog(site.folder / "a.tif", 500, gsd=10.0)
    site.answers["/a.tif"] = lambda handler: (handler.send(200, b"II*\0" + bytes(1000), {}), True)[1]
    with pytest.raises(RasterError, match="one that answers range requests"):
        open_raster(f"{site.address}/a.tif", door=Door.to(site.address))


def test_the_relay_gives_one_file_under_one_name_only(site: Site) -> None:
    path = cog(site.folder / "a.tif", 500, gsd=10.0)
    file = open_remote(f"{site.address}/a.tif", Door.to(site.address))
    with contextlib.closing(Caller(Door.to(file.address))) as caller:
        for first, last in ((0, 9), (100, 10**6), (path.stat().st_size - 3, 10**9)):
            part = caller.ask(file.address, headers={"Range": f"bytes={first}-{last}"})
            assert (part.status, part.body) == (206, path.read_bytes()[first : last + 1])
        beyond = caller.ask(file.address, headers={"Range": "bytes=99999999-99999999"})
        assert beyond.status == 416
        assert caller.ask(file.address + "x", headers={"Range": "bytes=0-9"}).status == 404
        file.close()
        assert caller.ask(file.address, headers={"Range": "bytes=0-9"}).status == 404


def test_a_folder_that_cannot_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cog(tmp_path / "scenes" / "a.tif", 500, gsd=10.0)
    (tmp_path / "scenes" / "closed").mkdir()
    (tmp_path / "scenes" / "closed").chmod(0)
    tmp_path.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    before = os.geteuid()
    if before == 0:
        # nothing is closed to root
        os.seteuid(65534)
    try:
        with pytest.raises(RasterError, match="folder scenes/closed: got Permission denied"):
            expand(["scenes"])
    finally:
        os.seteuid(before)
        (tmp_path / "scenes" / "closed").chmod(0o700)


# --- the door


def test_without_a_door_no_address_is_opened(site: Site) -> None:
    cog(site.folder / "a.tif", 500, gsd=10.0)
    with pytest.raises(RasterError, match="an address or a virtual path"):
        open_raster(f"{site.address}/a.tif")
    assert site.asked == []


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254/latest/meta-data", "http://[fe80::1]/x", "http://10.0.0.7/x.tif", "http://127.0.0.1/x",
        "http://[::ffff:127.0.0.1]/x", "http://localhost/x", "http://0.0.0.0/x", "http://100.100.100.200/x",
        "http://192.168.1.1/x", "http://[::1]/x", "http://2130706433/x", "file:///etc/passwd", "s3://bucket/x.tif",
        "http://user:word@example.org/x", "http:///x", "/vsicurl/http://example.org/x",
    ],
)  # fmt: skip
def test_a_public_catalogue_leads_to_no_machine_inside(url: str) -> None:
    with pytest.raises(RasterError):
        Door.to("https://93.184.216.34/stac").addresses(url)


def test_who_may_be_asked() -> None:
    public, inside = "http://93.184.216.34/x", "http://10.1.2.3/x"
    assert Door.to("/a/catalog.json").addresses(public) == ["93.184.216.34"]
    assert Door.to("http://10.1.2.3/stac").addresses(inside) == ["10.1.2.3"], "the user named it"
    assert Door.to("http://x.example", frozenset({"10.1.2.3"})).addresses(inside) == ["10.1.2.3"]
    assert Door.to("/a/catalog.json").addresses("http://127.0.0.1:9/x") == ["127.0.0.1"]
    for door, url, named in (
        (Door.to("/a/catalog.json"), inside, False),
        (Door.to("/a/catalog.json"), "http://169.254.169.254/", False),
        (Door.to("x", frozenset({"169.254.169.254"})), "http://169.254.169.254/", False),
        (Door.to("x", frozenset({"10.1.2.3"})), public, False),
        (Door.to("https://93.184.216.35/"), public, True),
    ):
        with pytest.raises(RasterError):
            door.addresses(url, named_only=named)


def test_redirects_are_judged_like_links(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    cog(site.folder / "b.tif", 500, gsd=10.0)

    def to(target: str) -> Callable[[Any], bool]:
        return lambda handler: (handler.send(302, b"", {"Location": target}), True)[1]

    site.answers = {"/a.tif": to("/b.tif"), "/ring": to("/ring"), "/in.tif": to("http://169.254.169.254/secret")}
    door = Door.to(site.address)
    with open_raster(f"{site.address}/a.tif", stac_declared(), door=door) as file:
        assert file.read().pixels.shape == (1, 256, 256)
    with pytest.raises(RasterError, match="more than 5 redirects"):
        open_raster(f"{site.address}/ring", door=door)
    real, called = socket.create_connection, []

    def watched(address: tuple[str, int], *args: Any) -> socket.socket:
        called.append(address[0])
        return real(address, *args)

    monkeypatch.setattr(socket, "create_connection", watched)
    with pytest.raises(RasterError, match=r"169\.254\.169\.254, inside a network"):
        open_raster(f"{site.address}/in.tif", door=door)
    assert set(called) == {"127.0.0.1"}


def stac_declared() -> Any:
    from alidade.imagery.files import Declared

    return Declared(sensor="sentinel-2-l2a", bands=("B04",), offset=0.0)


def test_a_redirect_in_the_middle_of_reading_leads_nowhere(site: Site) -> None:
    side = 1024
    pixels = np.random.default_rng(0).integers(1, 3000, (1, side, side)).astype(np.uint16)
    options = {"tiled": True, "blockxsize": 128, "blockysize": 128}
    write_tif(site.folder / "a.tif", pixels, nodata=0, options=options)
    with canary() as bird, open_raster(f"{site.address}/a.tif", stac_declared(), door=Door.to(site.address)) as file:
        inside = bird.address.replace("127.0.0.1", "127.0.0.2")
        site.answers["/a.tif"] = lambda h: (h.send(307, b"", {"Location": "http://169.254.1.1/"}), True)[1]
        with pytest.raises(RasterError, match="inside a network"):
            file.read()
        assert bird.calls == []
        del inside


def test_a_catalogue_from_elsewhere_reads_no_file_of_this_machine(site: Site, tmp_path: Path) -> None:
    secret = put(tmp_path / "secret.json", scene(site.folder, "a"))
    one = scene(site.folder, "b")
    one["assets"]["red"]["href"] = str(tmp_path / "www" / "a" / "B04.tif")
    links = [{"rel": "item", "href": str(secret)}, {"rel": "child", "href": f"file://{secret}"}]
    odd = scene(site.folder, "c")
    odd["assets"]["red"]["href"] = f"file://{tmp_path}/www/a/B04.tif"
    catalogue(site.folder, [one, odd], *links)
    listing = stac_listing(StacQuery(place=f"{site.address}/catalog.json"), None, VIEWS)
    # a path without a host is a path on the catalogue's host
    assert {urlsplit(p.path).netloc for s in listing.scenes for p in s.parts} == {urlsplit(site.address).netloc}
    told = [f.message for f in listing.failures]
    assert len(told) == 3
    assert any("status 404" in m for m in told)
    assert any("a path on this machine in a catalogue from another" in m for m in told)
    assert any("neither a file beside the catalogue nor an http address" in m for m in told)


def test_keys_in_addresses_are_neither_told_nor_stored(site: Site, tmp_path: Path) -> None:
    one = scene(site.folder, "a", base=f"{site.address}/")
    for made in one["assets"].values():
        made["href"] += "?sig=SECRET"
    (site.folder / "a" / "B03.tif").unlink()
    summary = build(put(site.folder / "a.json", one), tmp_path / "s")
    assert len(summary.failures) == 1
    assert "SECRET" not in summary.failures[0].message
    assert any("sig=SECRET" in a for a in site.asked)


def test_a_ring_of_bytes_is_not_read_to_its_end(site: Site) -> None:
    site.answers["/big.json"] = lambda h: (h.send(200, bytes(5000), {}), True)[1]
    with (
        pytest.raises(RasterError, match="more than 1,000 bytes"),
        contextlib.closing(Caller(Door.to(site.address))) as c,
    ):
        c.ask(f"{site.address}/big.json", limit=1000)


# --- a real scene, and the command


def test_a_real_scene_as_catalogues_hold_it(site: Site, tmp_path: Path) -> None:
    optical, radar = (SAMPLES / s / "bigearthnet_33UUP_87_48.tif" for s in ("sentinel-2", "sentinel-1"))
    raster = read(optical)
    assets: dict[str, Json] = {}
    for name in ("B02", "B03", "B04", "B08", "B11"):
        step = 2 if name == "B11" else 1
        one = raster.select((name,))
        gsd, (a, b, c, d, e, f) = 10.0 * step, raster.grid.transform[:6]
        write_tif(site.folder / f"{name}.tif", one.pixels[:, ::step, ::step], crs="EPSG:32633",
                  transform=Affine(a * step, b, c, d, e * step, f), nodata=0)  # fmt: skip
        assets[name] = asset(f"{name}.tif", name, None, gsd, proj=False, offset=0)
    properties = {"s2:processing_baseline": "02.05", "datetime": raster.time.isoformat() if raster.time else None}
    s2 = item("s2", assets, **properties)
    vv, vh = (read(radar).select((n,)) for n in ("VV", "VH"))
    for layer in (vv, vh):
        write_tif(site.folder / f"{layer.bands[0].name.lower()}.tif", layer.pixels, crs="EPSG:32633",
                  transform=layer.grid.transform)  # fmt: skip
    kind = {"type": "image/tiff", "raster:bands": [{"unit": "dB"}]}
    s1 = {**item("s1", {n: {"href": f"{n}.tif", **kind} for n in ("vv", "vh")}), "collection": "sentinel-1-grd"}
    s1["properties"] = {"datetime": vv.time.isoformat() if vv.time else None, "platform": "sentinel-1a"}
    catalogue(site.folder, [s1, s2])
    listing = stac_listing(StacQuery(place=f"{site.address}/catalog.json"))
    assert listing.failures == ()
    summary = build_tiles(listing, tmp_path / "s", square_m=640.0)
    assert summary.written >= 1, summary.failures
    direct = build_tiles([optical, radar], tmp_path / "d", [
        View(name="sentinel-1-grd", sensor="sentinel-1-grd"),
        View(name="sentinel-2-l2a", sensor="sentinel-2-l2a", bands=("B02", "B03", "B04", "B08", "B11")),
    ], square_m=640.0)  # fmt: skip
    assert direct.written == summary.written
    ours, theirs = TileStore.open(tmp_path / "s"), TileStore.open(tmp_path / "d")
    assert ours.index["square"].to_pylist() == theirs.index["square"].to_pylist()
    for name, bands in (("sentinel-1-grd", 2), ("sentinel-2-l2a", 4)):
        a, b = ours[0].views[name].pixels, theirs[0].views[name].pixels
        assert np.array_equal(a[:, :bands], b[:, :bands]), "the 10 m bands bit for bit"


def test_the_command(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = typer.Typer(pretty_exceptions_enable=False)
    app.callback()(lambda: None)
    cli.register(app)
    catalogue(site.folder, [scene(site.folder, "a")])
    place, run = f"{site.address}/catalog.json", CliRunner()
    view = ["--view", "s2=sentinel-2-l2a:B04,B03@10", "--out", str(tmp_path / "s"), "--square", "1280"]
    made = run.invoke(app, ["tiles", "build", "--stac", place, *view, "--bbox", "14,47,15,48", "--json"])
    assert made.exit_code == 0, made.output
    assert json.loads(made.stdout)["written"] == 4
    again = run.invoke(app, ["tiles", "build", "--stac", place, *view])
    assert "0 samples made" in again.stdout
    assert "4 squares already there" in again.stdout
    for words, message in (
        (["--stac", place, str(tmp_path)], "got files and --stac"),
        ([str(tmp_path), "--bbox", "1,2,3,4"], "a search without --stac"),
        (["--stac", place, "--bbox", "1,2,3"], "--bbox"),
        (["--stac", place, "--bands", "B04"], "--bands"),
    ):
        refused = run.invoke(app, ["tiles", "build", *words, *view])
        assert isinstance(refused.exception, AlidadeError), words
        assert message in str(refused.exception)
    monkeypatch.setattr(stac, "find_spec", lambda name: None)
    with pytest.raises(AlidadeError, match=r"pip install 'alidade\[stac\]'"):
        stac_listing(StacQuery(place=place))
