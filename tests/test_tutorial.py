"""docs/tutorials/align-your-own.md, run as it is printed, on the sample scenes and with real MiniLM."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image

from alidade.search.archive import Archive

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("tutorial")]

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "tutorials" / "align-your-own.md"
SCENE = "samples/naip/m_4709963_se_14_20150926.tif"
BLOCK = re.compile(r"^(?:<!-- not run: ([^\n]+) -->\n)?```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
"""A fenced block: why it is not run, its language, its text."""
RUN, SHOWN = ("sh", "python"), ("text", "csv")


@dataclass(frozen=True)
class Block:
    """A fenced block of the tutorial. One without ``left_out`` in a language of ``RUN`` is run."""

    kind: str
    text: str
    left_out: str

    @property
    def commands(self) -> list[list[str]]:
        """The words of each command of a shell block."""
        return [shlex.split(line) for line in self.text.replace("\\\n", " ").splitlines()]


@dataclass
class Told:
    """What running the tutorial left behind: its folder, and what each block printed on stdout."""

    folder: Path
    printed: dict[str, str] = field(default_factory=dict)

    def of(self, start: str) -> list[list[str]]:
        """The cells of each line that the one block beginning so has printed."""
        (found,) = [text for block, text in self.printed.items() if block.startswith(start)]
        return cells_of(found)


def cells_of(table: str) -> list[list[str]]:
    """The cells of each line; columns stand at least two spaces apart."""
    return [re.split(r"\s{2,}", line.strip()) for line in table.splitlines()]


def blocks(page: str) -> list[Block]:
    return [Block(kind, text, why) for why, kind, text in BLOCK.findall(page)]


PARTS = blocks(PAGE.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Told]:
    """The tutorial, run once, by the command that the installed package brings."""
    (script,) = entry_points(group="console_scripts", name="alidade")
    main = script.load()
    result = Told(tmp_path_factory.mktemp("tutorial"))
    (result.folder / "samples").symlink_to(ROOT / "samples")
    with contextlib.chdir(result.folder), pytest.MonkeyPatch.context() as patch:
        for part in PARTS:
            if part.kind not in RUN or part.left_out:
                continue
            out, err = io.StringIO(), io.StringIO()
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                if part.kind == "python":
                    exec(compile(part.text, PAGE.name, "exec"), {})
                for words in part.commands if part.kind == "sh" else []:
                    patch.setattr(sys, "argv", words)
                    with pytest.raises(SystemExit) as stop:
                        main()
                    assert not stop.value.code, (words, err.getvalue())
            result.printed[part.text] = out.getvalue()
        yield result


def test_every_block_is_run_or_says_why_not() -> None:
    fences = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("```")]
    assert len(fences) == 2 * len(PARTS)
    assert {part.kind for part in PARTS} == {*RUN, *SHOWN}
    run = [part for part in PARTS if part.kind == "sh" and not part.left_out]
    verbs = [words[1] if words[0] == "alidade" else words[0] for part in run for words in part.commands]
    assert verbs == ["train", "embed", "search", "search", "classify", "classify"]
    assert [part.left_out for part in PARTS if part.left_out] == ["installs packages", "your own images"]


def test_a_block_that_is_not_run_needs_a_reason() -> None:
    page = "<!-- not run: a reason -->\n```sh\nfalse\n```\n\n<!-- not run -->\n```sh\na b \\\n  'c d'\n```\n"
    assert [(b.left_out, b.commands) for b in blocks(page)] == [("a reason", [["false"]]), ("", [["a", "b", "c d"]])]


def test_what_the_tutorial_makes(told: Told) -> None:
    with (told.folder / "chips/captions.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    files = {row["file"]: row["split"] for row in rows}
    assert (len(files), list(files.values()).count("val")) == (50, 15)
    assert {row["split"] for row in rows if row["file"].startswith("held-out/")} == {"val"}
    printed = (told.folder / "chips/captions.csv").read_text().splitlines()
    (head,) = (part.text.splitlines() for part in PARTS if part.kind == "csv")
    assert set(head) <= set(printed)
    with rasterio.open(told.folder / SCENE) as scene:
        tiles = -(-scene.height // 64) * -(-scene.width // 64)
        bounds = scene.bounds
    assert Archive.open(told.folder / "archive").header.tile == 64
    assert f"holds {50 + tiles} rows" in "".join(told.printed.values())
    with rasterio.open(told.folder / "cover.tif") as cover:
        assert (cover.bounds.left, cover.bounds.top, cover.res) == (bounds.left, bounds.top, (40.0, 40.0))
        assert set(np.unique(cover.read(1))) == {1, 2, 3}
    with Image.open(told.folder / "water.png") as picture:
        assert picture.width > 1000


def test_the_words_find_water_that_near_infrared_sees(told: Told) -> None:
    with rasterio.open(told.folder / SCENE) as scene:
        water = scene.read(2) > scene.read(4)
    side = 64
    starts = [(row, col) for row in range(0, water.shape[0], side) for col in range(0, water.shape[1], side)]
    mostly = {at: water[at[0] : at[0] + side, at[1] : at[1] + side].mean() > 0.5 for at in starts}
    hits = json.loads((told.folder / "water.geojson").read_text())["features"]
    found = [mostly[hit["properties"]["row"], hit["properties"]["col"]] for hit in hits]
    # of ten drawn blindly two would be
    assert np.mean(list(mostly.values())) < 0.25
    assert len(found) == 10
    assert sum(found) >= 7


def test_held_out_chips_are_told_apart(told: Told) -> None:
    said = {cells[0]: cells[1] for cells in told.of("alidade classify chips/held-out")[1:]}
    right = [file for file, kind in said.items() if re.sub(r"-[\d-]+\.tif$", "", file).replace("-", " ") == kind]
    # chance is one and a half of 15
    assert len(said) == 15
    assert len(right) >= 9, said


def shown_after(start: str) -> list[list[str]]:
    """The cells of each line that the tutorial shows as what the block beginning so prints."""
    (at,) = [i for i, part in enumerate(PARTS) if part.kind == "sh" and part.text.startswith(start)]
    assert PARTS[at + 1].kind == "text"
    return cells_of(PARTS[at + 1].text)


def test_printed_results_are_of_the_shipped_weights(told: Told) -> None:
    """Up to what another processor may round otherwise; if this fails, print them anew."""
    search = 'alidade search archive --text "open water" --model'
    places = [{tuple(cells[-2:]) for cells in lines[1:]} for lines in (shown_after(search), told.of(search))]
    assert len(places[0] & places[1]) >= 4
    classify = "alidade classify chips/held-out"
    kinds = [{tuple(cells[:2]) for cells in lines[1:]} for lines in (shown_after(classify), told.of(classify))]
    assert len(kinds[0] & kinds[1]) >= 13
