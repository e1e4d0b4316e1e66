"""Teachers of spectral distillation: frozen encoders of all bands, or of radar, that a student of RGB learns from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from alidade.errors import AlidadeError
from alidade.imagery.normalize import Normalization
from alidade.models.model import Model

Gsd = tuple[float, float] | Tensor
"""True ground metres per pixel ``(x, y)``, of all images, or of each: ``[B, 2]``."""


POOLS = ("embedding", "tokens")
"""What of an alidade model teaches."""


class DistillError(AlidadeError):
    """A teacher, a student and data that do not go together."""


class Teacher(Protocol):
    """What a student learns from. It is never trained, and is called without gradients.

    Attributes:
        name: short and unique among a run's teachers, such as ``"optical"``; losses and stacks of images have it.
        identity: changes with everything that changes a vector.
        dim: length of its vectors.
        normalizations: by sensor id, the bands that it reads of that sensor, in its order, and how their stored
            numbers become its input. A sensor that is not here it does not take.
    """

    @property
    def name(self) -> str: ...  # noqa: D102 (the class says it)
    @property
    def identity(self) -> str: ...  # noqa: D102
    @property
    def dim(self) -> int: ...  # noqa: D102
    @property
    def normalizations(self) -> Mapping[str, Normalization]: ...  # noqa: D102

    def __call__(self, pixels: Tensor, valid: Tensor, gsd_m: Gsd, /) -> Tensor:
        """Pooled features ``[B, D]`` float32 of normalised images.

        Args:
            pixels: ``[B, C, H, W]``, the bands of ``normalizations`` in their order; 0 where not valid.
            valid: ``[B, H, W]`` bool.
            gsd_m: true ground metres per pixel.
        """


class TowerTeacher:
    """One tower of an alidade model, CROMA's among them.

    Its vectors are brought to unit length unless told otherwise: the usual temperatures (0.04 to 0.1) are made for
    numbers of a cosine's size, and a softmax over features of size 1 at 0.04 would be a choice of one of them.

    Args:
        model: whose tower; it stays as it is.
        tower: its name.
        name: of the teacher; the tower's when not given.
        pool: ``"embedding"``, what the tower's head gives, or ``"tokens"``, the mean of what the encoder gives. A head
            may have been made to say what other sensors see too; then only tokens know more than they do.
        unit_length: whether vectors are brought to unit length.

    Raises:
        ModelError: the model has no such tower.
        DistillError: an unknown pooling.
    """

    def __init__(
        self, model: Model, tower: str, *, name: str | None = None, pool: str = "embedding", unit_length: bool = True
    ) -> None:
        if pool not in POOLS:
            raise DistillError(
                "pooling of a teacher", got=repr(pool), expected=f"one of {', '.join(POOLS)}", next_step="Choose one."
            )
        self._network, self._pool, self._unit_length = model.network, pool, unit_length
        self._tower = model.network.tower(tower)
        self.name = name or tower
        self.dim = model.dim if pool == "embedding" else model.network.config.token_width
        self.identity = f"{model.identity}/{tower}, {pool}" + ("" if unit_length else ", of any length")
        self.normalizations: Mapping[str, Normalization] = self._tower.normalizations

    @property
    def bands(self) -> tuple[str, ...]:
        """What the tower reads, in its order."""
        return self._tower.bands

    @torch.no_grad()
    def __call__(self, pixels: Tensor, valid: Tensor, gsd_m: Gsd, /) -> Tensor:
        """See ``Teacher``."""
        network = self._network.to(pixels.device)
        days = torch.full((len(pixels),), float("nan"), dtype=torch.float64)
        tokens = network.run(network.embed_patches(self._tower.name, pixels, valid, gsd_m, days))
        with torch.autocast(pixels.device.type, enabled=False):
            pooled = (network.pool(tokens) if self._pool == "embedding" else tokens.mean()).float()
            return F.normalize(pooled, dim=-1) if self._unit_length else pooled


@dataclass(frozen=True, kw_only=True, eq=False)
class CallableTeacher:
    """Any function of images as a teacher: how encoders of other packages come in.

    Attributes:
        function: as ``Teacher.__call__``; it is called without gradients and puts itself where its input lies.
        name, identity, dim, normalizations: see ``Teacher``.
        unit_length: whether vectors are brought to unit length; see ``TowerTeacher``.
    """

    function: Callable[[Tensor, Tensor, Gsd], Tensor]
    name: str
    identity: str
    dim: int
    normalizations: Mapping[str, Normalization]
    unit_length: bool = True

    def __post_init__(self) -> None:
        """See that it reads something.

        Raises:
            DistillError: no sensor, or no vector.
        """
        if not self.normalizations or self.dim < 1:
            raise DistillError(
                f"teacher {self.name}",
                got=f"{len(self.normalizations)} sensors, vectors of {self.dim}",
                expected="at least one sensor with its bands, and the length of the vectors",
                next_step="Give normalizations={sensor id: Normalization.for_sensor(sensor, bands)} and dim.",
            )

    @property
    def bands(self) -> tuple[str, ...]:
        """What it reads of its first sensor, in its order."""
        return next(iter(self.normalizations.values())).bands

    @torch.no_grad()
    def __call__(self, pixels: Tensor, valid: Tensor, gsd_m: Gsd, /) -> Tensor:
        """See ``Teacher``.

        Raises:
            DistillError: the function gives something else than ``[B, dim]``.
        """
        found = self.function(pixels, valid, gsd_m)
        if found.shape != (len(pixels), self.dim):
            raise DistillError(
                f"teacher {self.name}: vectors",
                got=f"shape {tuple(found.shape)} for {len(pixels)} images",
                expected=f"[{len(pixels)}, {self.dim}]",
                next_step="Pool the tokens in the function, and give their length as dim.",
            )
        return F.normalize(found.float(), dim=-1) if self.unit_length else found.float()


def reading(
    who: str, normalizations: Mapping[str, Normalization], sensor_id: str, available: Sequence[str]
) -> Normalization:
    """How a teacher or a student reads images of a sensor that have these bands.

    Args:
        who: for messages, such as ``"teacher optical"``.
        normalizations: by sensor id.
        sensor_id: of the images.
        available: names of their bands.

    Raises:
        DistillError: another sensor, or bands are missing; they are named.
    """
    if sensor_id not in normalizations:
        raise DistillError(
            f"{who}: sensor",
            got=sensor_id,
            expected=f"one of {', '.join(normalizations)}",
            next_step="Choose other images, or another teacher or student.",
        )
    found = normalizations[sensor_id]
    if missing := [band for band in found.bands if band not in available]:
        raise DistillError(
            f"{who}: bands of {sensor_id}",
            got=f"no {', '.join(missing)} among {', '.join(available)}",
            expected=", ".join(found.bands),
            next_step="Choose images that have these bands, or a teacher that does without.",
        )
    return found
