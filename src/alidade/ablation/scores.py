"""The scores behind the results, image by image: what a bootstrap over images of several runs has to draw from.

They lie beside the results file, one line per run, appended and never changed.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alidade.evaluation.results import ResultsError, append_lines, whole_lines

Key = tuple[str, str, str, str]
"""(protocol, data set, condition without its label, metric)."""
Run = tuple[str, str, int]
"""(config hash, label, seed)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Scored:
    """Scores ``[N]``, and what is drawn together in a bootstrap: group numbers ``[N]``, or None for each by itself."""

    scores: NDArray[np.float64]
    groups: NDArray[np.int64] | None = None


def beside(results: Path) -> Path:
    """Where the scores of a results file are: ``results.jsonl`` has ``results-scores.jsonl``."""
    return results.with_name(f"{results.stem}-scores{results.suffix}")


def append_scores(path: Path, run: Run, scored: Mapping[Key, Scored]) -> None:
    """Add a run's scores as one line.

    Raises:
        ResultsError: the file cannot be written.
    """
    entries = [{"key": key, **_packed(value)} for key, value in scored.items()]
    append_lines(path, [json.dumps({"run": run, "scores": entries}, ensure_ascii=False)])


def load_scores(path: Path) -> dict[Run, dict[Key, Scored]]:
    """The scores of all runs; of a run that was measured twice, the later ones.

    Raises:
        ResultsError: no such file, or a damaged line, with its number.
    """
    if not path.is_file():
        raise ResultsError(
            f"{path}: scores",
            got="no such file",
            expected="the scores that were written beside the results",
            next_step="Keep both files together; `alidade ablate bias` with a new --results measures again.",
        )
    out: dict[Run, dict[Key, Scored]] = {}
    for number, line in enumerate(whole_lines(path), start=1):
        try:
            entry = json.loads(line)
            setting, label, seed = entry["run"]
            out[(setting, label, seed)] = {_key(e["key"]): _unpacked(e) for e in entry["scores"]}
        except (ValueError, KeyError, TypeError) as error:
            raise ResultsError(
                f"{path}: line {number}",
                got=f"{type(error).__name__}: {error}",
                expected="one run's scores in JSON",
                next_step="Restore the file from version control; lines are only ever added.",
            ) from None
    return out


def _key(parts: Sequence[str]) -> Key:
    protocol, dataset, point, metric = parts
    return protocol, dataset, point, metric


def _packed(value: Scored) -> dict[str, Any]:
    scores = value.scores
    bits = bool(np.isin(scores, (0.0, 1.0)).all())
    # float32 gives back the mean in the results file to seven digits
    content = np.packbits(scores.astype(bool)).tobytes() if bits else scores.astype("<f4").tobytes()
    return {
        "n": len(scores),
        "kind": "bits" if bits else "float32",
        "data": base64.b64encode(content).decode(),
        "groups": None if value.groups is None else [int(g) for g in value.groups],
    }


def _unpacked(entry: Mapping[str, Any]) -> Scored:
    content, count = base64.b64decode(entry["data"], validate=True), entry["n"]
    if entry["kind"] == "bits":
        scores = np.unpackbits(np.frombuffer(content, dtype=np.uint8), count=count).astype(np.float64)
    else:
        scores = np.frombuffer(content, dtype="<f4").astype(np.float64)
    groups = None if entry["groups"] is None else np.array(entry["groups"], dtype=np.int64)
    if len(scores) != count or (groups is not None and len(groups) != count):
        raise ValueError(f"{len(scores)} scores instead of {count}")
    return Scored(scores=scores, groups=groups)
