"""The results file: complete rows only, appended, whole after a crash; and the tables made from it."""

from __future__ import annotations

import json
from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest

from alidade.evaluation.results import Result, ResultsError, append, commit_of, latest, load, to_markdown

ROW = Result(
    protocol="5-NN",
    condition="as is",
    dataset="eurosat-rgb/val",
    split_hash="0123456789ab",
    model="band mean/std",
    config_hash="ba9876543210",
    commit="abc",
    seed=0,
    n=5400,
    metric="accuracy",
    value=0.6861,
    low=0.6739,
    high=0.6983,
    time="2026-01-01T00:00:00+00:00",
)


def test_rows_come_back_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "new" / "results.jsonl"
    append(path, [ROW])
    append(path, [replace(ROW, seed=1), replace(ROW, seed=2)])
    assert [r.seed for r in load(path)] == [0, 1, 2]
    assert load(path)[0] == ROW


@pytest.mark.parametrize("name", [f.name for f in fields(Result)])
def test_every_field_must_be_filled(name: str) -> None:
    for nothing in (None, "", " ", float("nan")):
        with pytest.raises(ResultsError, match=f"{name} = "):
            replace(ROW, **{name: nothing})


@pytest.mark.parametrize("change", [{"low": 0.9}, {"high": 0.1}, {"n": 0}])
def test_numbers_must_fit_together(change: dict[str, float]) -> None:
    with pytest.raises(ResultsError, match="low <= value <= high"):
        replace(ROW, **change)


def test_a_line_that_lacks_a_field_is_named(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    append(path, [ROW])
    lacking = asdict(ROW)
    del lacking["commit"]
    with path.open("a") as file:
        file.write(json.dumps(lacking) + "\n")
    with pytest.raises(ResultsError, match=r"line 2.*commit"):
        load(path)


def test_a_torn_line_is_left_out_and_cut_away(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    append(path, [ROW])
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:40])
    assert load(path) == [ROW]
    append(path, [replace(ROW, seed=1)])
    assert path.read_bytes().startswith(whole)
    assert [r.seed for r in load(path)] == [0, 1]


def test_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="no such file"):
        load(tmp_path / "none.jsonl")


def test_folder_in_the_way_is_told(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="Make room, or name another file"):
        append(tmp_path, [ROW])


def test_the_newest_of_equal_measurements_counts() -> None:
    newer = replace(ROW, value=0.69, commit="def", time="2026-01-02T00:00:00+00:00")
    other = replace(ROW, config_hash="000000000000")
    assert latest([ROW, other, newer]) == [newer, other]


def test_table_has_a_row_per_model_and_a_column_per_condition() -> None:
    rows = [
        ROW,
        replace(ROW, model="alidade-x"),
        replace(ROW, model="alidade-x", condition="25 %, GSD wrong"),
        replace(ROW, dataset="other/val"),
    ]
    text = to_markdown(rows)
    assert "| | accuracy | 25 %, GSD wrong: accuracy |" in text
    assert "| band mean/std | 68.6 (67.4–69.8) |  |" in text
    assert "| alidade-x | 68.6 (67.4–69.8) | 68.6 (67.4–69.8) |" in text
    assert text.count("## ") == 2
    assert "n = 5,400; split `0123456789ab`; seed 0; code `abc`" in text


def test_table_tells_seeds_apart() -> None:
    assert "| band mean/std, seed 1 |" in to_markdown([ROW, replace(ROW, seed=1)])


def test_commit_without_a_repository_names_the_option(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="--commit"):
        commit_of(tmp_path)
