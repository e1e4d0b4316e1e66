"""Parity with the released CROMA code on random weights (tests/data/croma_parity/README.md), then beyond it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import alidade
from alidade.errors import ModelError, WeightsError
from alidade.models.croma import BASE, LARGE, CromaSize, load_croma
from alidade.models.model import Model
from alidade.models.scale_alibi import ScaleAlibi

PARITY = Path(__file__).parent / "data" / "croma_parity"
TINY = CromaSize(name="croma-tiny", width=64, sar_depth=2, optical_depth=3, fusion_depth=2)


@pytest.fixture(scope="module")
def model() -> Model:
    return Model(load_croma(PARITY / "croma_tiny.pt", TINY), dtype=torch.float32)


@pytest.mark.parametrize("backend", ["sdpa", "baddbmm"])
@pytest.mark.parametrize("size", [40, 64])
def test_tokens_and_pooled_vectors_equal_the_released_code(model: Model, size: int, backend: str) -> None:
    reference = np.load(PARITY / "reference.npz")
    model.network.attention_backend = backend
    inputs = {
        "sar": torch.from_numpy(reference[f"s1_{size}"]),
        "optical": torch.from_numpy(reference[f"s2_{size}"]),
    }
    out = model.encode_normalised(inputs, gsd_m=10.0)
    for ours, theirs in (("sar", "SAR"), ("optical", "optical"), ("joint", "joint")):
        tokens = torch.from_numpy(reference[f"{theirs}_encodings_{size}"])
        pooled = torch.from_numpy(reference[f"{theirs}_GAP_{size}"])
        assert torch.allclose(out.tokens[ours].features, tokens, atol=1e-5, rtol=0)
        assert torch.allclose(out.pooled[ours], pooled, atol=1e-5, rtol=0)


def test_one_sensor_alone_gives_the_same_as_both(model: Model) -> None:
    reference = np.load(PARITY / "reference.npz")
    out = model.encode_normalised({"optical": torch.from_numpy(reference["s2_40"])}, gsd_m=10.0)
    assert set(out.tokens) == {"optical"}
    assert torch.allclose(out.pooled["optical"], torch.from_numpy(reference["optical_GAP_40"]), atol=1e-5, rtol=0)


def test_any_other_size_and_gsd_needs_no_rebuild(model: Model) -> None:
    generator = torch.Generator().manual_seed(0)
    for height, width, gsd in [(120, 120, 10.0), (48, 200, 2.5), (57, 83, 0.6)]:
        sar = torch.randn(1, 2, height, width, generator=generator)
        optical = torch.randn(1, 12, height, width, generator=generator)
        out = model.encode_normalised({"sar": sar, "optical": optical}, gsd_m=gsd)
        assert out.tokens["joint"].features.shape == (1, -(-height // 8) * -(-width // 8), 64)
        assert torch.isfinite(out.pooled["joint"]).all()


def test_gsd_changes_the_result_as_the_formula_says(model: Model) -> None:
    pixels = torch.randn(1, 2, 64, 64, generator=torch.Generator().manual_seed(0))
    near, far = (model.encode_normalised({"sar": pixels}, gsd_m=g).tokens["sar"].features for g in (10.0, 5.0))
    assert not torch.allclose(near, far, atol=1e-3)


def test_released_sizes_have_the_released_parameter_counts() -> None:
    with torch.device("meta"):
        counts = [sum(p.numel() for p in ScaleAlibi(size.build()).parameters()) for size in (BASE, LARGE)]
    assert counts[0] == pytest.approx(194.4e6, rel=1e-3)
    assert counts[1] == pytest.approx(672.6e6, rel=1e-3)


def test_public_name_refuses_another_size_by_name() -> None:
    with pytest.raises(WeightsError, match=r"keys missing.*every key of croma-base \(768 wide, 6/12/6 layers\)"):
        alidade.load("croma-base", weights=PARITY / "croma_tiny.pt")


def test_public_name_without_weights_says_what_to_pass() -> None:
    with pytest.raises(WeightsError, match="downloads nothing by itself"):
        alidade.load("croma-large")


def damaged(tmp_path: Path, change: str) -> Path:
    checkpoint = torch.load(PARITY / "croma_tiny.pt", weights_only=True)
    if change == "part":
        del checkpoint["joint_encoder"]
    elif change == "key":
        del checkpoint["s2_encoder"]["transformer.layers.1.1.net.3.bias"]
    elif change == "extra":
        checkpoint["s1_encoder"]["transformer.layers.0.2.surprise"] = torch.zeros(1)
    elif change == "cross":
        del checkpoint["joint_encoder"]["layers.1.1.to_k.weight"]
    path = tmp_path / "changed.pt"
    torch.save(checkpoint, path)
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("part", "got .*s1_GAP_FFN.*expected a released CROMA checkpoint"),
        ("key", "1 keys missing"),
        ("extra", "1 unknown"),
        ("cross", "a cross-attention without to_q, to_k and to_v"),
    ],
)
def test_keys_are_matched_strictly(tmp_path: Path, change: str, message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        load_croma(damaged(tmp_path, change), TINY)


def test_a_pickle_with_code_in_it_is_not_run(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (str(tmp_path / "ran"),))

    torch.save({"s1_encoder": Payload()}, tmp_path / "bad.pt")
    with pytest.raises(WeightsError, match="cannot be read as tensors alone"):
        load_croma(tmp_path / "bad.pt", TINY)
    assert not (tmp_path / "ran").exists()


def test_truncated_and_missing_files(tmp_path: Path) -> None:
    whole = (PARITY / "croma_tiny.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WeightsError, match="cannot be read as tensors alone"):
        load_croma(tmp_path / "cut.pt", TINY)
    with pytest.raises(WeightsError, match="no such file"):
        load_croma(tmp_path / "none.pt", TINY)


@pytest.mark.parametrize(
    "content", [b"", b"hello, world", b"ustar" * 200, b"PK\x03\x04" + b"x" * 100, b"\x80\x02}q\x00."]
)
def test_bytes_that_are_no_checkpoint(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(WeightsError, match="expected a released CROMA checkpoint"):
        load_croma(tmp_path / "x.pt", TINY)


@pytest.mark.parametrize("part", [3, [1], {1: torch.zeros(1)}, {"linear_input.weight": 5}])
def test_parts_that_are_no_state(tmp_path: Path, part: object) -> None:
    checkpoint = torch.load(PARITY / "croma_tiny.pt", weights_only=True)
    torch.save(checkpoint | {"s1_encoder": part}, tmp_path / "x.pt")
    with pytest.raises(WeightsError, match="expected a released CROMA checkpoint"):
        load_croma(tmp_path / "x.pt", TINY)


@pytest.mark.parametrize("key", ["layers.0.x", "layers.0", "layers.9.9.9.9.9"])
def test_keys_of_another_shape_are_unknown_keys(tmp_path: Path, key: str) -> None:
    checkpoint = torch.load(PARITY / "croma_tiny.pt", weights_only=True)
    checkpoint["s1_encoder"][f"transformer.{key}"] = torch.zeros(1)
    torch.save(checkpoint, tmp_path / "x.pt")
    with pytest.raises(WeightsError, match="1 unknown"):
        load_croma(tmp_path / "x.pt", TINY)


@pytest.mark.parametrize(
    ("inputs", "gsd_m", "valid"),
    [({}, 10.0, None), ({"sar": torch.zeros(1, 2, 16, 16)}, 0.0, None),
     ({"sar": torch.zeros(1, 2, 16, 16)}, -1.0, None),
     ({"sar": torch.full((1, 2, 16, 16), torch.nan)}, 10.0, None), ({"sar": torch.zeros(2, 16, 16)}, 10.0, None),
     ({"sar": torch.zeros(1, 2, 16, 16)}, 10.0, {"SAR": torch.ones(1, 16, 16, dtype=torch.bool)})],
)  # fmt: skip
def test_normalised_input_is_checked(
    model: Model, inputs: dict[str, torch.Tensor], gsd_m: float, valid: dict[str, torch.Tensor] | None
) -> None:
    with pytest.raises(ModelError):
        model.encode_normalised(inputs, gsd_m=gsd_m, valid=valid)


def test_unknown_devices_types_and_batches_are_refused() -> None:
    with pytest.raises(ModelError, match="device: got 'tpu'"):
        alidade.load(device="tpu")
    with pytest.raises(ModelError, match=r"got torch.int8"):
        alidade.load(dtype=torch.int8)
    with pytest.raises(ModelError, match="batch size: got 0"):
        alidade.load().embed([], batch_size=0)


@pytest.mark.parametrize("name", [".", "..", ""])
def test_a_directory_is_never_taken_for_a_shipped_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsError):
        alidade.load(name)


def test_unknown_tower_and_wrong_channels(model: Model) -> None:
    with pytest.raises(ModelError, match="got 'radar', expected one of sar, optical"):
        model.encode_normalised({"radar": torch.zeros(1, 2, 16, 16)}, gsd_m=10.0)
    with pytest.raises(ModelError, match=r"\[B, 2, H, W\] with channels VV, VH"):
        model.encode_normalised({"sar": torch.zeros(1, 3, 16, 16)}, gsd_m=10.0)
