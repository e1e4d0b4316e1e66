"""Vision models of Hugging Face: prepared as their own processors do, pooled as asked, never on the wrong numbers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from tokenizers import processors
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    ConvNextConfig,
    ConvNextModel,
    Dinov2Config,
    Dinov2Model,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
    ViTConfig,
    ViTImageProcessorPil,
    ViTModel,
)

from alidade.errors import ModelError, RasterError, SensorError
from alidade.imagery.bands import Encoding, Unit
from alidade.imagery.raster import Raster
from alidade.models.text.encoder import TextError
from alidade.models.vision import VisionConfig, VisionEncoder
from alidade.models.vision_input import WHITE, Preparation, rgb
from alidade.models.vision_text import VisionTextEncoder
from search_scenes import make_raster
from text_models import SENTENCES, byte_tokenizer

SIDE, PATCH, WIDTH, SHARED = 32, 8, 32, 24
TOWER = {
    "hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    # larger than usual, so that attention and positions matter in an untrained model
    "initializer_range": 0.2,
}  # fmt: skip
SEES = {**TOWER, "image_size": SIDE, "patch_size": PATCH}
FAMILIES = ("clip", "siglip", "vit", "dinov2", "dinov3")
SETTINGS = {
    "clip": CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}),
    "siglip": SiglipImageProcessorPil(size={"height": SIDE, "width": SIDE}),
    "vit": ViTImageProcessorPil(size={"height": SIDE, "width": SIDE}),
}


def build(family: str, folder: Path) -> torch.nn.Module:
    """A tiny random model of a family; its tokeniser, where it has one, is saved beside it."""
    torch.manual_seed(5)
    if family in ("clip", "siglip"):
        tokenizer = byte_tokenizer(folder)
        tokenizer.add_special_tokens({"bos_token": "<|begin|>", "pad_token": tokenizer.eos_token})
        begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<|begin|> $A <|end|>", special_tokens=[("<|begin|>", begin), ("<|end|>", end)]
        )
        tokenizer.save_pretrained(str(folder))
        reads = {**TOWER, "vocab_size": len(tokenizer), "max_position_embeddings": 16}
        reads |= {"bos_token_id": begin, "eos_token_id": end, "pad_token_id": end}
        if family == "clip":
            shared = {"projection_dim": SHARED}
            return CLIPModel(CLIPConfig(text_config=reads | shared, vision_config=SEES | shared, **shared))
        return SiglipModel(SiglipConfig(text_config=reads | {"projection_size": WIDTH}, vision_config=SEES))
    if family == "dinov3":
        return DINOv3ViTModel(DINOv3ViTConfig(**SEES, num_register_tokens=4))
    return ViTModel(ViTConfig(**SEES)) if family == "vit" else Dinov2Model(Dinov2Config(**SEES))


def save(family: str, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    build(family, folder).save_pretrained(str(folder))
    if family in SETTINGS:
        SETTINGS[family].save_pretrained(str(folder))
    else:
        # as published: DINOv2 cuts the middle out, DINOv3 does not and leaves unset what it does not do
        size = {"size": {"shortest_edge": 36}, "crop_size": {"height": SIDE, "width": SIDE}, "resample": 3}
        if family == "dinov3":
            size = {"size": {"height": SIDE, "width": SIDE}, "crop_size": None, "do_center_crop": None, "resample": 2}
        told = {**size, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "do_resize": True}
        told |= {"image_mean": [0.430, 0.411, 0.296], "image_std": [0.213, 0.156, 0.143]}
        (folder / "preprocessor_config.json").write_text(json.dumps(told))
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("vision")
    return {family: save(family, root / family) for family in FAMILIES}


def pictures(count: int = 3, height: int = 50, width: int = 41, seed: int = 0) -> torch.Tensor:
    """uint8 ``[count, 3, height, width]`` with smooth parts and hard edges."""
    rng = np.random.default_rng(seed)
    coarse = np.kron(rng.integers(0, 256, (count, 3, height // 5 + 1, width // 5 + 1)), np.ones((5, 5)))
    noise = rng.integers(-20, 20, (count, 3, height, width))
    return torch.from_numpy((coarse[..., :height, :width] + noise).clip(0, 255).astype(np.uint8))


def encoder(folder: Path, **settings: object) -> VisionEncoder:
    return VisionEncoder(VisionConfig(name=str(folder), **settings))  # type: ignore[arg-type]


# --- preparation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", SETTINGS)
@pytest.mark.parametrize("size", [(50, 41), (41, 50), (33, 97), (16, 20), (SIDE, SIDE)])
def test_prepared_as_the_own_processor_does(models: dict[str, Path], family: str, size: tuple[int, int]) -> None:
    images = pictures(2, *size)
    own = SETTINGS[family](list(images.numpy()), return_tensors="pt")["pixel_values"]
    preparation = Preparation.read(models[family])
    found = preparation(images)
    assert found.shape == own.shape
    # Pillow rounds to whole numbers after each of its two passes; one step of 255 may come of it
    off = (found - own) * torch.tensor(preparation.std)[:, None, None] / preparation.factor
    assert float(off.abs().max()) <= (1e-3 if size == (SIDE, SIDE) else 1.2)
    assert float(off.abs().mean()) <= 0.32
    assert float(off.mean().abs()) <= 0.2


@pytest.mark.parametrize("family", FAMILIES)
def test_real_numbers_are_rescaled_as_whole_ones(models: dict[str, Path], family: str) -> None:
    """Fault of a published code: pictures as real numbers slipped past the division by 255."""
    found, images = encoder(models[family]), pictures()
    assert torch.equal(found.preparation(images), found.preparation(images.float() / 255))
    assert np.array_equal(found.encode(images), found.encode(images.float() / 255))
    grey = torch.full((1, 3, SIDE, SIDE), 128, dtype=torch.uint8)
    assert float(found.preparation(grey).abs().max()) < 3


def test_other_numbers_are_refused(models: dict[str, Path]) -> None:
    found, images = encoder(models["vit"]), pictures()
    for wrong, message in (
        (images.float(), "real numbers from 0 to 255"),
        (images.float() / 255 - 0.5, "real numbers from -0.5"),
        (torch.full((1, 3, 8, 8), float("nan")), "real numbers from nan to nan"),
        (images.int(), "torch.int32 numbers"),
        (images[:, :2], "shape (3, 2, 50, 41), expected [B, 3, H, W]: red, green and blue"),
        (images[0], "shape (3, 50, 41)"),
    ):
        with pytest.raises(ModelError) as refused:
            found.encode(wrong)
        assert message in str(refused.value)


def test_settings_in_every_published_spelling(tmp_path: Path) -> None:
    mean = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "resample": 3}

    def read(told: object, name: str = "preprocessor_config.json") -> Preparation:
        for old in tmp_path.glob("*.json"):
            old.unlink()
        (tmp_path / name).write_text(json.dumps(told))
        return Preparation.read(tmp_path)

    old_clip = read(mean | {"size": 224, "do_resize": True, "do_center_crop": True, "crop_size": 224})
    assert (old_clip.resize, old_clip.crop, old_clip.factor) == (224, (224, 224), 1 / 255)
    assert read(mean | {"size": 224, "do_resize": True}).resize == (224, 224)
    assert read(mean | {"size": {"height": 8, "width": 9}, "do_center_crop": None}).crop is None
    inside = read({"image_processor": mean | {"size": 16, "do_rescale": False}}, "processor_config.json")
    assert (inside.resize, inside.factor) == ((16, 16), 1.0)
    plain = read({"do_resize": False, "do_normalize": False})
    assert torch.allclose(plain(pictures(1, 5, 6)), pictures(1, 5, 6).float() / 255)
    for told, message in (
        ({"size": 224, **mean, "crop_pct": 0.875}, "got crop_pct, expected resizing, centre crop"),
        ({"size": 224, **mean, "do_pad": True}, "got do_pad"),
        ({"size": 224, **mean, "resample": 1}, "got resample 1, expected 0, 2 or 3"),
        ({"size": {"longest_edge": 512}, **mean}, "got size {'longest_edge': 512}"),
        ({"size": 224, **mean, "image_mean": [0.5]}, "got image_mean [0.5]"),
        ([], "no preprocessor_config.json"),
    ):
        with pytest.raises(ModelError) as refused:
            read(told)
        assert message in str(refused.value)
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(ModelError, match="JSONDecodeError"):
        Preparation.read(tmp_path)


def test_other_side(models: dict[str, Path]) -> None:
    images = pictures(2, 64, 90)
    for family in FAMILIES:
        found = encoder(models[family], side=48)
        assert found.preparation(images).shape == (2, 3, 48, 48)
        assert found.look(images).patches.shape == (2, 36, WIDTH)
    # the shorter edge keeps its ratio to the crop: 36 of 32 becomes 54 of 48
    assert encoder(models["dinov2"], side=48).preparation.resize == 54
    with pytest.raises(ModelError, match=r"30 x 30 px after preparation, expected sides that are multiples of 8"):
        encoder(models["vit"], side=30).encode(images)


# --- vectors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_vectors_are_those_of_transformers(models: dict[str, Path], family: str) -> None:
    """The same numbers through the model's usual class, all towers loaded, pooled by hand."""
    images = pictures()
    whole = transformers.AutoModel.from_pretrained(str(models[family])).eval()
    pixels = Preparation.read(models[family])(images)
    with torch.inference_mode():
        if family in ("clip", "siglip"):
            states = whole.vision_model(pixels).last_hidden_state
            pooled = whole.get_image_features(pixels).pooler_output
        else:
            out = whole(pixels)
            states, pooled = out.last_hidden_state, out.pooler_output
    before = {"clip": 1, "siglip": 0, "dinov3": 5}.get(family, 1)
    assert states.shape[1] == before + (SIDE // PATCH) ** 2
    expected = {"pooler": pooled, "mean": states[:, before:].mean(dim=1)}
    if before:
        expected["cls"] = states[:, 0]
    for pooling, vectors in expected.items():
        found = encoder(models[family], pooling=pooling)
        assert found.dim == vectors.shape[1]
        assert found.encode(images) == pytest.approx(vectors.numpy(), abs=1e-5)
        assert torch.allclose(found.look(images).patches, states[:, before:], atol=1e-5)


def test_batches_do_not_matter(models: dict[str, Path]) -> None:
    images = pictures(7)
    found = VisionEncoder(VisionConfig(name=str(models["vit"])), batch_size=3)
    assert found.encode(images) == pytest.approx(encoder(models["vit"]).encode(images.numpy()), abs=1e-6)
    assert found.encode(images[:0]).shape == (0, WIDTH)


def test_a_pyramid_without_tokens(tmp_path: Path) -> None:
    ConvNextModel(ConvNextConfig(hidden_sizes=[8, 12, 16, 20], depths=[1, 1, 1, 1])).save_pretrained(str(tmp_path))
    SETTINGS["vit"].save_pretrained(str(tmp_path))
    found = encoder(tmp_path, pooling="mean")
    assert found.encode(pictures()).shape == (3, found.dim) == (3, 20)
    assert found.look(pictures()).patches.shape == (3, 1, 20)
    with pytest.raises(ModelError, match="no cls in ConvNextModel"):
        encoder(tmp_path, pooling="cls").encode(pictures())


def test_gradients_flow_where_they_are_asked_for(models: dict[str, Path]) -> None:
    found = encoder(models["dinov3"])
    assert not any(p.requires_grad for p in found.module.parameters())
    found.module.requires_grad_(True)
    found.look(pictures()).vectors.square().sum().backward()
    assert sum(float(p.grad.abs().sum()) for p in found.module.parameters() if p.grad is not None) > 0


def test_half_precision_is_near(models: dict[str, Path]) -> None:
    images = pictures()
    for family in ("clip", "dinov3"):
        whole = encoder(models[family]).encode(images)
        half = encoder(models[family], precision="bfloat16").encode(images)
        cosine = (whole * half).sum(1) / np.linalg.norm(whole, axis=1) / np.linalg.norm(half, axis=1)
        assert half.dtype == np.float32
        assert 0.99 < cosine.min()
        assert not np.array_equal(whole, half)


def test_nothing_of_the_text_tower_is_built(models: dict[str, Path]) -> None:
    names = [name for name, _ in encoder(models["clip"]).module.named_parameters()]
    assert not any(name.startswith("text") for name in names)
    texts = VisionTextEncoder(VisionConfig(name=str(models["clip"])))
    assert not any(name.startswith("vision") for name, _ in texts.module.named_parameters())


# --- identity --------------------------------------------------------------------------------------------------------


def test_identity_changes_with_weights_and_preparation(models: dict[str, Path], tmp_path: Path) -> None:
    def named(folder: Path, **settings: object) -> str:
        return encoder(folder, **settings).identity

    base = shutil.copytree(models["vit"], tmp_path / "a" / "vit")
    same = shutil.copytree(models["vit"], tmp_path / "b" / "vit")
    first = named(base)
    assert first == named(same)
    assert "\n" not in first
    found = {first, named(base, pooling="cls"), named(base, side=48), named(base, precision="bfloat16")}
    told = json.loads((same / "preprocessor_config.json").read_text())
    (same / "preprocessor_config.json").write_text(json.dumps(told | {"image_std": [0.5, 0.5, 0.4]}))
    found.add(named(same))
    shutil.copy(models["vit"] / "preprocessor_config.json", same)
    model = ViTModel.from_pretrained(str(same))
    with torch.no_grad():
        model.layernorm.weight[0] += 1e-3
    model.save_pretrained(str(same))
    found.add(named(same))
    assert len(found) == 6


# --- rasters ---------------------------------------------------------------------------------------------------------


def test_display_values_are_shown_as_they_are(models: dict[str, Path]) -> None:
    raster = make_raster(3, 50, 41)
    assert np.array_equal(rgb(raster), raster.pixels.astype(np.float32) / np.float32(255))
    found = encoder(models["clip"])
    assert np.array_equal(found.embed(raster), found.encode(raster.pixels[None]))


def test_reflectance_is_shown_by_one_rule() -> None:
    raster = make_raster(4, 40, 40, "sentinel-2-l2a")
    shown = rgb(raster)
    by_hand = np.stack([raster.select([c]).physical()[0] for c in ("red", "green", "blue")]) / WHITE
    assert shown == pytest.approx(by_hand.clip(0, 1), abs=1e-6)
    assert WHITE == 0.3
    # what stands beside a pixel does not change it, as the stretch of a picture for the eye would
    cloud = raster.pixels.copy()
    cloud[:, :20] = 9000
    other = Raster(**{**vars(raster), "pixels": cloud})
    assert np.array_equal(rgb(other)[:, 20:], shown[:, 20:])
    assert (rgb(other)[:, :20] == 1).all()


def test_holes_are_black_and_order_is_by_name() -> None:
    raster = make_raster(5, 16, 16)
    valid = raster.valid.copy()
    valid[:3] = False
    turned = Raster(**{**vars(raster.select(("blue", "red", "green"))), "valid": valid})
    assert (rgb(turned)[:, :3] == 0).all()
    assert np.array_equal(rgb(turned)[:, 3:], rgb(raster)[:, 3:])


def test_rasters_of_several_sizes(models: dict[str, Path]) -> None:
    found = encoder(models["siglip"])
    rasters = [make_raster(1, 40, 40), make_raster(2, 30, 50), make_raster(3, 40, 40)]
    vectors = found.embed(rasters)
    assert vectors.shape == (3, WIDTH)
    for vector, raster in zip(vectors, rasters, strict=True):
        assert vector == pytest.approx(found.embed(raster)[0], abs=1e-6)


def test_rasters_without_colours_are_refused(models: dict[str, Path]) -> None:
    found, raster = encoder(models["vit"]), make_raster(6)
    decibel = (Encoding(unit=Unit.DB),) * 3
    for wrong, message in (
        (make_raster(6, sensor_id="sentinel-1-grd"), "VV (dB), VH (dB), expected red, green and blue in display"),
        (raster.select(("red", "green")), "expected red, green and blue"),
        (Raster(**{**vars(raster), "encodings": decibel}), "expected red, green and blue in display"),
    ):
        with pytest.raises(SensorError) as refused:
            found.embed(wrong)
        assert message in str(refused.value)
    with pytest.raises(RasterError, match="no valid pixel"):
        found.embed(Raster(**{**vars(raster), "valid": np.zeros_like(raster.valid)}))


# --- what cannot be loaded -------------------------------------------------------------------------------------------


def test_a_pooler_that_was_never_trained_is_refused(tmp_path: Path) -> None:
    ViTModel(ViTConfig(**SEES), add_pooling_layer=False).save_pretrained(str(tmp_path))
    SETTINGS["vit"].save_pretrained(str(tmp_path))
    with pytest.raises(ModelError, match=r"first pooler.dense.*a pooler that was never trained: choose cls or mean"):
        encoder(tmp_path).encode(pictures())
    assert encoder(tmp_path, pooling="cls").encode(pictures()).shape == (3, WIDTH)


def test_what_cannot_be_loaded_says_why(models: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no model 'nobody/nothing' on this machine, expected a directory"):
        encoder("nobody/nothing")  # type: ignore[arg-type]
    pickled = shutil.copytree(models["vit"], tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(ModelError, match="a model saved as safetensors"):
        encoder(pickled)
    cut = shutil.copytree(models["vit"], tmp_path / "cut")
    (cut / "model.safetensors").write_bytes((cut / "model.safetensors").read_bytes()[:2000])
    with pytest.raises(ModelError, match="a vision model"):
        encoder(cut).encode(pictures())
    strange = shutil.copytree(models["vit"], tmp_path / "strange")
    (strange / "config.json").write_text('{"model_type": "alien"}')
    with pytest.raises(ModelError, match="settings of a known vision model"):
        encoder(strange).encode(pictures())
    with pytest.raises(ModelError, match="no cls in SiglipVisionModel"):
        encoder(models["siglip"], pooling="cls").encode(pictures())
    with pytest.raises(ModelError, match="device: got 'tpu'"):
        VisionEncoder(VisionConfig(name=str(models["vit"])), device="tpu")
    for wrong in ({"pooling": "max"}, {"precision": "int8"}, {"side": 0}):
        with pytest.raises(ModelError, match=next(iter(wrong))):
            VisionConfig(name="x", **wrong)  # type: ignore[arg-type]


# --- the text tower of the same model --------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_text_vectors_are_those_of_transformers(models: dict[str, Path], family: str) -> None:
    found = VisionTextEncoder(VisionConfig(name=str(models[family])), batch_size=2)
    whole = transformers.AutoModel.from_pretrained(str(models[family])).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(models[family]))
    encoded = found.encode(SENTENCES)
    assert encoded.vectors.shape == (len(SENTENCES), found.dim)
    assert found.dim == encoder(models[family]).dim
    for text, vector in zip(SENTENCES, encoded.vectors, strict=True):
        padding = {"padding": "max_length"} if family == "siglip" else {}
        ids = tokenizer(text, truncation=True, max_length=16, return_tensors="pt", **padding)["input_ids"]
        with torch.inference_mode():
            expected = whole.get_text_features(input_ids=ids).pooler_output[0]
        assert vector == pytest.approx(expected.numpy(), abs=1e-5)


def test_texts_are_checked(models: dict[str, Path]) -> None:
    found = VisionTextEncoder(VisionConfig(name=str(models["clip"])))
    assert found.encode(["a river", "water " * 40]).cut == (1,)
    with pytest.raises(TextError, match="text 2 of 2"):
        found.encode(["a river", " "])
    assert found.identity != VisionTextEncoder(VisionConfig(name=str(models["siglip"]))).identity
    for folder, pooling in ((models["vit"], "pooler"), (models["clip"], "mean")):
        with pytest.raises(ModelError, match="expected a model of type clip or siglip and pooling pooler"):
            VisionTextEncoder(VisionConfig(name=str(folder), pooling=pooling))  # type: ignore[arg-type]
