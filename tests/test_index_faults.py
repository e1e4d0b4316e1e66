"""Damage, kills, full disks and rivals: the index heals or says that it is not used, and answers stay right."""

from __future__ import annotations

import fcntl
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from alidade.errors import AlidadeError, ArchiveError
from alidade.search import index as index_module
from alidade.search import index_format
from alidade.search.archive import Archive
from alidade.search.filters import Filter
from alidade.search.index import Index
from alidade.search.index_build import build_index
from alidade.search.index_format import IndexUnusable, read_index_header
from alidade.search.planner import PlannedStore, open_store
from alidade.search.scan import Scanner
from test_index import DIM, make_row, write

EXACT = 100
QUERY = np.random.default_rng(1).standard_normal(DIM).astype(np.float32)
EAST = Filter(bbox=(0, -90, 179, 90))


def grow(path: Path, start: int, count: int, source: str) -> None:
    rng = np.random.default_rng(start)
    write(path, [make_row(i, rng, source=source, source_id=source) for i in range(start, start + count)])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("faults") / "a"
    grow(path, 0, 300, "one")
    build_index(path, exact_rows=EXACT)
    return path


@pytest.fixture
def path(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "a"))


def right(store: PlannedStore) -> bool:
    """Whether the answers are those of the shards."""
    scanner = Scanner(Archive.open(store.archive.path))
    same = [
        store.search(QUERY, k, conditions).table.to_pylist() == scanner.find(QUERY, k, conditions).table.to_pylist()
        for k, conditions in ((5, EAST), (400, Filter()), (5, Filter(sensor="naip-rgb")))
    ]
    return all(same) and store.count(EAST) == scanner.count(EAST)


def generation(path: Path) -> Path:
    return path / read_index_header(Archive.open(path).path).folder


def newest_manifest(path: Path) -> Path:
    # Lance counts versions down from the largest number, so that the newest comes first
    return min((generation(path) / "rows.lance" / "_versions").glob("*.manifest"))


def empty_newest_manifest(path: Path) -> None:
    newest_manifest(path).write_bytes(b"")


def cut_newest_manifest(path: Path) -> None:
    manifest = newest_manifest(path)
    os.truncate(manifest, manifest.stat().st_size // 2)


def newer_manifest_of_nothing(path: Path) -> None:
    # what a hard stop in the middle of adding rows leaves: a version that the header does not know
    manifest = newest_manifest(path)
    manifest.with_name(f"{int(manifest.stem) - 1:020d}.manifest").write_bytes(b"")


def scrambled_data(path: Path) -> None:
    data = next((generation(path) / "rows.lance" / "data").iterdir())
    data.write_bytes(bytes(data.stat().st_size))


def cut_vectors(path: Path) -> None:
    os.truncate(generation(path) / "vectors.f16", 100)


def no_partitions(path: Path) -> None:
    shutil.rmtree(generation(path) / "rows.lance" / "_indices")


def no_generation(path: Path) -> None:
    shutil.rmtree(generation(path))


def torn_header(path: Path) -> None:
    os.truncate(path / "index" / "current.json", 40)


def other_format(path: Path) -> None:
    change_header(path, format=99)


def leading_out(path: Path) -> None:
    change_header(path, generation="g-../../elsewhere")


def change_header(path: Path, **values: object) -> None:
    header = path / "index" / "current.json"
    header.write_text(json.dumps({**json.loads(header.read_text()), **values}))


DAMAGES = [
    empty_newest_manifest,
    cut_newest_manifest,
    newer_manifest_of_nothing,
    scrambled_data,
    cut_vectors,
    no_partitions,
    no_generation,
    torn_header,
    other_format,
    leading_out,
]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda d: d.__name__)
def test_a_damaged_index_is_told_and_made_again(path: Path, damage: Callable[[Path], None]) -> None:
    damage(path)
    told: list[str] = []
    store = open_store(path, say=told.append)
    assert right(store)
    if store.indexed:
        assert told == store.notes
        assert len(told) == 1
        assert "made again from the shards" in told[0]
    else:
        # whole by its sizes and its version: found out by the first search
        assert damage is scrambled_data
        assert "Searching without the index from now on" in told[0]
    again = build_index(path, rebuild=damage is scrambled_data)
    assert again.action == ("made" if damage is scrambled_data else "kept")
    assert right(open_store(path, say=pytest.fail))


def test_without_healing_the_scanner_answers_and_that_is_told(path: Path) -> None:
    empty_newest_manifest(path)
    told: list[str] = []
    store = open_store(path, heal=False, say=told.append)
    assert (store.indexed, store.exact_limit) == (0, None)
    assert right(store)
    assert len(told) == 1
    assert "Searching without an index: got a damaged one (rows.lance/_versions/" in told[0]
    with pytest.raises(IndexUnusable, match="damaged one"):
        Index.open(Archive.open(path))


def test_an_archive_that_was_never_indexed_is_scanned_and_that_is_told(path: Path) -> None:
    shutil.rmtree(path / "index")
    told: list[str] = []
    assert right(open_store(path, say=told.append))
    assert told == [f"Searching without an index: got none. Make it with `alidade index {path}`."]
    assert not (path / "index").exists(), "nobody asked for one"


def test_an_installation_without_lancedb_scans_and_says_so(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_module, "find_spec", lambda _: None)
    monkeypatch.setattr(index_format, "find_spec", lambda _: None)
    told: list[str] = []
    assert right(open_store(path, say=told.append))
    assert len(told) == 1
    assert "an installation without lancedb" in told[0]
    with pytest.raises(AlidadeError, match=r'alidade index: got .*pip install "alidade\[search\]"'):
        build_index(path)


def test_an_index_behind_the_archive_is_extended_when_it_is_opened(path: Path) -> None:
    grow(path, 300, 20, "two")
    told: list[str] = []
    store = open_store(path, say=told.append)
    assert store.indexed == 320
    assert right(store)
    assert told[0].startswith("The index was one of an earlier state of the archive. ")
    late = open_store(path, heal=False, say=pytest.fail)
    grow(path, 320, 20, "three")
    assert (late.indexed, len(late)) == (320, 320), "it goes on with what it opened"
    assert right(open_store(path, heal=False))


def test_an_index_that_cannot_be_mended_is_not_used_and_that_is_told(path: Path) -> None:
    empty_newest_manifest(path)
    with (path / "index" / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        told: list[str] = []
        store = open_store(path, say=told.append)
        assert right(store)
    assert store.indexed == 0
    assert len(told) == 1
    assert "mending it failed" in told[0]
    assert "another process that is building it" in told[0]


def test_an_index_deleted_while_serving_is_told_and_taken_up_again(path: Path) -> None:
    told: list[str] = []
    store = open_store(path, say=told.append)
    assert right(store)
    assert told == []
    shutil.rmtree(path / "index")
    assert right(store)
    assert right(store)
    assert (len(told), store.indexed) == (1, 0)
    assert "Searching without the index from now on: it was removed or replaced (none)" in told[0]
    build_index(path, exact_rows=EXACT)
    assert right(store)
    assert store.indexed == 300
    assert told[1:] == ["Searching with the index that was made meanwhile."]
    assert store.notes == told


def test_an_index_replaced_while_serving_disturbs_no_search(path: Path) -> None:
    told: list[str] = []
    store = open_store(path, say=told.append)
    before = generation(path)
    build_index(path, rebuild=True, exact_rows=EXACT)
    assert not before.exists()
    assert right(store)
    assert store.indexed == 300


def test_two_builders_at_once(path: Path) -> None:
    with (path / "index" / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(ArchiveError, match=r"another process that is building it.*Wait until the other"):
            build_index(path, rebuild=True)
    assert build_index(path, exact_rows=EXACT).action == "kept"


def test_what_is_no_archive_cannot_be_indexed(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="no such directory"):
        build_index(tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_damaged_shard_is_named_and_the_old_index_kept(path: Path) -> None:
    header = (path / "index" / "current.json").read_bytes()
    shard = next((path / "shards").iterdir())
    data = bytearray(shard.read_bytes())
    data[100] ^= 255
    shard.write_bytes(data)
    with pytest.raises(ArchiveError, match=r"part-000001\.parquet.*digest differs"):
        build_index(path, rebuild=True)
    assert (path / "index" / "current.json").read_bytes() == header
    assert not list((path / "index").glob(".building-*"))


FULL_DISK = """
import resource, signal, sys
import lancedb
from alidade.errors import AlidadeError, ArchiveError
from alidade.search import index as index_module
from alidade.search import index_format
from alidade.search.index_build import build_index
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
for room in map(int, sys.argv[3:]):
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
    try:
        build_index(sys.argv[1], rebuild=sys.argv[2] == "rebuild", exact_rows=100)
    except ArchiveError as error:
        print(error)
"""


@pytest.mark.parametrize("way", ["rebuild", "extend"])
def test_a_full_disk_is_one_clear_error_and_the_old_index_is_kept(path: Path, way: str) -> None:
    # the kernel's own refusal: a limit on the size of files makes write() fail as a full disk does
    if way == "extend":
        grow(path, 300, 30, "two")
    header = (path / "index" / "current.json").read_bytes()
    # refused to our own files, and to those of LanceDB
    rooms = ["300", "9000", "17000"] if way == "rebuild" else ["300", "15000"]
    command = [sys.executable, "-c", FULL_DISK, str(path), way, *rooms]
    run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    lines = run.stdout.splitlines()
    assert len(lines) == len(rooms), run.stderr
    for line in lines:
        assert "index: building the index: got " in line
        assert "too large" in line
        assert "Make room, then run `alidade index` again" in line
    assert (path / "index" / "current.json").read_bytes() == header
    assert not list((path / "index").glob(".building-*"))
    assert build_index(path, exact_rows=EXACT).action == ("kept" if way == "rebuild" else "extended")
    assert right(open_store(path, say=pytest.fail))


# Forks a builder per round, each told to die at one step towards the disk (or after a time); what is slow to import
# is imported before, but not LanceDB, whose threads do not survive a fork.
KILLS = """
import os, signal, sys, time
import torch
from alidade.search import index_build
torch.set_num_threads(1)

def build(path, die_at, after):
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        torch.set_num_threads(1)
        steps = 0
        def dying(real):
            def call(*arguments, **named):
                nonlocal steps
                steps += 1
                if steps == die_at:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*arguments, **named)
            return call
        if after is not None:
            signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
            signal.setitimer(signal.ITIMER_REAL, after)
        for name in ("rename", "replace"):
            setattr(os, name, dying(getattr(os, name)))
        index_build.shutil.rmtree = dying(index_build.shutil.rmtree)
        index_build.write_header = dying(index_build.write_header)
        index_build.add_indexes = dying(index_build.add_indexes)
        index_build._sync_tree = dying(index_build._sync_tree)
        index_build.RowsWriter.write = dying(index_build.RowsWriter.write)
        index_build.build_index(path, rebuild=sys.argv[2] == "rebuild", exact_rows=100)
        code = 0
    finally:
        os._exit(code)

for line in sys.stdin:
    path, kind, value = line.split()
    began = time.monotonic()
    child = build(path, int(value) if kind == "step" else -1, float(value) if kind == "after" else None)
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), time.monotonic() - began, flush=True)
"""


def killed(path: Path, way: str, moments: list[str]) -> tuple[list[int], list[float]]:
    """Exit codes and seconds of builders that were to die at these moments; after each, what is there answers right."""
    command = [sys.executable, "-c", KILLS, str(path), way]
    codes, seconds = [], []
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdin is not None
        assert driver.stdout is not None
        for moment in moments:
            driver.stdin.write(f"{path} {moment}\n")
            driver.stdin.flush()
            code, taken = driver.stdout.readline().split()
            codes.append(int(code))
            seconds.append(float(taken))
            told: list[str] = []
            store = open_store(path, heal=False, say=told.append)
            assert right(store), moment
            assert store.indexed == (300 if way == "rebuild" else store.indexed)
            assert told == [] or "earlier state" in told[0], "never torn: whole, or the one before"
        driver.stdin.close()
    return codes, seconds


def test_a_builder_killed_while_it_extends_leaves_the_index_before(path: Path) -> None:
    grow(path, 300, 30, "two")
    codes, _ = killed(path, "extend", [f"step {n}" for n in (2, 3, 99)])
    assert codes == [-signal.SIGKILL, -signal.SIGKILL, 0], "the last one goes on"
    assert open_store(path, say=pytest.fail).indexed == 330


@pytest.mark.slow
def test_a_builder_killed_at_any_step_leaves_a_whole_index(path: Path) -> None:
    codes, _ = killed(path, "rebuild", [f"step {n}" for n in range(1, 8)])
    assert codes[:5] == [-signal.SIGKILL] * 5
    mended = build_index(path, exact_rows=EXACT)
    assert mended.action == "kept"
    assert right(open_store(path, say=pytest.fail))
    assert {p.name for p in (path / "index").iterdir()} == {"current.json", ".lock", generation(path).name}


@pytest.mark.slow
def test_twenty_five_kills_at_random_moments(path: Path) -> None:
    codes, (whole,) = killed(path, "rebuild", ["step 99"])
    assert codes == [0]
    moments = random.Random(0)
    codes = []
    for _ in range(5):
        found, seconds = killed(path, "rebuild", [f"after {whole * moments.uniform(0.1, 1.0):.2f}" for _ in range(5)])
        codes += found
        # a machine that was busy at first must not push all later moments behind the end
        whole = min([whole, *(taken for code, taken in zip(found, seconds, strict=True) if code == 0)])
    assert codes.count(-signal.SIGKILL) >= 10
    build_index(path, exact_rows=EXACT)
    assert right(open_store(path, say=pytest.fail))
