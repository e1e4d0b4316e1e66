"""``alidade eval zero-shot`` and ``retrieval``: how well a model knows words."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from alidade.cli import options as opt
from alidade.cli.evaluate import RESULTS, Commit, Data, Dataset, Into, Models, Part, Seed, record

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from alidade.evaluation.datasets import Images
    from alidade.evaluation.features import Features
    from alidade.evaluation.protocols import Stamp
    from alidade.evaluation.results import Result
    from alidade.evaluation.retrieval import Captions
    from alidade.evaluation.zero_shot import ClassWords, Subject
    from alidade.models.model import Model
    from alidade.models.words import Words
    from alidade.training.captions.captioned import Captioned

PROMPT = "prompt"
SETS = ("msclip", "rs5m", "clip", PROMPT)
NAMES = ("words", "folders", "printed")
WAYS = {"inductive": "as is", "centred": "transductive: centred", "balanced": "transductive: balanced"}
SPLITS = ("train", "val", "test")
RUN_TOGETHER = "ucmerced"
"""The data set whose labels are no words ("mobilehomepark"), so that its names are always those written by hand."""
AT_ONCE = 64
"""Images embedded together."""

Names = Annotated[
    str, typer.Option("--names", help="words (labels' words apart), folders (as MS-CLIP has them), printed (by hand).")
]


def register_words(group: typer.Typer) -> None:
    """Add ``zero-shot``, ``retrieval`` and ``quantised`` to the commands of ``alidade eval``."""
    from alidade.cli.eval_quantised import quantised

    group.command("zero-shot")(zero_shot)
    group.command("retrieval")(retrieval)
    group.command("quantised")(quantised)


def zero_shot(
    dataset: Dataset,
    data: Data,
    model: Models = None,
    templates: Annotated[
        str, typer.Option("--templates", help="msclip (50), rs5m (105), clip (3), or prompt: the model's own.")
    ] = "msclip",
    names: Names = "words",
    way: Annotated[
        str, typer.Option("--way", help="inductive; centred and balanced look at all images at once.")
    ] = "inductive",
    on: Part = "val",
    seed: Seed = 0,
    results: Into = RESULTS,
    commit: Commit = None,
    as_json: opt.Json = False,
) -> None:
    """Accuracy of class words as a classifier, and mAP@100 of class words as queries; no training labels.

    Every image is encoded once and every prompt once. Chance and the most frequent class stand beside.
    """
    from alidade.cli.evaluate import _check, _stamp
    from alidade.evaluation.datasets import CLASSIFIED

    _check("data set", dataset, tuple(CLASSIFIED))
    for option, value, known in (
        ("--templates", templates, SETS),
        ("--names", names, NAMES),
        ("--way", way, tuple(WAYS)),
        ("--on", on, ("val", "test")),
    ):
        _check(option, value, known)
    stamp, known_words = _stamp(seed, commit), _with_words(model)
    images = CLASSIFIED[dataset](data, on)
    said: list[str] = []

    def rows() -> Iterator[Result]:
        for loaded, words in known_words:
            chosen = words.config.prompt if templates == PROMPT else templates
            classes = classes_of(loaded, images, chosen, convention_of(dataset, names))
            said.extend(_protocol(loaded, words, classes))
            yield from _zero_shot_rows(loaded, words, images, classes, WAYS[way], stamp)

    record(_once(rows()), results, said, as_json=as_json)


def retrieval(
    captions: Annotated[Path, typer.Argument(help="Folder of images with captions; its layout is found out.")],
    model: Models = None,
    layout: Annotated[str | None, typer.Option(help="Layout of the data set, where several fit.")] = None,
    part: Annotated[str, typer.Option("--part", help="Part reported on: val, test or train.")] = "val",
    bands: Annotated[str, typer.Option(help="rgb, or all that the images have (for multispectral towers).")] = "rgb",
    gsd: opt.Gsd = None,
    seed: Seed = 0,
    results: Into = RESULTS,
    commit: Commit = None,
    as_json: opt.Json = False,
) -> None:
    """Recall at 1, 5 and 10 from sentences to images and back, strict and with identical sentences counting.

    Beside: chance, what identical sentences leave possible, a class oracle where the list of images has a column
    `label`, and what the vectors look like (alignment, uniformity, modality gap, hubness).
    """
    from alidade.cli.evaluate import _check, _stamp
    from alidade.cli.train_align import BANDS, read_part
    from alidade.evaluation.retrieval import measure_recall, measure_trivial_recall
    from alidade.evaluation.text_diagnostics import NEIGHBOURS, measure_vectors

    _check("--part", part, SPLITS)
    _check("--bands", bands, BANDS)
    stamp, known_words = _stamp(seed, commit), _with_words(model)
    chosen = read_part(captions, layout, part, gsd)
    told, labels = _sentences(chosen), _labels(captions, chosen.ids)
    split = _captions_hash(chosen, part)
    k = min(NEIGHBOURS, told.images, len(told.first))

    def rows() -> Iterator[Result]:
        for number, (loaded, words) in enumerate(known_words):
            config = json.dumps({"model": loaded.identity, "bands": bands, "gsd": gsd, "dtype": "float32"})
            subject = _subject(loaded, words, f"{chosen.name}/{part}", split, config, stamp)
            if number == 0:
                trivial = measure_trivial_recall(subject, told, _one_class(told.images) if labels is None else labels)
                yield from (r for r in trivial if labels is not None or r.model != "class oracle")
            vectors = loaded.embed_text([told.texts[i] for i in told.first])[told.sentences]
            seen = _embedded(loaded, chosen, bands)
            yield from measure_recall(subject, seen, vectors, told)
            yield from measure_vectors(subject, seen, vectors, told, k=k)

    oracle = "" if labels is not None else "; no column of labels, so no class oracle"
    said = [
        f"{chosen.name}, part {part}: {told.images:,} images, {len(told.texts):,} sentences, "
        f"{len(told.first):,} different{oracle}",
        f"licence: {chosen.licence}",
        *(f"{loaded.identity}: text by {words.config.text_identity}" for loaded, words in known_words),
    ]
    record(rows(), results, said, as_json=as_json)


def _with_words(names: list[str] | None) -> list[tuple[Model, Words]]:
    """Models with their words.

    Raises:
        ModelError: one knows none.
    """
    from alidade.cli.evaluate import _models
    from alidade.errors import ModelError
    from alidade.models.registry import DEFAULT

    out = []
    for found in _models(names or [DEFAULT]):
        if found.words is None:
            raise ModelError(
                f"{found.identity}: words",
                got="a model without words",
                expected="one whose image embeddings were aligned with a text encoder",
                next_step="Name a run of `alidade train align` with --model.",
            )
        out.append((found, found.words))
    return out


def convention_of(dataset: str, names: str) -> str:
    """How ``templates.class_names`` makes names of a data set's labels, for what ``--names`` asks."""
    return "printed" if dataset == RUN_TOGETHER and names == "words" else names


def classes_of(model: Model, images: Images, template_set: str, convention: str) -> ClassWords:
    """The images' classes as the model's words see them.

    Raises:
        TextError: the model's bank lacks a prompt, and its text encoder is not installed.
    """
    from alidade.evaluation.zero_shot import class_words

    return class_words(model.embed_text, images.classes, template_set=template_set, convention=convention)


def _protocol(model: Model, words: Words, classes: ClassWords) -> list[str]:
    """What a reader needs besides the rows, in lines."""
    from alidade.evaluation.templates import templates

    patterns = templates(classes.templates)
    return [
        f"{model.identity}: text by {words.config.text_identity}",
        f"templates: {len(patterns)}, the first {patterns[0]!r}",
        f"classes: {len(classes.names)}, {', '.join(classes.names)}",
    ]


def _subject(model: Model, words: Words, dataset: str, split: str, config: str, stamp: Stamp) -> Subject:
    from alidade.evaluation.zero_shot import Subject

    return Subject(
        dataset=dataset,
        split_hash=split,
        model=f"{model.identity} + words {_words_hash(words)}",
        config=json.dumps({"encoder": json.loads(config), "text": words.config.text_identity}, sort_keys=True),
        stamp=stamp,
    )


def _words_hash(words: Words) -> str:
    """Twelve hex digits of the text head and its encoder: one network may have learnt words more than once."""
    digest = hashlib.sha256(words.config.text_identity.encode())
    for key, value in sorted(words.head.state_dict().items()):
        digest.update(key.encode())
        digest.update(value.float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]


def _zero_shot_rows(
    model: Model, words: Words, images: Images, classes: ClassWords, way: str, stamp: Stamp
) -> Iterator[Result]:
    import numpy as np

    from alidade.evaluation.datasets import split_hash
    from alidade.evaluation.features import features, model_encoder
    from alidade.evaluation.retrieval import measure_class_retrieval
    from alidade.evaluation.zero_shot import measure_zero_shot, measure_zero_shot_chance

    encoder = model_encoder(model, images)
    subject = _subject(model, words, images.name, split_hash(images), encoder.config, stamp)
    chance = list(measure_zero_shot_chance(subject, images.labels, classes))
    yield from chance
    yield from _majority_rows(subject, images.labels, chance[0].protocol)
    seen = features(encoder, images)
    yield from measure_zero_shot(subject, seen, images.labels, classes, way=way)
    yield from measure_class_retrieval(subject, seen, images.labels[:, None] == np.arange(len(images.classes)), classes)


def _majority_rows(subject: Subject, labels: NDArray[np.int64], protocol: str) -> Iterator[Result]:
    """The best answer that is the same for all images: more than any answer learnt from another part can reach."""
    import numpy as np

    from alidade.evaluation.bootstrap import interval
    from alidade.evaluation.zero_shot import balanced_interval

    right, seed = (labels == np.bincount(labels).argmax()).astype(np.float64), subject.stamp.seed
    trivial = subject.trivial("most frequent class of this part")
    yield trivial.row(interval(right, seed=seed), protocol=protocol, metric="accuracy")
    yield trivial.row(balanced_interval(right, labels, seed=seed), protocol=protocol, metric="balanced accuracy")


def _sentences(part: Captioned) -> Captions:
    import numpy as np

    from alidade.evaluation.retrieval import Captions

    owners = np.repeat(np.arange(len(part)), [len(own) for own in part.captions])
    return Captions(texts=tuple(itertools.chain(*part.captions)), owners=owners, images=len(part))


def _captions_hash(part: Captioned, split: str) -> str:
    """Twelve hex digits that change when an image or one of its sentences does."""
    digest = hashlib.sha256(f"{part.name}/{split}\n".encode())
    for line in sorted(json.dumps([i, own]) for i, own in zip(part.ids, part.captions, strict=True)):
        digest.update(f"{line}\n".encode())
    return digest.hexdigest()[:12]


def _labels(folder: Path, ids: Sequence[str]) -> NDArray[np.int64] | None:
    """Class numbers of the images by the column ``label`` of ``index.csv`` or ``captions.csv``; None without it.

    Raises:
        CaptionError: one of these is damaged.
    """
    import numpy as np

    from alidade.training.captions.lists import table

    for path in (folder / "index.csv", folder / "captions.csv"):
        rows = [row for _, row in table(path, ())] if path.is_file() else []
        found = {row["file"].strip(): row["label"].strip() for row in rows if {"file", "label"} <= row.keys()}
        mine = [found.get(i, "") for i in ids]
        if all(mine):
            return np.unique(mine, return_inverse=True)[1].astype(np.int64)
    return None


def _one_class(images: int) -> NDArray[np.int64]:
    import numpy as np

    return np.zeros(images, dtype=np.int64)


def _embedded(model: Model, part: Captioned, bands: str) -> Features:
    import numpy as np

    from alidade.cli.train_align import rasters

    left = rasters(part, bands)
    return np.concatenate([model.embed(group) for group in iter(lambda: list(itertools.islice(left, AT_ONCE)), [])])


def _once(rows: Iterable[Result]) -> Iterator[Result]:
    """Rows that tell the same twice, such as chance beside each model, only the first time."""
    seen = set()
    for row in rows:
        told = (row.protocol, row.condition, row.model, row.metric, row.config_hash)
        if told not in seen:
            yield row
        seen.add(told)
