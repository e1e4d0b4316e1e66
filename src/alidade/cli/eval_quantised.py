"""``alidade eval quantised``: how light an encoder can be."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from alidade.cli import options as opt
from alidade.cli.eval_words import AT_ONCE, NAMES, Names, classes_of, convention_of
from alidade.cli.evaluate import RESULTS, Commit, Data, Into, Models, Part, Seed, record

if TYPE_CHECKING:
    from alidade.evaluation.datasets import Images
    from alidade.evaluation.features import Encoder, Features
    from alidade.evaluation.protocols import Stamp
    from alidade.evaluation.results import Result
    from alidade.evaluation.zero_shot import Subject
    from alidade.models.model import Model

ROUNDS = 7
SPEED = "speed of 8-bit linear layers over float32 in one run, median and range of rounds in turns"


def quantised(
    data: Data,
    model: Models = None,
    dataset: Annotated[str, typer.Option("--dataset", help="eurosat-rgb, eurosat100 or ucmerced.")] = "eurosat-rgb",
    images: Annotated[int | None, typer.Option("--images", min=1, help="Drawn by class. [default: all]")] = None,
    names: Names = "words",
    on: Part = "val",
    seed: Seed = 0,
    results: Into = RESULTS,
    commit: Commit = None,
    as_json: opt.Json = False,
) -> None:
    """How far vectors move when linear layers multiply 8-bit integers, and how much faster that is on this CPU.

    A flip is an image whose nearest class changes: class words where the model knows words, else the classes' means.
    """
    from alidade.cli.evaluate import _check, _models, _stamp
    from alidade.evaluation.datasets import CLASSIFIED
    from alidade.models.registry import DEFAULT

    _check("--dataset", dataset, tuple(CLASSIFIED))
    _check("--names", names, NAMES)
    _check("--on", on, ("val", "test"))
    stamp, convention = _stamp(seed, commit), convention_of(dataset, names)
    loaded = list(_models(model or [DEFAULT]))
    every = CLASSIFIED[dataset](data, on)
    chosen = every if images is None else every.sample(images, seed)
    said: list[str] = []
    rows = (row for found in loaded for row in _quantised_rows(found, chosen, convention, stamp, said))
    record(rows, results, said, as_json=as_json)


def _quantised_rows(model: Model, images: Images, convention: str, stamp: Stamp, said: list[str]) -> Iterator[Result]:
    from alidade.evaluation.datasets import split_hash
    from alidade.evaluation.features import features, model_encoder
    from alidade.evaluation.quantised import PROTOCOL, agreement, measure_quantised, quantised_model
    from alidade.evaluation.zero_shot import Subject, exactly

    full, light = model_encoder(model, images), model_encoder(quantised_model(model), images)
    subject = Subject(
        dataset=images.name, split_hash=split_hash(images), model=light.identity, config=light.config, stamp=stamp
    )
    reference, vectors = features(full, images), features(light, images)
    targets, kind = _targets(model, images, reference, convention)
    said.append(f"{light.identity}: flips among {len(targets)} {kind}")
    for row in measure_quantised(subject, reference, vectors, targets):
        yield replace(row, condition=kind) if row.metric == "top-1 flips" else row
    smallest = float(agreement(reference, vectors).min())
    yield subject.row(exactly(smallest, len(images)), protocol=PROTOCOL, metric="smallest cosine")
    yield _speed(subject, full, light, images)


def _targets(model: Model, images: Images, reference: Features, convention: str) -> tuple[Features, str]:
    import numpy as np

    from alidade.evaluation.knn import unit_rows

    if model.words is not None:
        classes = classes_of(model, images, model.words.config.prompt, convention)
        return classes.vectors.astype(np.float32), "class words"
    rows = unit_rows(reference)
    means = [rows[images.labels == c].mean(axis=0) for c in np.unique(images.labels)]
    return np.stack(means).astype(np.float32), "class means"


def _speed(subject: Subject, full: Encoder, light: Encoder, images: Images) -> Result:
    import torch

    from alidade.evaluation.bootstrap import Interval
    from alidade.evaluation.timing import median_ratio, take_turns

    pixels, gsd_m = images.pixels[:AT_ONCE], images.gsd_m[:AT_ONCE]
    variants = {"full": lambda: full.embed(pixels, gsd_m), "light": lambda: light.embed(pixels, gsd_m)}
    timed = take_turns(variants, ROUNDS)
    ratios = [a / b for a, b in zip(timed["full"].seconds, timed["light"].seconds, strict=True)]
    value = median_ratio(timed["full"], timed["light"])
    found = Interval(value=value, low=min(ratios), high=max(ratios), n=ROUNDS)
    condition = f"{len(pixels)} images of {pixels.shape[-1]} px at once, threads: {torch.get_num_threads()}"
    return subject.row(found, protocol=SPEED, metric="speed ratio", condition=condition)
