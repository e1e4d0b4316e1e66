"""From real scenes to a trained model by commands alone: tiles, pretraining, resuming, using the result."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import alidade
from alidade.cli import main
from alidade.errors import AlidadeError
from alidade.training.store_batches import SIZES, StoreBatches, model_for
from alidade.training.tiles.store import TileStore

SAMPLES = Path(__file__).parents[1] / "samples"


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["alidade", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    return int(stop.value.code or 0)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The BigEarthNet squares that Sentinel-1 and Sentinel-2 both cover."""
    out = tmp_path_factory.mktemp("tiles") / "store"
    with pytest.MonkeyPatch.context() as patch:
        views = ("--view", "s1=sentinel-1-grd", "--view", "s2=sentinel-2-l2a")
        paths = (SAMPLES / "sentinel-1", SAMPLES / "sentinel-2")
        assert run(patch, "tiles", "build", *paths, "--out", out, "--square", 640, *views) == 0
    return out


def test_batches_show_one_ground_in_every_view(store: Path) -> None:
    tiles = TileStore.open(store)
    data = StoreBatches(tiles, split="train", patch=8)
    views = data.views(np.arange(len(data)), np.random.default_rng(0))
    assert set(views) == {"s1", "s2"}
    for view in views.values():
        side = view.valid.shape[-1]
        assert side in (32, 64)
        assert view.gsd_m[0] * side == pytest.approx(640, rel=0.01)
        assert view.present.all()
        assert abs(view.pixels.mean()) < 3


def test_draws_depend_on_the_generator_alone(store: Path) -> None:
    data = StoreBatches(TileStore.open(store), split="train", patch=8)
    a, b = (data.views(np.arange(4), np.random.default_rng(7))["s2"] for _ in range(2))
    assert torch.equal(a.gsd_m, b.gsd_m)
    assert (a.pixels == b.pixels).all()


def test_towers_have_the_stores_bands(store: Path) -> None:
    config = model_for(TileStore.open(store), "m", SIZES["tiny"], 8)
    assert [t.name for t in config.towers] == ["s1", "s2"]
    assert config.towers[0].bands == ("VV", "VH")
    assert len(config.towers[1].bands) == 12
    assert config.aligned


def test_split_without_samples_is_refused(store: Path) -> None:
    with pytest.raises(AlidadeError, match="none in split 'val'"):
        StoreBatches(TileStore.open(store), split="val", patch=8)


def test_train_resume_and_use(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = (
        "train",
        "pretrain",
        store,
        "--out",
        tmp_path / "run",
        "--steps",
        3,
        "--batch",
        4,
        "--checkpoint-every",
        1,
    )
    assert run(monkeypatch, *command) == 0
    assert run(monkeypatch, *command) == 0
    assert run(monkeypatch, *command, "--rate", "0.5") == 2
    model = alidade.load(tmp_path / "run" / "model")
    vector = model.embed(alidade.read(SAMPLES / "sentinel-1" / "bigearthnet_29UPU_4_55.tif"))
    assert vector.shape == (1, 192)
    assert np.isfinite(vector).all()


def test_unknown_size_is_one_line(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "train", "pretrain", store, "--out", tmp_path / "run", "--size", "huge") == 2
    assert "--size: got 'huge', expected one of tiny, small, base" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--precision", "float16"), "--precision: got 'float16', expected one of auto, float32, bfloat16"),
        (("--patch", 48), "view s1 of 64 px: got a patch of 48 px, expected one of at most 32 px"),
        (("--split", "dev"), "got none in split 'dev'"),
        (("--batch", 5000), "--batch: got 5000 samples, expected at most the "),
        (("--shard",), "sharding: got one process, expected several"),
    ],
)
def test_wrong_options_are_one_line(
    store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: tuple[object, ...],
    message: str,
) -> None:
    out = tmp_path / "run"
    assert run(monkeypatch, "train", "pretrain", store, "--out", out, "--batch", 4, *options) == 2
    told = capsys.readouterr()
    assert message in told.err.splitlines()[-1]
    assert told.err.splitlines()[-1].startswith("error: ")
    assert told.out == ""
    assert not out.exists()


def test_a_seed_below_zero_is_refused_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was a traceback from numpy's generator, after the folder had been made."""
    assert run(monkeypatch, "train", "pretrain", tmp_path / "no", "--out", tmp_path / "run", "--seed", -1) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert "Invalid value for '--seed'" in told
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("train pretrain", ("store", "--out", "run")),
        ("ablate bias", ("--data", "pack", "--results", "results.jsonl")),
        ("bench train", ()),
    ],
)
def test_an_installation_that_cannot_train_is_told_by_the_command_that_was_asked_for(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
    options: tuple[str, ...],
) -> None:
    """`alidade ablate bias` blamed `alidade train`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("alidade.cli.train.find_spec", lambda name: None)
    assert run(monkeypatch, *command.split(), *options) == 2
    assert capsys.readouterr().err.splitlines() == [
        f"error: alidade {command}: got an installation without accelerate and tensorboard, expected the extra "
        "`train`. Install it: pip install 'alidade[train]' (in a clone: pip install -e '.[train]')."
    ]
    assert list(tmp_path.iterdir()) == []


def test_a_missing_store_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "train", "pretrain", tmp_path / "no", "--out", tmp_path / "run") == 2
    assert "no such file" in capsys.readouterr().err


def test_places_that_cannot_be_written_to_are_one_line(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "run", Path("/proc/run")):
        assert run(monkeypatch, "train", "pretrain", store, "--out", out, "--batch", 4, "--steps", 1) == 2
        assert "expected room on the disk and permission to write" in capsys.readouterr().err.splitlines()[-1]
    assert run(monkeypatch, "train", "pretrain", store, "--out", store, "--batch", 4, "--steps", 1) == 2
    assert "a folder that holds something else" in capsys.readouterr().err.splitlines()[-1]
    assert (tmp_path / "file").read_text() == "mine"


def test_json_is_a_line_per_step_on_stdout_alone(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("train", "pretrain", store, "--out", tmp_path / "run", "--steps", 3, "--batch", 4, "--json")
    assert run(monkeypatch, *command, "--precision", "bfloat16") == 0
    told = capsys.readouterr()
    reports = [json.loads(line) for line in told.out.splitlines()]
    assert [(r["step"], r["steps"]) for r in reports] == [(1, 3), (2, 3), (3, 3)]
    assert set(reports[0]["losses"]) == {"contrast s1-s2", "reconstruction s1", "reconstruction s2", "total"}
    assert all(0 <= r["wait_share"] < 1 and r["samples_per_second"] > 0 for r in reports)
    assert "bfloat16: asked for" in told.err
    assert "3/3" in told.err
    assert "samples/s" in told.err
    assert "reconstruction s2 " in told.err
    assert "model saved" in told.err
