"""Alignment of images with language: losses against loops, gradients, low-rank parts, runs, what is saved."""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import sys
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import ViTConfig, ViTModel

import alidade
from alidade.errors import AlidadeError, RasterError, WeightsError
from alidade.models.text.cache import CachedEncoder
from alidade.models.text.encoder import TextError
from alidade.models.text.sentence import SentenceConfig, SentenceEncoder
from alidade.models.vision import VisionConfig, VisionEncoder
from alidade.models.weights import identity, load_model
from alidade.models.words import TextHead, Words, load_words
from alidade.training.align import AlignConfig, align, build
from alidade.training.align_batches import Pairs, Sentences, make_pairs
from alidade.training.align_images import AlignError, ImageCuts, ImageVectors, random_cut
from alidade.training.align_losses import Paired, infonce, pair, siglip
from alidade.training.aligner import Aligner
from alidade.training.augment import View
from alidade.training.captions.captioned import CaptionError
from alidade.training.checkpoint import CheckpointError
from alidade.training.grad_cache import in_chunks
from alidade.training.loop import Report, make_batches
from alidade.training.lora import adapt, block_layers, merge
from align_worker import CONFIG, NAMES, Hashed, captions, model, pairs, pictures, run
from text_models import save_sentence_model

WORKER = Path(__file__).with_name("align_worker.py")
FROZEN = replace(CONFIG, image_tower="frozen")
NUMBERS = torch.tensor([3, 1, 3, 2, 3, 1])
"""Sentences of six samples: three have one, two another, one its own."""


def unit(rows: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(rows, 5, generator=torch.Generator().manual_seed(seed)), dim=-1)


def paired(numbers: Tensor = NUMBERS) -> Paired:
    return pair(3 * unit(len(numbers), 0), 0.2 * unit(len(numbers), 1), numbers)


def shared(numbers: list[int], i: int, j: int) -> float:
    return float(numbers[i] == numbers[j]) / numbers.count(numbers[i])


# --- losses


@pytest.mark.parametrize("numbers", [NUMBERS, torch.arange(6)], ids=["repeats", "all different"])
def test_infonce_is_the_loop_with_targets_shared_among_equal_sentences(numbers: Tensor) -> None:
    found = infonce(paired(numbers), torch.tensor([math.log(8.0)]))
    logits = 8.0 * unit(6, 0) @ unit(6, 1).T
    own = numbers.tolist()
    for name, table in (("image to text", logits), ("text to image", logits.T)):
        expected = 0.0
        for i in range(6):
            total = math.log(sum(math.exp(float(v)) for v in table[i]))
            expected -= sum(shared(own, i, j) * (float(table[i, j]) - total) for j in range(6)) / 6
        assert float(found[name]) == pytest.approx(expected, rel=1e-5)
    assert float(found["total"]) == pytest.approx(float(found["image to text"] + found["text to image"]) / 2)


def test_without_repeats_infonce_is_cross_entropy_with_the_diagonal() -> None:
    found = infonce(paired(torch.arange(6)), torch.tensor([1.0]))["image to text"]
    logits = math.e * unit(6, 0) @ unit(6, 1).T
    assert float(found) == pytest.approx(float(F.cross_entropy(logits, torch.arange(6))), rel=1e-5)


def test_infonce_is_symmetric() -> None:
    both = paired()
    one, other = (infonce(p, torch.tensor([1.0])) for p in (both, Paired(both.text, both.image, both.same)))
    assert float(one["total"]) == pytest.approx(float(other["total"]), rel=1e-6)
    assert float(one["image to text"]) == pytest.approx(float(other["text to image"]), rel=1e-6)
    assert float(one["image to text"]) != pytest.approx(float(one["text to image"]), rel=1e-3)


def test_siglip_is_the_loop_over_all_pairs() -> None:
    found = siglip(paired(), torch.tensor([math.log(10.0)]), torch.tensor([-10.0]))
    cosines, own, expected = unit(6, 0) @ unit(6, 1).T, NUMBERS.tolist(), 0.0
    for i in range(6):
        for j in range(6):
            z = 1.0 if own[i] == own[j] else -1.0
            expected += math.log1p(math.exp(-z * (10.0 * float(cosines[i, j]) - 10.0))) / 6
    assert float(found["total"]) == pytest.approx(expected, rel=1e-5)


def test_images_of_one_sentence_are_not_driven_apart() -> None:
    """With class words for captions plain targets push an image away from its own class's words."""
    image = torch.ones(4, 5, requires_grad=True)
    found = infonce(pair(image, torch.ones(4, 5), torch.zeros(4, dtype=torch.int64)), torch.tensor([1.0]))
    assert found["total"].item() == pytest.approx(math.log(4), rel=1e-6), "no better can be had, and"
    found["total"].backward()
    assert image.grad is not None
    assert float(image.grad.abs().max()) < 1e-6, "nothing is left to push"


def test_numbers_of_sentences_beyond_float32_are_told_apart() -> None:
    numbers = torch.tensor([2**40, 2**40 + 1, 2**40, 2**24 + 1])
    assert pair(unit(4, 0), unit(4, 1), numbers).same.int().tolist() == [
        [1, 0, 1, 0], [0, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 1],
    ]  # fmt: skip


def test_the_temperature_stops_at_a_hundred_and_can_come_back() -> None:
    log_scale = torch.tensor([math.log(300.0)], requires_grad=True)
    found = infonce(paired(), log_scale)["total"]
    limit = infonce(paired(), torch.tensor([math.log(100.0)]))["total"]
    assert found.item() == pytest.approx(limit.item(), rel=1e-5)
    found.backward()
    assert log_scale.grad is not None
    assert float(log_scale.grad.abs()) > 0


# --- gradient caching


def gradients(chunk: int) -> dict[str, Tensor]:
    config = replace(CONFIG, keep=0.5, chunk=chunk)
    data = pairs(config)
    aligner = build(config, data, model(), Hashed())
    batch = next(make_batches(config, data, 0, 0, 1))
    aligner(batch.views, seed=batch.seed).total.backward()
    return {name: p.grad for name, p in aligner.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("chunk", [1, 3, 8, 100])
def test_gradients_in_chunks_are_those_of_the_whole_batch(chunk: int) -> None:
    """The patches left out are drawn for the batch: chunks change nothing."""
    whole, parts = gradients(0), gradients(chunk)
    assert whole.keys() == parts.keys()
    assert len(whole) > 20
    for name, expected in whole.items():
        assert torch.allclose(parts[name], expected, rtol=1e-4, atol=1e-6), name


def test_what_a_chunk_draws_at_random_is_drawn_again() -> None:
    layer, data = nn.Linear(6, 4), torch.randn(10, 6)

    def embed(rows: slice) -> Tensor:
        return F.dropout(layer(data[rows]), 0.5)

    def loss(vectors: Tensor) -> Tensor:
        return (vectors @ vectors.T).logsumexp(1).sum()

    before = torch.random.get_rng_state()
    loss(in_chunks(embed, 10, 4, seed=7, device=torch.device("cpu"))).backward()
    assert torch.equal(torch.random.get_rng_state(), before), "nobody else's chance is touched"
    found, layer.weight.grad = layer.weight.grad, None
    drawn = []
    for number, rows in enumerate((slice(0, 4), slice(4, 8), slice(8, 10))):
        torch.manual_seed(7 + number)
        drawn.append(embed(rows))
    loss(torch.cat(drawn)).backward()
    assert torch.allclose(found, layer.weight.grad, rtol=1e-5, atol=1e-7)


class Peak(TorchDispatchMode):
    """The most bytes that tensors made inside took at one time, without ``given``."""

    def __init__(self, given: Tensor) -> None:
        super().__init__()
        self.now = self.most = 0
        self._seen = {given.untyped_storage()._cdata}

    def __torch_dispatch__(self, func: Callable, types: object, args: tuple = (), kwargs: dict | None = None) -> object:
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, tuple | list) else (out,):
            if isinstance(value, Tensor):
                storage = value.untyped_storage()
                if storage._cdata not in self._seen:
                    self._seen.add(storage._cdata)
                    self.now += (size := storage.nbytes())
                    self.most = max(self.most, self.now)
                    weakref.finalize(storage, self._freed, storage._cdata, size)
        return out

    def _freed(self, key: int, size: int) -> None:
        self.now -= size
        self._seen.discard(key)


def peak(batch: int, chunk: int) -> int:
    layers = nn.Sequential(*(nn.Sequential(nn.Linear(32, 32), nn.GELU()) for _ in range(8)))
    data = torch.randn(batch, 32, 32)

    def embed(rows: slice) -> Tensor:
        return layers(data[rows]).mean(1)

    with Peak(data) as memory:
        vectors = in_chunks(embed, batch, chunk, seed=0, device=torch.device("cpu"))
        (vectors @ vectors.T).logsumexp(1).sum().backward()
    return memory.most


def test_memory_is_that_of_one_chunk() -> None:
    whole, parts, twice = peak(32, 0), peak(32, 2), peak(64, 2)
    assert parts < whole / 8, (whole, parts)
    assert twice < 1.2 * parts, "a batch twice as large needs the vectors more, not the layers"


# --- low-rank adaptation


def test_lora_begins_with_what_there_is_and_merged_it_is_what_was_learned() -> None:
    network = model().network
    view = pairs().views(np.arange(6), np.random.default_rng(0))["image"]
    assert isinstance(view, View)

    def vectors() -> Tensor:
        return network.pool(network.run(network.embed_patches("rgb", view.pixels, view.valid, view.gsd_m, view.days)))

    plain, names = vectors(), {k: v.shape for k, v in network.state_dict().items()}
    network.requires_grad_(False)
    adapt(network.trunks, rank=4, alpha=8.0, seed=0)
    assert torch.equal(vectors(), plain)
    learning = {name for name, p in network.named_parameters() if p.requires_grad}
    assert len(learning) == 2 * len(block_layers(model().network.trunks)) == 2 * 4
    assert all("lora_" in name for name in learning)
    generator = torch.Generator().manual_seed(0)
    for name, p in network.named_parameters():
        if "lora_" in name:
            p.data = torch.randn(p.shape, generator=generator) / 4
    adapted = vectors()
    assert (adapted - plain).abs().max() > 0.1
    merge(network.trunks)
    assert {k: v.shape for k, v in network.state_dict().items()} == names
    assert torch.allclose(vectors(), adapted, atol=1e-5)


def test_a_module_without_blocks_is_refused() -> None:
    with pytest.raises(AlidadeError, match=r"LoRA of Sequential: got no linear layer in numbered blocks"):
        adapt(nn.Sequential(nn.Linear(3, 3)), rank=2, alpha=2.0, seed=0)


# --- data


def test_sentences_are_numbered_once_and_images_keep_their_repeats() -> None:
    found = Sentences.read([["a river", "a river", "water"], ["water"]], Hashed())
    assert found.texts == ("a river", "water")
    assert [row.tolist() for row in found.of_image] == [[0, 0, 1], [1]]
    assert np.array_equal(found.vectors, Hashed().encode(["a river", "water"]).vectors)
    assert found.cut == 0
    assert Sentences.read([["word " * 13], ["word"]], Hashed()).cut == 1


@pytest.mark.parametrize("sentences", [[], [["a river"], []]], ids=["no image", "an image without"])
def test_no_captions_are_refused(sentences: list[list[str]]) -> None:
    with pytest.raises(AlignError, match="captions: got"):
        Sentences.read(sentences, Hashed())


def test_an_empty_caption_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TextError, match="text 2 of 2: got only white space"):
        Sentences.read([["a river", " "]], CachedEncoder(Hashed(), tmp_path / "cache"))


def test_frozen_vectors_are_the_models_own_and_cuts_differ() -> None:
    found = ImageVectors.read(model(), pictures(5, side=40), cuts=2, sizes=((16, 1), (32, 2)), seed=3)
    assert found.vectors.shape == (3, 5, 32)
    assert np.allclose(found.vectors[0].numpy(), model().embed(pictures(5, side=40)), atol=1e-6)
    assert (found.vectors[1] - found.vectors[2]).abs().max() > 1e-3
    again = ImageVectors.read(model(), pictures(5, side=40), cuts=2, sizes=((16, 1), (32, 2)), seed=3)
    assert torch.equal(again.vectors, found.vectors)
    drawn = found.draw(np.zeros(50, dtype=np.int64), np.random.default_rng(0))
    assert len({tuple(row.tolist()) for row in drawn}) == 3


def test_data_are_named_by_pixels_sentences_and_towers() -> None:
    def told(seed: int = 0, own: list[list[str]] | None = None, image: int = 0, text: str = "a") -> str:
        return make_pairs(own or captions(8), pictures(8, seed), image=model(image), text=Hashed(text)).identity

    others = [told(seed=1), told(own=captions(8)[::-1]), told(image=1), told(text="b")]
    assert told() == told()
    assert len({told(), *others}) == 5
    cuts = [pairs(replace(CONFIG, steps=1)).identity, pairs().identity, pairs(count=20).identity]
    assert cuts[0] == cuts[1] != cuts[2]


def test_cuts_of_a_learning_tower_are_normalised_and_told_their_ground() -> None:
    found = ImageCuts.read(model(), pictures(4, side=40), sizes=((32, 2),), jitter=0.0)
    view = found.draw(np.arange(4), np.random.default_rng(0))
    assert view.pixels.shape == (4, 3, 16, 16)
    assert view.gsd_m == (2.0, 2.0)
    assert view.valid.all()
    mean = np.array(list(np.array([[40, 60, 190], [30, 120, 40]])))
    normalization = model().towers[0].normalizations["generic-rgb"]
    expected = (mean - np.array(normalization.mean)) / np.array(normalization.std)
    assert np.allclose(view.pixels[:2].mean((2, 3)).numpy(), expected, atol=0.1)


def test_images_of_other_ground_resolutions_keep_their_own() -> None:
    own = pictures(2)
    own[1] = replace(own[1], grid=replace(own[1].grid, gsd_override_m=3.0))
    view = ImageCuts.read(model(), own, sizes=((16, 1),)).draw(np.arange(2), np.random.default_rng(0))
    assert isinstance(view.gsd_m, Tensor)
    assert view.gsd_m.tolist() == [[1.0, 1.0], [3.0, 3.0]]


def test_a_cut_has_a_valid_pixel_and_a_small_image_is_padded() -> None:
    (whole,) = pictures(1, side=40)
    valid = np.zeros((40, 40), dtype=np.bool_)
    valid[39, 2] = True
    for seed in range(20):
        cut = random_cut(replace(whole, valid=valid), 16, np.random.default_rng(seed))
        assert cut.valid.sum() == 1
    padded = random_cut(pictures(1, side=10)[0], 16, np.random.default_rng(0))
    assert padded.valid.sum() == 100
    with pytest.raises(RasterError, match="picture 0: pixels: got no valid pixel"):
        ImageCuts.read(model(), [replace(whole, valid=~valid & valid)], sizes=((16, 1),))


@pytest.mark.parametrize("sizes", [(), ((15, 2),)])
def test_sizes_that_cannot_be_cut_are_refused(sizes: tuple[tuple[int, int], ...]) -> None:
    with pytest.raises(AlignError, match="cuts of images"):
        ImageCuts.read(model(), pictures(2), sizes=sizes)


# --- configs


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"image_tower": "thawed"}, "image_tower: got 'thawed', expected one of frozen, lora, full"),
        ({"text_tower": "cold"}, "text_tower: got 'cold'"),
        ({"loss": "l2"}, "loss: got 'l2', expected one of infonce, siglip"),
        ({"keep": 0.0}, "keep: got 0.0"),
        ({"keep": 0.5, "image_tower": "frozen"}, "keep: got 0.5 with a frozen image tower"),
        ({"chunk": 4, "image_tower": "frozen"}, "chunk: got 4 with frozen towers"),
        ({"rank": 0}, "rank 0"),
        ({"prompt": "a photo"}, "prompt: got 'a photo', expected a sentence with one {}"),
        ({"prompt": "{} {name}"}, "prompt: got"),
        ({"batch": 0}, "batch: got 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes: dict[str, object], told: str) -> None:
    with pytest.raises(AlidadeError) as refused:
        replace(CONFIG, **changes)
    assert told in str(refused.value)


def test_a_recipe_is_one_flat_list_of_settings() -> None:
    told = json.loads(CONFIG.text())
    assert {"image_tower", "text_tower", "loss", "hidden", "keep", "chunk", "rank", "alpha", "batch"} <= set(told)
    assert CONFIG.text() == json.dumps(told, indent=2, sort_keys=True)


def test_data_and_towers_must_go_with_the_config(tmp_path: Path) -> None:
    def refused(config: AlignConfig, data: Pairs, told: str, *, image: int = 0, text: str = "hashed words") -> None:
        with pytest.raises(AlignError, match=told):
            align(config, data, tmp_path, image=model(image), text=Hashed(text), encoder="hashed")

    refused(FROZEN, pairs(CONFIG), "got ImageCuts and text vectors: True")
    refused(CONFIG, pairs(FROZEN), "got ImageVectors")
    refused(FROZEN, pairs(FROZEN), "expected those of", image=1)
    refused(FROZEN, pairs(FROZEN), "and sentences of hashed words, expected", text="others")
    refused(replace(FROZEN, batch=25), pairs(FROZEN), "at most the 24 images")
    with pytest.raises(AlignError, match="text tower that learns: got .*Hashed"):
        run(tmp_path, replace(CONFIG, text_tower="lora"))
    half = model()
    half.precision = replace(half.precision, dtype=torch.bfloat16)
    with pytest.raises(AlignError, match="float32, since they are saved again"):
        align(FROZEN, pairs(FROZEN), tmp_path, image=half, text=Hashed(), encoder="hashed")
    assert not list(tmp_path.iterdir())


# --- runs


def recall(words: Words, vectors: np.ndarray, count: int) -> float:
    """Share of images whose nearest class word is their own."""
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    found = (units @ words.embed([f"a {name}" for name in NAMES]).T).argmax(axis=1)
    return float((found == np.arange(count) % 4).mean())


@pytest.mark.parametrize("loss", ["infonce", "siglip"])
def test_frozen_towers_colours_become_retrievable_by_words(tmp_path: Path, loss: str) -> None:
    told: list[Report] = []
    config = replace(FROZEN, loss=loss, steps=150, batch=24, peak_rate=3e-3, checkpoint_every=1000)
    data = pairs(config, cuts=1)
    words = align(config, data, tmp_path, image=model(), text=Hashed(), encoder="hashed", report=told.append)
    vectors = model().embed(pictures(40, seed=9))
    assert recall(words, vectors, 40) >= 0.95, "chance is 0.25"
    assert told[-1].losses["total"] < 0.8 * told[0].losses["total"]
    assert identity(load_model(tmp_path / "model")) == words.config.image_identity
    assert words.config.image_identity != model().identity, "weights of float32 are saved in half precision"
    saved = alidade.load(tmp_path / "model").words
    assert saved is not None
    assert saved.config == words.config
    assert torch.equal(saved.head.log_scale, words.head.log_scale)


def test_a_learning_image_tower_learns_and_the_given_model_stays(tmp_path: Path) -> None:
    image, told = model(), list[Report]()
    before = {k: v.clone() for k, v in image.network.state_dict().items()}
    config = replace(CONFIG, steps=40, batch=16, peak_rate=2e-3, keep=0.75, chunk=8, checkpoint_every=1000)
    words = align(config, pairs(config), tmp_path, image=image, text=Hashed(), encoder="h", report=told.append)
    assert all(torch.equal(v, before[k]) for k, v in image.network.state_dict().items())
    tuned = alidade.load(tmp_path / "model", dtype=torch.float32)
    assert not torch.allclose(tuned.network.state_dict()["trunks.rgb.norm.weight"], before["trunks.rgb.norm.weight"])
    assert recall(words, tuned.embed(pictures(40, seed=9)), 40) >= 0.9
    assert told[-1].losses["total"] < 0.8 * told[0].losses["total"]
    with pytest.raises(WeightsError, match="words of another model"):
        load_words(tmp_path / "model", model().identity)


def test_lora_on_the_image_tower_trains_and_saves_plain_weights(tmp_path: Path) -> None:
    config = replace(CONFIG, image_tower="lora", steps=4, rank=2)
    aligner = build(config, pairs(config), model(), Hashed())
    learning = {n for n, p in aligner.named_parameters() if p.requires_grad}
    assert {n for n in learning if not n.startswith("head.")} == {n for n in aligner.state_dict() if "lora_" in n}
    assert set(aligner.state_dict()) == learning, "checkpoints hold what learns"
    run(tmp_path, config)
    saved, plain = load_file(tmp_path / "model" / "model.safetensors"), model().network.state_dict()
    assert saved.keys() == plain.keys()
    changed = {k for k, v in plain.items() if not torch.equal(saved[k], v.half())}
    assert changed == {f"trunks.rgb.{name}.weight" for name in block_layers(model().network.trunks["rgb"])}
    run(tmp_path, config)
    again = load_file(tmp_path / "model" / "model.safetensors")
    assert all(torch.equal(again[k], v) for k, v in saved.items()), (
        "a checkpoint finds the frozen weights where they were"
    )


def test_a_learning_text_tower_is_saved_beside_the_words(tmp_path: Path) -> None:
    text = SentenceEncoder(SentenceConfig(name=str(save_sentence_model(tmp_path / "tiny"))))
    before = text.encode(["a river"]).vectors
    config = replace(FROZEN, text_tower="lora", steps=6, chunk=2, peak_rate=1e-2)
    words = run(tmp_path / "run", config, text=CachedEncoder(text, tmp_path / "cache"), encoder=str(text.folder))
    assert np.array_equal(text.encode(["a river"]).vectors, before), "the given encoder stays"
    assert words.config.encoder == "./text"
    assert words.config.text_identity != text.identity
    tuned = SentenceEncoder(SentenceConfig(name=str(tmp_path / "run" / "model" / "text")))
    assert tuned.identity == words.config.text_identity
    assert np.abs(tuned.encode(["a river"]).vectors - before).max() > 1e-3
    loaded = alidade.load(tmp_path / "run" / "model").embed_text(["a river", "a forest"])
    assert loaded.shape == (2, 32)
    assert np.allclose(loaded, words.embed(["a river", "a forest"]), atol=1e-6)


class Cut(BaseException):
    """Nothing that runs catches it, as nothing can catch ``kill -9``."""


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / (folder / "latest").read_text() / "model.safetensors")


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(tmp_path: Path) -> None:
    """Patches left out, cuts, sentences and the dropout of the text tower are all drawn from the step."""
    text = SentenceEncoder(SentenceConfig(name=str(save_sentence_model(tmp_path / "tiny"))))
    config = replace(CONFIG, text_tower="full", keep=0.5, chunk=3, steps=5, loss="siglip", checkpoint_every=2)

    def stop(report: Report) -> None:
        torch.rand(report.step)  # somebody else draws from torch's generator
        if report.step == 3:
            raise Cut

    run(tmp_path / "whole", config, text=text)
    with pytest.raises(Cut):
        run(tmp_path / "cut", config, text=text, report=stop)
    assert (tmp_path / "cut" / "latest").read_text() == "step-00000002"
    run(tmp_path / "cut", config, text=text)
    expected = weights(tmp_path / "whole")
    assert {"bias", "head.log_scale"} <= expected.keys()
    for name, value in weights(tmp_path / "cut").items():
        assert torch.equal(value, expected[name]), name
    with pytest.raises(CheckpointError, match="loss differs"):
        run(tmp_path / "cut", replace(config, loss="infonce"), text=text)


def test_dropout_of_a_learning_text_tower_is_at_work(tmp_path: Path) -> None:
    text = SentenceEncoder(SentenceConfig(name=str(save_sentence_model(tmp_path / "tiny"))))
    config = replace(FROZEN, text_tower="full")
    data = pairs(config, text=text)
    aligner = build(config, data, model(), text)
    views = data.views(np.arange(8), np.random.default_rng(0))
    one, again, other = (aligner(views, seed=s).total.item() for s in (1, 1, 2))
    assert one == again != other


def together(*arguments: object) -> list[tuple[int, str]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in (0, 1):
        environment = os.environ | {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo",
        }  # fmt: skip
        command = [sys.executable, str(WORKER), *map(str, arguments)]
        processes.append(subprocess.Popen(command, stderr=subprocess.PIPE, env=environment, text=True))
    try:
        told = [process.communicate(timeout=240)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(p.returncode, text) for p, text in zip(processes, told, strict=True)]


def joined(parts: list[View | Tensor]) -> View | Tensor:
    if isinstance(parts[0], Tensor):
        return torch.cat([p for p in parts if isinstance(p, Tensor)])
    fields = {name: torch.cat([getattr(p, name) for p in parts]) for name in ("pixels", "valid", "present", "days")}
    return replace(parts[0], **fields)


def test_two_processes_have_the_gradients_of_one(tmp_path: Path) -> None:
    """Sentences that both processes have are no strangers, and the image tower learns through the gathered batch."""
    ended = together(tmp_path, 3)
    assert [code for code, _ in ended] == [0, 0], ended
    data = pairs()
    aligner = build(CONFIG, data, model(), Hashed())
    learning = [p for p in aligner.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=CONFIG.peak_rate, betas=(0.9, 0.95), weight_decay=0.0)
    for steps in zip(*(make_batches(CONFIG, data, 0, rank, 2) for rank in (0, 1)), strict=True):
        views = {name: joined([batch.views[name] for batch in steps]) for name in steps[0].views}
        aligner(views, seed=0).total.backward()
        for group in optimizer.param_groups:
            group["lr"] = CONFIG.rate(int(optimizer.state[learning[0]].get("step", 0)) if optimizer.state else 0)
        optimizer.step()
        optimizer.zero_grad()
    ours, theirs = weights(tmp_path), aligner.state_dict()
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert torch.allclose(ours[name], value, atol=2e-5), name
    # the moments are the gradients of all steps, which Adam's division would hide
    kept = torch.load(tmp_path / (tmp_path / "latest").read_text() / "optimizer.pt", weights_only=True)
    found = [p for group in kept["param_groups"] for p in group["params"]]
    assert len(found) == len(learning)
    mine = sorted(float(s["exp_avg"].norm()) for s in optimizer.state.values())
    assert np.allclose(sorted(float(s["exp_avg"].norm()) for s in kept["state"].values()), mine, rtol=1e-3, atol=1e-7)
    assert (tmp_path / "model" / "words.json").is_file()


# --- from a folder by command


def write_folder(folder: Path, *, long: bool = False) -> Path:
    folder.mkdir()
    rows = ["file,caption,split"]
    for i, raster in enumerate(pictures(24)):
        Image.fromarray(raster.pixels.transpose(1, 2, 0)).save(folder / f"{i}.png")
        rows += [f"{i}.png,{sentence},train" for sentence in captions(24)[i]]
    if long:
        rows.append(f"0.png,{'field ' * 30},train")
    (folder / "captions.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


def command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    import typer

    from alidade.cli.train_align import register_align

    app = typer.Typer()
    register_align(app)
    app.callback()(lambda: None)
    monkeypatch.setattr(sys, "argv", ["alidade", "align", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        app(standalone_mode=True)
    return int(stop.value.code or 0)


def test_a_folder_of_pictures_and_captions_becomes_a_model_with_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = save_sentence_model(tmp_path / "tiny")
    folder = write_folder(tmp_path / "pictures", long=True)
    options = (
        "--text", text, "--out", tmp_path / "run", "--gsd", 1, "--steps", 60, "--batch", 16, "--hidden", 32,
        "--rate", 0.01, "--cache", tmp_path / "cache", "--precision", "float32", "--prompt", "a {}", "--json",
    )  # fmt: skip
    assert command(monkeypatch, folder, *options) == 0
    told = capsys.readouterr()
    steps = [json.loads(line) for line in told.out.splitlines()]
    assert len(steps) == 60
    assert steps[-1]["losses"]["total"] < steps[0]["losses"]["total"]
    assert "24 images, 9 different sentences" in told.err
    assert "1 of 9 sentences are longer than the text encoder reads: their ends were cut off" in told.err
    model = alidade.load(tmp_path / "run" / "model")
    assert model.words is not None
    assert model.words.config.prompt == "a {}"
    scores = model.embed(pictures(8, seed=5)) @ model.embed_text(model.words.prompted(NAMES)).T
    assert (scores.argmax(1) == np.arange(8) % 4).mean() >= 0.75
    assert model.network.config.name == "alidade-tiny"
    assert model.identity == alidade.load().identity, "a frozen tower is the very same"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--image", "warm"), "image_tower: got 'warm', expected one of frozen, lora, full"),
        (("--loss", "l2"), "loss: got 'l2'"),
        (("--layout", "scroll"), "layout: got 'scroll'"),
        (("--split", "val"), "split: got 'val'"),
        (("--model", "nobody"), "model name: got 'nobody'"),
        (("--text", "bank:nowhere.safetensors"), "nowhere.safetensors"),
        (("--batch", "25"), "--batch: got 25 images, expected at most the 24"),
        (("--bands", "infrared"), "--bands: got 'infrared', expected one of all, rgb"),
    ],
)
def test_what_a_command_cannot_do_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, str], told: str
) -> None:
    import typer
    from typer.testing import CliRunner

    from alidade.cli.train_align import register_align

    app = typer.Typer()
    register_align(app)
    app.callback()(lambda: None)
    folder = write_folder(tmp_path / "pictures")
    base = ("align", str(folder), "--out", str(tmp_path / "run"), "--batch", "8", "--steps", "1")
    found = CliRunner().invoke(app, [*base, *options])
    assert isinstance(found.exception, AlidadeError), found.output
    assert told in str(found.exception)
    assert not (tmp_path / "run").exists()


def test_images_without_colours_are_refused(tmp_path: Path) -> None:
    from alidade.cli.train_align import rasters
    from alidade.imagery.sensors import sensor
    from alidade.training.captions.captioned import Captioned, Held

    (picture,) = pictures(1)
    radar = sensor("sentinel-1-grd")
    bare = replace(
        picture, pixels=picture.pixels[:1], bands=radar.bands[:1], encodings=picture.encodings[:1], sensor=radar
    )
    part = Captioned(
        name="made", licence="none", images=(Held(id="a", raster=bare),), captions=(("a river",),), split=("train",)
    )
    with pytest.raises(CaptionError, match="bands: got .*expected red, green and blue"):
        list(rasters(part, "rgb"))
    assert next(rasters(part, "all")) is bare


def test_a_bare_head_is_one_layer_and_siglip_begins_at_ten() -> None:
    head = Aligner(TextHead(6, 0, 4), loss="siglip").head
    assert head.log_scale.exp().item() == pytest.approx(10)
    assert isinstance(head.layers, nn.Linear)


# --- image towers of Hugging Face


def save_vision(path: Path) -> VisionEncoder:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    ViTModel(ViTConfig(**sizes, image_size=16, patch_size=8), add_pooling_layer=False).save_pretrained(str(path))
    told = {
        "do_resize": True, "size": {"height": 16, "width": 16}, "resample": 2, "do_rescale": True,
        "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
    }  # fmt: skip
    (path / "preprocessor_config.json").write_text(json.dumps(told))
    return VisionEncoder(VisionConfig(name=str(path), pooling="mean"))


@pytest.mark.parametrize("how", ["frozen", "lora", "full"])
def test_a_vision_model_of_hugging_face_gets_words(tmp_path: Path, how: str) -> None:
    image = save_vision(tmp_path / "vit")
    before = image.embed(pictures(8))
    config = replace(CONFIG, image_tower=how, batch=16, chunk=0 if how == "frozen" else 8, peak_rate=5e-3, steps=20)
    data = make_pairs(
        captions(24), pictures(24), image=image, text=Hashed(), image_learns=how != "frozen", sizes=((16, 1),)
    )
    told: list[Report] = []
    words = align(config, data, tmp_path / "run", image=image, text=Hashed(), encoder="h", report=told.append)
    assert np.array_equal(image.embed(pictures(8)), before), "the given model stays"
    assert told[-1].losses["total"] < told[0].losses["total"]
    if how == "frozen":
        assert words.config.image_identity == image.identity
        return
    tuned = VisionEncoder(VisionConfig(name=str(tmp_path / "run" / "model" / "image"), pooling="mean"))
    assert tuned.identity == words.config.image_identity != image.identity
    assert np.abs(tuned.embed(pictures(8)) - before).max() > 1e-3


def test_a_vision_model_that_learns_sees_all_patches(tmp_path: Path) -> None:
    image = save_vision(tmp_path / "vit")
    config = replace(CONFIG, keep=0.5)
    data = make_pairs(captions(24), pictures(24), image=image, text=Hashed(), image_learns=True, sizes=((16, 1),))
    with pytest.raises(AlignError, match="image tower that learns: got VisionEncoder.*sees all patches"):
        align(config, data, tmp_path / "run", image=image, text=Hashed(), encoder="h")
