"""Runs of the ablation: train one variant with one seed, measure it, append what was found; skip what is there.

Seeds are the outer loop: an ablation that was stopped has all variants of its first seeds.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from alidade.ablation.config import PATCH, REFERENCE, UNTRAINED, AblationConfig
from alidade.ablation.measure import (
    HeldOut,
    Measured,
    Subject,
    chance,
    load_held_out,
    measure,
    of_network,
    told_means,
    trivial_subjects,
)
from alidade.ablation.nested import NestedBatches
from alidade.ablation.pack_sources import pack_sources
from alidade.ablation.scores import Key, Scored, append_scores, beside
from alidade.evaluation.bootstrap import interval
from alidade.evaluation.datasets import split_hash
from alidade.evaluation.results import Result, append, load, now
from alidade.imagery.atomic import atomic_write
from alidade.models.scale_alibi import ScaleAlibi, initialise
from alidade.training.augment import View
from alidade.training.image_batches import ImageBatches
from alidade.training.loop import Report
from alidade.training.pretrain import Batches, PretrainConfig, pretrain

PREFIX = "bias ablation: "
COMPUTE = PREFIX + "compute"
LAST = "measuring seconds"
"""The metric that is appended last: a run that has it is done."""
SHAPE = ("width", "depth", "heads", "batch", "steps")
"""Metrics that say what was trained."""
TRIVIAL = "trivial rows"
CHANCE, PATCH_MEAN = "chance", "patch mean"


class Shown(Protocol):
    """What an ablation tells while it runs."""

    def begun(self, runs: int, steps: int) -> None:
        """How many runs are left, and how many steps each trains."""

    def training(self, label: str, seed: int, report: Report) -> None:
        """A step is done."""

    def finished(self, label: str, seed: int, rows: list[Result]) -> None:
        """A run is measured and written."""


@dataclass(frozen=True, kw_only=True)
class Speed:
    """What training a run took.

    Attributes:
        parameters: of network and decoder.
        images: that encoders were given, counting each view.
        tokens: that encoders computed, after masking.
        wall_s, processor_s: of ``steps`` steps, from those that the last process did.
    """

    parameters: int
    images: int
    tokens: int
    wall_s: float
    processor_s: float


def run_ablation(
    config: AblationConfig, data: Path, *, results: Path, folder: Path, commit: str, shown: Shown
) -> Iterator[list[Result]]:
    """Do what is not yet in the results file; yields each run's rows when they are written.

    Args:
        config: the setting.
        data: the public data pack.
        results: the append-only file; scores by image go to ``scores.beside`` it.
        folder: of the training runs; the same folder goes on with a run that was stopped.
        commit: of the code.
        shown: is told of progress.

    Raises:
        AlidadeError: of the kinds that reading the pack, training and writing raise.
    """
    left = list(todo(config, finished_runs(results, config.hash())))
    if not left:
        return
    shown.begun(len(left), config.steps)
    held = load_held_out(data, config)
    batches: Batches | None = None
    for label, seed in left:
        book = Book(results=results, setting=config.hash(), commit=commit, label=label, seed=seed)
        began = time.perf_counter()
        if label == TRIVIAL:
            trivial(book, held)
            speed = None
        elif label == UNTRAINED:
            book.record(label, of_network(label, untrained(config, seed)), held)
            speed = None
        else:
            batches = batches or training_batches(config, data)
            network, speed = train(config, label, seed, batches, folder, shown)
            began = time.perf_counter()
            book.record(label, of_network(label, network), held)
        book.close(held, speed, config, time.perf_counter() - began)
        shown.finished(label, seed, book.rows)
        yield book.rows


def todo(config: AblationConfig, done: set[tuple[str, int]]) -> Iterator[tuple[str, int]]:
    """(label, seed) of what is to do, in order: the trivial rows once, then seed by seed all variants."""
    wanted = [(TRIVIAL, 0)]
    for seed in range(config.seeds):
        wanted += [(label, seed) for label in (UNTRAINED, *config.variants)]
    return (run for run in wanted if run not in done)


def finished_runs(results: Path, setting: str) -> set[tuple[str, int]]:
    """(label, seed) of the runs of this setting that are whole in the results file, whatever code measured them."""
    rows = load(results) if results.exists() else []
    return {(r.condition, r.seed) for r in rows if (r.protocol, r.metric, r.config_hash) == (COMPUTE, LAST, setting)}


def training_batches(config: AblationConfig, data: Path) -> NestedBatches:
    """What all variants learn from, held in memory."""
    towers = {t.name: t for t in config.model(REFERENCE).towers}
    sources = pack_sources(data, towers, config.shares)
    aerial = next(s for s in sources if s.name == "ucmerced").stacks["rgb"]
    return NestedBatches(others=ImageBatches(sources), images=aerial, share=config.nested)


def untrained(config: AblationConfig, seed: int) -> ScaleAlibi:
    """The reference variant as its training starts."""
    network = ScaleAlibi(config.model(REFERENCE))
    initialise(network, seed)
    return network.eval()


def train(
    config: AblationConfig, variant: str, seed: int, batches: Batches, folder: Path, shown: Shown
) -> tuple[ScaleAlibi, Speed]:
    """Train one variant with one seed in a folder of its own, or go on there."""
    own = folder / f"{config.hash()}-{variant}-{seed}"
    known = own / "speed.json"
    training = config.training(variant, seed)
    counted, reports = Counted(batches), list[Report]()

    def report(told: Report) -> None:
        reports.append(told)
        shown.training(variant, seed, told)

    before = time.process_time()
    network = pretrain(training, counted, own, report=report)
    if known.is_file():
        return network, Speed(**json.loads(known.read_text(encoding="utf-8")))
    if not reports:
        # trained by a process that was killed before it could say how long it took
        shutil.rmtree(own)
        return train(config, variant, seed, batches, folder, shown)
    speed = speed_of(training, network, counted, reports, time.process_time() - before)
    with atomic_write(known) as temporary:
        temporary.write_text(json.dumps(vars(speed)), encoding="utf-8")
    return network, speed


def speed_of(
    training: PretrainConfig, network: ScaleAlibi, counted: Counted, reports: list[Report], processor_s: float
) -> Speed:
    """Figures of all steps from those of the steps that this process did."""
    whole = training.steps / len(reports)
    return Speed(
        parameters=sum(p.numel() for p in network.parameters()),
        images=round(counted.images * training.steps / counted.batches),
        tokens=round(counted.tokens * training.keep * training.steps / counted.batches),
        wall_s=whole * sum(training.batch / r.samples_per_second for r in reports),
        processor_s=whole * processor_s,
    )


class Counted:
    """Batches, and how many images and tokens were in them."""

    def __init__(self, batches: Batches) -> None:
        self._inner = batches
        self.batches = self.images = self.tokens = 0

    def __len__(self) -> int:
        return len(self._inner)

    @property
    def identity(self) -> str:
        """Of the inner batches."""
        return self._inner.identity

    def views(self, ids: NDArray[np.int64], rng: np.random.Generator) -> dict[str, View]:
        """One batch of the inner ones."""
        views = self._inner.views(ids, rng)
        shapes = [view.valid.shape for view in views.values()]
        self.batches += 1
        self.images += sum(n for n, _, _ in shapes)
        self.tokens += sum(n * (h // PATCH) * (w // PATCH) for n, h, w in shapes)
        return views


def trivial(book: Book, held: HeldOut) -> None:
    """Chance, trivial encoders, and for reconstruction the patch's own mean."""
    guessed: set[Key] = set()
    for subject in trivial_subjects():
        for measured in measure(subject, held):
            book.add(subject.label, subject.identity, measured)
            if key_of(measured) not in guessed:
                guessed.add(key_of(measured))
                book.add(CHANCE, CHANCE, chance(measured, held))
    for measured in told_means(held):
        book.add(PATCH_MEAN, PATCH_MEAN, measured)


def key_of(measured: Measured) -> Key:
    """The name of a number among one run's."""
    return PREFIX + measured.protocol, measured.dataset, measured.point, measured.metric


class Book:
    """The rows of one run: appended as each is measured, scores and the closing row last."""

    def __init__(self, *, results: Path, setting: str, commit: str, label: str, seed: int) -> None:
        self.rows: list[Result] = []
        self._scored: dict[str, dict[Key, Scored]] = {}
        self._results, self._setting, self._commit = results, setting, commit
        self._label, self._seed = label, seed

    def record(self, label: str, subject: Subject, held: HeldOut) -> None:
        """Measure a subject."""
        for measured in measure(subject, held):
            self.add(label, subject.identity, measured)

    def add(self, label: str, identity: str, measured: Measured) -> None:
        """Append one number."""
        found = interval(measured.scores, seed=self._seed, groups=measured.groups)
        # means of equal scores differ from their own quantiles by rounding
        low, high = min(found.low, found.value), max(found.high, found.value)
        point = label if measured.point == "as is" else f"{label}, {measured.point}"
        self._append(
            PREFIX + measured.protocol, point, measured.dataset, measured.split_hash, identity, measured.metric,
            (found.value, low, high), found.n,
        )  # fmt: skip
        scored = Scored(scores=measured.scores, groups=measured.groups)
        self._scored.setdefault(label, {})[key_of(measured)] = scored

    def close(self, held: HeldOut, speed: Speed | None, config: AblationConfig, measuring_s: float) -> None:
        """Write the scores and what the run took; afterwards it counts as done."""
        for label, scored in self._scored.items():
            append_scores(beside(self._results), (self._setting, label, self._seed), scored)
        figures: dict[str, float] = {}
        if speed is not None:
            shape = (config.width, config.depth, config.heads, config.batch, config.steps)
            figures = dict(zip(SHAPE, shape, strict=True)) | {
                "parameters": speed.parameters,
                "images": speed.images,
                "tokens": speed.tokens,
                "training seconds": speed.wall_s,
                "processor seconds": speed.processor_s,
                "images per second": speed.images / speed.wall_s,
            }
        identity = self.rows[-1].model
        split = split_hash(*(part for p in held.classified for part in (p.train, p.queries)), held.pairs.sar)
        for metric, value in (figures | {LAST: measuring_s}).items():
            exact = (float(value), float(value), float(value))
            self._append(COMPUTE, self._label, "all parts", split, identity, metric, exact, 1)

    def _append(
        self, protocol: str, condition: str, dataset: str, split: str, model: str, metric: str,
        value: tuple[float, float, float], n: int,
    ) -> None:  # fmt: skip
        row = Result(
            protocol=protocol,
            condition=condition,
            dataset=dataset,
            split_hash=split,
            model=model,
            config_hash=self._setting,
            commit=self._commit,
            seed=self._seed,
            n=n,
            metric=metric,
            value=value[0],
            low=value[1],
            high=value[2],
            time=now(),
        )
        append(self._results, [row])
        self.rows.append(row)
