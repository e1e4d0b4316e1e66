"""Spectral representation distillation (SATtxt, arXiv 2602.22613) as one module: a student, and a bridge per teacher.

One bridge and one centre for each teacher, so that radar may teach beside the optical bands.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from alidade.models.scale_alibi import ScaleAlibi
from alidade.training.augment import View
from alidade.training.distill_batches import GLOBAL, LOCAL, Crops
from alidade.training.loop import Views
from alidade.training.objectives import Losses, contrastive_losses
from alidade.training.teachers import Teacher


def sharpened(pooled: Tensor, centre: Tensor, temperature: float | Tensor) -> Tensor:
    """What a teacher says of a view: softmax of its features ``[..., D]`` less their centre ``[D]``."""
    return ((pooled - centre) / temperature).softmax(dim=-1)


def distillation(student: Tensor, target: Tensor, temperature: float, seen: Tensor, known: Tensor) -> Tensor:
    """Cross-entropy of the student to the teacher, the mean over all pairs of their views; ``[B]``.

    Args:
        student: ``[V, B, D]``, what the bridge makes of the student's views.
        target: ``[U, B, D]``, the teacher's shares; each row's sum is 1.
        temperature: the student's.
        seen: ``[V, B]`` bool, views of the student that count.
        known: ``[U, B]`` bool, views of the teacher that count.

    Returns:
        The loss of each sample; 0 for one without a view on either side.
    """
    # a mean over pairs of a product of one factor each is the product of both means
    said = _mean((student / temperature).log_softmax(dim=-1), seen)
    return -(_mean(target, known) * said).sum(dim=-1)


def _mean(views: Tensor, there: Tensor) -> Tensor:
    """``[V, B, D]`` to ``[B, D]``, over the views that are there."""
    weight = there.to(views.dtype).unsqueeze(-1)
    return (views * weight).sum(0) / weight.sum(0).clamp(min=1)


class Bridge(nn.Module):
    """From the student's embedding to one teacher's features: one linear layer; and that teacher's centre.

    It is left behind with training.
    """

    centre: Tensor

    def __init__(self, dim: int, to: int, generator: torch.Generator) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, to)
        # small: the student begins by saying nothing, not by being sure of the wrong
        nn.init.normal_(self.linear.weight, std=0.1 * dim**-0.5, generator=generator)
        nn.init.zeros_(self.linear.bias)
        self.register_buffer("centre", torch.zeros(to))

    def forward(self, embedding: Tensor) -> Tensor:
        """``[..., dim]`` to ``[..., to]``."""
        out: Tensor = self.linear(embedding)
        return out


class Distiller(nn.Module):
    """A student with what only distillation needs. Teachers are called, never trained, and no part of its state.

    Under autocast student and teachers compute in its format; pooled heads, bridges and losses in float32.

    Args:
        student: a network with the one tower that learns.
        teachers: frozen; none for a run with contrast alone.
        crops: what batches are made of.
        start: the network that the student must stay near; needed with ``keep_weight``.
        student_temperature: of the student's softmax.
        teacher_temperature: of the teachers' at the first step, and from step ``sharpen_steps`` on.
        sharpen_steps: over which it changes evenly.
        momentum: share of the old centre that a step keeps.
        weights: of the teachers' losses, by name; 1 for those that are not here.
        keep_weight: of one minus the cosine between the student's embedding and its first one, over global views.
        contrast_weight: of the contrast between the global views of a square: what the student learns without teacher.
        accumulate: batches of a step; centres move once a step.
        seed: of the bridges' first values.
    """

    steps: Tensor

    def __init__(
        self,
        student: ScaleAlibi,
        teachers: Sequence[Teacher],
        crops: Crops,
        *,
        start: ScaleAlibi | None = None,
        student_temperature: float = 0.1,
        teacher_temperature: tuple[float, float] = (0.04, 0.07),
        sharpen_steps: int = 1,
        momentum: float = 0.9,
        weights: Mapping[str, float] | None = None,
        keep_weight: float = 0.0,
        contrast_weight: float = 0.0,
        accumulate: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.network, self.crops = student, crops
        self.tower = student.config.towers[0].name
        # in tuples: what is frozen is no part of a module's state
        self.teachers = tuple(teachers)
        self._start: tuple[ScaleAlibi, ...] = () if start is None else (start.eval().requires_grad_(False),)
        generator = torch.Generator().manual_seed(seed)
        dim = student.config.dim or student.config.width
        self.bridges = nn.ModuleList(Bridge(dim, teacher.dim, generator) for teacher in teachers)
        self.register_buffer("steps", torch.zeros(1, dtype=torch.int64))
        self.student_temperature, self.teacher_temperature = student_temperature, teacher_temperature
        self.sharpen_steps, self.momentum, self.accumulate = sharpen_steps, momentum, accumulate
        self.weights = {t.name: (weights or {}).get(t.name, 1.0) for t in teachers}
        self.keep_weight, self.contrast_weight = keep_weight, contrast_weight
        self.log_scale = nn.Parameter(torch.tensor([math.log(1 / 0.07)])) if contrast_weight > 0 else None
        self._heard: list[Tensor] = []

    @property
    def temperature(self) -> Tensor:
        """The teachers' temperature of the present step."""
        first, last = self.teacher_temperature
        return first + (last - first) * (self.steps / self.sharpen_steps).clamp(max=1)

    def forward(self, views: Views, seed: int, count: Tensor | None = None) -> Losses:
        """Losses ``"distillation T"`` and ``"entropy T"`` of each teacher in the batch, and ``"total"``.

        ``"entropy"`` is that of the teacher's softmax, the least that its distillation loss can come to: near 0 the
        teacher chooses one feature, near the logarithm of their number it says nothing. It is not minimised.

        Args:
            views: the batch, as ``CropBatches`` makes it.
            seed: nothing is drawn here.
            count: what sums over samples are divided by, as ``self.count`` orders them; those of this batch when not
                given.
        """
        shared = self.count(views, seed) if count is None else count
        wide, near = _view(views, GLOBAL), self.crops.global_views
        embedding, seen = self._embed(wide, near)
        if LOCAL in views:
            local, there = self._embed(_view(views, LOCAL), self.crops.local_views)
            embedding, seen = torch.cat([embedding, local]), torch.cat([seen, there])
        losses, total = dict[str, Tensor](), embedding.sum() * 0
        heard = []
        with torch.autocast(embedding.device.type, enabled=False):
            for number, teacher in enumerate(self.teachers):
                if teacher.name not in views:
                    heard.append(embedding.new_zeros(teacher.dim + 1))
                    continue
                pooled, known = self._ask(teacher, _view(views, teacher.name))
                heard.append(_sums(pooled, known))
                loss, entropy = self._learn(number, embedding, seen, pooled, known, shared[number])
                losses |= {f"distillation {teacher.name}": loss, f"entropy {teacher.name}": entropy}
                total = total + self.weights[teacher.name] * loss
            if self.keep_weight > 0:
                losses["keep"] = self._keep(embedding[:near], seen[:near], wide, shared[-1])
                total = total + self.keep_weight * losses["keep"]
            if self.log_scale is not None:
                losses["contrast"] = self._contrast(embedding[:near], seen[:near], self.log_scale)
                total = total + self.contrast_weight * losses["contrast"]
        if self.training:
            self._remember(torch.cat(heard) if heard else embedding.new_zeros(0))
        return Losses(losses | {"total": total})

    def count(self, views: Views, seed: int) -> Tensor:
        """How many samples each teacher's loss is over, and how many crops the penalty: ``[T + 1]`` float32."""
        wide = _view(views, GLOBAL).present.view(self.crops.global_views, -1)
        seen = wide.any(dim=0)
        if LOCAL in views:
            seen = seen | _view(views, LOCAL).present.view(self.crops.local_views, -1).any(dim=0)
        found = [wide.sum() * 0 if t.name not in views else (seen & self._there(views, t)).sum() for t in self.teachers]
        return torch.stack([*found, wide.sum()]).float()

    def _there(self, views: Views, teacher: Teacher) -> Tensor:
        return _view(views, teacher.name).present.view(self.crops.teacher_views, -1).any(dim=0)

    def _embed(self, view: View, number: int) -> tuple[Tensor, Tensor]:
        """The student's embedding of ``number`` crops of each sample, ``[V, B, D]``, and which there are ``[V, B]``."""
        found = _embedding(self.network, self.tower, view)
        return found.view(number, -1, found.shape[-1]), view.present.view(number, -1)

    @torch.no_grad()
    def _ask(self, teacher: Teacher, view: View) -> tuple[Tensor, Tensor]:
        """A teacher's features of its views, ``[U, B, D]``, and which there are ``[U, B]``."""
        found = teacher(view.pixels, view.valid, view.gsd_m).float()
        views = self.crops.teacher_views
        return found.view(views, -1, teacher.dim), view.present.view(views, -1)

    def _learn(
        self, number: int, embedding: Tensor, seen: Tensor, pooled: Tensor, known: Tensor, samples: Tensor
    ) -> tuple[Tensor, Tensor]:
        bridge = self.bridges[number]
        assert isinstance(bridge, Bridge)
        target = sharpened(pooled, bridge.centre, self.temperature)
        loss = distillation(bridge(embedding), target, self.student_temperature, seen, known)
        both = (seen.any(0) & known.any(0)).float()
        entropy = _mean(torch.special.entr(target), known).sum(dim=-1)
        divisor = samples.clamp(min=1e-6)
        return (loss * both).sum() / divisor, (entropy * both).sum() / divisor

    def _keep(self, embedding: Tensor, seen: Tensor, view: View, crops: Tensor) -> Tensor:
        with torch.no_grad():
            first = _embedding(self._start[0].to(embedding.device), self.tower, view).view_as(embedding)
        off = 1 - F.cosine_similarity(embedding, first, dim=-1)
        return (off * seen).sum() / crops.clamp(min=1e-6)

    def _contrast(self, embedding: Tensor, seen: Tensor, log_scale: Tensor) -> Tensor:
        features = {str(number): view for number, view in enumerate(embedding)}
        present = {str(number): view for number, view in enumerate(seen)}
        return torch.stack(list(contrastive_losses(features, log_scale, present).values())).mean()

    @torch.no_grad()
    def _remember(self, heard: Tensor) -> None:
        """Keep the sums of a batch; after the last batch of a step move every centre, in all processes alike."""
        self._heard.append(heard)
        if len(self._heard) < self.accumulate:
            return
        total = torch.stack(self._heard).sum(0)
        self._heard = []
        if dist.is_available() and dist.is_initialized() and len(total):
            dist.all_reduce(total)
        parts = torch.split(total, [t.dim + 1 for t in self.teachers]) if self.teachers else ()
        for bridge, part in zip(self.bridges, parts, strict=True):
            if part[-1] > 0:
                assert isinstance(bridge, Bridge)
                bridge.centre.lerp_(part[:-1] / part[-1], 1 - self.momentum)
        self.steps += 1


def _embedding(network: ScaleAlibi, tower: str, view: View) -> Tensor:
    tokens = network.run(network.embed_patches(tower, view.pixels, view.valid, view.gsd_m, view.days))
    with torch.autocast(tokens.features.device.type, enabled=False):
        return network.pool(tokens).float()


def _sums(pooled: Tensor, known: Tensor) -> Tensor:
    """The sum of a teacher's features over all views that there are, ``[D]``, and their number behind it."""
    weight = known.to(pooled.dtype)
    return torch.cat([(pooled * weight.unsqueeze(-1)).sum((0, 1)), weight.sum().view(1)])


def _view(views: Views, name: str) -> View:
    view = views[name]
    if not isinstance(view, View):
        raise TypeError(f"a tensor where a batch has the view {name}")
    return view
