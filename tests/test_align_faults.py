"""Faults of alignment and words that users met: what is saved suffices to ask again and to know what was read."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from torch.nn import functional as F
from typer.testing import CliRunner

import alidade
from alidade.cli.classify import FilesBar
from alidade.cli.output import CountBar
from alidade.cli.train_align import choose_batch, parse_sizes, register_align, text_settings
from alidade.errors import AlidadeError, ArchiveError, ModelError, WeightsError
from alidade.imagery.files import write_geotiff
from alidade.imagery.windows import Window
from alidade.models.model import Model
from alidade.models.text.causal import CausalConfig, CausalEncoder
from alidade.models.text.encoder import TextEncoder, TextError
from alidade.models.text.loading import load_text_encoder, settings_of
from alidade.models.text.sentence import SentenceConfig, SentenceEncoder
from alidade.models.words import CONFIG, Words, WordsConfig, load_words, tower_of
from alidade.search.class_map import map_classes
from alidade.search.classify import classify, make_classes
from alidade.search.words import encode_text, found_otherwise
from alidade.training.align import AlignConfig, build
from alidade.training.align_images import AlignError, ImageCuts, ImageVectors
from align_worker import CONFIG as LEARNS
from align_worker import model as small
from align_worker import pairs, pictures, run
from make_fixtures import L2A
from search_scenes import make_raster
from text_models import SENTENCES, WIDTH, save_model, save_sentence_model

TEXT_LIMIT = 9
"""Words of a text that the made sentence model reads: of 12 tokens one is special, two are the instruction's."""
LONG = "river " * 30


def invoke(command: str, *arguments: object) -> tuple[str, str]:
    """stdout and stderr of ``alidade train align`` or ``alidade classify``; its error where it fails."""
    from alidade.cli.classify import register

    app = typer.Typer()
    register_align(app)
    register(app)
    found = CliRunner().invoke(app, [command, *map(str, arguments)])
    if found.exception is not None:
        raise found.exception
    return found.stdout, found.stderr


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_sentence_model(tmp_path_factory.mktemp("texts") / "tiny")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six images of Sentinel-2 with twelve bands and a caption each; beside them one in red, green and blue."""
    folder = tmp_path_factory.mktemp("scenes")
    rows = ["file,caption"]
    for i in range(6):
        write_geotiff(folder / f"{i}.tif", scene(i))
        rows.append(f"{i}.tif,{('a river', 'the forest', 'road and town')[i % 3]}")
    (folder / "captions.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    (folder / "other").mkdir()
    write_geotiff(folder / "other" / "colours.tif", scene(7).select(("red", "green", "blue")))
    return folder


def scene(seed: int) -> alidade.Raster:
    raster = make_raster(seed, 64, 64, "sentinel-2-l2a")
    assert [b.name for b in raster.bands] == list(L2A)
    return raster


@pytest.fixture(scope="module")
def told(scenes: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A model aligned by command with neither --batch nor --bands, and what it said on stderr."""
    out = tmp_path_factory.mktemp("runs") / "run"
    options = ("--pooling", "eos", "--instruction", "describe the", "--steps", 2, "--hidden", 8, "--json")
    _, err = invoke("align", scenes, "--out", out, "--text", text, "--precision", "float32", *options)
    return out / "model", err


@pytest.fixture
def model(told: tuple[Path, str]) -> Model:
    return alidade.load(told[0], dtype=torch.float32)


def with_bands(folder: Path, place: Path, bands: list[str]) -> Model:
    """A copy of a model whose words say that they were learnt so."""
    shutil.copytree(folder, place)
    data = json.loads((place / CONFIG).read_text())
    (place / CONFIG).write_text(json.dumps(data | {"bands": bands}))
    return alidade.load(place, dtype=torch.float32)


# 1. the batch


def test_a_small_folder_is_one_batch_and_that_is_said(told: tuple[Path, str]) -> None:
    lines = [line for line in told[1].splitlines() if line.startswith("batch of")]
    assert lines == ["batch of 6: for the usual 256 there are too few images (--batch sets it)"]


def test_batches_that_are_chosen_and_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [choose_batch(None, n, "train") for n in (2, 24, 256, 1000)] == [2, 24, 256, 256]
    assert choose_batch(8, 24, "train") == 8
    with pytest.raises(AlidadeError, match=r"--batch: got 25 images, expected at most the 24 of split 'train'"):
        choose_batch(25, 24, "train")
    with pytest.raises(AlidadeError, match=r"at most the 1 of .*Caption more images"):
        choose_batch(None, 1, "train")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert choose_batch(None, 25, "train") == 12
    with pytest.raises(AlidadeError, match="got 13 images in each of 2 processes, expected at most the 25"):
        choose_batch(13, 25, "train")


# 2. the bands


def test_words_are_learnt_from_what_embed_reads(told: tuple[Path, str], model: Model) -> None:
    assert json.loads((told[0] / CONFIG).read_text())["bands"] == ["optical"]
    assert model.words is not None
    assert model.words.config.bands == ("optical",)
    raster = scene(0)
    read = model.bands_for(raster.sensor, [b.name for b in raster.bands])
    found = tower_of(model.towers, raster.sensor, read)
    assert found is not None
    assert found.name == "optical"


def test_vectors_say_which_towers_made_them(model: Model) -> None:
    whole, colours = scene(0), scene(0).select(("red", "green", "blue"))
    assert ImageVectors.read(model, [whole]).towers == ("optical",)
    assert ImageVectors.read(model, [colours]).towers == ("rgb",)
    assert ImageVectors.read(model, [whole, colours]).towers == ("optical", "rgb")
    assert ImageCuts.read(model, [colours], sizes=((64, 1),)).towers == ("rgb",)
    assert np.abs(model.embed(whole) - model.embed(colours)).max() > 0.05, "other inputs, other vectors"
    with pytest.raises(AlignError, match="images of the towers optical, rgb.*--bands rgb"):
        ImageCuts.read(model, [whole, colours], sizes=((64, 1),))


def test_files_that_are_read_otherwise_are_told(
    told: tuple[Path, str], model: Model, scenes: Path, tmp_path: Path
) -> None:
    whole, colours = scenes / "0.tif", scenes / "other" / "colours.tif"
    names = ("river", "forest")
    assert classify([whole], model, names).notes == ()
    (note,) = classify([whole, colours], model, names).notes
    assert note.startswith("note: words were learnt from images read as B01, B02, ")
    assert "; colours.tif is read as red, green, blue, of which they know less" in note
    assert found_otherwise(model, [colours, colours, whole, scenes / "gone.tif"]) == note
    by_colours = with_bands(told[0], tmp_path / "rgb", ["rgb"])
    (other,) = classify([scenes / f"{i}.tif" for i in range(3)], by_colours, names).notes
    assert "read as red, green, blue; 3 files (the first is 0.tif) are read as B01" in other
    _, err = invoke("classify", whole, "--classes", "river,forest", "--model", tmp_path / "rgb")
    assert "note: words were learnt from images read as red, green, blue; 0.tif is read as B01" in err
    unknown = with_bands(told[0], tmp_path / "unknown", [])
    assert classify([whole, colours], unknown, names).notes == ()


# 3. the tile


def test_a_tile_that_the_model_does_not_see_whole_is_refused(model: Model, scenes: Path) -> None:
    for wrong, right in ((50, 48), (67, 64)):
        with pytest.raises(
            ArchiveError, match=f"tile side: got {wrong} px, expected a multiple of 8 px.*--tile {right}"
        ):
            classify([scenes / "0.tif"], model, ("river", "forest"), tile=wrong)
    with pytest.raises(ArchiveError, match="tile side: got 4 px, expected 8 to 512 px"):
        classify([scenes / "0.tif"], model, ("river", "forest"), tile=4)
    with pytest.raises(ModelError, match="map: got windows of 50 px, expected a multiple of 8 px.*Choose 48 px"):
        map_classes(scenes / "0.tif", model, make_classes(model, ("river", "forest")), window=50)
    with pytest.raises(ArchiveError, match="got 50 px, expected a multiple of 8 px"):
        invoke("classify", scenes / "0.tif", "--classes", "river,forest", "--model", "alidade-tiny", "--tile", 50)


def test_padding_of_a_larger_tile_changes_no_number(model: Model, scenes: Path) -> None:
    sides = (64, 72, 128)
    found = [classify([scenes / "0.tif"], model, ("river", "forest"), tile=t).files[0] for t in sides]
    for file in found:
        assert [t.window for t in file.tiles] == [Window(row=0, col=0, height=64, width=64)]
        assert file.probabilities == pytest.approx(found[0].probabilities, abs=1e-5)


# 4. sizes of cuts


def test_sizes_are_read_as_they_are_written() -> None:
    assert parse_sizes("256,208, 160 ,128") == ((256, 1), (208, 1), (160, 1), (128, 1))
    assert parse_sizes("256/2,256/2,128") == ((256, 2), (256, 2), (128, 1))
    for wrong in ("", "wide", "128,", "128/", "-8", "128/2/2", "12.5"):
        with pytest.raises(AlidadeError, match="--sizes: got"):
            parse_sizes(wrong)


def test_a_learning_tower_sees_all_sizes_and_no_others() -> None:
    cuts = ImageCuts.read(small(), pictures(4, side=40), sizes=((40, 1), (32, 2), (24, 1)))
    rng = np.random.default_rng(0)
    assert {cuts.draw(np.arange(4), rng).pixels.shape[-1] for _ in range(30)} == {40, 16, 24}
    assert cuts.padded == 0
    assert replace(cuts, sizes=((48, 1), (24, 1))).padded == 4


def test_the_command_takes_sizes(scenes: Path, text: Path, tmp_path: Path) -> None:
    base = ("align", scenes, "--text", text, "--precision", "float32", "--steps", 1, "--hidden", 8, "--image", "lora")
    for sizes, said in {"64,600": "600 px", "64,64/16": "64 px averaged to 4"}.items():
        with pytest.raises(AlignError, match=f"cuts of images: got {said}, expected 8 to 512 px"):
            invoke(*base, "--out", tmp_path / "wrong", "--sizes", sizes)
    assert not (tmp_path / "wrong").exists()
    _, err = invoke(*base, "--out", tmp_path / "run", "--sizes", "72")
    assert "6 of 6 images are smaller than the largest cut: the rest of it has no data (--sizes names the cuts)" in err


# 5. a folder that moves


@pytest.mark.parametrize("kind", ["sentence", "causal"])
def test_a_model_with_a_text_tower_of_its_own_can_be_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    start: TextEncoder
    if kind == "sentence":
        start = SentenceEncoder(
            SentenceConfig(name=str(save_sentence_model(tmp_path / "start")), pooling="bos", instruction="describe the")
        )
    else:
        start = CausalEncoder(
            CausalConfig(
                name=str(save_model("llama", tmp_path / "start")),
                attention="bidirectional",
                pooling="eos",
                max_length=16,
            )
        )
    config = replace(LEARNS, image_tower="frozen", text_tower="full", steps=1, peak_rate=1e-2)
    words = run(tmp_path / "run", config, text=start, encoder="start")
    assert words.config.encoder == ("./text" if kind == "sentence" else "causal:./text")
    assert words.config.settings == settings_of(start)
    expected = words.embed(SENTENCES)
    (tmp_path / "elsewhere: new").mkdir()
    moved = shutil.move(tmp_path / "run" / "model", tmp_path / "elsewhere: new" / "model")
    for old in (tmp_path / "run", tmp_path / "start"):
        shutil.rmtree(old)
    monkeypatch.chdir(tmp_path)
    loaded = alidade.load(Path(moved).relative_to(tmp_path)).words
    # loaded by a relative path, and used from another place
    monkeypatch.chdir("/")
    assert loaded is not None
    assert np.array_equal(loaded.embed(SENTENCES), expected)
    with pytest.raises(TextError, match="words without a folder"):
        Words(loaded.config, loaded.head).embed(SENTENCES)


def test_a_text_encoder_by_a_relative_path_is_kept_by_where_it_is(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(text.parent)
    encoder = load_text_encoder("./tiny")
    words = run(tmp_path, replace(LEARNS, image_tower="frozen", steps=1), text=encoder, encoder="./tiny")
    assert words.config.encoder == str(text)
    assert not (tmp_path / "model" / "text").exists()


# 6. texts that are cut


def test_what_was_cut_is_told(model: Model, scenes: Path, told: tuple[Path, str]) -> None:
    assert model.words is not None
    found = model.words.encode(["a river", LONG])
    assert (found.cut, found.limit) == ((1,), TEXT_LIMIT)
    assert np.array_equal(found.vectors, model.embed_text(["a river", LONG]))
    assert np.linalg.norm(found.vectors, axis=1) == pytest.approx(1, abs=1e-5)
    assert model.words.encode(["river " * TEXT_LIMIT]).note is None
    assert encode_text(model, [LONG]).note == f"the text was cut after {TEXT_LIMIT} tokens"
    assert replace(found, limit=None).note == "1 of 2 texts was cut at the text encoder's limit"
    _, err = invoke("classify", scenes / "0.tif", "--classes", f"forest,{LONG}", "--model", told[0])
    assert f"1 of 2 texts was cut after {TEXT_LIMIT} tokens" in err.splitlines()
    model.words = None
    with pytest.raises(ModelError, match="a model without words"):
        encode_text(model, ["a river"])


def test_limits_are_the_texts_own_tokens(text: Path, tmp_path: Path) -> None:
    plain = SentenceEncoder(SentenceConfig(name=str(text))).encode([LONG])
    assert (plain.cut, plain.limit) == ((0,), 11)
    causal = CausalConfig(name=str(save_model("llama", tmp_path / "llama")), max_length=12, pooling="eos")
    assert CausalEncoder(causal).encode([LONG]).limit == 10
    assert CausalEncoder(replace(causal, instruction="describe the")).encode([LONG, "a river"]).limit == 8


# 7. settings of a text encoder


def test_settings_are_saved_and_the_encoder_is_made_from_them(told: tuple[Path, str], text: Path) -> None:
    data = json.loads((told[0] / CONFIG).read_text())
    expected = {"pooling": "eos", "instruction": "describe the", "pool_instruction": False, "max_length": None}
    assert (data["settings"], data["encoder"]) == (expected, str(text))
    made = SentenceEncoder(SentenceConfig(name=str(text), pooling="eos", instruction="describe the"))
    assert data["text_identity"] == made.identity
    words = alidade.load(told[0]).words
    assert words is not None
    by_hand = F.normalize(words.head(torch.from_numpy(made.encode(SENTENCES).vectors)), dim=-1).numpy()
    np.testing.assert_allclose(words.embed(SENTENCES), by_hand, atol=1e-6)


def test_other_settings_in_the_file_are_another_encoder(told: tuple[Path, str], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(told[0], tmp_path / "model"))
    data = json.loads((folder / CONFIG).read_text())

    def words(**changes: object) -> Words:
        (folder / CONFIG).write_text(json.dumps(data | changes))
        found = load_words(folder, data["image_identity"])
        assert found is not None
        return found

    for settings, said in (
        (data["settings"] | {"pooling": "bos"}, "which these words were learnt with"),
        (data["settings"] | {"attention": "causal"}, "got 'attention' for a sentence model"),
        (data["settings"] | {"max_length": "12"}, "got max_length '12', expected a value of type int"),
        (data["settings"] | {"pool_instruction": None}, "expected a value of type bool"),
        (data["settings"] | {"pooling": "max"}, "pooling: got 'max', expected mean or bos or eos"),
    ):
        with pytest.raises(TextError, match=said):
            words(settings=settings).embed(["a river"])
    for wrong in ({"settings": [1]}, {"settings": {"pooling": [1]}}, {"bands": "rgb"}, {"bands": [1]}, {"more": 1}):
        with pytest.raises(WeightsError, match="words: got ValueError"):
            words(**wrong)


def test_words_of_earlier_versions_load() -> None:
    words = alidade.load("alidade-tiny").words
    assert words is not None
    assert isinstance(words.config, WordsConfig)
    old = json.loads((Path(alidade.__file__).parent / "weights" / "alidade-tiny" / CONFIG).read_text())
    assert {"settings", "bands"} & set(old) == set() or words.config.bands
    assert words.embed(["water"]).shape == (1, words.config.dim)


def test_options_become_settings(text: Path) -> None:
    given = text_settings("eos", "describe", False, "bidirectional", 40, "bfloat16")
    assert given == {
        "pooling": "eos", "instruction": "describe", "attention": "bidirectional", "max_length": 40,
        "precision": "bfloat16",
    }  # fmt: skip
    assert text_settings(None, None, False, None, None, None) == {}
    assert text_settings(None, "describe", True, None, None, None) == {
        "instruction": "describe", "pool_instruction": True,
    }  # fmt: skip
    for pooling, instruction in ((None, None), ("eos", "describe")):
        with pytest.raises(AlidadeError, match="--pool-instruction: got"):
            text_settings(pooling, instruction, True, None, None, None)
    with pytest.raises(TextError, match="bank:x' with settings"):
        load_text_encoder("bank:x", settings={"pooling": "eos"})
    with pytest.raises(TextError, match="instruction: got ' ', expected words"):
        load_text_encoder(str(text), settings={"instruction": " "})


def test_the_command_sets_a_causal_model(scenes: Path, tmp_path: Path) -> None:
    causal = save_model("llama", tmp_path / "llama")
    options = ("--pooling", "bos", "--attention", "bidirectional", "--max-length", 16, "--text-precision", "bfloat16")
    base = ("align", scenes, "--text", f"causal:{causal}", "--steps", 1, "--hidden", 8, "--precision", "float32")
    invoke(*base, "--out", tmp_path / "run", *options)
    words = alidade.load(tmp_path / "run" / "model").words
    assert words is not None
    expected = CausalConfig(
        name=str(causal), pooling="bos", attention="bidirectional", max_length=16, precision="bfloat16"
    )
    assert words.config.text_identity == CausalEncoder(expected).identity
    assert words.embed(["a river"]).shape == (1, words.config.dim)
    with pytest.raises(TextError, match="got 'attention' for a sentence model"):
        invoke("align", scenes, "--out", tmp_path / "no", "--text", tmp_path / "llama", "--attention", "causal")


def test_a_learning_causal_tower_may_have_settings_but_not_half_precision(tmp_path: Path) -> None:
    config: AlignConfig = replace(LEARNS, image_tower="frozen", text_tower="lora")
    path = str(save_model("llama", tmp_path / "llama"))
    half = CausalEncoder(CausalConfig(name=path, max_length=16, precision="bfloat16"))
    with pytest.raises(AlignError, match="text tower that learns: got .*expected .*CausalEncoder in float32"):
        build(config, pairs(config, text=half), small(), half)
    whole = CausalEncoder(CausalConfig(name=path, max_length=16, pooling="eos"))
    assert build(config, pairs(config, text=whole), small(), whole).text is not None


SAID = "describe the"
WAYS = {
    "as saved": {},
    "mean": {"pooling": "mean"},
    "bos": {"pooling": "bos"},
    "eos": {"pooling": "eos"},
    "led": {"instruction": SAID},
    "led, pooled": {"instruction": SAID, "pool_instruction": True},
    "led mean": {"pooling": "mean", "instruction": SAID},
    "led bos": {"pooling": "bos", "instruction": SAID},
    "led eos": {"pooling": "eos", "instruction": SAID},
    "led otherwise": {"instruction": "describe a"},
    "short": {"max_length": 8},
}


def states_of(folder: Path, texts: list[str]) -> list[torch.Tensor]:
    """Last states ``[L, D]`` of each text in the transformer of a saved sentence model, by transformers alone."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(str(folder)), AutoModel.from_pretrained(str(folder)).eval()
    with torch.inference_mode():
        return [model(**tokenizer(t, return_tensors="pt")).last_hidden_state[0] for t in texts]


@pytest.mark.parametrize("saved_as", ["mean", "cls"])
def test_pooling_and_instruction_of_a_sentence_model_by_hand(tmp_path: Path, saved_as: str) -> None:
    folder = save_sentence_model(tmp_path / "tiny", pooling=saved_as, max_length=16)
    states = {said: states_of(folder, [f"{said} {t}".strip() for t in SENTENCES]) for said in ("", SAID, "describe a")}
    for settings in WAYS.values():
        encoder = load_text_encoder(str(folder), settings=settings)
        got = encoder.encode(SENTENCES).vectors
        said, pooled = str(settings.get("instruction", "")), bool(settings.get("pool_instruction", False))
        pooling = str(settings.get("pooling", "mean" if saved_as == "mean" else "bos"))
        if "max_length" not in settings:
            # <s> and one token a word
            first = 1 + len(said.split()) if said and not pooled else 0
            pool = {"mean": lambda s, n=first: s[n:].mean(0), "bos": lambda s: s[0], "eos": lambda s: s[-1]}[pooling]
            expected = F.normalize(torch.stack([pool(s) for s in states[said]]), dim=1).numpy()
            np.testing.assert_allclose(got, expected, atol=1e-5)
        alone = np.concatenate([encoder.encode([t]).vectors for t in SENTENCES])
        np.testing.assert_allclose(got, alone, atol=1e-5)


def test_the_instruction_ends_where_the_text_begins_where_tokens_hold_spaces(tmp_path: Path) -> None:
    """sentence-transformers counts the space behind a prompt as a token of its own, and would leave out a word."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    transformer = Transformer(str(save_model("gpt2", tmp_path / "gpt2")), max_seq_length=16)
    transformer.tokenizer.pad_token = "<|end|>"
    SentenceTransformer(modules=[transformer, Pooling(WIDTH)], device="cpu").save(
        str(tmp_path / "tiny"), create_model_card=False
    )
    encoder = load_text_encoder(str(tmp_path / "tiny"), settings={"instruction": "near the"})
    (states,) = states_of(tmp_path / "tiny", ["near the river"])
    assert len(states) == 3
    np.testing.assert_allclose(encoder.encode(["river"]).vectors[0], states[2].numpy(), atol=1e-5)
    assert encoder.encode(["river"]).limit == 14


def test_each_setting_is_another_identity(text: Path) -> None:
    found = {way: load_text_encoder(str(text), settings=settings).identity for way, settings in WAYS.items()}
    assert len(set(found.values())) == len(WAYS)
    assert found["as saved"] == SentenceEncoder(SentenceConfig(name=str(text))).identity
    # what changes no vector changes no identity
    assert load_text_encoder(str(text), settings={"pool_instruction": True}).identity == found["as saved"]
    both = {"pooling": "eos", "instruction": SAID, "pool_instruction": True}
    assert load_text_encoder(str(text), settings=both).identity == found["led eos"]


def test_an_instruction_without_room_or_a_model_without_pooling_is_refused(text: Path, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from transformers import AutoTokenizer

    with pytest.raises(TextError, match="got an instruction of 11 tokens, expected .* room for a text within 12"):
        load_text_encoder(str(text), settings={"instruction": "river " * 11}).encode(["a river"])
    tokenizer = AutoTokenizer.from_pretrained(str(text))
    static = StaticEmbedding(tokenizer.backend_tokenizer, embedding_dim=WIDTH)
    SentenceTransformer(modules=[static], device="cpu").save(str(tmp_path / "static"), create_model_card=False)
    assert load_text_encoder(str(tmp_path / "static")).encode(["a river"]).limit is None
    for settings in ({"pooling": "mean"}, {"instruction": "describe"}):
        with pytest.raises(TextError, match="does not pool the states of tokens"):
            load_text_encoder(str(tmp_path / "static"), settings=settings).encode(["a river"])


# 8. the bar


@pytest.mark.parametrize(("files", "said"), [(1, "classifying 1 file"), (2, "classifying 2 files")])
def test_the_bar_counts_files_in_the_right_number(files: int, said: str) -> None:
    bar = CountBar("tiles", "reading headers")
    progress = FilesBar(bar, "classifying")
    progress.started(tiles=5, sources=files)
    progress.advanced(tiles=2, source="a.tif")
    (task,) = bar._bar.tasks
    assert (task.description, task.total, task.completed) == (said, 5, 2)
