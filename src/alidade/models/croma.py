"""CROMA (Fuller, Millard and Green 2023; code MIT) as a two-sensor ScaleAlibi, and the reader of its checkpoints.

Released files are a pickled dict of five state dicts. They are read with ``weights_only=True`` and every key and
shape must match: a checkpoint that loads halfway is quietly worse than one that does not load.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from alidade.errors import WeightsError
from alidade.imagery.normalize import Normalization
from alidade.imagery.sensors import sensor
from alidade.models.config import ScaleAlibiConfig, TowerConfig
from alidade.models.positions import PositionConfig
from alidade.models.scale_alibi import ScaleAlibi

OPTICAL_BANDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")
PARTS = ("s1_encoder", "s1_GAP_FFN", "s2_encoder", "s2_GAP_FFN", "joint_encoder")


@dataclass(frozen=True, kw_only=True)
class CromaSize:
    """Width and depths of a CROMA model; heads are 16 in every released size."""

    name: str
    width: int
    sar_depth: int
    optical_depth: int
    fusion_depth: int

    def build(self) -> ScaleAlibiConfig:
        """The config: patches of 8 px, 120 px tiles, distances in units of 80 m (8 px at 10 m).

        The normalisation is CROMA's mean ± 2 std to 0..1, with the catalogue's fixed statistics instead of the
        batch statistics of the released example.
        """
        return ScaleAlibiConfig(
            name=self.name,
            width=self.width,
            heads=16,
            towers=(
                _tower("sar", ("VV", "VH"), self.sar_depth, ("sentinel-1-grd", "sentinel-1-rtc")),
                _tower("optical", OPTICAL_BANDS, self.optical_depth, ("sentinel-2-l2a", "sentinel-2-l1c")),
            ),
            fusion_depth=self.fusion_depth,
            position=PositionConfig(kind="metres", unit_m=80.0),
            tile=120,
            aligned=True,
        )


BASE = CromaSize(name="croma-base", width=768, sar_depth=6, optical_depth=12, fusion_depth=6)
LARGE = CromaSize(name="croma-large", width=1024, sar_depth=12, optical_depth=24, fusion_depth=12)


def _tower(name: str, bands: tuple[str, ...], depth: int, sensors: tuple[str, ...]) -> TowerConfig:
    statistics = {s: Normalization.for_sensor(sensor(s), bands, "two-sigma") for s in sensors}
    return TowerConfig(name=name, bands=bands, depth=depth, patch=8, normalizations=statistics)


def load_croma(path: Path, size: CromaSize) -> ScaleAlibi:
    """The model of ``size`` with the weights of a released checkpoint at ``path``, in float32.

    Raises:
        WeightsError: the file is missing, is not such a checkpoint, or has other keys or shapes.
    """
    checkpoint = _read(path)
    state = _translate(checkpoint, path)
    model = ScaleAlibi(size.build())
    _check(model.state_dict(), state, path, size)
    model.load_state_dict(state)
    return model.eval()


def _read(path: Path) -> dict[str, dict[str, Tensor]]:
    expected = f"a released CROMA checkpoint with the keys {', '.join(PARTS)}"
    if not path.is_file():
        raise WeightsError(
            f"{path}: weights",
            got="no such file",
            expected=expected,
            next_step="Pass weights=PATH of the .pt file.",
        )
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    # what the unpickler raises on bytes that are no pickle depends on the bytes
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, LookupError, TypeError) as error:
        raise WeightsError(
            f"{path}: weights",
            got=f"a file that cannot be read as tensors alone ({type(error).__name__})",
            expected=expected,
            next_step="Download the file again from its publisher.",
        ) from None
    parts = checkpoint if isinstance(checkpoint, dict) else {}
    if set(parts) != set(PARTS) or not all(_is_state(part) for part in parts.values()):
        raise WeightsError(
            f"{path}: weights",
            got=f"{type(checkpoint).__name__} of {', '.join(map(str, parts)) or 'nothing known'}",
            expected=expected,
            next_step="Pass the original file.",
        )
    return parts


def _is_state(part: object) -> bool:
    return isinstance(part, dict) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in part.items())


def _translate(checkpoint: dict[str, dict[str, Tensor]], path: Path) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for part, tower in (("s1", "sar"), ("s2", "optical")):
        for key, value in checkpoint[f"{part}_encoder"].items():
            name = _encoder_key(key, tower)
            state[name] = value
        for key, value in checkpoint[f"{part}_GAP_FFN"].items():
            state[f"heads.{tower}.layers.{key}"] = value
    joint = dict(checkpoint["joint_encoder"])
    layers = {key.split(".")[1] for key in joint if key.startswith("layers.")}
    for layer in layers:
        parts = [joint.pop(f"layers.{layer}.1.to_{p}.weight", None) for p in "qkv"]
        if any(p is None for p in parts):
            raise WeightsError(
                f"{path}: joint_encoder layer {layer}",
                got="a cross-attention without to_q, to_k and to_v",
                expected="the released layout",
                next_step="Pass the original file.",
            )
        state[f"fusion.blocks.{layer}.cross.qkv.weight"] = torch.cat([p for p in parts if p is not None])
    for key, value in joint.items():
        state["fusion." + _block_key(key, ("attention", "cross", "feed_forward"))] = value
    return state


def _encoder_key(key: str, tower: str) -> str:
    if key.startswith("linear_input."):
        return key.replace("linear_input", f"patches.{tower}")
    return f"trunks.{tower}." + _block_key(key.removeprefix("transformer."), ("attention", "feed_forward"))


def _block_key(key: str, kinds: tuple[str, ...]) -> str:
    if not key.startswith("layers.") or key.count(".") < 3:
        return key.replace("norm_out.", "norm.")
    _, layer, index, rest = key.split(".", 3)
    kind = kinds[int(index)] if index.isdigit() and int(index) < len(kinds) else f"unknown-{index}"
    names = (
        {"input_norm": "0", "net.0": "1", "net.3": "3"}
        if kind == "feed_forward"
        else {
            "input_norm": "norm",
            "to_qkv": "qkv",
            "to_out": "out",
        }
    )
    stem, _, leaf = rest.rpartition(".")
    return f"blocks.{layer}.{kind}.{names.get(stem, stem)}.{leaf}"


def _check(wanted: dict[str, Tensor], state: dict[str, Tensor], path: Path, size: CromaSize) -> None:
    missing, extra = sorted(set(wanted) - set(state)), sorted(set(state) - set(wanted))
    reshaped = [k for k in wanted.keys() & state.keys() if wanted[k].shape != state[k].shape]
    if missing or extra or reshaped:
        sample = (missing + extra + sorted(reshaped))[0]
        raise WeightsError(
            f"{path}: weights",
            got=f"{len(missing)} keys missing, {len(extra)} unknown, {len(reshaped)} of other shape (first: {sample})",
            expected=f"every key of {size.name} ({size.width} wide, {size.sar_depth}/{size.optical_depth}/"
            f"{size.fusion_depth} layers)",
            next_step="Load it under the name of its own size, croma-base or croma-large.",
        )
