"""ScaleAlibi: towers for any number of sensors, their pooled heads, a fusion encoder and a reconstruction decoder.

After CROMA (Fuller, Millard and Green 2023) and Scale-ALiBi (Kage and Andreadis 2026, arXiv 2604.10347), with one
difference in kind: every token carries its own place in metres, so self-attention, cross-sensor and cross-scale
attention, masked or not, all take the same distance from the same function.
"""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor, nn

from alidade.errors import ModelError
from alidade.models.attention import Attention, Geometry, make_geometry
from alidade.models.config import DecoderConfig, ScaleAlibiConfig, TowerConfig
from alidade.models.encoder import FeedForward, PatchEmbed, Trunk, pad_to_patches, patch_validity
from alidade.models.positions import PositionConfig, Positions, sincos
from alidade.models.tokens import Places, Tokens, grid_places

POOLED = {"mean": 1, "mean-std": 2}
"""Ways to pool tokens, and how many numbers a feature becomes."""


class Projection(nn.Linear):
    """A linear layer that starts as the identity."""

    def reset_parameters(self) -> None:
        """Identity weight, zero bias."""
        nn.init.eye_(self.weight)
        nn.init.zeros_(self.bias)


class Head(nn.Module):
    """What follows pooling over valid tokens: LayerNorm and a perceptron (CROMA's GAP-FFN), or one linear layer.

    The linear one starts as the identity; a recipe can set it in closed form.

    Raises:
        ModelError: an unknown pooling, or a perceptron that would have to change the length.
    """

    def __init__(self, width: int, *, mlp: bool, pooling: str = "mean", dim: int | None = None) -> None:
        super().__init__()
        if pooling not in POOLED or (mlp and (pooling != "mean" or dim not in (None, width))):
            raise ModelError(
                "head of a tower",
                got=f"pooling {pooling!r}, length {dim or width}, perceptron {mlp}",
                expected=f"pooling {' or '.join(POOLED)}; the perceptron only with the mean and length {width}",
                next_step="Choose the linear head (mlp_head=False), or other values.",
            )
        self.pooling = pooling
        self.layers: nn.Module = FeedForward(width) if mlp else Projection(width * POOLED[pooling], dim or width)

    def forward(self, tokens: Tokens) -> Tensor:
        """Embedding ``[B, D]``, not normalised."""
        out: Tensor = self.layers(self.pooled(tokens))
        return out

    def pooled(self, tokens: Tokens) -> Tensor:
        """What the layers are given, ``[B, width]`` or ``[B, 2 width]``."""
        mean = tokens.mean()
        return mean if self.pooling == "mean" else torch.cat([mean, tokens.std()], dim=-1)


class Decoder(nn.Module):
    """Predicts pixels of patches at any ground places from encoded tokens at other places.

    A distance alone cannot tell left from right, so queries and keys also carry sin-cos ground coordinates.
    """

    def __init__(self, config: DecoderConfig, width: int, towers: tuple[TowerConfig, ...]) -> None:
        super().__init__()
        self.config = config
        self.enter = nn.Linear(width, config.width)
        self.attentions = nn.ModuleList(Attention(config.width, config.heads) for _ in range(config.depth))
        self.feed_forwards = nn.ModuleList(FeedForward(config.width) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width)
        self.mask_tokens = nn.ParameterDict({t.name: nn.Parameter(torch.zeros(config.width)) for t in towers})
        self.pixels = nn.ModuleDict({t.name: nn.Linear(config.width, len(t.bands) * t.patch * t.patch) for t in towers})

    def forward(self, context: Tokens, target: Places, tower: str) -> Tensor:
        """Pixels ``[B, Nt, C·patch·patch]`` of ``tower`` at the places ``target``, in standardised units."""
        x = self.mask_tokens[tower] + self._where(target)
        seen = self.enter(context.features) + self._where(context.places)
        nowhere = Positions(PositionConfig(kind="none"), self.config.heads)
        geometry = make_geometry(
            nowhere,
            target,
            context.places,
            head_dim=self.config.width // self.config.heads,
            dtype=x.dtype,
            training=self.training,
        )
        for attention, feed_forward in zip(self.attentions, self.feed_forwards, strict=True):
            x = x + attention(x, geometry, seen)
            x = x + feed_forward(x)
        out: Tensor = self.pixels[tower](self.norm(x))
        return out

    def _where(self, places: Places) -> Tensor:
        low, high = self.config.wavelength_range_m
        return sincos(places.centres, self.config.width, low, high).to(self.enter.weight.dtype)


class ScaleAlibi(nn.Module):
    """The network of a ``ScaleAlibiConfig``. It takes normalised tensors; ``alidade.models.Model`` takes rasters."""

    def __init__(self, config: ScaleAlibiConfig) -> None:
        super().__init__()
        self.config = config
        self.positions = config.position.build(config.heads)
        self.attention_backend: str | None = None
        self._latest: tuple[Places, Places, tuple[str | None, torch.dtype, bool], Geometry] | None = None
        self._own: deque[tuple[Places, tuple[str | None, torch.dtype, bool], Geometry]] = deque(maxlen=8)
        if config.patch_features and (config.fusion_depth or config.decoder or config.mlp_head):
            raise ModelError(
                f"{config.name}: patch features",
                got=f"fusion depth {config.fusion_depth}, decoder {config.decoder}, perceptron {config.mlp_head}",
                expected="none of them: their layers take tokens of the model's width",
                next_step="Train without patch features, and add them to the model that is kept.",
            )
        width, heads, shared = config.width, config.heads, config.shared_depth
        self.patches = nn.ModuleDict({t.name: PatchEmbed(len(t.bands), t.patch, width, t.stem) for t in config.towers})
        self.trunks = nn.ModuleDict(
            {"shared": Trunk(width, heads, shared)}
            if shared is not None
            else {t.name: Trunk(width, heads, t.depth) for t in config.towers}
        )
        self.heads = nn.ModuleDict(
            {
                t.name: Head(config.token_width, mlp=config.mlp_head, pooling=config.pooling, dim=config.dim or width)
                for t in config.towers
            }
        )
        self.fusion = Trunk(width, heads, config.fusion_depth, cross=True) if config.fusion_depth else None
        self.decoder = Decoder(config.decoder, width, config.towers) if config.decoder else None

    @property
    def dtype(self) -> torch.dtype:
        """The compute dtype of encoders and fusion; under autocast, autocast's."""
        if torch.is_autocast_enabled(self.device.type):
            return torch.get_autocast_dtype(self.device.type)
        return next(self.patches.parameters()).dtype

    def cast(self, dtype: torch.dtype) -> ScaleAlibi:
        """Compute in ``dtype``, but for pooling and heads, which stay in float32: they decide similarity."""
        self.to(dtype)
        self.heads.to(torch.float32)
        return self

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    def tower(self, name: str) -> TowerConfig:
        """The tower's config.

        Raises:
            ModelError: the model has no tower of this name.
        """
        for tower in self.config.towers:
            if tower.name == name:
                return tower
        known = ", ".join(t.name for t in self.config.towers)
        raise ModelError(
            f"{self.config.name}: tower",
            got=repr(name),
            expected=f"one of {known}",
            next_step="Use one of these.",
        )

    def embed_patches(
        self, name: str, pixels: Tensor, valid: Tensor, gsd_m: tuple[float, float] | Tensor, days: Tensor
    ) -> Tokens:
        """Patch features with places, before any attention.

        Args:
            name: the tower.
            pixels: ``[B, C, H, W]`` normalised; sides are padded to whole patches.
            valid: ``[B, H, W]`` bool; see ``encoder.patch_validity`` for which tokens count.
            gsd_m: true ground metres per pixel ``(x, y)``, of all images, or of each: ``[B, 2]``.
            days: ``[B]``.
        """
        tower = self.tower(name)
        self.check_channels(name, pixels)
        pixels, valid = pad_to_patches(pixels, valid, tower.patch)
        b, _, h, w = pixels.shape
        grid = grid_places(h // tower.patch, w // tower.patch, tower.patch, gsd_m, b)
        places = Places(
            grid.centres.to(pixels.device),
            grid.footprint.to(pixels.device),
            patch_validity(valid, tower.patch).to(pixels.device),
        )
        x = self.patches[name](pixels.to(self.dtype))
        added = self.positions.input_embedding(places, self.config.width)
        if added is not None:
            x = x + added.to(self.dtype)
        return Tokens(features=x, places=places, sensor=name, days=days)

    def check_channels(self, name: str, pixels: Tensor) -> None:
        """Refuse a tensor that is not ``[B, C, H, W]`` with the tower's channels.

        Raises:
            ModelError: naming the shape and the bands.
        """
        bands = self.tower(name).bands
        if pixels.ndim != 4 or pixels.shape[1] != len(bands) or 0 in pixels.shape:
            raise ModelError(
                f"{self.config.name}: input of tower {name}",
                got=f"shape {tuple(pixels.shape)}",
                expected=f"[B, {len(bands)}, H, W] with channels {', '.join(bands)}",
                next_step="Stack the bands in this order.",
            )

    def run(self, tokens: Tokens) -> Tokens:
        """The tower's transformer over patch features, all or only the kept ones: ``[B, N, token_width]``."""
        geometry = self._geometry(tokens.places, tokens.places)
        trunk = self.trunks["shared" if self.config.shared_depth is not None else tokens.sensor]
        encoded = trunk(tokens.features, geometry)
        own = [tokens.features] if self.config.patch_features else []
        return tokens.with_features(torch.cat([encoded, *own], dim=-1))

    def pool(self, tokens: Tokens) -> Tensor:
        """The sensor's pooled features ``[B, D]``, not normalised to unit length."""
        out: Tensor = self.heads[tokens.sensor](tokens)
        return out

    def fuse(self, parts: list[Tokens]) -> Tokens:
        """Joint tokens at the places of ``parts[0]``, which attends to each further sensor in turn.

        Self-attention takes the distances among its own tokens, cross-attention those to the other sensor's.

        Raises:
            ModelError: the model has no fusion encoder, or fewer than two sensors are given.
        """
        if self.fusion is None or len(parts) < 2:
            raise ModelError(
                f"{self.config.name}: fusion",
                got=f"{len(parts)} sensors, fusion depth {self.config.fusion_depth}",
                expected="two or more sensors and a model with a fusion encoder",
                next_step="Use the towers' own tokens, or a model such as croma-base.",
            )
        query, x = parts[0], parts[0].features
        geometry = self._geometry(query.places, query.places)
        for other in parts[1:]:
            fused = self.fusion(x, geometry, other.features, self._geometry(query.places, other.places))
            # softmax over nothing but blocked keys would attend to whatever fills them
            x = torch.where(other.places.valid.any(dim=1)[:, None, None], fused, x)
        return Tokens(features=x, places=query.places, sensor="joint", days=query.days)

    def reconstruct(self, context: Tokens, target: Places, tower: str) -> Tensor:
        """Standardised pixels of ``tower``'s patches at ``target``; see ``Decoder``.

        Raises:
            ModelError: the model was made without a decoder.
        """
        if self.decoder is None:
            raise ModelError(
                f"{self.config.name}: reconstruction",
                got="a model without a decoder",
                expected="a config with DecoderConfig",
                next_step="Train from a recipe that has one.",
            )
        out: Tensor = self.decoder(context, target, tower)
        return out

    def _geometry(self, query: Places, key: Places) -> Geometry:
        # an archive's batches have one geometry: the latest is kept, so only a new size or GSD costs anything
        # tables made in inference mode cannot serve a pass that needs gradients, so the mode is part of the key
        how = (self.attention_backend, self.dtype, torch.is_inference_mode_enabled())
        known = self._latest
        if known and known[2] == how and same(known[0], query) and same(known[1], key):
            return known[3]
        learning = self.training and torch.is_grad_enabled()
        for places, before, geometry in self._own if learning else ():
            if places is query and places is key and before == how:
                return geometry
        geometry = make_geometry(
            self.positions,
            query,
            key,
            head_dim=self.config.width // self.config.heads,
            dtype=self.dtype,
            training=learning,
            backend=self.attention_backend,
        )
        if learning and query is key:
            # fusion looks from the same places as the tower did; what is remembered here keeps no table alive
            self._own.append((query, how, geometry))
        one_table = not self.training and (geometry.bias is None or geometry.bias.shape[0] == 1)
        self._latest = (query, key, how, geometry) if one_table else None
        return geometry


def same(a: Places, b: Places) -> bool:
    """Whether two batches lie at exactly the same places."""
    return a is b or all(x.device == y.device and torch.equal(x, y) for x, y in zip(a, b, strict=True))


def initialise(model: ScaleAlibi, seed: int) -> None:
    """All initial values in one place.

    Linear layers and mask tokens are normal (std 0.02), projections the identity, convolutions as He et al. 2015.
    """
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.Linear) and not isinstance(module, Projection):
            nn.init.trunc_normal_(module.weight, std=0.02, generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    if model.decoder is not None:
        for token in model.decoder.mask_tokens.values():
            nn.init.normal_(token, std=0.02, generator=generator)
