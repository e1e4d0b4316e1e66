"""``alidade search`` with words, images, places, labels and polygons together, and whose words were used."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from alidade.cli import main
from alidade.models.registry import load
from alidade.models.text.bank import Bank
from alidade.models.weights import save_model
from alidade.models.words import TextHead, Words, WordsConfig
from alidade.search.archive import Archive
from alidade.search.query import QueryImage, Question, query_vector
from alidade.search.scan import Scanner
from alidade.search.store import ExactStore
from search_scenes import make_scene, tiny_model

Run = Callable[..., tuple[int, str, list[str]]]
KNOWN = ("open water", "forest")


def save_words(folder: Path, encoder: str, seed: int) -> None:
    """Words of the tiny model: two sentences in a bank, so that no language model is needed."""
    model = tiny_model()
    vectors = np.random.default_rng(seed).standard_normal((len(KNOWN), 12)).astype(np.float32)
    identity = f"{encoder}:{seed:016x}"
    config = WordsConfig(
        encoder=encoder, text_identity=identity, image_identity=model.identity, text_dim=12, hidden=0, dim=model.dim
    )
    torch.manual_seed(seed)
    bank = Bank(identity=identity, words=KNOWN, vectors=vectors)
    Words(config, TextHead(12, 0, model.dim), bank).save(folder)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """One image model, saved twice with words of its own each."""
    folders = tuple(tmp_path_factory.mktemp("models") / name for name in ("lakes", "towns"))
    for seed, folder in enumerate(folders, start=1):
        save_model(tiny_model().network, folder, dtype=torch.float32)
        save_words(folder, "sentence:small", seed)
    return folders[0], folders[1]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """``alidade`` with arguments: exit code, stdout, lines of stderr."""

    def call(*arguments: object) -> tuple[int, str, list[str]]:
        monkeypatch.setattr(sys, "argv", ["alidade", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        captured = capsys.readouterr()
        return int(stop.value.code or 0), captured.out, captured.err.splitlines()

    return call


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, models: tuple[Path, Path]) -> tuple[Path, Path]:
    """An archive of two scenes by the model, and the folder of the scenes."""
    from alidade.search.embed import embed

    folder = tmp_path_factory.mktemp("query")
    for seed in (1, 2):
        make_scene(folder / f"scene-{seed}.tif", seed, height=64, width=96)
    embed([folder], folder / "archive", load(models[0]))
    return folder / "archive", folder


@pytest.fixture(scope="module")
def rows(made: tuple[Path, Path]) -> list[dict[str, Any]]:
    table = ExactStore(Scanner(Archive.open(made[0]))).scanner.table
    return list(table.to_pylist())


def told(out: str) -> dict[str, Any]:
    return dict(json.loads(out))


def test_words_images_a_place_and_labels_together(
    run: Run, made: tuple[Path, Path], models: tuple[Path, Path], rows: list[dict[str, Any]]
) -> None:
    archive, folder = made
    box = rows[5]["bbox"]
    place = (box["xmin"] + box["xmax"]) / 2, (box["ymin"] + box["ymax"]) / 2
    asked = (
        "--text", "open water", "--not-text", "forest", "--like", folder / "scene-1.tif", "--like",
        folder / "scene-2.tif", f"--at={place[0]},{place[1]}", "--more", rows[0]["id"], "--less", rows[7]["id"],
    )  # fmt: skip
    code, out, err = run("search", archive, *asked, "--model", models[0], "--json", "-k", 12)
    assert (code, [line for line in err if line.startswith("error")]) == (0, [])
    answer = told(out)
    query = answer["query"]
    assert query["images"] == ["scene-1.tif", "scene-2.tif"]
    assert query["positive"] == [rows[0]["id"]]
    assert query["words"] == f"{models[0]} (sentence:small:{1:016x})"
    assert (answer["exact"], answer["matches"], len(answer["hits"])) == (True, 12, 12)
    # the same question asked in Python
    from alidade.cli.archive import read_query
    from alidade.imagery.files import Declared

    model, store = load(models[0]), ExactStore(Scanner(Archive.open(archive)))
    names = [folder / f"scene-{seed}.tif" for seed in (1, 2)]
    vectors = model.embed([read_query(str(name), Declared(), 32) for name in names])
    question = Question(
        text="open water",
        negative_text="forest",
        images=tuple(QueryImage(name=n.name, vector=v) for n, v in zip(names, vectors, strict=True)),
        place=place,
        positive=(rows[0]["id"],),
        negative=(rows[7]["id"],),
    )
    expected = store.scanner.scores(query_vector(question, store, model))
    scores = {hit["id"]: hit["score"] for hit in answer["hits"]}
    for row, score in zip(rows, expected, strict=True):
        assert scores[row["id"]] == pytest.approx(float(score), abs=1e-5)


def test_the_answer_says_whose_words_were_used(run: Run, made: tuple[Path, Path], models: tuple[Path, Path]) -> None:
    """Both models have one image space: only the answer can tell which words were asked."""
    archive, _ = made
    best = []
    for seed, folder in enumerate(models, start=1):
        code, _, err = run("search", archive, "--text", "open water", "--model", folder)
        assert code == 0
        footer = next(line for line in err if "matching tiles" in line)
        assert footer.startswith("10 of 12 matching tiles, exact, ")
        assert footer.endswith(f" ms; words of {folder} (sentence:small:{seed:016x})")
        code, out, _ = run("search", archive, "--text", "open water", "--model", folder, "--format", "geojson")
        assert told(out)["alidade"]["query"]["words"] == f"{folder} (sentence:small:{seed:016x})"
        best.append([f["properties"]["score"] for f in told(out)["features"]])
    assert best[0] != best[1]
    code, _, err = run("search", archive, "--more", first_id(archive))
    assert not any("words of" in line for line in err), "no words were asked"


def first_id(archive: Path) -> str:
    return str(next(Archive.open(archive).tables())["id"][0].as_py())


def test_forgotten_model_of_another_space_is_an_error(run: Run, made: tuple[Path, Path]) -> None:
    code, _, err = run("search", made[0], "--text", "open water")
    assert (code, len(err)) == (2, 1)
    assert "model of the query: got alidade-tiny-" in err[0]
    assert "with which this archive was made" in err[0]


def test_labels_need_no_model_and_ids_are_shown_for_them(
    run: Run, made: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    archive, _ = made
    monkeypatch.setattr("alidade.cli.archive.load", lambda *_, **__: pytest.fail("a model was loaded"))
    code, out, _ = run("search", archive, "--more", first_id(archive), "-k", 3)
    assert code == 0
    header, first, *_ = out.splitlines()
    assert header.split()[-1] == "id"
    assert first.split()[-1] == first_id(archive)
    code, out, _ = run("search", archive, "--more", first_id(archive), "-k", 3, "--new-only", "--json")
    answer = told(out)
    assert len(answer["hits"]) == 3
    assert first_id(archive) not in [hit["id"] for hit in answer["hits"]]
    assert answer["matches"] == 11


def test_ids_are_shown_when_asked_for(run: Run, made: tuple[Path, Path], rows: list[dict[str, Any]]) -> None:
    box = rows[0]["bbox"]
    at = f"--at={(box['xmin'] + box['xmax']) / 2},{(box['ymin'] + box['ymax']) / 2}"
    code, out, _ = run("search", made[0], at, "--ids")
    assert code == 0
    assert out.splitlines()[1].split()[-1] == rows[0]["id"]
    code, out, _ = run("search", made[0], at)
    assert out.splitlines()[0].split()[-1] == "source"


def test_polygon_and_resolution_narrow_the_answer(
    run: Run, made: tuple[Path, Path], rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    archive, _ = made
    box = rows[0]["bbox"]
    x, y = (box["xmin"] + box["xmax"]) / 2, (box["ymin"] + box["ymax"]) / 2
    small = [[x, y], [x + 1e-5, y], [x, y + 1e-5], [x, y]]
    area = tmp_path / "area.geojson"
    area.write_text(json.dumps({"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [small]}}))
    more = ("--more", rows[5]["id"])
    code, out, _ = run("search", archive, *more, "--polygon", area, "--json", "--picture", tmp_path / "p.png")
    answer = told(out)
    assert (code, answer["matches"], [hit["id"] for hit in answer["hits"]]) == (0, 1, [rows[0]["id"]])
    assert answer["query"]["polygon"] == {"type": "Polygon", "coordinates": [small]}
    assert (tmp_path / "p.png").exists()
    for limits, matches in (("10", 12), ("9,11", 12), (",9", 0), ("11,", 0)):
        code, out, _ = run("search", archive, *more, "--only-gsd", limits, "--json")
        assert (code, told(out)["matches"]) == (0, matches)


def test_csv_on_stdout_and_in_a_file(run: Run, made: tuple[Path, Path], tmp_path: Path) -> None:
    more = ("--more", first_id(made[0]), "-k", 4)
    code, out, _ = run("search", made[0], *more, "--format", "csv")
    assert code == 0
    found = list(csv.DictReader(io.StringIO(out)))
    assert [row["rank"] for row in found] == ["1", "2", "3", "4"]
    assert found[0]["wkt"].startswith("POLYGON ((")
    code, _, _ = run("search", made[0], *more, "--out", tmp_path / "hits.csv")
    assert (code, (tmp_path / "hits.csv").read_text()) == (0, out)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "query: got nothing that tiles shall be like, expected one or more of --text WORDS, --like FILE"),
        (("--less", "a"), "query: got only what tiles shall not be like, expected one or more of --text WORDS"),
        (("--not-text", "forest"), "query: got only what tiles shall not be like"),
        (("--not-like", "x.tif"), "query: got only what tiles shall not be like"),
        (("--text", " "), "text of the query: got an empty text"),
        (("--more", "a", "--less", "a"), "labels: got 'a' on both sides"),
        (("--more", "a", "--only-gsd", "3,1"), "ground resolution: got 3 to 1"),
        (("--more", "a", "--polygon", "none.geojson"), "none.geojson: got No such file or directory"),
        (("--more", "a", "--polygon", __file__), "got JSONDecodeError"),
        (("--more", "a", "--at", "1"), "point: got '1'"),
    ],
)
def test_what_cannot_be_asked_is_told_before_anything_is_loaded(
    run: Run, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    code, _, err = run("search", tmp_path / "none", *options)
    assert (code, len(err)) == (2, 1)
    assert message in err[0]


def test_unknown_tiles_are_named(run: Run, made: tuple[Path, Path]) -> None:
    code, _, err = run("search", made[0], "--more", "nothing-0-0")
    assert (code, len(err)) == (2, 1)
    assert "tile id: got 'nothing-0-0', expected ids of tiles in this archive" in err[0]
