"""The command line where something is in the way: permissions, wrong options, closed folders, Ctrl-C."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from alidade.cli import main
from alidade.cli.output import Bar
from alidade.models import registry
from alidade.models.model import Model
from alidade.models.scale_alibi import ScaleAlibi
from alidade.models.weights import load_model, save_model
from alidade.search.archive import Archive
from search_scenes import make_scene, tiny_model, without_override

Run = Callable[..., tuple[int, str, list[str]]]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small real model where ``--model`` finds it."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    save_model(tiny_model().network, folder, dtype=torch.float32)
    return folder


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """``alidade`` with arguments, permissions holding even for root: exit code, stdout, lines of stderr."""

    def call(*arguments: object) -> tuple[int, str, list[str]]:
        monkeypatch.setattr(sys, "argv", ["alidade", *map(str, arguments)])
        with without_override(), pytest.raises(SystemExit) as stop:
            main()
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return int(stop.value.code or 0), captured.out, captured.err.splitlines()

    return call


@pytest.fixture
def made(run: Run, tmp_path: Path, weights: Path) -> tuple[Path, Path]:
    """An archive of one colour and one radar scene, and the colour scene."""
    scenes = tmp_path / "scenes"
    scenes.mkdir()
    make_scene(scenes / "a.tif", 1, height=64, width=64)
    make_scene(scenes / "b.tif", 2, height=32, width=64, sensor_id="sentinel-1-rtc")
    code, _, _ = run("embed", scenes, "--out", tmp_path / "archive", "--model", weights)
    assert code == 0
    return tmp_path / "archive", scenes / "a.tif"


def close(path: Path) -> None:
    """Take all write permissions below a folder away."""
    for inner in (*path.rglob("*"), path):
        inner.chmod(0o555 if inner.is_dir() else 0o444)


def test_a_read_only_archive_can_be_searched(run: Run, made: tuple[Path, Path], weights: Path) -> None:
    archive, scene = made
    close(archive)
    code, out, err = run("search", archive, "--like", scene, "--model", weights, "--only-sensor", "naip-rgb")
    assert code == 0
    assert len(out.splitlines()) == 5, "the answer itself"
    (told,) = [line for line in err if line.startswith("no picture: ")]
    assert "last-search.png: writing the picture: got Permission denied" in told
    assert not (archive / "last-search.png").exists()


def test_a_picture_that_was_asked_for_must_be_written_but_the_answer_comes_first(
    run: Run, made: tuple[Path, Path], tmp_path: Path
) -> None:
    archive, _ = made
    place = ("--at", ",".join(map(str, centre(archive))))
    code, out, err = run("search", archive, *place, "--picture", tmp_path / "none" / "p.png")
    assert code == 2
    assert len(out.splitlines()) > 1
    assert err[-1].startswith("error: ")
    assert "writing the picture: got No such file or directory" in err[-1]
    code, _, err = run("search", archive, *place, "--out", tmp_path / "none" / "hits.json")
    assert (code, len(err)) == (2, 1)
    assert "hits.json: writing: got No such file or directory" in err[0]


def centre(archive: Path) -> tuple[float, float]:
    """A point inside the archive's first tile."""
    table = next(Archive.open(archive).tables())
    box = table["bbox"][0].as_py()
    return (box["xmin"] + box["xmax"]) / 2, (box["ymin"] + box["ymax"]) / 2


def test_results_and_their_picture_take_no_foreign_file(run: Run, made: tuple[Path, Path], tmp_path: Path) -> None:
    archive, _ = made
    place = ("--at", ",".join(map(str, centre(archive))))
    (tmp_path / "hits.png").write_text("mine")
    code, _, err = run("search", archive, *place, "--out", tmp_path / "hits.geojson")
    assert code == 0
    assert (tmp_path / "hits.geojson.png").read_bytes().startswith(b"\x89PNG")
    assert err[-1] == f"picture: {tmp_path / 'hits.geojson.png'}"
    assert json.loads((tmp_path / "hits.geojson").read_text())["type"] == "FeatureCollection"
    before = sorted(tmp_path.rglob("*"))
    for options, told in (
        (("--out", tmp_path / "hits.png"), "got 'png', expected one of json, geojson, parquet"),
        (("--out", tmp_path / "hits.png", "--json"), "got 'png', expected one of json, geojson, parquet"),
        (("--out", tmp_path / "x.foo"), "got 'foo', expected one of json, geojson, parquet"),
        (("--out", tmp_path / "x"), "got '', expected one of json, geojson, parquet"),
        (("--out", tmp_path / "x.json", "--picture", tmp_path / "x.json"), "expected another file than --out"),
    ):
        code, _, err = run("search", archive, *place, *options)
        assert (code, len(err)) == (2, 1)
        assert told in err[0]
    assert (tmp_path / "hits.png").read_text() == "mine"
    assert sorted(tmp_path.rglob("*")) == before, "nothing is left behind"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("-k", "2000000"), "number of results: got 2000000"),
        (("--bbox", "1,2,3"), "box"),
        (("--bbox", ""), "box: got ''"),
        (("--time", "last year"), "time: got 'last year'"),
        (("--format", "xlsx"), "got 'xlsx', expected table"),
        (("--out", "x.foo"), "got 'foo', expected one of"),
    ],
)
def test_a_mistyped_query_is_told_before_archive_and_model_are_loaded(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], told: str
) -> None:
    monkeypatch.setattr(registry, "Model", lambda *_, **__: pytest.fail("a model was loaded"))
    code, _, err = run("search", tmp_path / "none", "--like", "x.tif", *options)
    assert (code, len(err)) == (2, 1)
    assert told in err[0]


@pytest.mark.parametrize("place", ["archive.json", "manifest.jsonl"])
def test_an_archive_that_must_not_be_read_is_one_line(
    run: Run, made: tuple[Path, Path], weights: Path, place: str
) -> None:
    archive, scene = made
    (archive / place).chmod(0)
    for command in (("search", archive, "--at", "8,47"), ("embed", scene, "--out", archive, "--model", weights)):
        code, _, err = run(*command)
        told = [line for line in err if line.startswith(("error:", "failed:"))]
        assert (code, len(told)) == (2, 1), err
        assert f"{place}: reading: got Permission denied" in told[0]


@pytest.mark.parametrize("kind", ["empty folder", "read-only archive", "below a closed folder"])
def test_embedding_where_nothing_may_be_written_is_one_line(
    run: Run, made: tuple[Path, Path], tmp_path: Path, weights: Path, kind: str
) -> None:
    archive, scene = made
    if kind == "empty folder":
        archive = tmp_path / "empty"
        archive.mkdir()
    elif kind == "below a closed folder":
        archive = tmp_path / "closed" / "archive"
        archive.parent.mkdir()
    make_scene(scene.with_name("c.tif"), 3)
    close(archive.parent if kind == "below a closed folder" else archive)
    code, _, err = run("embed", scene.parent, "--out", archive, "--model", weights)
    told = [line for line in err if line.startswith(("error:", "failed:"))]
    assert (code, len(told)) == (2, 1), err
    assert "writing: got Permission denied, expected room on the disk and permission to write" in told[0]


def test_a_name_too_long_is_one_line(run: Run, made: tuple[Path, Path], tmp_path: Path, weights: Path) -> None:
    code, _, err = run("embed", made[1], "--out", tmp_path / ("x" * 300), "--model", weights)
    assert code == 2
    assert "got File name too long" in err[-1]


def test_a_closed_folder_is_told_and_the_others_go_on(
    run: Run, made: tuple[Path, Path], tmp_path: Path, weights: Path
) -> None:
    _, scene = made
    (scene.parent / "closed").mkdir(mode=0)
    code, out, err = run("embed", scene.parent, "--out", tmp_path / "b", "--model", weights)
    assert code == 2
    assert "6 tiles of 2 sources embedded" in out
    assert "1 source failed" in out
    assert any(line.startswith("failed: ") and "closed: folder: got Permission denied" in line for line in err)


def test_when_no_archive_was_made_no_archive_is_said_to_hold_anything(run: Run, tmp_path: Path, weights: Path) -> None:
    (tmp_path / "text.tif").write_text("hello")
    arguments = ("embed", tmp_path / "text.tif", "--out", tmp_path / "a", "--model", weights)
    code, out, _ = run(*arguments)
    assert code == 2
    assert out.rstrip().endswith("1 source failed; no archive was made.")
    code, out, _ = run(*arguments, "--json")
    assert json.loads(out)["archive_made"] is False


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--tile", "0"), "tile side: got 0 px, expected 8 to 512 px"),
        (("--tile", "4"), "tile side: got 4 px, expected 8 to 512 px"),
        (("--tile", "5000"), "tile side: got 5000 px, expected 8 to 512 px"),
        (("--batch", "1000"), "--batch"),
        (("--batch", "0"), "--batch"),
    ],
)
def test_sizes_that_the_model_cannot_take_are_refused_first(
    run: Run, tmp_path: Path, weights: Path, options: tuple[str, ...], told: str
) -> None:
    make_scene(tmp_path / "a.tif", 1)
    code, _, err = run("embed", tmp_path / "a.tif", "--out", tmp_path / "a", "--model", weights, *options)
    assert code == 2
    assert told in err[-1]
    assert not (tmp_path / "a").exists()


def test_scores_across_sensors_come_with_a_word_of_warning(
    run: Run, made: tuple[Path, Path], tmp_path: Path, weights: Path
) -> None:
    archive, scene = made

    def notes(*options: object) -> list[str]:
        code, _, err = run("search", archive, "--like", scene, "--model", weights, *options)
        assert code == 0
        return [line for line in err if line.startswith("note: ")]

    (told,) = notes()
    assert "has not learned to compare sensors" in told
    assert "mean nothing" in told
    assert "--only-sensor naip-rgb" in told
    assert notes("--only-sensor", "naip-rgb") == []
    (scene.parent / "b.tif").unlink()
    archive = tmp_path / "alone"
    assert run("embed", scene, "--out", archive, "--model", weights)[0] == 0
    assert notes() == [], "one sensor only: nothing is compared across"


def test_a_model_that_has_aligned_sensors_gives_no_warning(
    run: Run, made: tuple[Path, Path], tmp_path: Path, weights: Path
) -> None:
    network = load_model(weights)
    aligned = ScaleAlibi(replace(network.config, aligned=True))
    aligned.load_state_dict(network.state_dict())
    save_model(aligned, tmp_path / "aligned", dtype=torch.float32)
    assert Model(aligned).aligned
    scene = made[1]
    arguments = ("--model", tmp_path / "aligned")
    assert run("embed", scene.parent, "--out", tmp_path / "b", *arguments)[0] == 0
    code, _, err = run("search", tmp_path / "b", "--like", scene, *arguments)
    assert code == 0
    assert not [line for line in err if line.startswith("note: ")]


def test_ctrl_c_ends_in_one_line_and_the_same_command_goes_on(
    run: Run, tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("alidade.search.embed.SHARD_ROWS", 8)
    make_scene(tmp_path / "a.tif", 1, height=160, width=160)
    arguments = ("embed", tmp_path / "a.tif", "--out", tmp_path / "a", "--model", weights, "--batch", 4)
    with monkeypatch.context() as during:
        seen: list[str] = []

        def interrupt(bar: Bar, *, tiles: int, source: str) -> None:
            seen.append(source)
            if len(seen) == 15:
                signal.raise_signal(signal.SIGINT)

        during.setattr(Bar, "advanced", interrupt)
        # a shell that starts tests in the background has them ignore Ctrl-C
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            code, out, err = run(*arguments)
        finally:
            signal.signal(signal.SIGINT, before)
    assert (code, out) == (130, "")
    assert err[-1] == f"stopped by Ctrl-C; the same command goes on from what {tmp_path / 'a'} holds"
    assert Archive.open(tmp_path / "a").rows == 8
    code, out, _ = run(*arguments)
    assert code == 0
    assert "17 tiles of 1 source embedded" in out
    assert Archive.open(tmp_path / "a").rows == 25
