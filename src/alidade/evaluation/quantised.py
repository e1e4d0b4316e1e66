"""Encoders with 8-bit linear layers, and how far their vectors are from those of the full encoder."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.ao.quantization import per_channel_dynamic_qconfig, quantize_dynamic

from alidade.errors import ModelError
from alidade.evaluation.bootstrap import interval
from alidade.evaluation.features import Features
from alidade.evaluation.knn import unit_rows
from alidade.evaluation.results import Result
from alidade.evaluation.zero_shot import Subject, cosines
from alidade.models.encoder import Block
from alidade.models.model import Model
from alidade.models.precision import Precision
from alidade.models.scale_alibi import Decoder

MARK = "+int8"
PROTOCOL = "8-bit linear layers against float32"


def quantise(network: nn.Module) -> nn.Module:
    """A copy of an encoder whose linear layers multiply 8-bit integers; on CPU and for inference only.

    Weights have one scale per output row, activations one per call, taken from their range (torch's dynamic
    quantisation, which is deprecated but there in the torch that this package is bound to). What is more than a plain
    linear layer stays in float32, as do layers whose weights are read from outside.

    Args:
        network: any encoder; it is not changed.

    Raises:
        ModelError: no linear layer to quantise, or a network that is not on the CPU.
    """
    if any(parameter.device.type != "cpu" for parameter in network.parameters()):
        raise _refuse("a network on another device", "one on the CPU")
    names = _plain_linear(network)
    if not names:
        raise _refuse("no plain linear layer", "one or more")
    whole = copy.deepcopy(network).float().eval()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.ao.quantization is deprecated", DeprecationWarning)
        warnings.filterwarnings("ignore", "torch.quantize_per_tensor, torch.quantize_per_channel", UserWarning)
        how = dict.fromkeys(names, per_channel_dynamic_qconfig)
        made: nn.Module = quantize_dynamic(whole, how, inplace=True)  # type: ignore[no-untyped-call]
    return made


def _plain_linear(network: nn.Module) -> list[str]:
    # attention with a context splits its weight, which packed weights cannot be
    kept = [m.cross if isinstance(m, Block) else m for m in network.modules() if isinstance(m, Block | Decoder)]
    apart = {part for module in kept if module is not None for part in module.modules()}
    # subclasses of nn.Linear do more than multiply, so the type has to be the very one
    return [name for name, m in network.named_modules() if type(m) is nn.Linear and m not in apart]


def quantised_model(model: Model) -> Model:
    """The same model with ``quantise``d layers; its identity says so, so that no archive mixes both kinds of vectors.

    Raises:
        ModelError: a model that is not on the CPU.
    """
    out = copy.copy(model)
    network = quantise(model.network)
    out.network = network  # type: ignore[assignment]
    out.identity = model.identity + MARK
    out.precision = Precision(torch.float32, "linear layers are 8-bit, the rest is float32")
    return out


def agreement(reference: Features, vectors: Features) -> NDArray[np.float64]:
    """Cosine ``[N]`` of each vector with the reference's of the same input.

    Raises:
        ModelError: shapes that differ, no rows, or numbers that are not finite.
    """
    _check(reference, vectors)
    return np.asarray((unit_rows(reference) * unit_rows(vectors)).sum(axis=1))


def flips(reference: Features, vectors: Features, targets: Features) -> NDArray[np.bool_]:
    """Whether the most similar target is another one than the reference's, ``[N]``.

    Args:
        reference: ``[N, D]``, of the full encoder.
        vectors: ``[N, D]``, of the other one, same inputs.
        targets: ``[C, D]``, such as class vectors or the vectors of an archive, which both are compared with.

    Raises:
        ModelError: shapes that differ, no rows, or numbers that are not finite.
    """
    _check(reference, vectors)
    before, after = cosines(reference, targets), cosines(vectors, targets)
    return np.asarray(before.argmax(axis=1) != after.argmax(axis=1))


def measure_quantised(subject: Subject, reference: Features, vectors: Features, targets: Features) -> Iterator[Result]:
    """Mean cosine with the full encoder's vectors, and the share of inputs whose most similar target changes.

    Args:
        subject: for the rows; ``model`` names the quantised encoder.
        reference: ``[N, D]``.
        vectors: ``[N, D]``.
        targets: ``[C, D]``, see ``flips``.

    Raises:
        ModelError: inputs that do not fit.
    """
    seed, settings = subject.stamp.seed, {"targets": len(targets)}
    rows = {"mean cosine": agreement(reference, vectors), "top-1 flips": flips(reference, vectors, targets)}
    for metric, scores in rows.items():
        yield subject.row(interval(scores, seed=seed), protocol=PROTOCOL, metric=metric, settings=settings)


def _check(reference: Features, vectors: Features) -> None:
    fits = reference.shape == vectors.shape and reference.ndim == 2 and len(reference)
    if not fits or not (np.isfinite(reference).all() and np.isfinite(vectors).all()):
        raise _refuse(f"{reference.shape} and {vectors.shape}, or NaN", "two equal shapes [N, D] of finite numbers")


def _refuse(got: str, expected: str) -> ModelError:
    return ModelError("8-bit encoder", got=got, expected=expected, next_step="Pass a float encoder on the CPU.")
