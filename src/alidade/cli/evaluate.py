"""``alidade eval``: measure models and trivial baselines on the public data pack, in one run and by one path."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from alidade.cli import options as opt
from alidade.errors import AlidadeError

if TYPE_CHECKING:
    from alidade.evaluation.datasets import Images
    from alidade.evaluation.features import Encoder
    from alidade.evaluation.protocols import Stamp
    from alidade.evaluation.results import Result
    from alidade.models.model import Model

RESULTS = Path("docs/results/results.jsonl")
SIDES = {"eurosat-rgb": (16, 32, 48, 64), "eurosat100": (16, 32, 48, 64), "ucmerced": (64, 128, 192, 256)}

Dataset = Annotated[str, typer.Argument(help="eurosat-rgb, eurosat100 or ucmerced.")]
Data = Annotated[Path, typer.Option("--data", help="Folder of the public data pack.")]
Models = Annotated[list[str] | None, typer.Option("--model", help="Model name or directory; may be repeated.")]
Baselines = Annotated[
    list[str] | None,
    typer.Option("--baseline", help="band-statistics, random-convolution, random-patches, colour-texture, ... or all."),
]
Part = Annotated[str, typer.Option("--on", help="Part reported on: val, or test for the one final check.")]
Labels = Annotated[int | None, typer.Option("--labels", min=1, help="Training labels, drawn by class. [default: all]")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Of the drawn labels, the baselines and the bootstrap.")]
Into = Annotated[Path, typer.Option("--results", help="Results file; lines are added.")]
Commit = Annotated[str | None, typer.Option("--commit", help="Commit of the code. [default: ask git]")]


def register(app: typer.Typer) -> None:
    """Add ``eval`` with its commands to the application."""
    from alidade.cli.eval_physics import register_physics
    from alidade.cli.eval_words import register_words

    group = typer.Typer(help="Measure models and trivial baselines on the public data pack.", no_args_is_help=True)
    group.command("knn")(knn)
    group.command("probe")(probe)
    group.command("cross-sensor")(cross_sensor)
    group.command("curves")(curves)
    group.command("table")(table)
    register_words(group)
    register_physics(group)
    app.add_typer(group, name="eval")


def knn(
    dataset: Dataset,
    data: Data,
    model: Models = None,
    baseline: Baselines = None,
    on: Part = "val",
    labels: Labels = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Neighbours.")] = 5,
    seed: Seed = 0,
    results: Into = RESULTS,
    commit: Commit = None,
    as_json: opt.Json = False,
) -> None:
    """Accuracy of nearest neighbours by cosine; nothing is fitted."""
    from alidade.evaluation.protocols import measure_chance, measure_knn

    train, queries, stamp = _start(dataset, data, on, labels, seed, commit)
    rows = (measure_knn(encoder, train, queries, stamp, k=k) for encoder in _encoders(train, model, baseline, seed))
    chance = measure_chance(train, queries, stamp, f"{k}-NN")
    record(itertools.chain([chance], rows), results, as_json=as_json)


def probe(
    dataset: Dataset,
    data: Data,
    model: Models = None,
    baseline: Baselines = None,
    on: Part = "val",
    labels: Labels = None,
    seed: Seed = 0,
    results: Into = RESULTS,
    commit: Commit = None,
    as_json: opt.Json = False,
) -> None:
    """Accuracy of a linear probe. On val its strength is chosen on a fifth of the training labels, on test on val."""
    from alidade.evaluation.datasets import CLASSIFIED
    from alidade.evaluation.protocols import measure_chance, measure_probe

    train, queries, stamp = _start(dataset, data, on, labels, seed, commit)
    validation = CLASSIFIED[dataset](data, "val") if on == "test" else None
    rows = (
        measure_probe(encoder, train, queries, stamp, validation=validation)
        for encoder in _encoders(train, model, baseline, seed)
    )
    chance = measure_chance(train, queries, stamp, "linear probe")
    record(itertools.chain([chance], rows), results, as_json=as_json)


def curves(
    dataset: Dataset,
    data: Data,
    model: Models = None,
    baseline: Baselines = None,
    on: Part = "val",
    labels: Labels = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Neighbours.")] = 5,
    seed: Seed = 0,
    results: Into = RESULTS,
    commit: Commit = None,
    as_json: opt.Json = False,
) -> None:
    """Nearest neighbours against relative GSD (12.5 to 100 %) and against image size."""
    from alidade.evaluation.protocols import measure_curves

    train, queries, stamp = _start(dataset, data, on, labels, seed, commit)
    rows = (
        row
        for encoder in _encoders(train, model, baseline, seed)
        for row in measure_curves(encoder, train, queries, stamp, sides=SIDES[dataset], k=k)
    )
    record(rows, results, as_json=as_json)


def cross_sensor(
    data: Data,
    model: Models = None,
    baseline: Baselines = None,
    on: Part = "val",
    window: Annotated[int, typer.Option(help="Side of the windows in pixels.")] = 128,
    cells: Annotated[int, typer.Option(min=1, help="Cells across and down that are pooled apart, beside one.")] = 8,
    wrong_gsd: Annotated[float, typer.Option(help="Ground metres a pixel to tell models wrongly, beside.")] = 10.0,
    seed: Seed = 0,
    results: Into = RESULTS,
    commit: Commit = None,
    as_json: opt.Json = False,
) -> None:
    """Recall at 1 and 10 between radar and optical windows of California (val) or Texas (test).

    Baselines are also given the best linear map between their features of both sensors, fitted to the training pairs.
    All are measured twice: with one vector for a window, and with one for each of its cells.
    """
    from alidade.evaluation.features import in_cells, model_encoder
    from alidade.evaluation.pairs import california_texas
    from alidade.evaluation.protocols import measure_retrieval, measure_retrieval_chance

    _check("--on", on, ("val", "test"))
    parts = sorted({1, cells})
    train, pairs = (california_texas(data, part, window=window) for part in ("train", on))
    stamp = _stamp(seed, commit)

    def rows() -> Iterator[Result]:
        yield from measure_retrieval_chance(pairs, stamp)
        for name in _baseline_names(baseline):
            encoders = _baseline(name, train.sar, seed), _baseline(name, train.optical, seed)
            for count in parts:
                cut = (in_cells(encoders[0], count), in_cells(encoders[1], count)) if count > 1 else encoders
                if name == "grey-texture":
                    yield from measure_retrieval(cut, pairs, stamp, cells=count)
                for relative in (False, True) if count > 1 else (False,):
                    yield from measure_retrieval(cut, pairs, stamp, fitted_on=train, cells=count, relative=relative)
        for loaded in _models(model):
            for count in parts:
                encoders = (
                    model_encoder(loaded, pairs.sar, cells=count, shared=True),
                    model_encoder(loaded, pairs.optical, cells=count, shared=True),
                )
                yield from measure_retrieval(encoders, pairs, stamp, cells=count)
                yield from measure_retrieval(encoders, pairs, stamp, told_gsd_m=wrong_gsd, cells=count)

    record(rows(), results, as_json=as_json)


def table(
    results: Annotated[Path, typer.Argument(help="A results file.")] = RESULTS,
    out: Annotated[Path | None, typer.Option("--out", help="Write Markdown here instead of stdout.")] = None,
    title: Annotated[str, typer.Option("--title", help="Heading of the page.")] = "Results",
    protocol: Annotated[str | None, typer.Option("--protocol", help="Only protocols whose name contains this.")] = None,
) -> None:
    """Tables in Markdown from a results file."""
    from alidade.evaluation.results import load, to_markdown
    from alidade.imagery.atomic import atomic_write

    chosen = [r for r in load(results) if protocol is None or protocol in r.protocol]
    if not chosen:
        raise AlidadeError(
            f"{results}: results", got=f"none of {protocol!r}", expected="one", next_step="Measure it first."
        )
    command = f"alidade eval table {results.as_posix()} --title {title!r}"
    command += f" --protocol {protocol!r}" if protocol else ""
    command += f" --out {out.as_posix()}" if out else ""
    told = f"Made by `{command}`; percent unless a table says otherwise, with 95 % bootstrap intervals."
    text = f"# {title}\n\n{told}\n\n{to_markdown(chosen)}"
    if out is None:
        typer.echo(text, nl=False)
        return
    with atomic_write(out) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _start(
    dataset: str, data: Path, on: str, labels: int | None, seed: int, commit: str | None
) -> tuple[Images, Images, Stamp]:
    from alidade.evaluation.datasets import CLASSIFIED

    _check("data set", dataset, tuple(CLASSIFIED))
    _check("--on", on, ("val", "test"))
    stamp = _stamp(seed, commit)
    train = CLASSIFIED[dataset](data, "train")
    return train if labels is None else train.sample(labels, seed), CLASSIFIED[dataset](data, on), stamp


def _check(what: str, got: str, known: tuple[str, ...]) -> None:
    if got not in known:
        raise AlidadeError(what, got=repr(got), expected=f"one of {', '.join(known)}", next_step="Name one of these.")


def _stamp(seed: int, commit: str | None) -> Stamp:
    from alidade.evaluation.protocols import Stamp
    from alidade.evaluation.results import commit_of

    return Stamp(commit=commit or commit_of(Path(__file__).parents[1]), seed=seed)


def _encoders(train: Images, models: list[str] | None, baselines: list[str] | None, seed: int) -> Iterator[Encoder]:
    from alidade.evaluation.features import model_encoder

    for name in _baseline_names(baselines):
        yield _baseline(name, train, seed)
    for model in _models(models):
        yield model_encoder(model, train)


def _baseline_names(names: list[str] | None) -> list[str]:
    from alidade.evaluation.baselines import BASELINES

    wanted = list(BASELINES) if names and "all" in names else names or []
    for name in wanted:
        _check("--baseline", name, (*BASELINES, "all"))
    return wanted


def _baseline(name: str, train: Images, seed: int) -> Encoder:
    from alidade.evaluation.baselines import BASELINES

    return BASELINES[name](train, seed)


def _models(names: list[str] | None) -> Iterator[Model]:
    import torch

    from alidade.models.registry import load

    # one number format everywhere, so that a result does not depend on the processor's
    return (load(name, dtype=torch.float32) for name in names or [])


def record(rows: Iterable[Result], path: Path, said: Sequence[str] = (), *, as_json: bool) -> None:
    """Append each row as it is measured; show all at the end, a table for each protocol.

    Stored are shares as fractions and other numbers as they are; shown is what ``Result.shown`` makes of them, with the
    unit beside each number. The same for all commands of ``alidade eval``.

    Args:
        rows: are measured as they are taken.
        path: the results file.
        said: lines about what was measured, shown above the tables; read when all rows are there.
        as_json: print the rows as they are stored in place of tables.
    """
    from dataclasses import asdict

    from alidade.cli.output import err, out, show_json, show_table
    from alidade.evaluation.results import append

    done: list[Result] = []
    for row in rows:
        append(path, [row])
        done.append(row)
        err.print(f"{row.model}: {row.condition}, {row.metric} {row.cell}", style="dim")
    for line in said:
        (err if as_json else out).print(line)
    if as_json:
        show_json([asdict(row) for row in done])
        return
    for protocol in dict.fromkeys(row.protocol for row in done):
        cells = [
            (r.model, r.condition, r.metric, r.cell, " to ".join(r.shown[1:]), f"{r.n:,}")
            for r in done
            if r.protocol == protocol
        ]
        title = f"{done[0].dataset}, split {done[0].split_hash}: {protocol}"
        show_table(("model", "condition", "metric", "value", "95 %", "n"), cells, title=title)
