"""Who embeds does not matter: one process, a pool, shards or a cluster make the same rows, byte for byte."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from hypothesis import given
from hypothesis import strategies as st

from alidade.errors import AlidadeError, ArchiveError
from alidade.imagery.files import Declared, write_geotiff
from alidade.models.model import Model
from alidade.search import plan
from alidade.search.archive import Archive
from alidade.search.embed import EmbedSummary, embed
from alidade.search.engine import InProcess, Pool
from alidade.search.manifest import Manifest
from alidade.search.plan import Job, Shard, make_plan, units
from alidade.search.schema import embeddings_of
from alidade.search.sources import expand
from alidade.search.writer import ArchiveWriter
from search_scenes import TILE, make_raster, make_scene, rows_of, tiny_model

SCRIPT = Path(__file__).parents[1] / "scripts" / "kill_embed.py"


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny_model()


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Units of a few tiles, and files of a few kilobytes that count as large."""
    monkeypatch.setattr(plan, "LARGE_BYTES", 2_500)
    monkeypatch.setattr(plan, "UNIT_TILES", 12)
    monkeypatch.setattr(plan, "GROUP_FILES", 3)
    monkeypatch.setattr("alidade.search.embed.SHARD_ROWS", 8)


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    folder = tmp_path / "scenes"
    folder.mkdir()
    kinds = [(160, 160, "naip-rgb"), (32, 32, "naip-rgb"), (64, 64, "sentinel-1-rtc"), (96, 64, "sentinel-2-l2a")]
    kinds += [(32, 64, "naip-rgb"), (40, 40, "naip-rgb"), (32, 96, "sentinel-1-rtc"), (128, 160, "naip-rgb")]
    for seed, (height, width, kind) in enumerate(kinds):
        make_scene(folder / f"{seed}.tif", seed, height=height, width=width, sensor_id=kind)
    return folder


def same(archive: Path, expected: Path) -> None:
    one, other = rows_of(archive), rows_of(expected)
    assert one.num_rows == other.num_rows
    for name in other.column_names:
        if name != "embedding":
            assert one[name].combine_chunks().equals(other[name].combine_chunks()), name
    assert embeddings_of(one).tobytes() == embeddings_of(other).tobytes()


def shards(scenes: Path, out: Path, model: Any, count: int, **options: Any) -> list[EmbedSummary]:
    return [embed([scenes], out, model, batch=4, shard=Shard(index=i, count=count), **options) for i in range(count)]


def plan_of(scenes: Path, model: Any, manifest: Manifest | None = None, shard: Shard | None = None) -> plan.Plan:
    files, _ = expand([scenes])
    return make_plan(files, scenes / "a", manifest or Manifest(), model, Declared(), TILE, shard)


def test_the_scenes_are_cut_in_every_way(small: None, scenes: Path, model: Model) -> None:
    found = units(plan_of(scenes, model).jobs)
    assert max(len(unit) for unit in found) > 1, "small files of one kind together"
    sources = [unit[0].source for unit in found]
    assert max(sources.count(s) for s in sources) > 1, "large files in several parts"
    assert [{job.unit for job in unit} for unit in found] == [{i} for i in range(len(found))]
    tiles = [(job.source, index) for unit in found for job in unit for index in job.wanted]
    assert len(tiles) == len(set(tiles)) == plan_of(scenes, model).tiles


@given(st.lists(st.booleans(), min_size=20, max_size=20), st.integers(1, 9))
def test_what_is_done_already_does_not_change_the_units(done: list[bool], count: int) -> None:
    def job(place: int, wanted: frozenset[int]) -> Job:
        group, rest = divmod(place, 4)
        large = place % 3 == 0
        return Job(
            source=f"{place}.tif", relative=f"{place}.tif", source_id=f"{place:016x}", previous=None,
            sensor=("a", "b")[place % 2], read_bands=("R",), model_bands=("R",), total=2500 if large else 3,
            wanted=wanted, stream=(group, rest + 1 if large else 0),
        )  # fmt: skip

    every = [job(i, frozenset(range(2500 if i % 3 == 0 else 3))) for i in range(20)]
    left = [j for j, over in zip(every, done, strict=True) if not over]
    homes = {(j.source, i): j.unit for unit in units(every) for j in unit for i in j.wanted}
    assert len(homes) == sum(len(j.wanted) for j in every)
    origins = [{homes[j.source, i] for j in unit for i in j.wanted} for unit in units(left)]
    assert all(len(origin) == 1 for origin in origins), "tiles of one unit were in one unit before"
    assert len({min(origin) for origin in origins}) == len(origins), "and none is in two units now"
    owners = [[Shard(index=i, count=count).holds(j.stream) for i in range(count)] for j in every]
    assert all(sum(row) == 1 for row in owners)


def test_shards_make_what_one_process_makes(small: None, scenes: Path, tmp_path: Path, model: Model) -> None:
    embed([scenes], tmp_path / "one", model, batch=4)
    for count in (1, 2, 5):
        out = tmp_path / f"n{count}"
        summaries = shards(scenes, out, model, count)
        same(out, tmp_path / "one")
        assert sum(s.tiles for s in summaries) == summaries[-1].rows == rows_of(out).num_rows
        assert list((out / "parts").iterdir()) == []
        again = shards(scenes, out, model, count)
        assert [(s.tiles, s.rows) for s in again] == [(0, summaries[-1].rows)] * count
        assert sum(len(s.skipped) for s in again) == 8


def test_a_pool_makes_what_one_process_makes(small: None, scenes: Path, tmp_path: Path, model: Model) -> None:
    embed([scenes], tmp_path / "one", model, batch=4)
    summary = embed([scenes], tmp_path / "pool", model, batch=4, engine=Pool(load=tiny_model, workers=2))
    same(tmp_path / "pool", tmp_path / "one")
    assert (summary.tiles, len(summary.embedded), summary.failures) == (summary.rows, 8, ())
    assert summary.model_seconds > 0


@pytest.mark.slow
def test_ray_makes_what_one_process_makes(
    small: None, scenes: Path, tmp_path: Path, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    from alidade.search.ray_engine import RayCluster

    embed([scenes], tmp_path / "one", model, batch=4)
    embed([scenes], tmp_path / "ray", model, batch=4, engine=RayCluster(load=tiny_model, workers=2))
    same(tmp_path / "ray", tmp_path / "one")


def test_rows_do_depend_on_the_batch(scenes: Path, tmp_path: Path, model: Model) -> None:
    """The control: without fixed batches the comparison above would fail."""
    tiles = [make_raster(9, height=TILE, width=TILE)] * 16
    assert not np.array_equal(model.embed(tiles, batch_size=16)[0], model.embed(tiles[:1])[0])


def test_a_failing_file_and_one_without_data_leave_nothing_in_any_part(
    small: None, scenes: Path, tmp_path: Path, model: Model
) -> None:
    bad = make_scene(scenes / "bad.tif", 1, height=2048, width=64)
    with rasterio.open(bad) as file:
        at = int(file.get_tag_item("BLOCK_OFFSET_0_5", "TIFF", bidx=1))
    data = bytearray(bad.read_bytes())
    data[at : at + 20] = b"\xff" * 20
    bad.write_bytes(data)
    raster = make_raster(4, height=64, width=64, sensor_id="sentinel-2-l2a")
    raster.pixels[:] = 0
    write_geotiff(scenes / "empty.tif", replace(raster, valid=np.zeros((64, 64), dtype=np.bool_)))
    half = make_raster(5, height=64, width=64, sensor_id="sentinel-2-l2a")
    half.pixels[:, 32:] = 0
    write_geotiff(scenes / "half.tif", replace(half, valid=(half.pixels != 0).any(axis=0)))
    whole = embed([scenes], tmp_path / "one", model, batch=4)
    summaries = shards(scenes, tmp_path / "n", model, 3)
    assert {Path(f.source).name for f in whole.failures} == {"bad.tif", "empty.tif"}
    assert {f.message for s in summaries for f in s.failures} == {f.message for f in whole.failures}
    assert sum(s.nodata_tiles for s in summaries) == whole.nodata_tiles == 2
    same(tmp_path / "n", tmp_path / "one")
    assert sum(s.tiles for s in shards(scenes, tmp_path / "n", model, 3)) == 0, "the empty half is not tried again"


def test_a_changed_file_replaces_its_rows_through_a_part(
    small: None, scenes: Path, tmp_path: Path, model: Model
) -> None:
    embed([scenes], tmp_path / "n", model, batch=4)
    make_scene(scenes / "0.tif", 77, height=96)
    summaries = shards(scenes, tmp_path / "n", model, 2)
    assert sum(s.tiles for s in summaries) == 12
    embed([scenes], tmp_path / "one", model, batch=4)
    same(tmp_path / "n", tmp_path / "one")


def test_what_one_process_left_unfinished_shards_finish(
    small: None, scenes: Path, tmp_path: Path, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed([scenes], tmp_path / "one", model, batch=4)

    class Stopped(Exception):
        pass

    real = ArchiveWriter.append
    left = [3]

    def stopping(self: ArchiveWriter, *arguments: Any) -> None:
        if left[0] == 0:
            raise Stopped
        left[0] -= 1
        real(self, *arguments)

    monkeypatch.setattr(ArchiveWriter, "append", stopping)
    with pytest.raises(Stopped):
        embed([scenes], tmp_path / "n", model, batch=4)
    left[0] = 2
    with pytest.raises(Stopped):
        shards(scenes, tmp_path / "n", model, 2)
    monkeypatch.setattr(ArchiveWriter, "append", real)
    assert 0 < Archive.open(tmp_path / "n").rows < rows_of(tmp_path / "one").num_rows
    shards(scenes, tmp_path / "n", model, 2)
    same(tmp_path / "n", tmp_path / "one")


def test_jobs_at_the_same_time_wait_for_each_other(small: None, scenes: Path, tmp_path: Path, model: Model) -> None:
    out, ended = tmp_path / "n", []
    embed([scenes / "1.tif"], out, model)
    with ArchiveWriter(out, model=model.identity, dim=model.dim, tile=TILE):
        job = threading.Thread(target=lambda: ended.append(shards(scenes, out, model, 1)))
        job.start()
        part = out / "parts" / "0-of-1"
        until = time.monotonic() + 60
        while not (part / "manifest.jsonl").exists() and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(0.3)
        assert ended == [], "it cannot put its part in yet"
        with pytest.raises(ArchiveError, match="one writer at a time"):
            embed([scenes], out, model, shard=Shard(index=0, count=1))
    job.join(60)
    assert ended[0][0].rows == rows_of(out).num_rows


def test_parts_that_overlap_lose_nothing(small: None, scenes: Path, tmp_path: Path, model: Model) -> None:
    out = tmp_path / "n"
    embed([scenes / "1.tif"], out, model, batch=4)

    class Racing:
        """Another run embeds the same files while the part is at work."""

        def run(self, *arguments: Any) -> Iterator[Any]:
            yield from InProcess().run(*arguments)
            embed([scenes / "0.tif"], out, model, batch=4)

    with pytest.raises(ArchiveError, match="some that the archive got from another run meanwhile"):
        embed([scenes], out, model, batch=5, shard=Shard(index=0, count=1), engine=Racing())
    assert (out / "parts" / "0-of-1" / "archive.json").exists(), "the part stays"
    embed([scenes], out, model, batch=4)
    rows = rows_of(out)
    assert len(set(rows["id"].to_pylist())) == rows.num_rows == sum(len(j.wanted) for j in plan_of(scenes, model).jobs)


def test_a_part_of_another_model_or_tile_is_refused(scenes: Path, tmp_path: Path, model: Model) -> None:
    embed([scenes / "1.tif"], tmp_path / "n", model)
    with pytest.raises(ArchiveError, match="model: got other"):
        shards(scenes, tmp_path / "n", tiny_model("other"), 2)
    with pytest.raises(ArchiveError, match="tile side: got 64 px"):
        shards(scenes, tmp_path / "n", model, 2, tile=64)


def test_shards_without_work_and_without_an_archive(tmp_path: Path, model: Model) -> None:
    make_scene(tmp_path / "a.tif", 1)
    idle = embed([tmp_path / "a.tif"], tmp_path / "n", model, shard=Shard(index=1, count=2))
    assert (idle.tiles, idle.rows, idle.archive_made, idle.failures) == (0, 0, False, ())
    assert not (tmp_path / "n").exists()


@pytest.mark.parametrize(("index", "count"), [(2, 2), (-1, 2), (0, 0)])
def test_a_shard_that_is_none(index: int, count: int) -> None:
    with pytest.raises(ArchiveError, match=f"shard: got {index}/{count}, expected I/N with I from 0"):
        Shard(index=index, count=count)


def die() -> Model:
    os._exit(9)


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        (die, "workers: got one that ended in the middle"),
        (partial(tiny_model, "another"), "model of a worker: got another"),
    ],
    ids=["dies", "other"],
)
def test_workers_that_die_or_have_another_model(
    scenes: Path, tmp_path: Path, model: Model, loader: Callable[[], Model], message: str
) -> None:
    with pytest.raises(ArchiveError, match=message):
        embed([scenes], tmp_path / "a", model, engine=Pool(load=loader, workers=1))


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["shards", "pool"])
def test_kills_at_random_moments_lose_nothing(engine: str) -> None:
    command = [sys.executable, str(SCRIPT), "--engine", engine, "--kills", "3"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert f"{engine}: 3 kills" in run.stdout
    assert "every promise kept" in run.stdout


def test_options_of_the_command_line(tmp_path: Path) -> None:
    from alidade.cli.embed_options import engine_from, parse_shard

    nothing: dict[str, Any] = {"workers": None, "threads": None, "address": None, "model": None, "weights": None}
    assert parse_shard("2/16") == Shard(index=2, count=16)
    assert parse_shard(None) is None
    for wrong in ("2", "2/", "a/b", "1/2/3", "3/3"):
        with pytest.raises(AlidadeError, match="expected I/N"):
            parse_shard(wrong)
    assert engine_from("local", **nothing) == InProcess(threads=None)
    pool = engine_from("local", **nothing | {"workers": 3, "threads": 2})
    assert isinstance(pool, Pool)
    assert (pool.workers, pool.threads) == (3, 2)
    for name, more in (("spark", {}), ("local", {"address": "auto"})):
        with pytest.raises(AlidadeError, match="--engine"):
            engine_from(name, **nothing | more)
