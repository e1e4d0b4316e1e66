"""The linear probe: multinomial logistic regression by L-BFGS, its strength chosen on images it was not fitted to."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from alidade.errors import AlidadeError
from alidade.evaluation.features import Features

STRENGTHS = tuple(10.0**p for p in range(-4, 4))
"""Values of C that are tried: the inverse of the penalty, in scikit-learn's meaning."""
ITERATIONS = 300


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A fitted probe: standardisation by the training features, then one linear layer.

    Attributes:
        mean, scale: ``[D]``, of the training features; a constant feature has scale 1.
        weight: ``[K, D]``.
        bias: ``[K]``.
        c: the strength it was fitted with.
    """

    mean: Tensor
    scale: Tensor
    weight: Tensor
    bias: Tensor
    c: float

    def predict(self, features: Features) -> NDArray[np.int64]:
        """Classes ``[N]`` of features ``[N, D]``."""
        values = (torch.from_numpy(features).double() - self.mean) / self.scale
        return (values @ self.weight.T + self.bias).argmax(dim=1).numpy()


def fit_probe(
    features: Features, labels: NDArray[np.int64], *, c: float, classes: int, start: Probe | None = None
) -> Probe:
    """Minimises ``c · Σ cross-entropy + ‖W‖² / 2`` (scikit-learn's objective; the bias is free).

    Args:
        features: ``[N, D]``.
        labels: ``[N]``, 0 to ``classes`` - 1.
        c: inverse strength of the penalty.
        classes: how many there are.
        start: a fit to the same features to begin from.

    Raises:
        AlidadeError: shapes that do not fit, or a label out of range.
    """
    if features.ndim != 2 or len(labels) != len(features) or not 0 <= labels.min() <= labels.max() < classes:
        raise AlidadeError(
            "linear probe",
            got=f"features {features.shape}, labels {labels.shape} from {labels.min()} to {labels.max()}",
            expected=f"[N, D] and [N] with labels 0 to {classes - 1}",
            next_step="Pass the features of one encoder with the labels of the same images.",
        )
    values = torch.from_numpy(features).double()
    mean, scale = values.mean(dim=0), values.std(dim=0, correction=0)
    scale = torch.where(scale > 1e-12, scale, torch.ones_like(scale))
    values, target = (values - mean) / scale, torch.from_numpy(labels)
    shape = (classes, values.shape[1])
    weight = (torch.zeros(shape, dtype=torch.float64) if start is None else start.weight.clone()).requires_grad_()
    bias = (torch.zeros(classes, dtype=torch.float64) if start is None else start.bias.clone()).requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=ITERATIONS, tolerance_grad=1e-6, tolerance_change=1e-10,
        history_size=20, line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure() -> float:
        optimizer.zero_grad()
        # divided by c·N, so that one tolerance serves all strengths
        loss = F.cross_entropy(values @ weight.T + bias, target) + weight.square().sum() / (2 * c * len(values))
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.item()

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return Probe(mean=mean, scale=scale, weight=weight.detach(), bias=bias.detach(), c=c)


def choose_probe(
    train: tuple[Features, NDArray[np.int64]],
    validation: tuple[Features, NDArray[np.int64]],
    *,
    classes: int,
    strengths: tuple[float, ...] = STRENGTHS,
) -> Probe:
    """The probe, fitted to ``train``, of the strength that is best on ``validation``; the weakest of equal ones.

    The images that it is reported on must be in neither.
    """
    best: tuple[float, Probe] | None = None
    latest: Probe | None = None
    # from strong to weak penalty: each fit starts near the next one's solution
    for c in sorted(strengths):
        latest = fit_probe(*train, c=c, classes=classes, start=latest)
        accuracy = float((latest.predict(validation[0]) == validation[1]).mean())
        if best is None or accuracy > best[0]:
            best = (accuracy, latest)
    if best is None:
        raise AlidadeError("linear probe", got="no strength", expected="one or more", next_step="Name values of C.")
    return best[1]


def hold_out(labels: NDArray[np.int64], *, share: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions to fit to and positions to choose on: ``share`` of each class, drawn by ``seed``, at least one."""
    rng = np.random.default_rng(seed)
    out = []
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        out.append(members[: max(1, round(share * len(members)))])
    chosen = np.sort(np.concatenate(out))
    return np.setdiff1d(np.arange(len(labels)), chosen), chosen
