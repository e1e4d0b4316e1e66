"""The store's bench on a small scene: its rows are there, and its generated scene is a real one."""

from __future__ import annotations

from pathlib import Path

import pytest

from alidade.imagery.files import open_raster
from alidade.search import store_bench


def test_the_generated_scene_is_read_as_sentinel_2(tmp_path: Path) -> None:
    path = store_bench.write_scene(tmp_path / "scene.tif", 300)
    with open_raster(path) as file:
        assert (file.sensor.id, len(file.bands), file.block_shape) == ("sentinel-2-l1c", 13, (256, 256))
        raster = file.read()
    assert raster.valid.all()
    assert 0.03 < raster.physical().min() < raster.physical().max() < 0.35


def test_scanning_rows_come_with_their_targets(tmp_path: Path) -> None:
    rows = {r.name: r for r in store_bench.scan_rows(tmp_path / "a", 5000)}
    scan = rows["exact scan, 5,000 rows"]
    assert scan.value > 0
    assert scan.target == "<= 0.75 ms"
    assert scan.ok == (scan.value <= 0.75)
    assert rows["shard size"].value == pytest.approx(512 + 25, abs=30)
    assert not (tmp_path / "a").exists()


def test_reading_rows_compare_two_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_bench, "_READ_SECONDS", 0.2)
    path = store_bench.write_scene(tmp_path / "scene.tif", 512)
    aligned, scattered, ratio = store_bench.reading_rows(path, 64)
    assert ratio.value == pytest.approx(aligned.value / scattered.value)
