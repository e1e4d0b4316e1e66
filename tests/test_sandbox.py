"""Uploads decoded in a process that can do nothing else: what comes out, what is refused, and what cannot be done."""

from __future__ import annotations

import io
import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from affine import Affine
from PIL import Image

from alidade.errors import AlidadeError, GridError, RasterError, SensorError
from alidade.imagery.files import Declared, read, write_geotiff
from alidade.imagery.sandbox import Limits, can_isolate, decode_upload
from alidade.imagery.sandbox_worker import HEAD, NAME, NOBODY
from make_fixtures import (
    L1C,
    L2A,
    Canary,
    canary,
    display,
    flipped,
    meadow,
    sparse_tif,
    vrt_of,
    vrt_of_bytes,
    wms_of,
    write_tif,
)
from search_scenes import make_raster

PICTURE = Declared(gsd_m=0.5)


@pytest.fixture(scope="module")
def limits() -> Limits:
    return Limits(isolated=can_isolate(), seconds=120)


@pytest.fixture
def bird(monkeypatch: pytest.MonkeyPatch) -> Iterator[Canary]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with canary() as running:
        yield running


def refused(data: bytes, limits: Limits, *words: str, declared: Declared | None = None) -> AlidadeError:
    with pytest.raises(RasterError) as error:
        decode_upload(data, limits=limits, declared=declared)
    text = str(error.value)
    assert text.startswith(NAME)
    assert ": got " in text
    assert ", expected " in text
    assert "\n" not in text
    assert "/tmp" not in text
    assert len(text) < 800
    for word in words:
        assert word in text, text
    return error.value


def encoded(pixels: np.ndarray, form: str = "PNG", **options: Any) -> bytes:
    target = io.BytesIO()
    Image.fromarray(pixels).save(target, form, **options)
    return target.getvalue()


def test_a_geotiff_comes_out_as_open_raster_reads_it(tmp_path: Path, limits: Limits) -> None:
    for name, raster in {
        "s2": make_raster(1, sensor_id="sentinel-2-l2a"),
        "s1": make_raster(2, sensor_id="sentinel-1-rtc"),
        "holes": replace(make_raster(3), valid=np.arange(80 * 104).reshape(80, 104) % 7 > 0),
    }.items():
        write_geotiff(tmp_path / f"{name}.tif", raster)
        there = decode_upload((tmp_path / f"{name}.tif").read_bytes(), limits=limits)
        here = read(tmp_path / f"{name}.tif")
        np.testing.assert_array_equal(there.pixels, here.pixels)
        np.testing.assert_array_equal(there.valid, here.valid)
        assert there.pixels.dtype == here.pixels.dtype
        for what in ("bands", "encodings", "sensor", "time", "grid"):
            assert getattr(there, what) == getattr(here, what), what
        assert there.source == NAME
        assert there.pixels.flags.writeable


def test_what_is_declared_counts_inside_too(tmp_path: Path, limits: Limits) -> None:
    path = write_tif(tmp_path / "a.tif", meadow(L2A))
    said = Declared(
        sensor="sentinel-2-l2a", bands=L2A, offset=-0.1, nodata=0, time=datetime(2023, 4, 5, tzinfo=UTC), gsd_m=12.5
    )
    there, here = decode_upload(path.read_bytes(), limits=limits, declared=said), read(path, said)
    assert (there.bands, there.encodings, there.time) == (here.bands, here.encodings, here.time)
    assert there.gsd_m == 12.5
    with pytest.raises(SensorError, match="^uploaded image: sensor: got 12 bands"):
        decode_upload(path.read_bytes(), limits=limits)


def test_a_crs_without_a_code_leaves_its_ground_distance(tmp_path: Path, limits: Limits) -> None:
    path = write_tif(tmp_path / "a.tif", display(3), crs="+proj=laea +lat_0=47 +lon_0=9 +ellps=GRS80")
    there, here = decode_upload(path.read_bytes(), limits=limits), read(path)
    assert there.grid.crs is None
    assert there.gsd_m == here.gsd_m


def test_pictures_of_every_kind(limits: Limits) -> None:
    colours = display(3).transpose(1, 2, 0)
    alpha = np.full(colours.shape[:2], 255, np.uint8)
    alpha[:10] = 0
    png = decode_upload(encoded(colours), limits=limits, declared=PICTURE)
    assert (png.sensor.id, png.gsd_m, [b.common_name for b in png.bands]) == (
        "generic-rgb",
        0.5,
        ["red", "green", "blue"],
    )
    np.testing.assert_array_equal(png.pixels, colours.transpose(2, 0, 1))
    assert png.valid.all()
    clear = decode_upload(encoded(np.dstack([colours, alpha])), limits=limits, declared=PICTURE)
    assert clear.valid.sum() == 38 * 48
    assert not clear.valid[:10].any()
    grey = decode_upload(encoded(colours[..., 0]), limits=limits, declared=PICTURE)
    np.testing.assert_array_equal(grey.pixels, np.stack([colours[..., 0]] * 3))
    smooth = np.full((40, 60, 3), (200, 100, 50), np.uint8)
    jpeg = decode_upload(
        encoded(smooth, "JPEG", quality=95), limits=limits, declared=replace(PICTURE, sensor="naip-rgb")
    )
    assert (jpeg.sensor.id, jpeg.pixels.shape) == ("naip-rgb", (3, 40, 60))
    np.testing.assert_allclose(jpeg.pixels.mean(axis=(1, 2)), [200, 100, 50], atol=2)


def test_a_picture_does_not_tell_its_ground_distance(limits: Limits) -> None:
    with pytest.raises(GridError, match="ground sample distance"):
        decode_upload(encoded(display(3).transpose(1, 2, 0)), limits=limits)


def test_other_formats_and_sizes_are_refused_before_a_process_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/nonexistent")
    refused(b"", Limits(), "an empty file")
    refused(b"GIF89a......", Limits(), "starts with b'GIF89a..'", "a GeoTIFF, PNG or JPEG")
    refused(vrt_of(tmp_path / "a.tif", "b.tif").read_bytes(), Limits(), "starts with b'<VRTData")
    refused(vrt_of_bytes(tmp_path / "a.tif", "/etc/passwd").read_bytes(), Limits(), "starts with b'<VRTData")
    refused(wms_of(tmp_path / "a.tif", "http://127.0.0.1").read_bytes(), Limits(), "starts with b'<GDAL_WM")
    refused(b"II*\0" + bytes(97), Limits(upload_bytes=100), "got 101 bytes, expected at most 100")


@pytest.mark.parametrize("domain", ["OVERVIEWS", "GEOLOCATION"])
def test_pointers_elsewhere_are_refused_and_nobody_is_called(
    tmp_path: Path, bird: Canary, limits: Limits, domain: str
) -> None:
    pointer = {"OVERVIEW_FILE": f"/vsicurl/{bird.address}/o.tif", "X_DATASET": f"/vsicurl/{bird.address}/x.tif"}
    hostile = write_tif(tmp_path / "a.tif", display(3), domains={domain: pointer})
    refused(hostile.read_bytes(), limits, f"the metadata domain {domain}")
    assert bird.calls == []


def test_bombs_are_refused_by_their_headers(tmp_path: Path, limits: Limits) -> None:
    names = Declared(sensor="generic-rgb", bands=("R",))
    giant = sparse_tif(tmp_path / "a.tif", side=400_000, block=4096).read_bytes()
    refused(giant, limits, "320.0 GB", declared=names)
    block = sparse_tif(tmp_path / "b.tif", side=32_768, block=32_768, dtype="uint8").read_bytes()
    refused(block, limits, "1.1 GB each", declared=names)
    wide = encoded(np.zeros((5000, 4000), np.uint8))
    assert len(wide) < 100_000
    refused(wide, limits, "got 5,000 x 4,000 pixels", "at most 16,777,216 pixels", declared=PICTURE)
    many = write_tif(tmp_path / "c.tif", meadow(side=200)).read_bytes()
    small = replace(limits, decoded_bytes=10**6)
    said = Declared(sensor="sentinel-2-l1c", bands=L1C, offset=0)
    refused(many, small, "200 x 200 pixels of 26 bytes", declared=said)


def test_memory_has_a_limit(limits: Limits) -> None:
    flat = encoded(np.zeros((4000, 4000, 3), np.uint8))
    assert decode_upload(flat, limits=limits, declared=PICTURE).pixels.shape == (3, 4000, 4000)
    refused(flat, replace(limits, memory_bytes=2**24), "more memory than allowed", "16 MiB", declared=PICTURE)


def scans_without_end(count: int) -> bytes:
    """A progressive JPEG whose last scan stands there ``count`` times: little to send, and work for minutes."""
    data = encoded(np.full((2048, 2048), 100, np.uint8), "JPEG", progressive=True)
    last, end = data.rfind(b"\xff\xda"), data.rfind(b"\xff\xd9")
    return data[:end] + data[last:end] * count + data[end:]


def test_time_has_limits_of_both_kinds(limits: Limits) -> None:
    bomb = scans_without_end(2000)
    assert len(bomb) < 2**20
    refused(bomb, replace(limits, seconds=0.3), "at most 0.3 s by the clock", declared=PICTURE)
    refused(bomb, replace(limits, cpu_seconds=1), "at most 1 s of processor time", declared=PICTURE)


@pytest.mark.parametrize("form", ["TIFF", "PNG", "JPEG"])
def test_damage_is_one_line(tmp_path: Path, limits: Limits, form: str) -> None:
    if form == "TIFF":
        data = write_tif(tmp_path / "a.tif", display(3)).read_bytes()
    else:
        data = encoded(display(3).transpose(1, 2, 0), form)
    refused(data[: len(data) * 6 // 10], limits, "damaged or cut short", declared=PICTURE)
    rng = np.random.default_rng(5)
    for _ in range(2):
        with suppress(AlidadeError):
            assert decode_upload(flipped(data, 8, rng), limits=limits, declared=PICTURE).pixels.ndim == 3


LOADING = """
import sys
from pathlib import Path
from alidade.imagery import sandbox_worker
from alidade.imagery.files import Declared
sandbox_worker.load_decoders()
before = set(sys.modules)
for path in sorted(Path(sys.argv[1]).iterdir()):
    said = Declared(gsd_m=1.0, sensor="sentinel-2-l1c" if path.name == "meadow.tif" else None)
    sandbox_worker.describe(sandbox_worker.decode(path, {"pixels": 10**6, "decoded_bytes": 10**8}, said))
print(sorted(set(sys.modules) - before))
"""


def test_nothing_is_left_to_be_loaded_when_the_door_is_shut(tmp_path: Path) -> None:
    times = {"TIFFTAG_DATETIME": "2020:01:02 03:04:05"}
    write_tif(tmp_path / "meadow.tif", meadow(side=200), names=L1C, nodata=0, tags=times)
    write_tif(tmp_path / "local.tif", display(3), crs='LOCAL_CS["x",UNIT["metre",1]]')
    write_tif(tmp_path / "degrees.tif", display(3), crs="EPSG:4326", transform=Affine(1e-4, 0, 10, 0, -1e-4, 48))
    for form in ("lzw", "zstd", "jpeg", "webp", "packbits"):
        write_tif(tmp_path / f"{form}.tif", display(3), options={"compress": form})
    colours = display(3).transpose(1, 2, 0)
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA"):
        Image.fromarray(colours).convert(mode).save(tmp_path / f"{mode}.png")
    for mode in ("L", "RGB", "CMYK"):
        Image.fromarray(colours).convert(mode).save(tmp_path / f"{mode}.jpg", progressive=mode == "RGB")
    command = [sys.executable, "-c", LOADING, str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (run.returncode, run.stdout.strip()) == (0, "[]"), run.stderr


INSIDE = """
import json, os, socket, sys
from pathlib import Path
sys.path[:] = sys.argv[3:]
from alidade.imagery.sandbox_worker import enter_namespaces, load_decoders, shut
if sys.argv[2] == "shut":
    load_decoders()
    assert enter_namespaces() is None
    shut(json.loads(sys.argv[1]), files=True)
def attempt(name, action):
    try:
        action()
        done.append(name)
    except (OSError, MemoryError):
        pass
port, done, root = int(os.environ["PORT"]), [], sorted(os.listdir("/"))
def call():
    with socket.socket() as line:
        line.connect(("127.0.0.1", port))
        line.sendall(b"GET /x HTTP/1.0\\r\\n\\r\\n")
        line.recv(99)
attempt("call", call)
attempt("read", lambda: open("/etc/passwd").read())
attempt("write", lambda: Path("made").write_text("x"))
attempt("start", lambda: os.waitpid(os.fork() or os._exit(0), 0))
attempt("climb", lambda: [os.chdir("..") for _ in range(9)] and os.stat("etc"))
attempt("root", lambda: os.chroot("."))
attempt("many", lambda: [os.dup(2) for _ in range(99)])
attempt("memory", lambda: bytearray(2 * 2**30))
print(json.dumps([done, root]))
"""


def test_a_decoder_that_was_taken_over_can_do_nothing(tmp_path: Path, bird: Canary) -> None:
    if not can_isolate():
        pytest.skip("this system gives no namespaces")
    (tmp_path / NAME).write_bytes(b"")
    if os.geteuid() == 0:
        os.chown(tmp_path, NOBODY, NOBODY)
    port = bird.address.rpartition(":")[2]
    for mode in ("open", "shut"):
        command = [sys.executable, "-c", INSIDE, json.dumps(asdict(Limits())), mode, *[p for p in sys.path if p]]
        run = subprocess.run(
            command, cwd=tmp_path, env={"PORT": port}, capture_output=True, text=True, timeout=120, check=False
        )
        assert run.returncode == 0, run.stderr
        done, root = json.loads(run.stdout)
        if mode == "open":
            assert {"call", "read", "write", "start", "many", "memory"} <= set(done), "the control: all of it works"
            assert bird.calls == ["/x"]
            (tmp_path / "made").unlink()
        else:
            assert done == []
            assert root == [NAME]
            assert bird.calls == ["/x"], "no second call"


WITHOUT = """
import ctypes
import sys
from pathlib import Path
# before anything starts a thread: only a process of one thread may enter a namespace of users
assert ctypes.CDLL(None).unshare(0x10000000) == 0
Path("/proc/sys/user/max_user_namespaces").write_text("0")
from alidade.errors import RasterError
from alidade.imagery.sandbox import Limits, can_isolate, decode_upload
data = Path(sys.argv[1]).read_bytes()
assert not can_isolate()
try:
    decode_upload(data)
except RasterError as error:
    print(error)
print(decode_upload(data, limits=Limits(isolated=False)).pixels.sum())
"""


def test_without_namespaces_it_refuses_unless_told_otherwise(tmp_path: Path) -> None:
    if not can_isolate():
        pytest.skip("this system gives no namespaces to take away")
    path = write_tif(tmp_path / "a.tif", display(3))
    command = [sys.executable, "-c", WITHOUT, str(path)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, run.stderr
    line, total = run.stdout.splitlines()
    assert line.startswith("uploaded image: sandbox: got a system that does not allow one")
    assert "Limits(isolated=False)" in line
    assert int(total) == int(read(path).pixels.sum())


def answer(header: dict[str, Any] | bytes, body: bytes = b"") -> bytes:
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    return HEAD.pack(len(content)) + content + body


GOOD: dict[str, Any] = {
    "shape": [3, 2, 2],
    "dtype": "uint8",
    "bands": ["R", "G", "B"],
    "encodings": [{"unit": "display", "scale": 1.0, "offset": 0.0, "nodata": None}] * 3,
    "sensor": "generic-rgb",
    "time": None,
    "epsg": 32633,
    "transform": [10.0, 0.0, 5e5, 0.0, -10.0, 5e6],
    "gsd_m": None,
}
BODY = bytes(12) + b"\1\1\0\1"


@pytest.fixture
def liar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    """A worker that was taken over: another program, which answers what it likes."""

    def lies(content: bytes, end: str = "exit 0") -> None:
        (tmp_path / "answer").write_bytes(content)
        program = tmp_path / "liar"
        program.write_text(f"#!/bin/sh\n/bin/cat '{tmp_path}/answer'\n{end}\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setattr(sys, "executable", str(program))

    return lies


UPLOADED = b"\x89PNG\r\n\x1a\n"


def test_a_true_answer_is_taken(liar: Callable[[bytes], None]) -> None:
    liar(answer(GOOD, BODY))
    raster = decode_upload(UPLOADED)
    assert raster.pixels.shape == (3, 2, 2)
    assert raster.valid.tolist() == [[True, True], [False, True]]


@pytest.mark.parametrize(
    "changes",
    [
        {"shape": [3, 2, 3]},
        {"shape": [3, 2]},
        {"shape": [0, 2, 2]},
        {"shape": [3, 2.0, 2]},
        {"shape": [3, -2, -2]},
        {"shape": [3, 2**20, 2**20]},
        {"dtype": "object"},
        {"dtype": "O"},
        {"dtype": "<U4"},
        {"dtype": ["uint8"]},
        {"dtype": "uint16"},
        {"bands": ["R", "G"]},
        {"bands": ["R", "G", {"name": "B"}]},
        {"encodings": [{"unit": "magic", "scale": 1, "offset": 0, "nodata": None}] * 3},
        {"encodings": [{"unit": "display", "scale": "1", "offset": 0, "nodata": None}] * 3},
        {"encodings": []},
        {"sensor": 7},
        {"sensor": "nothing"},
        {"time": "yesterday"},
        {"time": "2020-01-01T00:00:00"},
        {"epsg": "+proj=utm"},
        {"epsg": 999_999},
        {"transform": [1, 2, 3]},
        {"transform": [0.0] * 6},
        {"transform": [float("nan")] * 6},
        {"gsd_m": -1},
        {"gsd_m": True},
        {"error": {}},
        {"error": {"kind": "SystemExit", "what": "", "got": "", "expected": "", "next_step": ""}},
        {"error": "no"},
    ],
    ids=repr,
)
def test_a_false_answer_is_not(liar: Callable[[bytes], None], changes: dict[str, Any]) -> None:
    liar(answer(GOOD | changes, BODY))
    with pytest.raises(AlidadeError) as error:
        decode_upload(UPLOADED)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "content",
    [b"", b"\0" * 4, answer(b"{}"), answer(b"[]"), answer(b"[" * 100_000), answer(GOOD), answer(GOOD, BODY + b"\0"),
     HEAD.pack(2**60) + b"{}", HEAD.pack(50) + b"{}", b"\x80\x04cos\nsystem\n"],
)  # fmt: skip
def test_an_answer_that_is_none_is_not_taken(liar: Callable[[bytes], None], content: bytes) -> None:
    liar(content)
    refused(UPLOADED, Limits())


def test_a_worker_that_dies_or_never_stops(liar: Callable[..., None]) -> None:
    liar(answer(GOOD, BODY), "kill -SEGV $$")
    refused(UPLOADED, Limits(), "a decoder that was ended by SIGSEGV")
    liar(answer(GOOD, BODY), "echo the last words >&2; exit 3")
    refused(UPLOADED, Limits(), "ended with status 3 (the last words)")
    liar(b"", "while :; do echo yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy; done")
    refused(UPLOADED, Limits(decoded_bytes=1000, pixels=1000), "answer: got more than allowed")
    liar(answer(GOOD, BODY), "exec /bin/sleep 60")
    refused(UPLOADED, Limits(seconds=0.5), "by the clock")


def test_several_at_once_and_nothing_is_left(limits: Limits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    pictures = [display(3, seed=i).transpose(1, 2, 0) for i in range(4)]
    with ThreadPoolExecutor(4) as pool:
        rasters = list(pool.map(lambda p: decode_upload(encoded(p), limits=limits, declared=PICTURE), pictures))
    for raster, picture in zip(rasters, pictures, strict=True):
        np.testing.assert_array_equal(raster.pixels, picture.transpose(2, 0, 1))
    assert os.listdir(tmp_path) == []
