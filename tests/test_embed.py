"""Embedding into an archive: every tile once, nothing of what failed, a second time only what is missing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine

from alidade.errors import AlidadeError, ArchiveError, ModelError, RasterError
from alidade.imagery.bands import Sensor, Unit
from alidade.imagery.files import Declared, open_raster, write_geotiff
from alidade.imagery.grid import Grid
from alidade.imagery.normalize import Normalization
from alidade.imagery.raster import Raster
from alidade.imagery.sensors import sensor
from alidade.imagery.windows import Window, read_tiles, tile_windows
from alidade.models.config import ScaleAlibiConfig, TowerConfig
from alidade.models.model import Model
from alidade.models.positions import PositionConfig
from alidade.models.scale_alibi import ScaleAlibi, initialise
from alidade.search.archive import Archive
from alidade.search.embed import Failure, embed
from alidade.search.writer import ArchiveWriter
from search_scenes import TILE, make_raster, make_scene, rows_of, tiny_model, without_override


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny_model()


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    folder = tmp_path / "scenes"
    (folder / "deeper").mkdir(parents=True)
    make_scene(folder / "a.tif", 1)
    make_scene(folder / "b.TIFF", 2, height=32, width=32)
    make_scene(folder / "deeper" / "s1.tif", 3, height=64, width=64, sensor_id="sentinel-1-rtc")
    make_scene(folder / "deeper" / "s2.tif", 4, height=40, width=64, sensor_id="sentinel-2-l2a")
    (folder / "readme.txt").write_text("not a raster")
    return folder


def test_every_tile_of_every_source_becomes_one_row_with_its_facts(scenes: Path, tmp_path: Path, model: Model) -> None:
    summary = embed([scenes], tmp_path / "a", model)
    assert summary.failures == ()
    assert [Path(s).name for s in summary.embedded] == ["a.tif", "b.TIFF", "s1.tif", "s2.tif"]
    assert (summary.tiles, summary.rows, summary.nodata_tiles) == (12 + 1 + 4 + 4, 21, 0)
    assert 0 < summary.model_share < 1
    assert summary.sentence().startswith("21 tiles of 4 sources embedded in ")
    assert len(list((tmp_path / "a" / "shards").iterdir())) == 1, "tiles of several small scenes share a shard"
    rows = rows_of(tmp_path / "a").to_pylist()
    assert len({r["id"] for r in rows}) == 21
    for path in summary.embedded:
        mine = [r for r in rows if r["source"] == path]
        with open_raster(path) as file:
            windows = tile_windows(file.grid.height, file.grid.width, TILE)
            assert {(r["row"], r["col"], r["height"], r["width"]) for r in mine} == {
                (w.row, w.col, w.height, w.width) for w in windows
            }
            for row in mine:
                window = Window(**{n: row[n] for n in ("row", "col", "height", "width")})
                ground = file.grid.window(window.row, window.col, window.height, window.width)
                assert row["geometry"] == ground.footprint().wkb()
                assert tuple(row["bbox"].values()) == ground.footprint().bbox()
                assert row["gsd_m"] == pytest.approx(ground.mean_gsd_m())
                assert (row["sensor"], row["time"], row["model"]) == (
                    file.sensor.id,
                    file.time,
                    model.identity,
                )
                assert row["valid_share"] == 1.0
                assert (row["cloud_share"] is None) == (file.sensor.unit is not Unit.REFLECTANCE)
                tile = file.read().crop(Window(row=window.row, col=window.col, height=TILE, width=TILE))
                np.testing.assert_allclose(row["embedding"], model.embed(tile)[0], atol=2e-3)


def test_a_second_run_embeds_only_what_is_missing(scenes: Path, tmp_path: Path, model: Model) -> None:
    embed([scenes / "a.tif"], tmp_path / "a", model)
    before = {p: p.read_bytes() for p in (tmp_path / "a" / "shards").iterdir()}
    make_scene(scenes / "c.tif", 9)
    second = embed([scenes], tmp_path / "a", model)
    assert (second.tiles, [Path(s).name for s in second.skipped]) == (1 + 12 + 4 + 4, ["a.tif"])
    assert "1 source already there" in second.sentence()
    third = embed([scenes], tmp_path / "a", model)
    assert (third.tiles, len(third.skipped), third.rows) == (0, 5, 33)
    assert all(path.read_bytes() == data for path, data in before.items())


def test_a_file_is_one_source_however_it_is_named(
    scenes: Path, tmp_path: Path, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link.tif").symlink_to(scenes / "a.tif")
    first = embed(["scenes/a.tif", scenes, "link.tif"], "a", model)
    assert (len(first.embedded), first.rows) == (4, 21)
    second = embed([scenes / "a.tif", "./scenes/../scenes/b.TIFF", "link.tif"], tmp_path / "a", model)
    assert (second.tiles, len(second.skipped)) == (0, 2)
    assert {r["source"] for r in rows_of(tmp_path / "a").to_pylist()} >= {
        "scenes/a.tif",
        str(scenes / "b.TIFF"),
    }


def test_a_changed_file_replaces_its_rows(scenes: Path, tmp_path: Path, model: Model) -> None:
    embed([scenes], tmp_path / "a", model)
    old = {r["id"] for r in rows_of(tmp_path / "a").to_pylist() if r["source"].endswith("a.tif")}
    make_scene(scenes / "a.tif", 5, height=48)
    again = embed([scenes], tmp_path / "a", model)
    assert (again.tiles, again.rows, len(again.skipped)) == (8, 21 - 12 + 8, 3)
    new = {r["id"] for r in rows_of(tmp_path / "a").to_pylist() if r["source"].endswith("a.tif")}
    assert len(new) == 8
    assert not new & old


def test_another_declaration_about_a_file_replaces_its_rows(tmp_path: Path, model: Model) -> None:
    make_scene(tmp_path / "s2.tif", 4, height=32, width=32, sensor_id="sentinel-2-l2a")
    vectors = []
    for declared in (Declared(), Declared(offset=-0.1), Declared(offset=-0.1)):
        summary = embed([tmp_path / "s2.tif"], tmp_path / "a", model, declared=declared)
        vectors.append(rows_of(tmp_path / "a")["embedding"].to_pylist())
    assert len(vectors[0]) == len(vectors[1]) == 1
    assert vectors[0] != vectors[1]
    assert (summary.tiles, len(summary.skipped)) == (0, 1)


def test_bad_sources_are_listed_and_the_others_go_on(scenes: Path, tmp_path: Path, model: Model) -> None:
    whole = (scenes / "a.tif").read_bytes()
    (scenes / "cut.tif").write_bytes(whole[: len(whole) * 6 // 10])
    (scenes / "text.tif").write_text("hello")
    four = make_raster(6, sensor_id="sentinel-2-l2a").select(["nir", "B11"])
    write_geotiff(scenes / "nir.tif", four)
    told: list[Failure] = []

    class Watch:
        tiles = 0

        def started(self, *, tiles: int, sources: int) -> None:
            self.planned = (tiles, sources)

        def advanced(self, *, tiles: int, source: str) -> None:
            self.tiles += tiles

        def failed(self, failure: Failure) -> None:
            told.append(failure)

    watch = Watch()
    summary = embed([scenes, "none.tif"], tmp_path / "a", model, progress=watch)
    failed = {Path(f.source).name: f.message for f in summary.failures}
    assert set(failed) == {"cut.tif", "text.tif", "nir.tif", "none.tif"}
    assert set(told) == set(summary.failures)
    assert "no tower for this imagery" in failed["nir.tif"]
    assert all("expected" in m and "\n" not in m for m in failed.values())
    assert summary.rows == 21
    assert {Path(r["source"]).name for r in rows_of(tmp_path / "a").to_pylist()}.isdisjoint(failed)
    assert watch.planned[0] >= watch.tiles >= 21
    make_scene(scenes / "cut.tif", 1)
    assert embed([scenes], tmp_path / "a", model).tiles == 12


def test_what_is_damaged_in_its_middle_leaves_no_rows_even_when_some_were_acknowledged(
    tmp_path: Path, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("alidade.search.embed.SHARD_ROWS", 8)
    bad = make_scene(tmp_path / "bad.tif", 1, height=2048, width=64)
    with rasterio.open(bad) as file:
        at = int(file.get_tag_item("BLOCK_OFFSET_0_5", "TIFF", bidx=1))
    data = bytearray(bad.read_bytes())
    data[at : at + 20] = b"\xff" * 20
    bad.write_bytes(data)
    make_scene(tmp_path / "good.tif", 2)
    # small panels, so that the first rows are acknowledged before the damage is reached
    monkeypatch.setitem(read_tiles.__kwdefaults__, "max_pixels", 64 * 64 * 4)
    summary = embed([tmp_path], tmp_path / "a", model, batch=4)
    assert [Path(f.source).name for f in summary.failures] == ["bad.tif"]
    log = (tmp_path / "a" / "manifest.jsonl").read_text()
    assert '"retire"' in log
    assert (summary.tiles, summary.rows) == (12, 12)
    assert {Path(r["source"]).name for r in rows_of(tmp_path / "a").to_pylist()} == {"good.tif"}


def test_when_nothing_can_be_read_no_archive_is_made(tmp_path: Path, model: Model) -> None:
    (tmp_path / "text.tif").write_text("hello")
    summary = embed([tmp_path / "text.tif"], tmp_path / "a", model)
    assert (len(summary.failures), summary.rows, summary.archive_made) == (1, 0, False)
    assert summary.sentence().endswith("; 1 source failed; no archive was made.")
    assert not (tmp_path / "a").exists()
    (tmp_path / "empty").mkdir()
    with pytest.raises(RasterError, match=r"paths to embed: got .*empty, expected GeoTIFF files"):
        embed([tmp_path / "empty"], tmp_path / "a", model)


def test_tiles_without_data_are_left_out_and_not_tried_again(tmp_path: Path, model: Model) -> None:
    raster = make_raster(4, height=64, width=96, sensor_id="sentinel-2-l2a")
    raster.pixels[:, :, 32:] = 0
    raster.pixels[:, 0:2, 64:66] = 900
    raster.pixels[:, 40:64, 0:32] = 0
    write_geotiff(tmp_path / "swath.tif", replace(raster, valid=(raster.pixels != 0).any(axis=0)))
    summary = embed([tmp_path / "swath.tif"], tmp_path / "a", model)
    assert summary.failures == ()
    assert (summary.tiles, summary.nodata_tiles) == (3, 3), "four valid pixels are few, and not none"
    rows = rows_of(tmp_path / "a").to_pylist()
    shares = {(r["row"], r["col"]): r["valid_share"] for r in rows}
    assert shares == {(0, 0): 1.0, (32, 0): 0.25, (0, 64): 4 / 1024}
    assert all(np.linalg.norm(r["embedding"]) == pytest.approx(1, abs=1e-3) for r in rows)
    assert "3 tiles without data left out" in summary.sentence()
    again = embed([tmp_path / "swath.tif"], tmp_path / "a", model)
    assert (again.tiles, again.nodata_tiles, len(again.skipped)) == (0, 0, 1)


def test_a_tile_whose_only_values_are_no_values_counts_as_without_data(tmp_path: Path, model: Model) -> None:
    # linear power of 0 has no decibels: valid by the file's own mask, and not one valid pixel for the model
    raster = make_raster(3, height=32, width=96, sensor_id="sentinel-1-rtc")
    power = (10 ** (raster.pixels / 10)).astype(np.float32)
    power[:, :, 32:64] = 0
    power[:, :, 64:] = 0
    power[:, 5, 70] = 0.1
    encodings = tuple(replace(e, unit=Unit.POWER) for e in raster.encodings)
    write_geotiff(tmp_path / "s1.tif", replace(raster, pixels=power, encodings=encodings))
    summary = embed([tmp_path / "s1.tif"], tmp_path / "a", model)
    assert (summary.failures, summary.tiles, summary.nodata_tiles) == ((), 2, 1)
    assert sorted(r["col"] for r in rows_of(tmp_path / "a").to_pylist()) == [0, 64]


@pytest.mark.parametrize("side", [0, -32, 7, 100_000])
def test_a_tile_side_that_the_model_cannot_take_is_refused_first(tmp_path: Path, model: Model, side: int) -> None:
    make_scene(tmp_path / "a.tif", 1)
    least, most = model.tile_range
    with pytest.raises(ArchiveError, match=rf"tile side: got {side} px, expected {least} to {most} px"):
        embed([tmp_path / "a.tif"], tmp_path / "a", model, tile=side)
    assert not (tmp_path / "a").exists()


def test_a_folder_that_must_not_be_looked_into_is_a_failure(scenes: Path, tmp_path: Path, model: Model) -> None:
    (scenes / "deeper").chmod(0)
    try:
        with without_override():
            summary = embed([scenes], tmp_path / "a", model)
            alone = embed([scenes / "deeper"], tmp_path / "b", model)
    finally:
        (scenes / "deeper").chmod(0o755)
    assert (summary.tiles, summary.rows) == (13, 13)
    for failure in (*summary.failures, *alone.failures):
        assert failure.source == str(scenes / "deeper")
        assert "deeper: folder: got Permission denied, expected a folder that may be looked into" in failure.message
    assert len(summary.failures) == len(alone.failures) == 1
    assert not (tmp_path / "b").exists()


def test_a_scene_without_any_data_is_a_failure_and_leaves_nothing(tmp_path: Path, model: Model) -> None:
    raster = make_raster(4, height=64, width=64, sensor_id="sentinel-2-l2a")
    raster.pixels[:] = 0
    empty = replace(raster, valid=np.zeros((64, 64), dtype=np.bool_))
    write_geotiff(tmp_path / "empty.tif", empty)
    write_geotiff(tmp_path / "full.tif", make_raster(4, height=64, width=64, sensor_id="sentinel-2-l2a"))
    for _ in range(2):
        summary = embed([tmp_path / "empty.tif", tmp_path / "full.tif"], tmp_path / "a", model)
        (failure,) = summary.failures
        assert "empty.tif: pixels: got no valid pixel in any of its 4 tiles" in failure.message
        assert summary.rows == 4


def test_a_raster_without_crs_has_rows_without_a_place(tmp_path: Path, model: Model) -> None:
    raster = make_raster(1, height=32, width=64)
    grid = Grid(crs=None, transform=Affine.identity(), width=64, height=32, gsd_override_m=0.3)
    write_geotiff(tmp_path / "plain.tif", replace(raster, grid=grid))
    assert embed([tmp_path / "plain.tif"], tmp_path / "a", model).tiles == 2
    for row in rows_of(tmp_path / "a").to_pylist():
        assert (row["geometry"], row["bbox"]) == (None, None)
        assert row["gsd_m"] == pytest.approx(0.3)


def test_clouds_are_told_from_bands_that_the_model_does_not_read(tmp_path: Path) -> None:
    raster = make_raster(4, height=32, width=64, sensor_id="sentinel-2-l2a")
    raster.pixels[:, :, :32] = 800
    raster.pixels[:, :, 32:] = 6000
    write_geotiff(tmp_path / "s2.tif", raster)
    bands = ("nir",)
    normalization = Normalization.for_sensor(sensor("sentinel-2-l2a"), bands)
    tower = TowerConfig(name="nir", bands=bands, depth=1, patch=8, normalizations={"sentinel-2-l2a": normalization})
    network = ScaleAlibi(
        ScaleAlibiConfig(name="nir", width=32, heads=4, towers=(tower,), position=PositionConfig(), tile=TILE)
    )
    initialise(network, seed=0)
    embed([tmp_path / "s2.tif"], tmp_path / "a", Model(network, dtype=torch.float32))
    shares = {r["col"]: r["cloud_share"] for r in rows_of(tmp_path / "a").to_pylist()}
    assert shares == {0: 0.0, 32: 1.0}


def test_an_archive_of_another_model_or_tile_side_is_refused_and_unchanged(
    scenes: Path, tmp_path: Path, model: Model
) -> None:
    embed([scenes / "b.TIFF"], tmp_path / "a", model)
    other = tiny_model("other")
    with pytest.raises(ArchiveError, match=f"model: got {other.identity}, expected {model.identity}"):
        embed([scenes], tmp_path / "a", other)
    with pytest.raises(ArchiveError, match="tile side: got 64 px, expected 32 px"):
        embed([scenes], tmp_path / "a", model, tile=64)
    assert Archive.open(tmp_path / "a").rows == 1


def test_out_that_is_a_file_and_a_second_writer_are_refused(scenes: Path, tmp_path: Path, model: Model) -> None:
    with pytest.raises(ArchiveError, match="got a file"):
        embed([scenes], scenes / "readme.txt", model)
    with (
        ArchiveWriter(tmp_path / "a", model=model.identity, dim=model.dim, tile=TILE),
        pytest.raises(ArchiveError, match="one writer at a time"),
    ):
        embed([scenes], tmp_path / "a", model)


def test_a_large_scene_spans_several_shards(tmp_path: Path, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alidade.search.embed.SHARD_ROWS", 20)
    make_scene(tmp_path / "big.tif", 1, height=320, width=192)
    summary = embed([tmp_path / "big.tif"], tmp_path / "a", model, batch=8)
    assert summary.rows == 60
    archive = Archive.open(tmp_path / "a")
    assert [s.rows for s in archive.manifest.shards] == [24, 24, 12], "whole batches, so at least 20"


def test_files_of_several_sensors_in_mixed_order_share_batches(tmp_path: Path, model: Model) -> None:
    sizes: list[tuple[int, int]] = []

    class Counting:
        identity, dim, tile, tile_range = model.identity, model.dim, model.tile, model.tile_range

        def bands_for(self, sensor: Sensor, available: Sequence[str]) -> tuple[str, ...]:
            return model.bands_for(sensor, available)

        def embed(self, rasters: list[Raster], *, batch_size: int = 16) -> np.ndarray:
            sizes.append((len(rasters), batch_size))
            assert len({r.sensor.id for r in rasters}) == 1
            return model.embed(rasters, batch_size=batch_size)

    for seed in range(12):
        kind = ("naip-rgb", "sentinel-1-rtc")[seed % 2]
        make_scene(tmp_path / f"{seed:02d}.tif", seed, height=32, width=32, sensor_id=kind)
    summary = embed([tmp_path], tmp_path / "a", Counting(), batch=4)
    assert (summary.rows, sizes) == (12, [(4, 4), (2, 4), (4, 4), (2, 4)])


def test_the_batch_reaches_the_network_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, sizes = tiny_model(), []
    run = model.network.run
    monkeypatch.setattr(model.network, "run", lambda tokens: sizes.append(len(tokens.features)) or run(tokens))
    make_scene(tmp_path / "a.tif", 1, height=160, width=320)
    embed([tmp_path / "a.tif"], tmp_path / "a", model, batch=40)
    assert sizes == [40, 10], "not cut into the model's own 16"


def test_a_fault_of_the_model_fails_its_source_only(tmp_path: Path, model: Model) -> None:
    class Picky:
        identity, dim, tile, tile_range = model.identity, model.dim, model.tile, model.tile_range

        def bands_for(self, sensor: Sensor, available: Sequence[str]) -> tuple[str, ...]:
            return model.bands_for(sensor, available)

        def embed(self, rasters: list[Raster], *, batch_size: int = 16) -> np.ndarray:
            if any(r.source.endswith("1.tif") for r in rasters):
                raise ModelError("size", got="too much", expected="less", next_step="Cut it.")
            return model.embed(rasters, batch_size=batch_size)

    for seed in range(3):
        make_scene(tmp_path / f"{seed}.tif", seed, height=32, width=64)
    summary = embed([tmp_path], tmp_path / "a", Picky())
    assert [f.message for f in summary.failures] == ["size: got too much, expected less. Cut it."]
    assert [Path(s).name for s in summary.embedded] == ["0.tif", "2.tif"]
    assert summary.rows == 4


def test_a_programming_error_in_the_reader_is_not_swallowed(
    scenes: Path, tmp_path: Path, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(raster: Raster) -> float:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("alidade.search.reader.reflectance_cloud_share", broken)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        embed([scenes], tmp_path / "a", model)


def test_archive_and_scenes_can_be_moved_together(scenes: Path, tmp_path: Path, model: Model) -> None:
    (tmp_path / "old").mkdir()
    shutil.move(scenes, tmp_path / "old" / "scenes")
    embed([tmp_path / "old" / "scenes"], tmp_path / "old" / "a", model)
    os.rename(tmp_path / "old", tmp_path / "new")
    again = embed([tmp_path / "new" / "scenes"], tmp_path / "new" / "a", model)
    assert (again.tiles, len(again.skipped)) == (0, 4)


def test_errors_of_embedding_are_the_users_kind(tmp_path: Path, model: Model) -> None:
    with pytest.raises(AlidadeError, match="paths to embed: got nothing"):
        embed([], tmp_path / "a", model)
