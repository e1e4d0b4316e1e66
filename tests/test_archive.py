"""The archive directory: what is acknowledged stays, the rest does not exist, and strangers are refused."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import shapely

from alidade.errors import ArchiveError
from alidade.imagery.footprint import Footprint
from alidade.search.archive import Archive
from alidade.search.manifest import Coverage, ranges_of
from alidade.search.scan import Scanner
from alidade.search.schema import TileRow, parse_table, rows_to_table, table_bytes, wkb_rings
from alidade.search.writer import ArchiveWriter
from search_scenes import without_override

MODEL, DIM, TILE = "tiny-0123456789ab", 4, 32


def make_row(source_id: str, index: int, footprint: Footprint | None = None, **changes: object) -> TileRow:
    rng = np.random.default_rng([index, *source_id.encode()])
    values: dict[str, object] = {
        "id": f"{source_id}-0-{index * TILE}",
        "footprint": footprint or Footprint.box((8.0 + index, 47.0, 9.0 + index, 48.0)),
        "time": datetime(2021, 6, 1 + index % 28, tzinfo=UTC),
        "sensor": "naip-rgb",
        "gsd_m": 1.0,
        "valid_share": 1.0,
        "cloud_share": None,
        "source": f"{source_id}.tif",
        "source_id": source_id,
        "row": 0,
        "col": index * TILE,
        "height": TILE,
        "width": TILE,
        "embedding": rng.standard_normal(DIM).astype(np.float32),
    }
    return TileRow(**{**values, **changes})  # type: ignore[arg-type]


def cover(source_id: str, tiles: range, total: int = 10, empty: range = range(0)) -> Coverage:
    return Coverage(
        source=f"{source_id}.tif",
        relative=f"../{source_id}.tif",
        source_id=source_id,
        total=total,
        tiles=ranges_of(tiles),
        empty=ranges_of(empty),
    )


def writer(path: Path, **changes: object) -> ArchiveWriter:
    return ArchiveWriter(path, **{"model": MODEL, "dim": DIM, "tile": TILE, **changes})  # type: ignore[arg-type]


def append(w: ArchiveWriter, source_id: str, tiles: range, total: int = 10) -> None:
    w.append([make_row(source_id, i) for i in tiles], [cover(source_id, tiles, total)])


def ids(path: Path) -> list[str]:
    return [i for table in Archive.open(path).tables() for i in table["id"].to_pylist()]


def test_what_is_appended_is_read_back(tmp_path: Path) -> None:
    with writer(tmp_path / "a") as w:
        append(w, "one", range(3))
        append(w, "two", range(2))
        assert w.repairs == ()
    archive = Archive.open(tmp_path / "a")
    assert archive.rows == 5
    assert (archive.header.model, archive.header.dim, archive.header.tile) == (MODEL, DIM, TILE)
    assert archive.header.created_by.startswith("alidade ")
    first = next(archive.tables())
    row, made = first.to_pylist()[1], make_row("one", 1)
    for name in (
        "id",
        "time",
        "sensor",
        "gsd_m",
        "valid_share",
        "cloud_share",
        "source",
        "source_id",
        "row",
        "col",
    ):
        assert row[name] == getattr(made, name), name
    unit = made.embedding / np.linalg.norm(made.embedding)
    np.testing.assert_array_equal(np.array(row["embedding"], np.float16), unit.astype(np.float16))


def test_a_shard_is_geoparquet_1_1_that_others_can_read(tmp_path: Path) -> None:
    crossing = Footprint.box((179.0, -17.0, -179.0, -16.0))
    rows = [make_row("s", 0), make_row("s", 1, crossing)]
    with writer(tmp_path / "a") as w:
        w.append([*rows, make_row("s", 2, footprint=None)], [cover("s", range(3))])
    (path,) = (tmp_path / "a" / "shards").iterdir()
    file = pq.ParquetFile(path)
    geo = json.loads(file.schema_arrow.metadata[b"geo"])
    column = geo["columns"]["geometry"]
    assert (geo["version"], geo["primary_column"]) == ("1.1.0", "geometry")
    assert column["encoding"] == "WKB"
    assert "crs" not in column
    assert column["edges"] == "planar"
    assert column["geometry_types"] == ["MultiPolygon", "Polygon"]
    assert column["covering"]["bbox"]["xmax"] == ["bbox", "xmax"]
    assert column["bbox"] == [-180.0, -17.0, 180.0, 48.0]
    assert file.metadata.row_group(0).column(1).compression == "ZSTD"
    table = file.read()
    plain, multi = (shapely.from_wkb(g) for g in table["geometry"].to_pylist()[:2])
    assert plain.equals(shapely.box(8, 47, 9, 48))
    assert plain.exterior.is_ccw
    assert multi.equals(shapely.union(shapely.box(179, -17, 180, -16), shapely.box(-180, -17, -179, -16)))
    assert table["bbox"].to_pylist()[1] == {"xmin": 179.0, "ymin": -17.0, "xmax": -179.0, "ymax": -16.0}
    assert wkb_rings(table["geometry"].to_pylist()[1]) == crossing.rings
    assert str(table.schema.field("embedding").type).startswith("fixed_size_list<")
    assert len(table["embedding"].to_pylist()[0]) == DIM
    assert str(table.schema.field("time").type) == "timestamp[ms, tz=UTC]"


def test_rows_without_a_place_have_null_geometry_and_box(tmp_path: Path) -> None:
    with writer(tmp_path / "a") as w:
        row = make_row("s", 0)
        object.__setattr__(row, "footprint", None)
        w.append([row], [cover("s", range(1))])
    (table,) = Archive.open(tmp_path / "a").tables()
    assert table["geometry"].to_pylist() == table["bbox"].to_pylist() == [None]
    _, note = parse_table(next((tmp_path / "a" / "shards").iterdir()).read_bytes(), "shard")
    assert note["model"] == MODEL


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model": "other-ffff"}, f"got other-ffff, expected {MODEL}"),
        ({"tile": 64}, "got 64 px, expected 32 px"),
    ],
)
def test_another_model_or_tile_side_is_refused_by_name(tmp_path: Path, changes: dict[str, object], told: str) -> None:
    with writer(tmp_path / "a") as w:
        append(w, "one", range(2))
    with pytest.raises(ArchiveError, match=told), writer(tmp_path / "a", **changes):
        pass
    assert len(ids(tmp_path / "a")) == 2


def test_two_writers_at_once_are_refused_and_readers_are_not(tmp_path: Path) -> None:
    with writer(tmp_path / "a") as first:
        append(first, "one", range(2))
        with pytest.raises(ArchiveError, match="another process that is writing"), writer(tmp_path / "a"):
            pass
        assert len(ids(tmp_path / "a")) == 2
        append(first, "two", range(2))
    with writer(tmp_path / "a") as second:
        assert second.manifest.rows == 4


def test_a_file_or_a_foreign_directory_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.txt").write_text("mine")
    for name, told in (("file", "got a file"), ("folder", "directory with other content")):
        with pytest.raises(ArchiveError, match=told), writer(tmp_path / name):
            pass
    assert (tmp_path / "file").read_text() == "mine"
    assert [p.name for p in (tmp_path / "folder").iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(("name", "told"), [("none", "no such directory"), ("file", "a file"), ("dir", "no archive")])
def test_opening_what_is_no_archive(tmp_path: Path, name: str, told: str) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "dir").mkdir()
    with pytest.raises(ArchiveError, match=told):
        Archive.open(tmp_path / name)


def test_a_later_format_is_refused(tmp_path: Path) -> None:
    with writer(tmp_path / "a"):
        pass
    path = tmp_path / "a" / "archive.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 99}))
    with pytest.raises(ArchiveError, match="format: got 99, expected 1"):
        Archive.open(tmp_path / "a")


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("dim", 0, "ValueError: 0 instead of a whole number from 1 to 65536"),
        ("dim", 10**9, "ValueError: 1000000000 instead of"),
        ("dim", "4", "ValueError: '4' instead of"),
        ("dim", 4.0, "ValueError: 4.0 instead of"),
        ("dim", True, "ValueError: True instead of"),
        ("tile", 0, "ValueError: 0 instead of a whole number from 1"),
        ("tile", None, "ValueError: None instead of"),
        ("model", 7, "ValueError: 7 instead of text"),
        ("model", None, "ValueError: None instead of text"),
        ("created_by", [], "ValueError: .* instead of text"),
        ("dtype", "float64", "ValueError: dtype 'float64' instead of 'float16'"),
        ("format", "1", "ValueError: '1' instead of"),
    ],
)
def test_a_header_that_cannot_be_true_is_refused(tmp_path: Path, name: str, value: object, told: str) -> None:
    with writer(tmp_path / "a") as w:
        append(w, "one", range(2))
    path = tmp_path / "a" / "archive.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), name: value}))
    with pytest.raises(ArchiveError, match=rf"archive.json: got {told}"):
        Archive.open(tmp_path / "a")
    with pytest.raises(ArchiveError, match=rf"archive.json: got {told}"), writer(tmp_path / "a"):
        pass


@pytest.mark.parametrize("content", [b"[]", b"7", b"{}", b"null", b"\xff\xfe", b"{", b"", b"[" * 200_000])
def test_a_header_that_is_something_else_is_one_error(tmp_path: Path, content: bytes) -> None:
    with writer(tmp_path / "a"):
        pass
    (tmp_path / "a" / "archive.json").write_bytes(content)
    with pytest.raises(ArchiveError, match=r"archive.json: got \w+: .*expected the JSON that alidade wrote"):
        Archive.open(tmp_path / "a")


def acknowledge(path: Path, data: bytes, **changes: object) -> None:
    """Put other bytes in the place of the archive's only shard, and say so in the manifest."""
    (path / "shards" / "part-000001.parquet").write_bytes(data)
    event = json.loads((path / "manifest.jsonl").read_text())
    event |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), **changes}
    (path / "manifest.jsonl").write_text(json.dumps(event) + "\n")


def test_rows_that_only_the_manifest_knows_ask_for_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with writer(tmp_path / "a") as w:
        append(w, "one", range(2))
    data = (tmp_path / "a" / "shards" / "part-000001.parquet").read_bytes()
    many = 900_000_000
    claim = {"source": "s", "relative": "s", "source_id": "one", "total": many, "tiles": [[0, many]], "empty": []}
    acknowledge(tmp_path / "a", data, rows=many, coverage=[claim])
    archive = Archive.open(tmp_path / "a")
    monkeypatch.setattr(np, "empty", lambda *_: pytest.fail("memory was asked for"))
    with pytest.raises(ArchiveError, match=r"part-000001.parquet: got 2 rows instead of 900,000,000"):
        Scanner(archive)


@pytest.mark.parametrize("kind", ["text", "other columns", "other type", "other sources", "nulls"])
def test_a_foreign_shard_is_named(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a"
    with writer(path) as w:
        append(w, "one", range(2))
    table, note = parse_table((path / "shards" / "part-000001.parquet").read_bytes(), "shard")
    if kind == "other columns":
        table = table.drop_columns(["valid_share"])
    elif kind == "other type":
        at = table.schema.get_field_index("row")
        table = table.set_column(at, "row", table["row"].cast(pa.string()))
    elif kind == "other sources":
        at = table.schema.get_field_index("source_id")
        table = table.set_column(at, table.schema.field("source_id"), pa.array(["one", "two"]).dictionary_encode())
    elif kind == "nulls":
        at = table.schema.get_field_index("gsd_m")
        table = table.set_column(at, "gsd_m", pa.array([1.0, None], pa.float32()))
    acknowledge(path, b"not parquet" if kind == "text" else table_bytes(table, note))
    if kind == "other sources":
        # the manifest counts two rows of "one" and two of "two", which is retired
        event = json.loads((path / "manifest.jsonl").read_text())
        assert event["rows"] == 2
        event["coverage"] += [{**event["coverage"][0], "source_id": "two", "tiles": [], "empty": []}]
        retired = {"kind": "retire", "source": "two.tif", "source_id": "two", "why": "changed"}
        (path / "manifest.jsonl").write_text(json.dumps(event) + "\n" + json.dumps(retired) + "\n")
    with pytest.raises(ArchiveError, match=r"part-000001\.parquet"):
        Scanner(Archive.open(path))


@pytest.mark.parametrize(
    ("place", "told"),
    [
        (".", r"a/\.lock: writing"),
        ("shards", r"part-000002\.parquet: writing"),
        ("manifest.jsonl", r"manifest\.jsonl: "),
        ("archive.json", r"archive\.json: reading"),
        (".lock", r"\.lock: writing"),
    ],
)
def test_what_the_permissions_forbid_the_writer_is_one_error(tmp_path: Path, place: str, told: str) -> None:
    path = tmp_path / "a"
    with writer(path) as w:
        append(w, "one", range(2))
    if place == ".":
        (path / ".lock").unlink()
    (path / place).chmod(0o555 if place in (".", "shards") else 0)
    with without_override(), pytest.raises(ArchiveError, match=f"{told}.*got Permission denied"), writer(path) as w:
        append(w, "two", range(2))
    (path / place).chmod(0o755)
    assert ids(path) == ["one-0-0", "one-0-32"]


def test_repairs_that_the_permissions_forbid_are_one_error(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with writer(path) as w:
        append(w, "one", range(2))
    log = path / "manifest.jsonl"
    log.write_bytes(log.read_bytes() + b'{"kind"')
    log.chmod(0o444)
    with without_override(), pytest.raises(ArchiveError, match="manifest.jsonl: writing: got Perm"), writer(path):
        pass
    log.chmod(0o644)
    (path / "shards" / ".part-000002.parquet.0123abcd.alidade-part").write_bytes(b"half")
    (path / "shards").chmod(0o555)
    with without_override(), pytest.raises(ArchiveError, match="alidade-part: writing: got Perm"), writer(path):
        pass
    (path / "shards").chmod(0o755)


def test_what_could_not_be_read_back_is_not_written(tmp_path: Path) -> None:
    with writer(tmp_path / "a") as w:
        append(w, "one", range(2))
        for tiles, total in ((range(1, 3), 10), (range(9, 11), 10), (range(5, 7), 20)):
            with pytest.raises(ValueError, match="twice|whole number|has 10 tiles"):
                append(w, "one", tiles, total)
        with pytest.raises(ValueError, match="1 rows do not fit"):
            w.append([make_row("one", 4)], [cover("one", range(4, 6))])
        append(w, "one", range(2, 4))
    assert len(ids(tmp_path / "a")) == 4
    assert len(list((tmp_path / "a" / "shards").iterdir())) == 2


@pytest.mark.parametrize("place", ["archive.json", "manifest.jsonl", "shards", "."])
def test_what_the_permissions_forbid_a_reader_is_one_error(tmp_path: Path, place: str) -> None:
    path = tmp_path / "a"
    with writer(path) as w:
        append(w, "one", range(2))
    (path / place).chmod(0)
    try:
        with without_override(), pytest.raises(ArchiveError, match="got Permission denied"):
            Archive.open(path)
    finally:
        (path / place).chmod(0o755)


@pytest.mark.parametrize("place", ["archive.json", "manifest.jsonl", ".lock"])
def test_a_folder_in_the_place_of_a_file_is_one_error(tmp_path: Path, place: str) -> None:
    with writer(tmp_path / "a"):
        pass
    (tmp_path / "a" / place).unlink(missing_ok=True)
    (tmp_path / "a" / place).mkdir()
    with pytest.raises(ArchiveError, match="got Is a directory"), writer(tmp_path / "a"):
        pass


def test_a_torn_last_line_is_dropped_and_its_shard_acknowledged_again(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with writer(path) as w:
        append(w, "one", range(2))
        append(w, "one", range(2, 5))
    log = path / "manifest.jsonl"
    whole = log.read_bytes()
    for cut in (1, 7, len(whole.splitlines()[-1]) - 1):
        log.write_bytes(whole[:-cut])
        assert len(ids(path)) == 2, "a reader sees only what is acknowledged, and repairs nothing"
        assert log.read_bytes() == whole[:-cut]
        with writer(path) as w:
            assert any("unfinished last line" in r for r in w.repairs)
            assert any("Acknowledged part-000002.parquet: it was written whole, with 3 rows" in r for r in w.repairs)
        assert log.read_bytes() == whole
        assert len(ids(path)) == 5


def test_what_a_kill_leaves_behind_is_cleared_up(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with writer(path) as w:
        append(w, "one", range(2))
    shards = path / "shards"
    good = (shards / "part-000001.parquet").read_bytes()
    (shards / ".part-000002.parquet.0123abcd.alidade-part").write_bytes(good[:50])
    (shards / "part-000002.parquet").write_bytes(good[:-30])
    (shards / "part-000003.parquet").write_bytes(good)
    (shards / "notes.txt").write_text("not ours")
    with writer(path) as w:
        told = " ".join(w.repairs)
        append(w, "two", range(2))
    assert len(w.repairs) == 3
    for name in ("0123abcd", "part-000002.parquet", "part-000003.parquet"):
        assert f"{name}" in told
    assert sorted(p.name for p in shards.iterdir()) == [
        "notes.txt",
        "part-000001.parquet",
        "part-000002.parquet",
    ]
    assert ids(path) == [make_row(s, i).id for s in ("one", "two") for i in range(2)]


def test_an_unacknowledged_shard_of_another_model_is_not_taken_in(tmp_path: Path) -> None:
    for name, model in (("a", MODEL), ("b", "other-ffff")):
        with writer(tmp_path / name, model=model) as w:
            append(w, name, range(2))
    stray = (tmp_path / "b" / "shards" / "part-000001.parquet").read_bytes()
    (tmp_path / "a" / "shards" / "part-000009.parquet").write_bytes(stray)
    with writer(tmp_path / "a") as w:
        assert "Removed part-000009.parquet" in w.repairs[0]
    assert ids(tmp_path / "a") == ["a-0-0", "a-0-32"]


@pytest.mark.parametrize("harm", ["missing", "truncated", "flipped"])
def test_a_lost_or_damaged_acknowledged_shard_is_named(tmp_path: Path, harm: str) -> None:
    with writer(tmp_path / "a") as w:
        append(w, "one", range(2))
        append(w, "two", range(2))
    shard = tmp_path / "a" / "shards" / "part-000002.parquet"
    data = bytearray(shard.read_bytes())
    if harm == "missing":
        shard.unlink()
    elif harm == "truncated":
        shard.write_bytes(data[:-10])
    else:
        data[len(data) // 2] ^= 1
        shard.write_bytes(data)
    with pytest.raises(ArchiveError, match=r"part-000002\.parquet"):
        ids(tmp_path / "a")


@pytest.mark.parametrize("line", [b'{"kind": "tea"}\n', b"\x00\x00\x00\n", b"[]\n", b'{"kind": "shard"}\n'])
def test_a_damaged_manifest_is_told_with_its_line(tmp_path: Path, line: bytes) -> None:
    with writer(tmp_path / "a") as w:
        append(w, "one", range(2))
    log = tmp_path / "a" / "manifest.jsonl"
    log.write_bytes(log.read_bytes() + line)
    with pytest.raises(ArchiveError, match=r"manifest\.jsonl: line 2"):
        Archive.open(tmp_path / "a")


def test_retired_rows_are_gone_and_may_come_back_anew(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with writer(path) as w:
        w.append([make_row("one", 0), make_row("two", 0)], [cover("one", range(1)), cover("two", range(1))])
        w.retire("one.tif", "one", "the file has changed")
        assert not w.manifest.is_complete("one")
    assert ids(path) == ["two-0-0"]
    assert Archive.open(path).rows == 1
    with writer(path) as w:
        append(w, "one", range(1), total=1)
        assert w.manifest.is_complete("one")
    assert sorted(ids(path)) == ["one-0-0", "two-0-0"]


def test_tiles_without_data_are_settled_without_a_shard(tmp_path: Path) -> None:
    with writer(tmp_path / "a") as w:
        w.append([], [cover("dark", range(0), total=4, empty=range(4))])
    with writer(tmp_path / "a") as w:
        assert w.manifest.is_complete("dark")
    assert list((tmp_path / "a" / "shards").iterdir()) == []
    assert Archive.open(tmp_path / "a").rows == 0


@pytest.mark.parametrize("bad", [np.zeros(DIM), np.full(DIM, np.nan), np.ones(DIM + 1)])
def test_vectors_that_cannot_be_compared_are_not_stored(tmp_path: Path, bad: np.ndarray) -> None:
    with writer(tmp_path / "a") as w, pytest.raises(ArchiveError, match="embeddings from the model"):
        w.append([make_row("one", 0, embedding=bad)], [cover("one", range(1))])
    assert ids(tmp_path / "a") == []


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_archive import append, cover, writer
from alidade.errors import ArchiveError
path, refused_at, then = Path(sys.argv[1]), *sys.argv[3:]
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with writer(path) as w:
    append(w, "one", range(2))
    room = 200
    if refused_at == "manifest":
        for i in range(60):
            w.append([], [cover(f"dark{i}", range(0), total=1, empty=range(1))])
        room = (path / "manifest.jsonl").stat().st_size + 20
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
    try:
        append(w, "two", range(2))
    except ArchiveError as error:
        print(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    if then == "go on":
        append(w, "three", range(2))
"""


@pytest.mark.parametrize("then", ["stop", "go on"])
@pytest.mark.parametrize(("refused_at", "told"), [("shard", "File too large"), ("manifest", "only 20 of")])
def test_a_full_disk_is_one_error_and_nothing_is_torn(tmp_path: Path, refused_at: str, told: str, then: str) -> None:
    # the kernel's own refusal: a limit on file size makes write() fail or fall short as a full disk does
    path = tmp_path / "a"
    arguments = [str(path), str(Path(__file__).parent), refused_at, then]
    run = subprocess.run(
        [sys.executable, "-c", FULL_DISK, *arguments], capture_output=True, text=True, check=True, timeout=60
    )
    assert f"writing: got {told}" in run.stdout
    assert "expected room on the disk" in run.stdout
    assert run.stdout.count("\n") == 1
    assert not [p for p in path.rglob("*") if "alidade-part" in p.name]
    acknowledged = ["one", "three"] if then == "go on" else ["one"]
    assert ids(path) == [make_row(s, i).id for s in acknowledged for i in range(2)]
    with writer(path) as w:
        assert len(w.repairs) == (refused_at == "manifest"), "the shard that had got written is taken in"
    assert ("two-0-0" in ids(path)) == (refused_at == "manifest")


def test_a_killed_writer_gives_the_lock_back(tmp_path: Path) -> None:
    script = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_archive import append, writer
with writer(Path(sys.argv[1])) as w:
    append(w, "one", range(2))
    os.kill(os.getpid(), signal.SIGKILL)
"""
    run = subprocess.run([sys.executable, "-c", script, str(tmp_path / "a"), str(Path(__file__).parent)], timeout=60)
    assert run.returncode == -9
    with writer(tmp_path / "a") as w:
        append(w, "two", range(2))
    assert len(ids(tmp_path / "a")) == 4


def test_a_directory_left_before_its_header_was_written_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.mkdir()
    (path / ".lock").touch()
    (path / ".archive.json.0123abcd.alidade-part").write_text("{")
    with writer(path) as w:
        assert len(w.repairs) == 1
        append(w, "one", range(2))
    assert len(ids(path)) == 2


def test_sources_are_found_beside_the_archive_wherever_both_are_moved(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "one.tif").write_text("pixels")
    with writer(tmp_path / "old" / "a") as w:
        append(w, "one", range(1))
    os.rename(tmp_path / "old", tmp_path / "new")
    archive = Archive.open(tmp_path / "new" / "a")
    assert archive.locate("old/one.tif", "one") == tmp_path / "new" / "one.tif"
    assert archive.locate("old/two.tif", "two") == Path("old/two.tif")


def test_a_note_survives_in_the_footer() -> None:
    table = rows_to_table([make_row("s", 0)], model=MODEL, dim=DIM)
    back, note = parse_table(table_bytes(table, {"hello": [1, 2]}), "x")
    assert note == {"hello": [1, 2]}
    assert back["embedding"].to_pylist() == table["embedding"].to_pylist()
