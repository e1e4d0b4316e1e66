"""Nearest neighbours by cosine, the protocol without any fitting."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from alidade.errors import AlidadeError
from alidade.evaluation.features import Features

_AT_ONCE = 512


def unit_rows(values: Features) -> NDArray[np.float64]:
    """Rows brought to unit length in double precision; a row of zeros stays as it is."""
    wide = values.astype(np.float64)
    length = np.linalg.norm(wide, axis=1, keepdims=True)
    return wide / np.where(length > 0, length, 1.0)


def knn_predict(train: Features, labels: NDArray[np.int64], queries: Features, *, k: int = 5) -> NDArray[np.int64]:
    """The class that most of the ``k`` nearest training features by cosine have.

    Ties: of classes with equally many votes the lowest number wins, as in scikit-learn; of training features that
    are equally near the earlier ones count.

    Args:
        train: ``[N, D]``.
        labels: ``[N]``, 0 or more.
        queries: ``[Q, D]``.
        k: neighbours.

    Returns:
        Classes ``[Q]``.

    Raises:
        AlidadeError: shapes that do not fit, or fewer training features than ``k``.
    """
    fits = train.ndim == queries.ndim == 2 and train.shape[1] == queries.shape[1] and len(labels) == len(train)
    if not fits or not 1 <= k <= len(train):
        raise AlidadeError(
            "nearest neighbours",
            got=f"train {train.shape} with {len(labels)} labels, queries {queries.shape}, k = {k}",
            expected="equally long features, one label each, and at least k of them",
            next_step="Take features of one encoder, and more training images or a smaller k.",
        )
    keys = torch.from_numpy(unit_rows(train)).T.contiguous()
    one_hot = torch.nn.functional.one_hot(torch.from_numpy(labels)).double()
    wanted = torch.from_numpy(unit_rows(queries))
    starts = range(0, len(wanted), _AT_ONCE)
    return torch.cat([_vote(wanted[i : i + _AT_ONCE] @ keys, one_hot, k) for i in starts]).numpy()


def _vote(similarity: torch.Tensor, one_hot: torch.Tensor, k: int) -> torch.Tensor:
    last = similarity.topk(k, dim=1).values[:, -1:]
    nearer, equal = similarity > last, similarity == last
    room = k - nearer.sum(dim=1, keepdim=True)
    chosen = nearer | (equal & (equal.cumsum(dim=1) <= room))
    # argmax returns the first of equal counts on the CPU, which is the lowest class
    return (chosen.double() @ one_hot).argmax(dim=1)
