"""The command line as a user meets it: what works, and what each wrong input says, in one line and with exit code 2."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
from affine import Affine

from alidade.cli import main
from alidade.cli.output import Bar, ImportBar, TilesBar
from make_fixtures import display, meadow, sparse_tif, vrt_of, write_tif

SAMPLES = Path(__file__).parents[1] / "samples"
NAIP = SAMPLES / "naip" / "m_4709963_se_14_20200831.tif"
RIVER = SAMPLES / "sentinel-2" / "eurosat_River_2354.tif"
RADAR = SAMPLES / "sentinel-1" / "bigearthnet_29UPU_4_55.tif"

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """``alidade`` with arguments: exit code, stdout, stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["alidade", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        captured = capsys.readouterr()
        return int(stop.value.code or 0), captured.out, captured.err

    return call


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Radar, 13-band optical and aerial scenes in one archive, made by the real command."""
    folder = tmp_path_factory.mktemp("archive") / "a"
    command = [sys.executable, "-c", "from alidade.cli import main; main()", "embed", RADAR, RIVER, "--out", folder]
    subprocess.run([*map(str, command), str(SAMPLES / "ucmerced")], check=True, timeout=400, capture_output=True)
    return folder


def test_inspect_tells_the_facts_and_where_they_come_from(run: Run) -> None:
    code, out, _ = run("inspect", NAIP)
    assert code == 0
    for words in ("naip-rgbn", "934 x 723 px", "5.002 x 5.002 m", "EPSG:26914", "2020-08-31", "ALIDADE_SENSOR"):
        assert words in out


def test_inspect_as_json(run: Run) -> None:
    code, out, _ = run("inspect", RIVER, "--json")
    facts = json.loads(out)
    assert code == 0
    assert facts["sensor"] == "sentinel-2-l1c"
    # the file's own order, in which B8A comes last
    assert [b["name"] for b in facts["bands"]][-2:] == ["B12", "B8A"]
    assert facts["bands"][0]["offset"] == 0.0


def test_embed_then_search_by_image(run: Run, archive: Path, tmp_path: Path) -> None:
    code, out, err = run("search", archive, "--like", RIVER, "-k", 3, "--picture", tmp_path / "p.png", "--json")
    hits = json.loads(out)["hits"]
    assert code == 0
    assert hits[0]["source"].endswith(RIVER.name)
    assert hits[0]["score"] == pytest.approx(1.0, abs=1e-3)
    assert [h["score"] for h in hits] == sorted((h["score"] for h in hits), reverse=True)
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    assert "picture:" in err


def test_search_by_place_and_every_format(run: Run, archive: Path, tmp_path: Path) -> None:
    at = ("--at=6.6272,52.2349", "-k", 5)
    code, out, _ = run("search", archive, *at)
    assert code == 0
    assert out.splitlines()[0].split()[:3] == ["rank", "score", "sensor"]
    assert len(out.splitlines()) == 6
    code, out, _ = run("search", archive, *at, "--format", "geojson")
    assert json.loads(out)["type"] == "FeatureCollection"
    for name in ("r.parquet", "r.geojson", "r.json"):
        code, _, _ = run("search", archive, *at, "--out", tmp_path / name)
        assert code == 0
        assert (tmp_path / f"{name}.png").exists()
    assert pq.read_table(tmp_path / "r.parquet").num_rows == 5


def test_second_embed_has_nothing_to_do(run: Run, archive: Path) -> None:
    code, out, _ = run("embed", RIVER, "--out", archive)
    assert code == 0
    assert "0 tiles of 0 sources embedded" in out
    assert "1 source already there" in out


def test_filters_narrow_the_answer(run: Run, archive: Path) -> None:
    code, out, _ = run("search", archive, "--like", RIVER, "--only-sensor", "sentinel-1-grd", "--json")
    assert code == 0
    assert {h["sensor"] for h in json.loads(out)["hits"]} == {"sentinel-1-grd"}
    code, out, _ = run("search", archive, "--like", RIVER, "--bbox=6,52,7,53", "--json")
    assert len(json.loads(out)["hits"]) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "got nothing that tiles shall be like, expected one or more of --text WORDS, --like FILE"),
        (("--at", "100,80"), "tile at 100,80: got none, expected a point inside the archive"),
        (("--at", "somewhere"), "expected longitude,latitude in degrees"),
        (("--like", RIVER, "--bbox", "1,2,3"), "error: "),
        (("--like", RIVER, "--bbox", "1,50,2,40"), "error: "),
        (("--like", RIVER, "--time", "last year"), "error: "),
        (("--like", RIVER, "--only-sensor", "spot-7"), "spot-7"),
        (("--like", RIVER, "--format", "xlsx"), "got 'xlsx', expected table, json, geojson, parquet, csv"),
        (("--like", "nowhere.tif"), "nowhere.tif"),
        (("--like", RIVER, "--model", "dinov3"), "expected one of alidade-tiny, croma-base, croma-large"),
    ],
)
def test_wrong_queries_say_what_to_do(run: Run, archive: Path, arguments: tuple[object, ...], message: str) -> None:
    code, _, err = run("search", archive, *arguments)
    assert code == 2
    assert message in err
    assert len(err.strip().splitlines()) == 1


def test_unknown_archive_and_model(run: Run, tmp_path: Path) -> None:
    code, _, err = run("search", tmp_path / "none", "--like", RIVER)
    assert code == 2
    assert "none" in err
    code, _, err = run("embed", RIVER, "--out", tmp_path / "a", "--model", "croma-base")
    assert code == 2
    assert "alidade downloads nothing by itself" in err
    assert not (tmp_path / "a").exists()


def bad_files(folder: Path) -> dict[str, tuple[Path, tuple[str, ...], str]]:
    """Name, file, options, and words that the message must have."""
    whole = RIVER.read_bytes()
    (folder / "cut.tif").write_bytes(whole[: len(whole) // 2])
    (folder / "text.tif").write_text("not an image")
    nan = np.full((2, 32, 32), np.nan, np.float32)
    pointer = write_tif(folder / "pointer.tif", display(), domains={"OVERVIEWS": {"OVERVIEW_FILE": "/etc/hostname"}})
    return {
        "missing": (folder / "none.tif", (), "none.tif"),
        "text": (folder / "text.tif", (), "text.tif"),
        "truncated": (folder / "cut.tif", (), "cut.tif"),
        "band names": (RIVER, ("--sensor", "sentinel-2-l2a", "--bands", "B1,B2"), "got 2 names for 13 bands"),
        "wrong band name": (
            write_tif(folder / "two.tif", meadow(("B02", "B03"))),
            ("--sensor", "sentinel-2-l2a", "--bands", "B02,green-ish"),
            "green-ish",
        ),
        "unknown sensor": (RIVER, ("--sensor", "spot-7"), "'spot-7'"),
        "unnamed bands": (write_tif(folder / "unnamed.tif", meadow()), (), "--sensor"),
        "no unit": (
            write_tif(folder / "nounit.tif", nan, names=("VV", "VH")),
            ("--sensor", "sentinel-1-grd"),
            "--unit",
        ),
        "all NaN": (
            write_tif(folder / "nan.tif", nan, names=("VV", "VH")),
            ("--sensor", "sentinel-1-grd", "--unit", "dB"),
            "valid",
        ),
        "no crs, no gsd": (
            write_tif(folder / "nowhere.tif", display(), crs=None, transform=None),
            (),
            "--gsd",
        ),
        "absurd gsd": (
            write_tif(folder / "absurd.tif", display(), crs=None, transform=None),
            ("--gsd", "500000"),
            "500000",
        ),
        "absurd transform": (
            write_tif(folder / "tiny.tif", display(), transform=Affine(1e-4, 0, 4e5, 0, -1e-4, 5e6)),
            (),
            "tiny.tif",
        ),
        "pointer": (pointer, (), "the metadata domain OVERVIEWS"),
        "vrt": (vrt_of(folder / "vrt.tif", str(NAIP)), (), "vrt.tif"),
        "300 GB": (sparse_tif(folder / "huge.tif", side=400_000, block=512), (), "huge.tif"),
    }


BAD = (
    "missing", "text", "truncated", "band names", "wrong band name", "unknown sensor", "unnamed bands", "no unit",
    "all NaN", "no crs, no gsd", "absurd gsd", "absurd transform", "pointer", "vrt", "300 GB",
)  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_file_is_one_clear_line_and_leaves_nothing(run: Run, tmp_path: Path, name: str) -> None:
    path, extra, words = bad_files(tmp_path)[name]
    code, _, err = run("embed", path, *extra, "--out", tmp_path / "archive")
    told = [line for line in err.splitlines() if line.startswith(("failed:", "error:"))]
    assert code == 2
    assert len(told) == 1, err
    assert words in told[0]
    assert ", expected " in told[0]
    assert "Traceback" not in err
    assert not list(tmp_path.glob("archive/shards/*"))


def test_in_a_batch_the_others_go_on(run: Run, tmp_path: Path) -> None:
    files = [path for path, _, _ in bad_files(tmp_path).values() if path not in (RIVER,)]
    code, out, _ = run("embed", *files, RADAR, "--out", tmp_path / "archive", "--json")
    summary = json.loads(out)
    assert code == 2
    assert summary["rows"] == 1
    assert len(summary["failures"]) >= 11
    assert all("expected" in failure["message"] for failure in summary["failures"])


def test_models_and_unknown_benchmarks(run: Run) -> None:
    code, out, _ = run("models")
    assert code == 0
    assert "alidade-tiny (default)" in out
    code, _, err = run("bench", "gpu")
    assert code == 2
    assert "expected encoder, attention, train, store or index" in err


def test_usage_errors_have_exit_code_two(run: Run) -> None:
    code, _, err = run("search")
    assert code == 2
    code, _, err = run("embed", RIVER)
    assert code == 2
    assert "--out" in err


def test_importing_the_package_is_quick_and_has_no_side_effects() -> None:
    probe = "import sys, alidade; print('torch' in sys.modules, 'rasterio' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["False", "False"]


@pytest.mark.parametrize("taken", ["last year", "2024-13-01", "0001-01-01T00:00:00+14:00"])
def test_times_that_are_none(run: Run, taken: str) -> None:
    code, _, err = run("inspect", RIVER, "--taken", taken)
    assert code == 2
    assert "--taken: got" in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize("name", ["a[/]b.tif", "[red]x.tif", "line\nfeed.tif", "größe.tif"])
def test_odd_names_are_names(run: Run, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(RIVER.read_bytes())
    code, out, _ = run("inspect", path, "--json")
    assert code == 0
    assert json.loads(out)["file"] == str(path)
    code, out, _ = run("inspect", path)
    assert code == 0
    path.write_text("broken")
    code, _, err = run("inspect", path)
    assert code == 2
    assert len(err.strip().splitlines()) == 1


def test_name_that_is_not_utf8(run: Run, tmp_path: Path) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/bad\xff.tif")
    Path(path).write_bytes(RIVER.read_bytes())
    code, _, err = run("inspect", path)
    assert code == 2
    assert "Rename the file" in err


def test_json_has_no_nan(run: Run, tmp_path: Path) -> None:
    path = write_tif(tmp_path / "n.tif", np.zeros((2, 16, 16), np.float32), names=("VV", "VH"), nodata=float("nan"))
    code, out, _ = run("inspect", path, "--sensor", "sentinel-1-grd", "--unit", "dB", "--json")
    assert code == 0
    assert "NaN" not in out


@pytest.mark.parametrize("kind", [Bar, TilesBar, ImportBar])
def test_bars_tell_count_rate_and_time_left_on_stderr(
    kind: type[Bar | TilesBar | ImportBar], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("alidade.cli.output.time", SimpleNamespace(monotonic=lambda: now[0]))
    with kind() as bar:
        now[0] = 190.0  # looking through the input is not work done
        if isinstance(bar, Bar):
            unit, doing = "tiles", "embedding 1,200 files"
            bar.started(tiles=3000, sources=1200)
        elif isinstance(bar, TilesBar):
            unit, doing = "squares", "aligning 1,200 scenes"
            bar.started(squares=3000, scenes=1200)
        else:
            unit, doing = "samples", "importing"
            bar.started(samples=3000)
        now[0] = 191.0
        for _ in range(2):
            now[0] += 0.5
            move(bar, 625)
    told = capsys.readouterr()
    assert told.out == ""
    shown = " ".join(told.err.split())
    assert shown.startswith(doing)
    assert f"1250/3000 {unit} 625.0/s " in shown
    assert shown.endswith(" left")


def move(bar: Bar | TilesBar | ImportBar, count: int) -> None:
    """Move on by so many, as the work that the bar is for does."""
    if isinstance(bar, Bar):
        bar.advanced(tiles=count, source="a.tif")
    elif isinstance(bar, TilesBar):
        bar.advanced(squares=count)
    else:
        bar.advanced(samples=count)


def test_a_bar_does_not_wait_for_torch() -> None:
    probe = "import sys, alidade.cli.output; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["False"]
