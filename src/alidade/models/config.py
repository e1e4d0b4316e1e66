"""The configs of a model: frozen data that builds its component and is saved as JSON beside the weights."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

from alidade.errors import WeightsError
from alidade.imagery.normalize import Normalization
from alidade.models.positions import PositionConfig


@dataclass(frozen=True, kw_only=True)
class TowerConfig:
    """One sensor family's way into the model.

    Attributes:
        name: what the tower is called in code and results, e.g. ``"sar"``.
        bands: channel names in order; provider's names, or common names where sensors differ.
        depth: transformer layers (ignored when the model shares one trunk).
        patch: patch side in pixels.
        normalizations: fixed statistics by sensor id. Their sensors are those that the tower accepts.
        stem: channels of the 4 x 4 convolutions that each patch passes, by itself, before the linear layer; each
            halves the patch's side. With none the linear layer sees the pixels.
    """

    name: str
    bands: tuple[str, ...]
    depth: int
    patch: int
    normalizations: dict[str, Normalization]
    stem: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """The reconstruction decoder: cross-attention from mask tokens at the targets' ground places.

    Attributes:
        width, depth, heads: of the decoder's transformer.
        wavelength_range_m: shortest and longest scale of its sin-cos ground coordinates, in metres.
    """

    width: int
    depth: int
    heads: int
    wavelength_range_m: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class ScaleAlibiConfig:
    """A model with any number of sensor towers.

    Attributes:
        name: the model's name, the first half of its identity.
        width, heads: of all encoders and the fusion.
        towers: one per sensor family; fusion takes its queries from the first.
        shared_depth: when set, all towers run through one trunk of this many layers.
        fusion_depth: layers of the fusion encoder; 0 for none.
        position: how attention knows places.
        decoder: for masked reconstruction; None for inference-only models.
        pooling: ``"mean"`` of the valid tokens, or ``"mean-std"``: their mean and standard deviation, side by side.
        mlp_head: whether pooled features pass a LayerNorm and a two-layer MLP (CROMA's GAP-FFN), or one linear layer.
        dim: length of the embedding; ``width`` when None. Other than ``width`` it needs the linear head.
        tile: preferred tile side in pixels for archives.
        aligned: whether training has made vectors of different sensors comparable.
        shared: how many of an embedding's numbers, the first ones, say what other sensors see too; None for all. The
            others tell images of one sensor apart and are noise between sensors.
        patch_features: whether tokens carry, after what attention made of a patch, the patch's own features from
            before attention, and heads pool both. Needs a model without fusion and decoder, whose layers take
            ``width``.
    """

    name: str
    width: int
    heads: int
    towers: tuple[TowerConfig, ...]
    shared_depth: int | None = None
    fusion_depth: int = 0
    position: PositionConfig
    decoder: DecoderConfig | None = None
    pooling: str = "mean"
    mlp_head: bool = True
    dim: int | None = None
    tile: int
    aligned: bool = False
    shared: int | None = None
    patch_features: bool = False

    @property
    def token_width(self) -> int:
        """Length of a token's features."""
        return self.width * (2 if self.patch_features else 1)


def to_json(config: ScaleAlibiConfig) -> str:
    """The config as JSON text, stable in its order."""
    return json.dumps(asdict(config), indent=2, sort_keys=True)


def from_json(text: str, origin: str) -> ScaleAlibiConfig:
    """The config saved by ``to_json``.

    Raises:
        WeightsError: not JSON, or a key too many or too few. Nothing is ignored: a setting that has no effect is
            worse than an error.
    """
    try:
        data = json.loads(text)
        towers = tuple(
            _strict(
                TowerConfig,
                t
                | {
                    "bands": tuple(t["bands"]),
                    "stem": tuple(t["stem"]),
                    "normalizations": {
                        k: Normalization.from_json(json.dumps(v)) for k, v in t["normalizations"].items()
                    },
                },
            )
            for t in data["towers"]
        )
        position, decoder = dict(data["position"]), data["decoder"]
        if position["length_range_m"] is not None:
            position["length_range_m"] = tuple(position["length_range_m"])
        if decoder is not None:
            decoder = _strict(DecoderConfig, decoder | {"wavelength_range_m": tuple(decoder["wavelength_range_m"])})
        built = {"towers": towers, "position": _strict(PositionConfig, position), "decoder": decoder}
        return _strict(ScaleAlibiConfig, data | built)
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(
            f"{origin}: config",
            got=f"{type(error).__name__}: {error}",
            expected="the JSON that alidade saved beside the weights",
            next_step="Use the directory as it was saved, or save the model again with this version.",
        ) from None


Built = TypeVar("Built")


def _strict(cls: type[Built], data: dict[str, Any]) -> Built:
    names = {f.name for f in fields(cls)}  # type: ignore[arg-type]
    if set(data) != names:
        raise KeyError(f"{cls.__name__} keys differ: {sorted(set(data) ^ names)}")
    return cls(**data)
