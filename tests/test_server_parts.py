"""The server's parts by themselves: queue and door, map painting against a plain loop, notes, and the command."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from alidade.cli import main
from alidade.errors import AlidadeError
from alidade.imagery.files import Declared, open_raster, write_geotiff
from alidade.imagery.footprint import Footprint
from alidade.search.archive import Archive
from alidade.search.filters import Columns
from alidade.search.scan import Scanner
from alidade.server.batcher import Batcher, Door
from alidade.server.config import QueueConfig, ServerConfig
from alidade.server.labels import Labels
from alidade.server.lru import Lru
from alidade.server.mercator import from_degrees, to_degrees
from alidade.server.problems import Refused
from alidade.server.scenes import OpenScene, draw, list_scenes, shrink
from alidade.server.similarity import Mosaic, _thickened, png
from search_scenes import make_raster, make_scene
from server_app import make_archive


def in_loop(work: Callable[[ThreadPoolExecutor], Coroutine[Any, Any, None]]) -> None:
    with ThreadPoolExecutor(1) as pool:
        asyncio.run(asyncio.wait_for(work(pool), 30))


def test_a_queue_makes_batches_and_keeps_their_order() -> None:
    sizes: list[int] = []

    def double(items: list[int]) -> list[int]:
        sizes.append(len(items))
        time.sleep(0.01)
        return [2 * i for i in items]

    async def work(pool: ThreadPoolExecutor) -> None:
        queue = Batcher("doubling", double, pool, QueueConfig(max_batch=8, max_wait_s=0.02, most_waiting=100))
        assert await asyncio.gather(*(queue.ask(i) for i in range(50))) == [2 * i for i in range(50)]
        assert max(sizes) == 8
        assert len(sizes) == 7

    in_loop(work)


def test_one_bad_item_spoils_no_other() -> None:
    def halve(items: list[int]) -> list[int]:
        if odd := [i for i in items if i % 2]:
            raise AlidadeError("number", got=odd, expected="an even one", next_step="Choose another.")
        return [i // 2 for i in items]

    async def work(pool: ThreadPoolExecutor) -> None:
        queue = Batcher("halving", halve, pool, QueueConfig(max_batch=16, max_wait_s=0.01, most_waiting=100))
        told = await asyncio.gather(*(queue.ask(i) for i in range(16)), return_exceptions=True)
        for number, result in enumerate(told):
            assert isinstance(result, AlidadeError) if number % 2 else result == number // 2
            assert not isinstance(result, AlidadeError) or result.got == [number]

    in_loop(work)


def test_an_error_that_nobody_expected_reaches_who_asked() -> None:
    def fails(_: list[int]) -> list[int]:
        raise ZeroDivisionError

    async def work(pool: ThreadPoolExecutor) -> None:
        queue = Batcher("failing", fails, pool, QueueConfig())
        for _ in range(2):
            with pytest.raises(ZeroDivisionError):
                await queue.ask(1)

    in_loop(work)


def test_a_full_queue_refuses_and_a_closed_one_too() -> None:
    gate = threading.Event()

    def wait(items: list[int]) -> list[int]:
        gate.wait(20)
        return items

    async def work(pool: ThreadPoolExecutor) -> None:
        queue = Batcher("waiting", wait, pool, QueueConfig(max_batch=1, max_wait_s=0.0, most_waiting=3))
        first = asyncio.create_task(queue.ask(0))
        await asyncio.sleep(0.05)
        rest = [asyncio.create_task(queue.ask(i)) for i in range(1, 4)]
        await asyncio.sleep(0.05)
        with pytest.raises(Refused, match="3 requests under way") as full:
            await queue.ask(9)
        assert (full.value.status, full.value.retry_after) == (429, 1)
        closing = asyncio.create_task(queue.close())
        await asyncio.sleep(0.05)
        gate.set()
        assert await first == 0
        await closing
        for task in rest:
            with pytest.raises(Refused, match="shutting down"):
                await task
        with pytest.raises(Refused, match="shutting down") as closed:
            await queue.ask(1)
        assert closed.value.status == 503

    in_loop(work)


def test_who_gives_up_is_not_worked_for() -> None:
    seen: list[int] = []

    def note(items: list[int]) -> list[int]:
        seen.extend(items)
        return items

    async def work(pool: ThreadPoolExecutor) -> None:
        queue = Batcher("noting", note, pool, QueueConfig(max_wait_s=0.05))
        tasks = [asyncio.create_task(queue.ask(i)) for i in range(3)]
        await asyncio.sleep(0)
        tasks[1].cancel()
        assert await tasks[0] == 0
        assert await tasks[2] == 2
        assert seen == [0, 2]

    in_loop(work)


def test_a_door_learns_how_many_are_answered_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("alidade.server.batcher.time.monotonic", lambda: now)
    door = Door("search", most=20, target_s=0.5)
    start = door.limit

    def round_of(seconds: float) -> None:
        nonlocal now
        inside = [door.inside() for _ in range(door.limit)]
        for one in inside:
            one.__enter__()
        with pytest.raises(Refused, match=f"{len(inside)} requests under way"), door.inside():
            pass
        now += seconds
        for one in inside:
            one.__exit__(None, None, None)

    for _ in range(100):
        round_of(0.1)
    assert start < door.limit == 20
    for _ in range(100):
        round_of(2.0)
    assert door.limit == 2
    door.closed = True
    with pytest.raises(Refused) as closed, door.inside():
        pass
    assert closed.value.status == 503


def test_what_was_not_used_for_longest_is_pushed_out() -> None:
    dropped: list[str] = []
    kept: Lru[int, str] = Lru(10, weigh=len, drop=dropped.append)
    for number, value in enumerate(("aaaa", "bbbb", "cc")):
        kept.put(number, value)
    assert kept.get(0) == "aaaa"
    kept.put(3, "dd")
    assert (kept.get(1), dropped) == (None, ["bbbb"])
    kept.put(0, "eeeee")
    assert (kept.get(0), dropped) == ("eeeee", ["bbbb", "aaaa"])
    kept.put(4, "x" * 11)
    assert kept.get(4) is None
    kept.clear()
    assert len(kept) == 0
    assert sorted(dropped) == sorted(["bbbb", "aaaa", "cc", "dd", "eeeee", "x" * 11])


def boxes_of(count: int, seed: int) -> np.ndarray:
    """Boxes from 20 m to the whole world, some over the antimeridian, some twice, some beyond the map, some nowhere."""
    rng = np.random.default_rng(seed)
    size = 10 ** rng.uniform(-3.7, 2.0, count)
    west, south = rng.uniform(-180, 180, count), rng.uniform(-88, 86, count)
    size[: count // 4] = 10 ** rng.uniform(-3.7, -1, count // 4)
    west[: count // 4], south[: count // 4] = rng.uniform(8, 8.2, count // 4), rng.uniform(47, 47.2, count // 4)
    east = (west + size + 180) % 360 - 180
    boxes = np.stack([west, south, east, np.minimum(south + size / 2, 90)])
    boxes[:, 1] = boxes[:, 0]
    boxes[:, 2] = np.nan
    boxes[:, 3] = (-180, -90, 180, 90)
    return boxes


def painted_plainly(boxes: np.ndarray, shades: np.ndarray, z: int, x: int, y: int) -> np.ndarray:
    """The definition: every box's pixels, at least one, the highest shade on top."""
    canvas = np.zeros((256, 256), np.uint8)
    for (west, south, east, north), shade in zip(boxes.T, shades, strict=True):
        if np.isnan(west) or south >= 85.0511287 or north <= -85.0511287:
            continue
        for left, right in [(west, east)] if west <= east else [(west, 180.0), (-180.0, east)]:
            (x0, x1), (y0, y1) = from_degrees([left, right], [north, south])
            if max(x1 - x0, y1 - y0) * 256 * 2**z <= 1:
                centre = [(a + b) / 2 for a, b in ((x0, x1), (y0, y1))]
                column, row = (
                    int(min(c, 1 - 2**-26) * 2**z * 256) - 256 * n for c, n in zip(centre, (x, y), strict=True)
                )
                c0, c1, r0, r1 = column, column + 1, row, row + 1
            else:
                c0, c1, r0, r1 = (round(v * 256 * 2**z) - 256 * n for v, n in ((x0, x), (x1, x), (y0, y), (y1, y)))
                c1, r1 = max(c1, c0 + 1), max(r1, r0 + 1)
            part = canvas[max(r0, 0) : max(r1, 0), max(c0, 0) : max(c1, 0)]
            np.maximum(part, shade, out=part)
    return _thickened(canvas)


@pytest.mark.parametrize(
    ("z", "x", "y"), [(0, 0, 0), (1, 1, 0), (3, 4, 2), (5, 16, 11), (9, 267, 179), (13, 4279, 2866)]
)
def test_a_painted_tile_is_what_a_plain_loop_paints(z: int, x: int, y: int) -> None:
    boxes = boxes_of(400, z)
    scores = np.random.default_rng(z).uniform(-1, 1, 400).astype(np.float32)
    mask = np.arange(400) % 7 != 0
    mosaic = Mosaic(boxes)
    layer = mosaic.layer(scores, mask)
    low, high = np.percentile(scores[mask], (5, 99.5))
    assert (layer.low, layer.high) == pytest.approx((low, high), abs=1e-6)
    assert layer.shown == mask.sum()
    shades = np.where(mask, (1.5 + 254 * np.clip((scores - layer.low) / (layer.high - layer.low), 0, 1)), 0)
    found = mosaic.paint(layer.shades, z, x, y)
    expected = painted_plainly(boxes, shades.astype(np.uint8), z, x, y)
    assert expected.any()
    # a size of just one pixel may fall on either side of the rule
    assert (found != expected).mean() < 0.002
    assert png(found).startswith(b"\x89PNG")


def test_a_mosaic_of_nothing_paints_nothing() -> None:
    for boxes in (np.empty((4, 0)), np.full((4, 5), np.nan)):
        mosaic = Mosaic(boxes)
        layer = mosaic.layer(np.zeros(boxes.shape[1], np.float32), None)
        assert not mosaic.paint(layer.shades, 0, 0, 0).any()


@pytest.mark.parametrize("place", [(0, 0), (179.9, 84), (-180, -85), (8.5, 47.4)])
def test_places_on_the_map_and_back(place: tuple[float, float]) -> None:
    np.testing.assert_allclose(to_degrees(*from_degrees(*place)), place, atol=1e-9)
    assert float(from_degrees(0, 0)[1]) == 0.5
    assert float(from_degrees(0, 89)[1]) == pytest.approx(0.0, abs=1e-12)


def test_a_scene_across_the_antimeridian_has_one_box() -> None:
    parts = [
        Footprint.box(b).bbox() for b in ((179.0, -17, 179.9, -16), (179.9, -17, -179.2, -16), (-179.2, -17, -179, -15))
    ]
    boxes = np.array([*parts, (5, 1, 6, 2), (np.nan,) * 4]).T
    table = pa.table(
        {
            "source_id": ["s", "s", "s", "t", "u"], "source": ["f/s.tif"] * 3 + ["t.tif", "u.tif"],
            "sensor": ["naip-rgb"] * 5, "time": pa.array([None] * 5, pa.timestamp("ms", "UTC")), "gsd_m": [1.0] * 5,
        }
    )  # fmt: skip
    columns = Columns(
        boxes=boxes, times_ms=np.zeros(5, np.int64), has_time=np.zeros(5, bool), sensor_codes=np.zeros(5, np.int32),
        sensor_names=["naip-rgb"], gsd_m=np.ones(5, np.float32), geometry=table["source"],
    )  # fmt: skip
    found = list_scenes(table, columns)
    assert [(s.id, s.tiles) for s in found.values()] == [("s", 3), ("t", 1), ("u", 1)]
    assert found["s"].bbox == pytest.approx((179.0, -17, -179.0, -15))
    assert (found["t"].bbox, found["u"].bbox) == ((5, 1, 6, 2), None)
    assert found["s"].name == "s.tif"


def test_pixels_without_data_do_not_darken_reduced_pictures() -> None:
    picture = np.zeros((4, 4, 4), np.uint8)
    picture[:, :3] = (200, 100, 50, 255)
    reduced = shrink(picture, 2)
    np.testing.assert_allclose(reduced[:, 0], [(200, 100, 50, 255)] * 2)
    np.testing.assert_allclose(reduced[:, 1], [(200, 100, 50, 255)] * 2, atol=1)
    picture[:, 2] = 0
    assert not shrink(picture, 2)[:, 1, 3].any()


def test_a_large_scene_is_read_finely_only_where_a_tile_shows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("alidade.server.scenes._OVERVIEW_SIDE", 64)
    scene = OpenScene(make_scene(tmp_path / "a.tif", 1, height=400, width=300), Declared())
    with open_raster(tmp_path / "a.tif") as file:
        raster = file.read()
    lon, lat = (float(v) for v in raster.grid.to_lonlat(200.5, 150.5))
    x, y = (float(v) for v in from_degrees(lon, lat))
    z = 15
    shown = draw(scene, z, int(x * 2**z), int(y * 2**z))
    assert shown is not None
    pixel = shown[int(y * 2**z * 256) % 256, int(x * 2**z * 256) % 256]
    assert tuple(pixel[:3]) == tuple(raster.pixels[:, 200, 150])
    coarse = draw(scene, 9, int(x * 2**9), int(y * 2**9))
    assert coarse is not None
    near = coarse[int(y * 2**9 * 256) % 256, int(x * 2**9 * 256) % 256]
    assert near[3] == 255
    assert abs(near[:3].astype(float) - raster.pixels[:, 150:250, 100:200].mean(axis=(1, 2))).max() < 60
    assert draw(scene, 9, 0, 0) is None
    scene.file.close()


def test_a_scene_without_a_place_has_no_map(tmp_path: Path) -> None:
    raster = make_raster(1)
    write_geotiff(tmp_path / "a.tif", replace(raster, grid=replace(raster.grid, crs=None, gsd_override_m=1.0)))
    scene = OpenScene(tmp_path / "a.tif", Declared())
    assert scene.bbox is None
    assert draw(scene, 0, 0, 0) is None
    scene.file.close()


def test_labels_of_many_threads_are_all_there(tmp_path: Path) -> None:
    books = [Labels(tmp_path), Labels(tmp_path)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: books[n % 2].put("default", {f"t{n}": ("yes", "")}), range(40)))
    assert set(Labels(tmp_path).read("default")) == {f"t{n}" for n in range(40)}
    assert [p.name for p in (tmp_path / "labels").iterdir() if p.suffix == ".alidade-part"] == []
    with pytest.raises(AlidadeError, match="yes, no, unsure"):
        books[0].put("default", {"t": ("maybe", "")})
    with pytest.raises(AlidadeError, match="small letters"):
        books[0].read("../default")


def test_too_many_labels_are_refused_and_the_set_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alidade.server.labels.MOST_LABELS", 2)
    labels = Labels(tmp_path)
    labels.put("default", {"a": ("yes", ""), "b": ("no", "")})
    with pytest.raises(AlidadeError, match="at most 2"):
        labels.put("default", {"c": ("yes", "")})
    assert set(labels.read("default")) == {"a", "b"}


def command(*arguments: object, token: str = "") -> subprocess.Popen[str]:
    environment = {**os.environ, "ALIDADE_TOKEN": token, "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", "from alidade.cli import main; main()", "serve", *map(str, arguments)],
        stderr=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> ServerConfig:
    return make_archive(tmp_path_factory.mktemp("command"))


def test_the_command_serves_until_it_is_told_to_stop(made: ServerConfig) -> None:
    token = "correct-horse-battery"
    with command(made.archive, "--model", made.model, "--port", 0, token=token) as process:
        assert process.stderr is not None
        first, second = process.stderr.readline(), process.stderr.readline()
        assert "18 tiles of" in first
        found = re.search(r"http://127\.0\.0\.1:(\d+)/", second)
        assert found
        assert token not in first + second
        address = f"http://127.0.0.1:{found[1]}/api/health"
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(address, timeout=20)
        request = urllib.request.Request(address, headers={"Authorization": f"Bearer {token}"})
        with urllib.request.urlopen(request, timeout=20) as answer:
            assert json.load(answer)["status"] == "ready"
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) in (0, -signal.SIGTERM)
        assert "Traceback" not in process.stderr.read()


def test_the_command_tells_in_one_line_what_is_wrong(
    made: ServerConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("ALIDADE_TOKEN", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        cases: list[tuple[list[object], str]] = [
            ([tmp_path / "none"], "expected an archive made by `alidade embed`"),
            ([made.archive, "--host", "0.0.0.0"], "0.0.0.0 without a token"),
            ([made.archive, "--port", taken.getsockname()[1]], "Address already in use"),
            ([made.archive, "--port", 0], "--model"),
        ]
        for arguments, told in cases:
            monkeypatch.setattr(sys, "argv", ["alidade", "serve", *map(str, arguments)])
            with pytest.raises(SystemExit) as stop:
                main()
            assert stop.value.code == 2
            (line,) = [e for e in capsys.readouterr().err.splitlines() if e.startswith("error: ")]
            assert told in line


def test_rows_and_scenes_of_a_real_archive_agree(made: ServerConfig) -> None:
    scanner = Scanner(Archive.open(made.archive))
    found = list_scenes(scanner.table, Columns.of(scanner.table))
    assert sum(s.tiles for s in found.values()) == len(scanner)
    assert set(found) == set(scanner.table["source_id"].to_pylist())
