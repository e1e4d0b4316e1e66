"""The results file: complete rows only, appended, whole after a crash; and the tables made from it."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest

from alidade.cli.evaluate import record, table
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


# --- one rule for numbers: shares are stored as fractions and shown as percent, others stand as they are

PLAIN = replace(ROW, n=10, value=0.5, low=0.25, high=0.75)


@pytest.mark.parametrize(
    ("metric", "value", "unit", "cell"),
    [
        ("accuracy", 0.5, "%", "50.0 (25.0–75.0)"),
        ("sentences shared with another image", 0.5, "%", "50.0 (25.0–75.0)"),
        ("top-1 flips", 0.5, "%", "50.0 (25.0–75.0)"),
        ("alignment", 0.5, "", "0.5000 (0.2500–0.7500)"),
        ("mean cosine", 0.5, "", "0.5000 (0.2500–0.7500)"),
        ("speed ratio", 0.5, "", "0.5000 (0.2500–0.7500)"),
        ("hubness text→image (k = 10)", 0.5, "", "0.5000 (0.2500–0.7500)"),
        ("NDVI R²", 0.5, "", "0.5000 (0.2500–0.7500)"),
        ("NDWI r within a year above alidade-tiny-0123456789ab", 0.5, "", "0.5000 (0.2500–0.7500)"),
        ("parameters", 884512.0, "", "884512 (884512–884512)"),
        ("training seconds", 49.95, "", "50.0 (49.7–50.2)"),
        ("uniformity of images", -3.0, "", "-3.0000 (-3.2500 to -2.7500)"),
    ],
)
def test_tables_print_shares_as_percent_and_numbers_as_they_are(
    metric: str, value: float, unit: str, cell: str
) -> None:
    row = replace(PLAIN, metric=metric, value=value, low=value - 0.25, high=value + 0.25)
    assert row.unit == unit
    assert row.cell == f"{cell.split(' (')[0]} {unit}".rstrip()
    text = to_markdown([row])
    assert f"| band mean/std | {cell} |" in text
    assert (f"Plain numbers, not percent: {metric}." in text) == (unit == "")


def test_rows_of_older_files_are_read(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    shutil.copyfile(Path(__file__).parents[1] / "docs/results/results.jsonl", path)
    old = load(path)
    assert {r.unit for r in old if r.protocol in ("5-NN", "linear probe", "cross-sensor retrieval")} == {"%"}
    append(path, [replace(PLAIN, metric="hubness text→image (k = 10)", value=3.5, high=4.0)])
    assert load(path)[:-1] == old
    assert load(path)[-1].shown == ("3.5000", "0.2500", "4.0000")


@pytest.mark.parametrize("metric", ["accuracy", "R@1", "mAP@100 over hits", "top-1 flips", "mean recall"])
def test_a_share_that_is_recorded_as_percent_is_refused(metric: str) -> None:
    with pytest.raises(ResultsError, match=rf"{metric} as a share, 0 to 1"):
        replace(PLAIN, metric=metric, value=50.0, low=25.0, high=75.0)
    with pytest.raises(ResultsError, match="as a share"):
        replace(PLAIN, metric=metric, low=-0.1)
    assert replace(PLAIN, metric=metric, value=1.0, high=1.0 + 1e-15).shown == ("100.0", "25.0", "100.0")


def test_what_rounds_to_zero_has_no_sign() -> None:
    nothing = replace(PLAIN, metric="NDVI R²", value=-1e-9, low=-2e-5, high=-1e-9)
    assert nothing.shown == ("0.0000", "0.0000", "0.0000")
    assert "| 0.0000 (0.0000–0.0000) |" in to_markdown([nothing])
    assert replace(nothing, low=-0.25).shown == ("0.0000", "-0.2500", "0.0000")
    assert "| 0.0000 (-0.2500 to 0.0000) |" in to_markdown([replace(nothing, low=-0.25)])


def test_commands_print_each_number_with_its_own_unit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        PLAIN,
        replace(PLAIN, metric="NDVI R²", value=0.7313, low=0.7, high=0.75),
        replace(PLAIN, metric="R@1", value=1 / 320, low=0.0, high=0.01, protocol="recall"),
    ]
    path = tmp_path / "r.jsonl"
    record(iter(rows), path, ["said of it"], as_json=False)
    assert load(path) == rows, "stored as they are"
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    table = [
        "said of it",
        "eurosat-rgb/val, split 0123456789ab: 5-NN",
        "model condition metric value 95 % n",
        "band mean/std as is accuracy 50.0 % 25.0 to 75.0 10",
        "band mean/std as is NDVI R² 0.7313 0.7000 to 0.7500 10",
        "eurosat-rgb/val, split 0123456789ab: recall",
        "model condition metric value 95 % n",
        "band mean/std as is R@1 0.31 % 0.00 to 1.00 10",
    ]
    assert [line for line in lines if line] == table
    record(rows, path, ["said of it"], as_json=True)
    shown = capsys.readouterr()
    assert [Result(**row) for row in json.loads(shown.out)] == rows
    assert "said of it" in shown.err


def test_a_page_of_tables_says_what_is_percent(tmp_path: Path) -> None:
    append(tmp_path / "r.jsonl", [PLAIN, replace(PLAIN, metric="NDVI R²")])
    table(tmp_path / "r.jsonl", out=tmp_path / "page.md", title="Results", protocol=None)
    page = (tmp_path / "page.md").read_text()
    assert "percent unless a table says otherwise" in page
    assert "| band mean/std | 50.0 (25.0–75.0) | 0.5000 (0.2500–0.7500) |" in page
    assert "Plain numbers, not percent: NDVI R²." in page
