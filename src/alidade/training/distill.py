"""Spectral distillation, read from top to bottom: config, the module, the run, what is saved.

The steps themselves, stopping and resuming are those of every training: ``loop.py``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from alidade.models.scale_alibi import ScaleAlibi
from alidade.models.weights import identity, save_model
from alidade.training.distill_batches import CropBatches
from alidade.training.distiller import Distiller
from alidade.training.loop import LoopConfig, Report, train, writing
from alidade.training.processes import Processes
from alidade.training.teachers import DistillError, Teacher

LEARNS = ("tower", "head")


@dataclass(frozen=True, kw_only=True)
class DistillConfig(LoopConfig):
    """A run. Saved with every checkpoint; a resumed run must have the same.

    The loop's fields are fields of a run: a recipe is one flat list of settings. Temperatures, momentum and crops are
    DINO's (Caron et al. 2021, arXiv 2104.14294), since SATtxt's are not known.

    Attributes:
        name: of the model that is made.
        tower: of the starting network: the student.
        learns: ``"tower"`` with its head, or the ``"head"`` alone on a frozen tower, as SATtxt has it.
        student_temperature: of the student's softmax.
        teacher_temperature: of the teachers', at the beginning and from step ``sharpen_steps`` on.
        sharpen_steps: over which it changes evenly.
        momentum: share of a teacher's old centre that a step keeps.
        weights: of teachers' losses, by name; 1 for those that are not here.
        keep_weight: of the penalty on leaving the starting embedding, see ``Distiller``.
        contrast_weight: of the student's own contrast between global views. A run without teacher has this alone: the
            same steps on the same crops of the same squares.

    Raises:
        DistillError: numbers out of their range, or an unknown choice.
    """

    name: str = "my-student"
    tower: str = "rgb"
    learns: str = "tower"
    student_temperature: float = 0.1
    teacher_temperature: tuple[float, float] = (0.04, 0.07)
    sharpen_steps: int = 200
    momentum: float = 0.9
    weights: Mapping[str, float] = field(default_factory=dict)
    keep_weight: float = 0.0
    contrast_weight: float = 0.0

    def __post_init__(self) -> None:
        """Check every field; see the class for what is refused."""
        super().__post_init__()
        if self.learns not in LEARNS:
            raise _refuse("what learns", repr(self.learns), f"one of {', '.join(LEARNS)}")
        temperatures = (self.student_temperature, *self.teacher_temperature)
        if min(temperatures) <= 0 or not 0 <= self.momentum < 1 or self.sharpen_steps < 1:
            got = f"temperatures {temperatures}, momentum {self.momentum}, sharpen_steps {self.sharpen_steps}"
            raise _refuse("numbers", got, "temperatures above 0, a momentum from 0 to below 1, one step or more")
        if min([self.keep_weight, self.contrast_weight, *self.weights.values()]) < 0:
            got = f"keep {self.keep_weight}, contrast {self.contrast_weight}, teachers {dict(self.weights)}"
            raise _refuse("weights", got, "0 or above")

    def text(self) -> str:
        """JSON, stable in its order."""
        return json.dumps(asdict(self), indent=2, sort_keys=True)


def distill(
    config: DistillConfig,
    data: CropBatches,
    folder: Path,
    *,
    network: ScaleAlibi,
    teachers: Sequence[Teacher],
    report: Callable[[Report], None] | None = None,
) -> ScaleAlibi:
    """Train, or go on training, in ``folder``; the student, which is also saved there as ``model/``.

    The student has one tower: of a network with a common trunk the other towers would no longer fit, and none of them
    would be comparable with it. Neither ``network`` nor the teachers are changed.

    Args:
        config: how.
        data: where batches come from; a thread of its own asks for them.
        folder: of the run; a run that is resumed there must have the same config, start, teachers and data.
        network: what the student starts as.
        teachers: frozen; none for a run with contrast alone.
        report: called after each step, in the first process.

    Raises:
        DistillError: data, teachers and config that do not go together.
        ModelError: the network has no such tower.
        TrainingError, CheckpointError: see ``loop.train``.
    """
    check(config, data, teachers)
    processes = Processes(precision=config.precision, shard=False)
    distiller = build(config, data, network, teachers)
    told = {"start": identity(network), "teachers": {t.name: t.identity for t in teachers}}
    recipe = json.dumps(json.loads(config.text()) | told, indent=2, sort_keys=True)
    train(distiller, config, data, folder, recipe=recipe, processes=processes, count=distiller.count, report=report)
    student = distiller.network.requires_grad_(True)
    if processes.first:
        with writing(folder):
            save_model(student, folder / "model")
    return student.eval()


def check(config: DistillConfig, data: CropBatches, teachers: Sequence[Teacher]) -> None:
    """See that there is something to learn, from teachers that see the data.

    Raises:
        DistillError: there is not, or they do not.
    """
    names = [t.name for t in teachers]
    if len(set(names)) != len(names):
        raise _refuse("teachers", ", ".join(names), "each name once")
    if unseen := sorted(set(names) - data.teachers):
        raise _refuse(
            f"images for teacher {', '.join(unseen)}", ", ".join(sorted(data.teachers)) or "none", "images of its bands"
        )
    idle = [s.name for s in data.squares if not s.teachers & set(names)]
    if names and idle and config.contrast_weight == 0:
        raise _refuse("squares that teach nothing", ", ".join(idle), f"squares that {' or '.join(names)} can see")
    if unknown := sorted(set(config.weights) - set(names)):
        raise _refuse("weights of teachers", ", ".join(unknown), f"names among {', '.join(names) or 'none'}")
    if not names and config.contrast_weight == 0:
        raise _refuse("what to learn from", "no teacher and no contrast", "a teacher, or a contrast_weight above 0")
    if config.contrast_weight > 0 and data.crops.global_views < 2:
        raise _refuse("contrast", "one global view of a square", "two or more")


def build(config: DistillConfig, data: CropBatches, network: ScaleAlibi, teachers: Sequence[Teacher]) -> Distiller:
    """The module at the start of a run, in training mode, with a copy of the student's tower."""
    student = lone_tower(network, config.tower, config.name)
    if config.learns == "head":
        student.requires_grad_(False).heads.requires_grad_(True)
    distiller = Distiller(
        student,
        teachers,
        data.crops,
        start=lone_tower(network, config.tower, config.name) if config.keep_weight > 0 else None,
        student_temperature=config.student_temperature,
        teacher_temperature=config.teacher_temperature,
        sharpen_steps=config.sharpen_steps,
        momentum=config.momentum,
        weights=config.weights,
        keep_weight=config.keep_weight,
        contrast_weight=config.contrast_weight,
        accumulate=config.accumulate,
        seed=config.seed,
    )
    return distiller.train()


def lone_tower(network: ScaleAlibi, tower: str, name: str) -> ScaleAlibi:
    """A copy of one tower with its trunk and head, in float32, as a network of its own.

    Raises:
        ModelError: the network has no such tower.
    """
    chosen = replace(
        network.config,
        name=name,
        towers=(network.tower(tower),),
        fusion_depth=0,
        decoder=None,
        aligned=False,
        shared=None,
    )
    alone = ScaleAlibi(chosen)
    state = network.state_dict()
    alone.load_state_dict({key: state[key].float() for key in alone.state_dict()})
    return alone


def _refuse(name: str, got: object, expected: str) -> DistillError:
    return DistillError(name, got=got, expected=expected, next_step="Choose another value.")
