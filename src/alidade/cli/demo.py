"""``alidade demo``: the main job on the sample scenes."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from alidade.cli.archive import Query, ask
from alidade.cli.output import Bar, err, out, show_json, show_model, show_table
from alidade.errors import AlidadeError
from alidade.models.registry import load
from alidade.search import export
from alidade.search.archive import Archive
from alidade.search.embed import embed
from alidade.search.picture import draw_result
from alidade.search.scan import Scanner

SAMPLES = Path(__file__).parents[3] / "samples"
# queries by image stay within their own sensor: what the shipped model learned across sensors is little
QUERIES = (
    ("lake", "a prairie lake in aerial imagery of five years", Query(at="-99.1540,47.0185", sensor="naip-rgbn")),
    (
        "forest",
        "a Sentinel-2 chip of a forest",
        Query(like="sentinel-2/eurosat_Forest_127.tif", sensor="sentinel-2-l1c"),
    ),
    (
        "radar",
        "a Sentinel-1 scene of a coast",
        Query(like="sentinel-1/terramesh_282D_485L_3_3.tif", sensor="sentinel-1-rtc"),
    ),
    (
        "amazon",
        "a river bend in Landsat composites of 1985, 2000 and 2020",
        Query(at="-74.50,-8.40", sensor="generic-rgb"),
    ),
    # these words are in the shipped bank: no language model is loaded
    ("words-water", 'the words "open water", any sensor', Query(text="open water")),
    ("words-forest", 'the words "dense forest", any sensor', Query(text="dense forest")),
)


def run_demo(data: Path | None, folder: Path, *, as_json: bool) -> None:
    """Embed, search, and leave an archive, tables and pictures in ``folder``.

    Raises:
        AlidadeError: the sample scenes are not there.
    """
    samples = data or SAMPLES
    if not samples.is_dir():
        raise AlidadeError(
            "sample scenes",
            got=f"no directory {samples}",
            expected="the samples/ folder of the repository",
            next_step="Run `make demo` in a clone, or pass --data PATH.",
        )
    start = time.monotonic()
    model = load()
    show_model(model)
    with Bar() as bar:
        summary = embed([samples], folder / "archive", model, progress=bar)
    err.print(summary.sentence())
    scanner = Scanner(Archive.open(folder / "archive"))
    results = {}
    for name, title, query in QUERIES:
        like = None if query.like is None else str(samples / str(query.like))
        hits, colours = ask(scanner, replace(query, like=like), loaded=model)
        draw_result(hits, scanner, folder / f"{name}.png", query=colours)
        export.write(hits, folder / f"{name}.geojson")
        results[name] = export.to_json(hits)
        if not as_json:
            show_table(export.TABLE_HEADER, export.table_rows(hits), title=f"\n{title}  ->  {folder}/{name}.png")
    if as_json:
        show_json({"archive": str(folder / "archive"), "rows": summary.rows, "searches": results})
    else:
        out.print(
            f"\n{summary.rows:,} tiles of {len(list(samples.rglob('*.tif')))} scenes searched; "
            f"{time.monotonic() - start:.0f} s in all. Pictures and results: {folder}/"
        )
