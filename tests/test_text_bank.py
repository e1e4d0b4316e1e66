"""The bank of stored words, and the disk cache under damage, kills and several processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from alidade.models.text import cache as cache_module
from alidade.models.text.bank import Bank, tidy
from alidade.models.text.cache import CachedEncoder
from alidade.models.text.encoder import EncodedText, TextError
from alidade.models.text.loading import load_text_encoder
from text_hashed import DIM, Hashed


class Unable(Hashed):
    """Has the identity, and no model."""

    def encode(self, texts: Sequence[str]) -> EncodedText:
        raise AssertionError(f"asked for {texts}")


def refused(action, *words: str) -> None:
    with pytest.raises(TextError) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


def same(a: EncodedText, b: EncodedText) -> bool:
    return np.array_equal(a.vectors, b.vectors) and a.cut == b.cut


# the bank

WORDS = ["river", "Open water", "broad-leaved forest", "airport", "permanent crop"]


@pytest.mark.parametrize("half", [False, True])
def test_a_bank_gives_back_what_the_encoder_gave(tmp_path: Path, half: bool) -> None:
    encoder = Hashed()
    made = Bank.of(encoder, WORDS, half=half)
    made.save(tmp_path / "bank.safetensors")
    for bank in (
        made,
        Bank.load(tmp_path / "bank.safetensors"),
        load_text_encoder(f"bank:{tmp_path}/bank.safetensors"),
    ):
        assert isinstance(bank, Bank)
        assert (bank.identity, bank.dim, bank.words) == (encoder.identity, DIM, tuple(WORDS))
        got = bank.encode(["airport", "river", "airport"])
        expected = encoder.encode(["airport", "river", "airport"]).vectors
        assert got.vectors.dtype == np.float32
        np.testing.assert_allclose(got.vectors, expected, rtol=1e-3 if half else 0)
        assert bank.vectors.dtype == (np.float16 if half else np.float32)
    assert [p.name for p in tmp_path.iterdir()] == ["bank.safetensors"]


@pytest.mark.parametrize("asked", ["open water", "OPEN  WATER", " Open\twater\n", "oPEN water"])
def test_case_and_spaces_do_not_matter(asked: str) -> None:
    bank = Bank.of(Hashed(), WORDS)
    assert asked in bank
    assert np.array_equal(bank.encode([asked]).vectors, Hashed().encode(["Open water"]).vectors)
    assert tidy(asked) == "open water"


def test_missing_words_are_named_with_the_nearest_and_the_way_out() -> None:
    bank = Bank.of(Hashed(), WORDS)
    refused(
        lambda: bank.encode(["river", "rivers", "brod-leaved forrest", "xyzzy"]),
        "'rivers' (nearest: river)",
        "'brod-leaved forrest' (nearest: broad-leaved forest)",
        "'xyzzy' (nothing near)",
        "the 5 of this bank",
        "pip install 'alidade[text]'",
    )
    refused(lambda: bank.encode(["the shore of a wide and slow river"]), "(nearest: river)")
    refused(lambda: bank.encode([f"nothing {i}" for i in range(9)]), "and 6 more")
    assert "rivers" not in bank


def test_words_that_make_no_bank_are_refused() -> None:
    refused(lambda: Bank.of(Hashed(), ["river", "town", "RIVER "]), "'river' twice")
    refused(lambda: Bank.of(Hashed(), []), "no text")
    refused(lambda: Bank.of(Hashed(), ["river", ""]), "text 2 of 2")
    refused(lambda: Bank.of(Hashed(), ["river", "word " * 20]), "text 2 of 2", "more than the encoder takes")
    good = {"identity": "x", "words": ("a", "b")}
    refused(lambda: Bank(**good, vectors=np.zeros((3, 2), np.float32)), "(3, 2)")
    refused(lambda: Bank(**good, vectors=np.zeros((2, 2))), "float64")
    refused(lambda: Bank(**good, vectors=np.array([[0, np.inf], [0, 0]], np.float32)), "infinity")


def test_half_precision_that_overflows_is_refused() -> None:
    class Loud(Hashed):
        def encode(self, texts: Sequence[str]) -> EncodedText:
            return EncodedText(vectors=super().encode(texts).vectors * 1e6)

    refused(lambda: Bank.of(Loud(), WORDS, half=True), "65504")
    assert Bank.of(Loud(), WORDS).dim == DIM


def test_files_that_are_no_bank_are_refused(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    path = tmp_path / "bank.safetensors"
    refused(lambda: Bank.load(path), "no such file")
    Bank.of(Hashed(), WORDS).save(path)
    whole = path.read_bytes()
    for length in (0, 7, 60, len(whole) - 1):
        path.write_bytes(whole[:length])
        refused(lambda: Bank.load(path), "bank", "alidade-bank-1")
    meta = {"format": "alidade-bank-1", "identity": "x", "words": json.dumps(["a", "b"])}
    vectors = {"vectors": np.zeros((2, 3), np.float32)}
    for wrong in (
        {"format": "other"},
        {"words": "[1, 2]"},
        {"words": "{"},
        {"words": '["a"]'},
        {"words": '["a", "A"]'},
    ):
        save_file(vectors, path, metadata=meta | wrong)
        refused(lambda: Bank.load(path), "bank")
    save_file({"other": vectors["vectors"]}, path, metadata=meta)
    refused(lambda: Bank.load(path), "bank")
    refused(lambda: Bank.of(Hashed(), WORDS).save(tmp_path / "no" / "bank"), "writing")


# the cache


def test_a_cached_text_is_bit_for_bit_the_same_and_asks_nobody(tmp_path: Path) -> None:
    texts = ["river", "town", "river", "a text of more than forty characters, which is cut", " river", "河"]
    inner = Hashed()
    cached = CachedEncoder(inner, tmp_path / "cache")
    assert (cached.identity, cached.dim) == (inner.identity, DIM)
    assert not (tmp_path / "cache").exists()
    first = cached.encode(texts)
    assert same(first, Hashed().encode(texts))
    assert sorted(inner.asked) == sorted(set(texts))
    assert (cached.hits, cached.misses) == (0, 5)
    assert same(cached.encode(texts[::-1]), Hashed().encode(texts[::-1]))
    assert (cached.hits, cached.misses) == (5, 5)
    reopened = CachedEncoder(Unable(), tmp_path / "cache")
    assert reopened.dim == DIM
    assert same(reopened.encode(texts), first)
    assert first.cut == (3,)


def test_only_missing_texts_are_encoded_and_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "CHUNK", 4)
    CachedEncoder(Hashed(), tmp_path).encode(["b", "d"])
    inner = Hashed()
    cached = CachedEncoder(inner, tmp_path)
    texts = list("abcdefghijk")
    assert same(cached.encode(texts), Hashed().encode(texts))
    assert inner.asked == list("acefghijk")
    assert len((next(tmp_path.glob("*/keys.bin"))).read_bytes()) == 11 * 40


def test_what_was_written_before_an_error_of_the_encoder_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Picky(Hashed):
        def encode(self, texts: Sequence[str]) -> EncodedText:
            if "bad" in texts:
                raise TextError("text", got="bad", expected="good", next_step="Choose another.")
            return super().encode(texts)

    monkeypatch.setattr(cache_module, "CHUNK", 2)
    refused(lambda: CachedEncoder(Picky(), tmp_path).encode(["a", "b", "bad", "c"]), "got bad")
    assert same(CachedEncoder(Unable(), tmp_path).encode(["a", "b"]), Hashed().encode(["a", "b"]))


def test_encoders_do_not_meet_in_one_directory(tmp_path: Path) -> None:
    one, other = Hashed("hashed:1"), Hashed("hashed:2", dim=9)
    for encoder in (one, other, one, other):
        assert same(
            CachedEncoder(encoder, tmp_path).encode(["a", "b"]),
            type(encoder)(encoder.identity, encoder.dim).encode(["a", "b"]),
        )
    assert (one.asked, other.asked) == (["a", "b"], ["a", "b"])


def test_a_folder_of_another_encoder_is_refused(tmp_path: Path) -> None:
    CachedEncoder(Hashed("hashed:1"), tmp_path).encode(["a"])
    [mine] = [p for p in tmp_path.iterdir() if p.is_dir()]
    CachedEncoder(Hashed("hashed:2"), tmp_path).encode(["a"])
    [theirs] = [p for p in tmp_path.iterdir() if p.is_dir() and p != mine]
    shutil.rmtree(mine)
    shutil.copytree(theirs, mine)
    refused(lambda: CachedEncoder(Hashed("hashed:1"), tmp_path), "hashed:2", "hashed:1", "delete")


def test_another_dimension_under_the_same_identity_is_refused(tmp_path: Path) -> None:
    CachedEncoder(Hashed(), tmp_path).encode(["a"])
    refused(lambda: CachedEncoder(Hashed(dim=9), tmp_path).encode(["b"]), "9 numbers", str(DIM))


def test_directories_that_are_no_cache_are_refused_and_left_alone(tmp_path: Path) -> None:
    holiday = tmp_path / "holiday"
    holiday.mkdir()
    (holiday / "beach.jpg").write_bytes(b"x")
    refused(lambda: CachedEncoder(Hashed(), holiday), "something else than a text cache")
    assert [p.name for p in holiday.iterdir()] == ["beach.jpg"]
    refused(lambda: CachedEncoder(Hashed(), holiday / "beach.jpg"), "beach.jpg")
    good = tmp_path / "cache"
    CachedEncoder(Hashed(), good).encode(["a"])
    for content in ("{", '{"format": "alidade-text-cache", "version": 99}', "[]", ""):
        (good / "cache.json").write_text(content)
        refused(lambda: CachedEncoder(Hashed(), good), "cache.json")
    (good / "cache.json").unlink()
    refused(lambda: CachedEncoder(Hashed(), good), "something else")


@pytest.mark.parametrize(
    "content", [None, "{", "[]", '{"identity": "hashed:1"}', '{"identity": "hashed:1", "dim": "6"}']
)
def test_a_damaged_description_of_the_encoder_is_refused(tmp_path: Path, content: str | None) -> None:
    CachedEncoder(Hashed(), tmp_path).encode(["a"])
    about = next(tmp_path.glob("*/encoder.json"))
    about.unlink() if content is None else about.write_text(content)
    refused(lambda: CachedEncoder(Hashed(), tmp_path), "encoder.json")


def test_a_directory_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused(lambda: CachedEncoder(Hashed(), tmp_path / "file" / "cache").encode(["a"]), "text cache")


def cached_texts(directory: Path, texts: list[str]) -> CachedEncoder:
    """Encode through the cache and see that every vector is right; the encoder is returned for its counts."""
    cached = CachedEncoder(Hashed(), directory)
    assert same(cached.encode(texts), Hashed().encode(texts))
    return cached


@pytest.mark.parametrize("name", ["keys.bin", "vectors.bin"])
def test_files_torn_at_any_byte_are_healed(tmp_path: Path, name: str) -> None:
    texts = list("abc")
    cached_texts(tmp_path / "whole", texts)
    size = next((tmp_path / "whole").glob(f"*/{name}")).stat().st_size
    row = size // 3
    for length in range(size + 1):
        torn = tmp_path / "torn"
        shutil.copytree(tmp_path / "whole", torn)
        os.truncate(next(torn.glob(f"*/{name}")), length)
        assert cached_texts(torn, texts).hits == length // row
        again = cached_texts(torn, texts)
        assert (again.hits, again.misses, again.damaged) == (3, 0, 0)
        assert next(torn.glob(f"*/{name}")).stat().st_size == size
        shutil.rmtree(torn)


@pytest.mark.parametrize("name", ["keys.bin", "vectors.bin"])
def test_any_flipped_byte_is_noticed_and_healed(tmp_path: Path, name: str) -> None:
    texts = [*"ab", "a text of more than forty characters, which is cut"]
    cached_texts(tmp_path / "whole", texts)
    size = next((tmp_path / "whole").glob(f"*/{name}")).stat().st_size
    for place in range(size):
        hurt = tmp_path / "hurt"
        shutil.copytree(tmp_path / "whole", hurt)
        path = next(hurt.glob(f"*/{name}"))
        data = bytearray(path.read_bytes())
        data[place] ^= 0xFF
        path.write_bytes(data)
        first = cached_texts(hurt, texts)
        assert (first.hits, first.misses) == (2, 1)
        # a damaged key is a text that nobody asks for; anything else of a row is told
        assert first.damaged == (name == "vectors.bin" or place % 40 >= 32)
        again = cached_texts(hurt, texts)
        assert (again.hits, again.misses, again.damaged) == (3, 0, 0)
        shutil.rmtree(hurt)


def test_rows_of_another_process_are_seen_without_reopening(tmp_path: Path) -> None:
    early = CachedEncoder(Unable(), tmp_path)
    CachedEncoder(Hashed(), tmp_path).encode(["a"])
    assert same(early.encode(["a"]), Hashed().encode(["a"]))
    CachedEncoder(Hashed(), tmp_path).encode(["b", "c"])
    assert same(early.encode(["c", "a"]), Hashed().encode(["c", "a"]))
    shutil.rmtree(tmp_path)
    writer = CachedEncoder(Hashed(), tmp_path)
    writer.encode(["c", "b"])
    assert same(early.encode(["b", "c"]), Hashed().encode(["b", "c"]))


WORKER = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from text_hashed import Hashed
from alidade.models.text import cache
cache.CHUNK = 5
cached = cache.CachedEncoder(Hashed(), Path(sys.argv[1]))
start, stop, step = (int(a) for a in sys.argv[2:5])
for i in range(start, stop, step):
    cached.encode([f"text {{j}}" for j in range(i, i + 20)])
    print(i + 20, flush=True)
"""


def worker(directory: Path, *numbers: int) -> subprocess.Popen[str]:
    code = WORKER.format(tests=str(Path(__file__).parent))
    command = [sys.executable, "-c", code, str(directory), *map(str, numbers)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_processes_share_a_cache(tmp_path: Path) -> None:
    """Three write the same 300 texts at a time, each in steps of its own; none is lost and nearly none kept twice."""
    workers = [worker(tmp_path, 0, 281, step) for step in (20, 10, 4)]
    for process in workers:
        process.communicate(timeout=120)
        assert process.returncode == 0
    texts = [f"text {i}" for i in range(300)]
    assert same(CachedEncoder(Unable(), tmp_path).encode(texts), Hashed().encode(texts))
    assert next(tmp_path.glob("*/keys.bin")).stat().st_size == 300 * 40


def test_a_kill_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    acknowledged = 0
    for turn in range(3):
        process = worker(tmp_path, acknowledged, 10**9, 20)
        assert process.stdout is not None
        for _ in range(5 + turn):
            acknowledged = int(process.stdout.readline())
        time.sleep(0.003 * turn)
        process.send_signal(signal.SIGKILL)
        rest = process.communicate(timeout=60)[0].split()
        acknowledged = int(rest[-1]) if rest else acknowledged
        texts = [f"text {i}" for i in range(acknowledged)]
        assert same(CachedEncoder(Unable(), tmp_path).encode(texts), Hashed().encode(texts))
    assert acknowledged >= 18 * 20


def test_a_hundred_thousand_texts_are_a_handful_of_files(tmp_path: Path) -> None:
    class Wide(Hashed):
        """As many numbers as MiniLM has, fast to make."""

        def encode(self, texts: Sequence[str]) -> EncodedText:
            starts = np.array([int(t.split()[1]) for t in texts], dtype=np.float32)
            return EncodedText(vectors=starts[:, None] + np.arange(384, dtype=np.float32))

    texts = [f"text {i}" for i in range(100_000)]
    CachedEncoder(Wide(dim=384), tmp_path).encode(texts)
    assert sum(p.is_file() for p in tmp_path.rglob("*")) == 5
    start = time.process_time()
    got = CachedEncoder(Unable(dim=384), tmp_path).encode(texts)
    assert np.array_equal(got.vectors[:, 0], np.arange(100_000))
    # 1.5 s of one core where it was measured
    assert time.process_time() - start < 15


def test_a_cached_list_needs_no_language_model(tmp_path: Path) -> None:
    texts = ["a river", "an airport", "open water"]
    fresh = load_text_encoder(cache=tmp_path).encode(texts)
    code = f"""
import sys
from pathlib import Path
from alidade.models.text.loading import load_text_encoder
encoder = load_text_encoder(cache=Path({str(tmp_path)!r}))
vectors = encoder.encode({texts!r}).vectors
assert encoder.dim == 384
print([m for m in ("transformers", "sentence_transformers", "tokenizers") if m in sys.modules])
print(vectors.tobytes().hex())
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True).stdout
    loaded, vectors = out.splitlines()
    assert loaded == "[]"
    assert bytes.fromhex(vectors) == fresh.vectors.tobytes()


def test_a_bank_may_stand_in_for_its_encoder(tmp_path: Path) -> None:
    encoder = load_text_encoder()
    bank = Bank.of(encoder, WORDS)
    assert (bank.identity, bank.dim) == (encoder.identity, encoder.dim)
    np.testing.assert_allclose(bank.encode(WORDS).vectors, encoder.encode(WORDS).vectors, atol=1e-6)
