"""An archive as STAC: read by pystac, checked against the fields that the extensions allow, and what has no item."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pystac
import pytest
import shapely.geometry
import torch
import typer
from pystac.extensions.file import FileExtension
from pystac.extensions.mlm import MLMExtension
from typer.testing import CliRunner

from alidade.cli import export as command
from alidade.errors import AlidadeError, ArchiveError
from alidade.imagery.footprint import Footprint
from alidade.models.model import Model
from alidade.models.weights import WEIGHTS, save_model
from alidade.search import stac_item
from alidade.search.archive import Archive
from alidade.search.manifest import Coverage
from alidade.search.schema import TileRow
from alidade.search.stac_item import EMBEDDING, FILE, write_stac
from alidade.search.stac_model import MLM
from alidade.search.writer import ArchiveWriter
from search_scenes import tiny_model

# what the schema of the embedding extension v0.0.1 allows with its prefix
ON_ITEMS = {
    "emb:runtime_parameters", "emb:preprocessing", "emb:postprocessing", "emb:fit_for_use", "emb:spatial_coverage",
    "emb:uncertainty", "emb:quantization", "emb:energy",
}  # fmt: skip
ON_COLLECTIONS = {
    "emb:type", "emb:dimensions", "emb:chip_layout", "emb:temporal_resolution", "emb:fit_for_use", "emb:uncertainty",
}  # fmt: skip
PLACES = {"a": (8.0, 47.0, 8.5, 47.5), "b": (8.4, 47.4, 9.0, 48.0), "fiji": (179.5, -17.0, -179.5, -16.0)}


def tile(scene: str, i: int, box: tuple[float, float, float, float] | None, dim: int, time: bool = True) -> TileRow:
    return TileRow(
        id=f"{scene}-0-{i}",
        footprint=None if box is None else Footprint.box(box),
        time=datetime(2021, 6, 1 + i, 10, 30, tzinfo=UTC) if time else None,
        sensor="sentinel-2-l2a" if scene != "b" else "naip-rgb",
        gsd_m=10.0 if scene != "b" else 0.6,
        valid_share=1.0,
        cloud_share=None,
        source=f"{scene}.tif",
        source_id=scene,
        row=0,
        col=i,
        height=32,
        width=32,
        embedding=np.arange(1, dim + 1) * (i + 1.0) ** np.arange(dim),
    )


def fill(path: Path, model: Model, scenes: dict[str, list[TileRow]]) -> Archive:
    """One shard a scene."""
    with ArchiveWriter(path, model=model.identity, dim=model.dim, tile=32) as w:
        for scene, rows in scenes.items():
            coverage = Coverage(
                source=f"{scene}.tif",
                relative=f"../scenes/{scene}.tif",
                source_id=scene,
                total=len(rows),
                tiles=((0, len(rows)),),
                empty=(),
            )
            w.append(rows, [coverage])
    return Archive.open(path)


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny_model()


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory, model: Model) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_model(model.network, folder, dtype=torch.float32)
    return folder / WEIGHTS


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, model: Model, weights: Path) -> tuple[Archive, Path]:
    """Three shards, one scene over the antimeridian, a tile without a place; and the catalogue of it."""
    folder = tmp_path_factory.mktemp("stac")
    scenes = {name: [tile(name, i, box, model.dim) for i in range(2)] for name, box in PLACES.items()}
    scenes["b"].append(tile("b", 2, None, model.dim))
    archive = fill(folder / "lakes", model, scenes)
    write_stac(archive, model, folder / "out" / "stac", weights=weights)
    return archive, folder / "out" / "stac"


def read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8")))


def test_pystac_reads_the_item_and_finds_every_file(written: tuple[Archive, Path]) -> None:
    archive, out = written
    item = pystac.Item.from_file(out / "item.json")
    assert item.id == "lakes"
    assert item.common_metadata.start_datetime == datetime(2021, 6, 1, 10, 30, tzinfo=UTC)
    assert item.common_metadata.end_datetime == datetime(2021, 6, 3, 10, 30, tzinfo=UTC)
    assert set(item.assets) == {"embeddings", *(f"embeddings-part-{i:06d}" for i in numbers(archive))}
    assert Path(str(item.assets["embeddings"].get_absolute_href())).resolve() == (archive.path / "shards").resolve()
    for shard in archive.manifest.shards:
        asset = item.assets[f"embeddings-{Path(shard.file).stem}"]
        data = Path(str(asset.get_absolute_href())).read_bytes()
        assert asset.media_type == "application/vnd.apache.parquet"
        file = FileExtension.ext(asset)
        assert (file.size, file.checksum) == (len(data), "1220" + hashlib.sha256(data).hexdigest())
    collection = pystac.Collection.from_file(out / "collection.json")
    assert item.collection_id == collection.id == "lakes-embeddings"
    assert [found.id for found in collection.get_items()] == ["lakes"]
    assert collection.extent.spatial.bboxes == [list(item.bbox or ())]


def numbers(archive: Archive) -> list[int]:
    return [int(Path(shard.file).stem.removeprefix("part-")) for shard in archive.manifest.shards]


def test_the_item_keeps_to_the_embedding_extension(written: tuple[Archive, Path]) -> None:
    archive, out = written
    item, collection = read(out / "item.json"), read(out / "collection.json")
    assert item["stac_version"] == collection["stac_version"] == "1.0.0", "the version that its schema is for"
    assert set(item["stac_extensions"]) == {EMBEDDING, FILE}
    assert EMBEDDING in collection["stac_extensions"]
    properties = item["properties"]
    assert {name for name in properties if name.startswith("emb:")} <= ON_ITEMS
    assert {name for name in collection if name.startswith("emb:")} <= ON_COLLECTIONS
    assert not [n for asset in item["assets"].values() for n in asset if n.startswith("emb:")]
    assert (collection["emb:type"], collection["emb:dimensions"], collection["data_type"]) == (
        "chip", archive.header.dim, "float16",
    )  # fmt: skip
    assert set(collection["emb:chip_layout"]) <= {"layout_type", "chip_size", "stride", "grid_id", "grid_definition"}
    assert properties["emb:quantization"] == {
        "method": "cast", "original_dtype": "float32", "quantized_dtype": "float16",
    }  # fmt: skip
    assert (properties["data_type"], properties["gsd"], properties["alidade:rows"]) == ("float16", 0.6, 7)
    assert properties["alidade:sensors"] == ["naip-rgb", "sentinel-2-l2a"]
    assert item["assets"]["embeddings"]["roles"] == ["data"]
    for links in (item["links"], collection["links"]):
        assert {"emb:model", "emb:source-data"} <= {link["rel"] for link in links}
        assert [link["href"] for link in links if link["rel"] == "emb:model"] == ["./model.json"]
    scenes = [link["href"] for link in item["links"] if link["rel"] == "emb:source-data"]
    assert scenes == [f"../../scenes/{name}.tif" for name in ("a", "b", "fiji")]


def test_the_geometry_is_the_scenes_and_the_box_is_the_smallest(written: tuple[Archive, Path]) -> None:
    item = read(written[1] / "item.json")
    area = shapely.geometry.shape(item["geometry"])
    boxes = [shapely.box(*ring) for ring in ((8, 47, 8.5, 47.5), (8.4, 47.4, 9, 48))]
    fiji = [shapely.box(179.5, -17, 180, -16), shapely.box(-180, -17, -179.5, -16)]
    assert area.is_valid
    assert area.equals(shapely.union_all([*boxes, *fiji]))
    assert all(part.exterior.is_ccw for part in area.geoms)
    assert item["bbox"] == [8.0, -17.0, -179.5, 48.0], "eastward from Switzerland over the antimeridian to Fiji"


def test_the_model_item_is_what_mlm_asks_for(written: tuple[Archive, Path], model: Model, weights: Path) -> None:
    archive, out = written
    told = read(out / "model.json")
    assert MLM in told["stac_extensions"]
    assert told["stac_version"] == "1.1.0"
    # pystac knows an older version of the same fields
    known = {**told, "stac_extensions": ["https://stac-extensions.github.io/mlm/v1.4.0/schema.json"]}
    item = pystac.Item.from_dict(known, href=str(out / "model.json"))
    mlm = MLMExtension.ext(item)
    assert mlm.mlm_name == archive.header.model == item.id
    assert mlm.architecture == "Vision Transformer"
    assert (mlm.framework, [str(task) for task in mlm.tasks]) == ("PyTorch", ["similarity-search"])
    assert mlm.total_parameters == sum(p.numel() for p in model.network.parameters())
    (result,) = mlm.output
    assert result.result.shape == [-1, model.dim]
    bands = {band["name"] for band in told["assets"]["model"]["bands"]}
    inputs = {found.name: found for found in mlm.input}
    assert len(inputs) == sum(len(tower.normalizations) for tower in model.towers) == 5
    for tower in model.towers:
        for sensor, normalization in tower.normalizations.items():
            found = inputs[f"{sensor} through {tower.name}"]
            assert tuple(band if isinstance(band, str) else band.name for band in found.bands) == normalization.bands
            assert set(normalization.bands) <= bands, "every band that is named is described"
            assert found.input.shape == [-1, len(normalization.bands), -1, -1]
            # a list, one for each band; pystac's own getter takes it for a single one
            scaling = found.properties["value_scaling"]
            assert [(s["type"], s["mean"], s["stddev"]) for s in scaling] == [
                ("z-score", mean, std) for mean, std in zip(normalization.mean, normalization.std, strict=True)
            ]
    asset = item.assets["model"]
    assert asset.roles == ["mlm:model", "mlm:weights"]
    assert asset.extra_fields["mlm:artifact_type"] == "safetensors"
    assert Path(str(asset.get_absolute_href())).resolve() == weights.resolve()
    optical = [band for band in told["assets"]["model"]["bands"] if band.get("eo:common_name") == "red"]
    assert optical
    assert all(0.6 < band["eo:center_wavelength"] < 0.7 for band in optical)


def test_scaling_by_two_deviations_is_min_and_max() -> None:
    model = tiny_model()
    network = model.network
    towers = tuple(
        replace(t, normalizations={k: replace(n, method="two-sigma") for k, n in t.normalizations.items()})
        for t in network.config.towers
    )
    network.config = replace(network.config, towers=towers)
    told = stac_item.model_item(model, weights=Path("model.pt"), href="model.pt")
    first = towers[0].normalizations["sentinel-1-grd"]
    assert told["properties"]["mlm:input"][0]["value_scaling"][0] == {
        "type": "min-max",
        "minimum": first.mean[0] - 2 * first.std[0],
        "maximum": first.mean[0] + 2 * first.std[0],
    }
    assert told["assets"]["model"]["mlm:artifact_type"] == "torch.save"


def test_one_shard_is_the_embeddings_itself(tmp_path: Path, model: Model, weights: Path) -> None:
    archive = fill(tmp_path / "my lakes", model, {"a": [tile("a", 0, PLACES["a"], model.dim)]})
    item = read(write_stac(archive, model, tmp_path / "stac", weights=weights))
    (asset,) = item["assets"].values()
    assert asset["href"] == f"../my%20lakes/shards/{archive.manifest.shards[0].file}"
    assert asset["file:size"] == archive.manifest.shards[0].bytes
    assert item["geometry"]["type"] == "Polygon"
    assert item["bbox"] == list(PLACES["a"])


def test_rows_that_no_longer_count_are_told(tmp_path: Path, model: Model, weights: Path) -> None:
    path, rows = tmp_path / "lakes", [tile("a", 0, PLACES["a"], model.dim), tile("b", 0, PLACES["b"], model.dim)]
    coverage = [Coverage(source=s, relative=s, source_id=s, total=1, tiles=((0, 1),), empty=()) for s in ("a", "b")]
    with ArchiveWriter(path, model=model.identity, dim=model.dim, tile=32) as w:
        w.append(rows, coverage)
        w.retire("b", "b", "the file has changed")
    item = read(write_stac(Archive.open(path), model, tmp_path / "stac", weights=weights))
    assert item["properties"]["alidade:rows"] == 1
    assert "1 image tile, " in item["properties"]["description"]
    assert "The files also hold 1 row of scenes that have changed since" in item["properties"]["description"]
    assert item["bbox"] == list(PLACES["a"])
    assert [link["href"] for link in item["links"] if link["rel"] == "emb:source-data"] == ["../lakes/a"]


def test_tiles_without_a_place_have_no_geometry(tmp_path: Path, model: Model, weights: Path) -> None:
    archive = fill(tmp_path / "chips", model, {"a": [tile("a", 0, None, model.dim)]})
    path = write_stac(archive, model, tmp_path / "stac", weights=weights)
    assert read(path)["geometry"] is None
    assert "bbox" not in read(path)
    assert pystac.Item.from_file(path).geometry is None


def test_many_scenes_are_named_by_the_manifest(
    tmp_path: Path, model: Model, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stac_item, "_MOST_SCENES", 2)
    monkeypatch.setattr(stac_item, "_MOST_CORNERS", 8)
    archive = fill(tmp_path / "lakes", model, {name: [tile(name, 0, box, model.dim)] for name, box in PLACES.items()})
    item = read(write_stac(archive, model, tmp_path / "stac", weights=weights))
    (link,) = [link for link in item["links"] if link["rel"] == "emb:source-data"]
    assert (link["href"], link["title"]) == ("../lakes/manifest.jsonl", "3 scenes")
    assert shapely.geometry.shape(item["geometry"]).bounds == (-180.0, -17.0, 180.0, 48.0)


def test_what_has_no_item(tmp_path: Path, model: Model, weights: Path) -> None:
    timeless = fill(tmp_path / "chips", model, {"a": [tile("a", 0, PLACES["a"], model.dim, time=False)]})
    out = tmp_path / "stac"
    with pytest.raises(
        ArchiveError, match=r"chips: time of the imagery: got none of its tiles tells.*--time START/END"
    ):
        write_stac(timeless, model, out, weights=weights)
    start, end = datetime(2020, 1, 1, tzinfo=UTC), datetime(2020, 12, 31, tzinfo=UTC)
    with pytest.raises(ArchiveError, match="time of the imagery: got an open range"):
        write_stac(timeless, model, out, weights=weights, time=(start, None))
    item = read(write_stac(timeless, model, out, weights=weights, time=(start, end)))
    assert item["properties"]["end_datetime"] == "2020-12-31T00:00:00Z"
    other = tiny_model("other")
    with pytest.raises(ArchiveError, match=f"chips: model: got {other.identity}, expected {model.identity}"):
        write_stac(timeless, other, tmp_path / "none", weights=weights)
    with ArchiveWriter(tmp_path / "empty", model=model.identity, dim=model.dim, tile=32):
        pass
    with pytest.raises(ArchiveError, match="empty: got no tiles"):
        write_stac(Archive.open(tmp_path / "empty"), model, tmp_path / "none", weights=weights)
    assert not (tmp_path / "none").exists()
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ArchiveError, match="file: writing: got File exists"):
        write_stac(timeless, model, tmp_path / "file", weights=weights, time=(start, end))
    assert (tmp_path / "file").read_text() == "mine"


def test_a_damaged_shard_is_not_described(tmp_path: Path, model: Model, weights: Path) -> None:
    archive = fill(tmp_path / "lakes", model, {"a": [tile("a", 0, PLACES["a"], model.dim)]})
    shard = archive.shard_path(archive.manifest.shards[0])
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    with pytest.raises(ArchiveError, match="SHA-256 digest differs"):
        write_stac(archive, model, tmp_path / "stac", weights=weights)
    assert not (tmp_path / "stac").exists()


def test_the_command(tmp_path: Path, model: Model, weights: Path) -> None:
    fill(tmp_path / "lakes", model, {"a": [tile("a", 0, PLACES["a"], model.dim)]})
    app = typer.Typer()
    command.register(app)
    asked = [str(tmp_path / "lakes"), "--stac", str(tmp_path / "stac"), "--model", str(weights.parent)]
    done = CliRunner().invoke(app, asked)
    assert (done.exit_code, done.exception) == (0, None)
    assert f"1 tile described: {tmp_path / 'stac' / 'item.json'}" in done.output
    assert {path.name for path in (tmp_path / "stac").iterdir()} == {"item.json", "collection.json", "model.json"}
    done = CliRunner().invoke(app, [*asked, "--json"])
    assert json.loads(done.stdout)["rows"] == 1
    done = CliRunner().invoke(app, [*asked[:3]])
    assert isinstance(done.exception, AlidadeError), "the shipped model did not make it"
    assert "lakes: model: got alidade-tiny-" in str(done.exception)
