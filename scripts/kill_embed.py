"""Kill embedding at random moments, run it again each time, and compare its end with a run that nobody disturbed.

    python scripts/kill_embed.py --engine pool --kills 25 --seed 0

Scenes made by code are embedded by one process, by a pool of two, by three shards side by side, or on Ray. Each kill
is a SIGKILL of the driver (with shards, of one of them). Exit code 0 says that every promise was kept:

- what was acknowledged at a kill is still acknowledged afterwards;
- in the end there is every row once, and all columns are those of one process that nobody disturbed, byte for byte;
- no process of a killed run lives on, and no temporary file is left.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from alidade.search import embed as embedding
from alidade.search import plan
from alidade.search.archive import Archive
from alidade.search.engine import Engine, InProcess, Pool
from alidade.search.schema import embeddings_of
from search_scenes import make_scene, rows_of, tiny_model

SCENES = [(320, 160, "naip-rgb"), (32, 32, "naip-rgb"), (64, 160, "sentinel-1-rtc"), (96, 64, "sentinel-2-l2a")] * 2
SHARDS = 3
PATIENCE_S = 300.0
FORK = multiprocessing.get_context("fork")
"""torch takes seconds to import: drivers are forked from this process, which starts no thread of its own."""


class BrokenPromise(Exception):
    """What embedding should have kept and did not."""


def engine_called(name: str) -> Engine:
    """One of ``single``, ``shards``, ``pool`` and ``ray``."""
    if name == "pool":
        return Pool(load=tiny_model, workers=2)
    if name == "ray":
        from alidade.search.ray_engine import RayCluster

        return RayCluster(load=tiny_model, workers=2)
    return InProcess()


def drive(scenes: Path, archive: Path, engine: str, index: int | None) -> None:
    """One driver's life, in a process group of its own."""
    # Ray's workers take their path from here; a pool's are told by their parent
    os.environ["PYTHONPATH"] = sys.path[0]
    os.setpgid(0, 0)
    torch.set_num_threads(1)
    shard = None if index is None else plan.Shard(index=index, count=SHARDS)
    summary = embedding.embed([scenes], archive, tiny_model(), batch=4, shard=shard, engine=engine_called(engine))
    if summary.failures:
        raise BrokenPromise(f"failures: {summary.failures}")


def begin(scenes: Path, archive: Path, engine: str) -> list[multiprocessing.process.BaseProcess]:
    """The driver, or with shards all of them."""
    parts: list[int | None] = list(range(SHARDS)) if engine == "shards" else [None]
    drivers = [FORK.Process(target=drive, args=(scenes, archive, engine, index)) for index in parts]
    for driver in drivers:
        driver.start()
    return drivers


def acknowledged(archive: Path) -> list[str]:
    """The whole lines of the archive's manifest."""
    log = archive / "manifest.jsonl"
    return log.read_text().split("\n")[:-1] if log.exists() else []


def shards_there(archive: Path) -> int:
    """Shards acknowledged in the archive and in its parts."""
    places = [archive, *(archive / "parts").glob("*-of-*")]
    return sum('"kind": "shard"' in line for place in places for line in acknowledged(place))


def wait_for_group(group: int) -> None:
    """Workers of a killed driver end by themselves."""
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    raise BrokenPromise(f"processes of the killed run {group} live on")


def live(scenes: Path, archive: Path, engine: str, chance: random.Random | None) -> bool:
    """One run, in which ``chance`` has a driver killed; whether the kill came in time."""
    before, there = acknowledged(archive), shards_there(archive)
    drivers = begin(scenes, archive, engine)
    hit = None if chance is None else chance.choice(drivers)
    if chance is not None and hit is not None:
        more = chance.randint(0, 3)
        # starting takes longest, and a part that goes into the archive is not counted for a moment
        while hit.exitcode is None and shards_there(archive) < there + more:
            time.sleep(0.002)
        hit.join(chance.uniform(0.0, 0.3))
        hit.kill()
    for driver in drivers:
        driver.join(PATIENCE_S)
        if driver.exitcode not in (0, -signal.SIGKILL if driver is hit else 0):
            raise BrokenPromise(f"a run that ended with {driver.exitcode}")
        if driver.pid is not None:
            wait_for_group(driver.pid)
    if acknowledged(archive)[: len(before)] != before:
        raise BrokenPromise("acknowledged lines are gone")
    return hit is not None and hit.exitcode == -signal.SIGKILL


def compare(whole: Path, archive: Path) -> None:
    """See that every column has the same bytes."""
    expected, rows = rows_of(whole), rows_of(archive)
    if rows.num_rows != expected.num_rows or len(set(rows["id"].to_pylist())) != rows.num_rows:
        raise BrokenPromise(f"{rows.num_rows} rows instead of {expected.num_rows}, or some twice")
    for name in expected.column_names:
        if name != "embedding" and not rows[name].combine_chunks().equals(expected[name].combine_chunks()):
            raise BrokenPromise(f"column {name} differs")
    if embeddings_of(rows).tobytes() != embeddings_of(expected).tobytes():
        raise BrokenPromise("embeddings differ")
    files = {p.name for p in archive.rglob("*") if p.is_file()}
    known = {s.file for s in Archive.open(archive).manifest.shards} | {"archive.json", "manifest.jsonl", ".lock"}
    if files != known:
        raise BrokenPromise(f"files left over: {files ^ known}")


def main() -> int:
    """Run until so many kills came in time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=("single", "shards", "pool", "ray"), default="pool")
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    console, chance = Console(), random.Random(options.seed)
    # small, so that there are many units, shards and moments between them
    embedding.SHARD_ROWS, plan.LARGE_BYTES, plan.UNIT_TILES = 8, 2_500, 12
    with tempfile.TemporaryDirectory(prefix="alidade-kill-") as name:
        work = Path(name)
        scenes = work / "scenes"
        scenes.mkdir()
        for seed, (height, width, kind) in enumerate(SCENES):
            make_scene(scenes / f"{seed}.tif", seed, height=height, width=width, sensor_id=kind)
        live(scenes, work / "whole", "single", None)
        kills, archives = 0, 0
        while kills < options.kills:
            archives += 1
            archive = work / f"a{archives}"
            while kills < options.kills and live(scenes, archive, options.engine, chance):
                kills += 1
                console.print(f"kill {kills}: {shards_there(archive)} shards acknowledged in archive {archives}")
            live(scenes, archive, options.engine, None)
            compare(work / "whole", archive)
    console.print(f"{options.engine}: {kills} kills, {archives} archives, every promise kept")
    return 0


if __name__ == "__main__":
    sys.exit(main())
