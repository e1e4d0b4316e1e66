"""``kill -9`` of a real embedding process: at random moments, and at every single step towards the disk.

``part`` is every step of a job that embeds a part of the archive and puts it into the whole.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from alidade.search.archive import Archive
from search_scenes import rows_of

# Forks a new embedding process per round: what is slow to import is imported once, and no torch or Arrow
# thread exists before the fork.
DRIVER = """
import json, os, random, signal, sys, time, traceback
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
import alidade.search.embed as embedding
from alidade.search.plan import Shard
from search_scenes import make_scene, tiny_model

scenes, work, mode = Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]
embedding.SHARD_ROWS = 8 if mode == "random" else 24
scenes.mkdir()
kinds = [(160, 160, "naip-rgb"), (32, 32, "naip-rgb"), (64, 160, "sentinel-1-rtc")]
kinds.append((96, 64, "sentinel-2-l2a"))
for seed, (height, width, kind) in enumerate(kinds):
    make_scene(scenes / f"{seed}.tif", seed, height=height, width=width, sensor_id=kind)

def run(archive, die_at=None):
    child = os.fork()
    if child:
        return child
    code = 1
    torch.set_num_threads(1)
    try:
        if die_at is not None:
            steps = 0
            def dying(real):
                def call(*arguments, **named):
                    nonlocal steps
                    steps += 1
                    if steps == die_at:
                        os.kill(os.getpid(), signal.SIGKILL)
                    return real(*arguments, **named)
                return call
            for name in ("fsync", "replace", "write", "truncate", "unlink"):
                setattr(os, name, dying(getattr(os, name)))
        shard = Shard(index=0, count=1) if mode == "part" else None
        embedding.embed([scenes], archive, tiny_model(), batch=4, shard=shard)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)

def finish(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def acknowledged(archive):
    log = archive / "manifest.jsonl"
    lines = log.read_text().split("\\n")[:-1] if log.exists() else []
    return lines

began = time.monotonic()
assert finish(run(work / "whole")) == 0
whole = time.monotonic() - began
chance = random.Random(7)

def random_moments():
    kills, number = 0, 0
    while kills < 12:
        archive, seen, code = work / f"random{number}", [], -9
        while code == -9:
            child = run(archive)
            time.sleep(chance.uniform(0.2, 0.8) * whole)
            os.kill(child, signal.SIGKILL)
            code = finish(child)
            kills += code == -9
            seen.append(acknowledged(archive))
        assert code == 0, code
        number += 1
        yield archive.name, seen

def every_step():
    code, step = -9, 0
    while code == -9:
        step += 1
        archive = work / f"step{step}"
        code = finish(run(archive, die_at=step))
        seen = [acknowledged(archive)]
        if code == -9:
            assert finish(run(archive)) == 0
            yield archive.name, seen
    assert code == 0, code

lives = list((random_moments if mode == "random" else every_step)())
print(json.dumps(lives))
"""


@pytest.mark.parametrize("mode", ["random", "steps", "part"])
def test_nothing_acknowledged_is_lost_and_the_end_is_the_same(tmp_path: Path, mode: str) -> None:
    arguments = [str(Path(__file__).parent), str(tmp_path / "scenes"), str(tmp_path), mode]
    run = subprocess.run([sys.executable, "-c", DRIVER, *arguments], capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr
    lives = json.loads(run.stdout)
    assert sum(len(seen) for _, seen in lives) >= 10
    whole = rows_of(tmp_path / "whole")
    assert whole.num_rows == 25 + 1 + 10 + 6
    for name, seen in lives:
        path = tmp_path / name
        lines = (path / "manifest.jsonl").read_text().splitlines()
        for before in seen:
            assert lines[: len(before)] == before, "what was acknowledged at a kill is still acknowledged"
        assert Archive.open(path).rows == whole.num_rows
        rows = rows_of(path)
        for column in whole.column_names:
            if column != "embedding":
                assert rows[column].to_pylist() == whole[column].to_pylist(), column
        # resumed runs form the same batches, so not even the last bit may differ
        np.testing.assert_array_equal(rows["embedding"].to_pylist(), whole["embedding"].to_pylist())
        leftovers = {p.name for p in path.rglob("*") if p.is_file()}
        shards = {s.file for s in Archive.open(path).manifest.shards}
        assert leftovers == {"archive.json", "manifest.jsonl", ".lock"} | shards
    if mode == "steps":
        assert {len(before) for _, seen in lives for before in seen} == {0, 1, 2}
