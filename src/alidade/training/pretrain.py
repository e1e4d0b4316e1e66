"""Pretraining, read from top to bottom: config, batches, the module, the run, what is saved.

The steps themselves, stopping and resuming are those of every training: ``loop.py``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from alidade.models.config import ScaleAlibiConfig, to_json
from alidade.models.scale_alibi import ScaleAlibi, initialise
from alidade.models.weights import save_model
from alidade.training.augment import View
from alidade.training.loop import Data, LoopConfig, Report, train, writing
from alidade.training.pretrainer import Pretrainer
from alidade.training.processes import Processes, whole_weights


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(LoopConfig):
    """A run. Saved with every checkpoint; a resumed run must have the same.

    The loop's fields are fields of a run: a recipe is one flat list of settings.

    Attributes:
        model: the network.
        towers: tower by view name.
        keep: share of patches that encoders see.
        contrast_weight: of the mean over pairs of views.
        reconstruct_weight: of the mean over views.
        projector: width of the training-only perceptron before contrast; 0 for none. See ``Pretrainer``.
    """

    model: ScaleAlibiConfig
    towers: dict[str, str]
    keep: float = 0.6
    contrast_weight: float = 1.0
    reconstruct_weight: float = 1.0
    projector: int = 0

    def text(self) -> str:
        """JSON, stable in its order."""
        fields = asdict(self) | {"model": json.loads(to_json(self.model))}
        return json.dumps(fields, indent=2, sort_keys=True)


class Batches(Data, Protocol):
    """Where batches come from: images alone."""

    def views(self, ids: np.ndarray, rng: np.random.Generator) -> dict[str, View]:
        """A batch of the samples ``ids``, augmented with ``rng``."""


def pretrain(
    config: PretrainConfig,
    data: Batches,
    folder: Path,
    *,
    shard: bool = False,
    report: Callable[[Report], None] | None = None,
) -> ScaleAlibi:
    """Train, or go on training, in ``folder``; the trained network, which is also saved there as ``model/``.

    Args:
        config: what to train, and how.
        data: where batches come from; a thread of its own asks for them.
        folder: of the run; a run that is resumed there must have the same config and data.
        shard: whether each of several processes holds only its share of weights and moments (FSDP2). Checkpoints
            are whole either way: a run may go on with another number of processes.
        report: called after each step, in the first process.

    Raises:
        TrainingError, CheckpointError: see ``loop.train``.
    """
    processes = Processes(precision=config.precision, shard=shard)
    trainer = build(config)
    # patches in holes are not scored, so that batches differ in how many are
    count = trainer.count if config.reconstruct_weight > 0 else None
    train(trainer, config, data, folder, recipe=config.text(), processes=processes, count=count, report=report)
    network = whole_network(config, trainer) if shard else trainer.network
    if processes.first:
        with writing(folder):
            save_model(network, folder / "model")
    return network.eval()


def build(config: PretrainConfig) -> Pretrainer:
    """The module at the start of a run."""
    network = ScaleAlibi(config.model)
    initialise(network, config.seed)
    return Pretrainer(
        network,
        config.towers,
        keep=config.keep,
        contrast_weight=config.contrast_weight,
        reconstruct_weight=config.reconstruct_weight,
        projector=config.projector,
        seed=config.seed,
    ).train()


def whole_network(config: PretrainConfig, trainer: Pretrainer) -> ScaleAlibi:
    """The network of a trainer whose weights are shared out, put together; every process must ask."""
    network, prefix = ScaleAlibi(config.model), "network."
    weights = whole_weights(trainer)
    network.load_state_dict({k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)})
    return network
