"""Alignment of images with language, read from top to bottom: config, the module, the run, what is saved.

The steps themselves, stopping and resuming are those of every training: ``loop.py``.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import nn

from alidade.models.model import Model
from alidade.models.scale_alibi import ScaleAlibi
from alidade.models.text.cache import CachedEncoder
from alidade.models.text.causal import CausalEncoder
from alidade.models.text.encoder import TextEncoder
from alidade.models.text.folders import quiet
from alidade.models.text.loading import BANK, CAUSAL, load_text_encoder, settings_of
from alidade.models.text.sentence import SentenceEncoder
from alidade.models.vision import VisionEncoder
from alidade.models.weights import identity, load_model, save_model
from alidade.models.words import HERE, TextHead, Words, WordsConfig, load_words
from alidade.training.align_batches import Pairs
from alidade.training.align_images import AlignError, ImageCuts, ImageEncoder
from alidade.training.aligner import LOSSES, Aligner, ImageTower, TextTower, VisionTower
from alidade.training.loop import LoopConfig, Report, train, writing
from alidade.training.lora import adapt, merge
from alidade.training.processes import Processes

TOWERS = ("frozen", "lora", "full")
IMAGE_FOLDER, TEXT_FOLDER = "image", "text"
"""Where towers of Hugging Face that have learned lie beside the words."""


@dataclass(frozen=True, kw_only=True)
class AlignConfig(LoopConfig):
    """A run. Saved with every checkpoint; a resumed run must have the same.

    The loop's fields are fields of a run: a recipe is one flat list of settings.

    Attributes:
        image_tower: ``"frozen"``: its vectors are computed once; ``"lora"``: low-rank parts of its blocks learn, and
            are added to its weights in the end; ``"full"``: all of it learns.
        text_tower: the same of the text encoder.
        loss: ``"infonce"`` or ``"siglip"``, see ``align_losses``.
        hidden: width of the perceptron between text vectors and image embeddings; 0 for one linear layer.
        keep: share of patches that an image tower that learns sees.
        chunk: samples that towers that learn embed at a time, to bound memory; 0 for the whole batch.
        rank, alpha: of low-rank adaptation.
        prompt: the sentence that a bare class name is put into, with ``{}`` for the name; saved with the words.

    Raises:
        AlignError: an unknown choice, a number out of its range, or a setting that would have no effect.
    """

    image_tower: str = "frozen"
    text_tower: str = "frozen"
    loss: str = "infonce"
    hidden: int = 512
    keep: float = 1.0
    chunk: int = 0
    rank: int = 8
    alpha: float = 16.0
    prompt: str = "{}"

    def __post_init__(self) -> None:
        """Check every field; see the class for what is refused."""
        super().__post_init__()
        for name, known in {"image_tower": TOWERS, "text_tower": TOWERS, "loss": LOSSES}.items():
            if getattr(self, name) not in known:
                raise _refuse(name, repr(getattr(self, name)), f"one of {', '.join(known)}")
        if not 0 < self.keep <= 1:
            raise _refuse("keep", self.keep, "a share above 0, up to 1")
        if self.hidden < 0 or self.chunk < 0 or self.rank < 1 or self.alpha <= 0:
            got = f"hidden {self.hidden}, chunk {self.chunk}, rank {self.rank}, alpha {self.alpha}"
            raise _refuse("numbers", got, "hidden and chunk of 0 or more, a rank of 1 or more, a positive alpha")
        if self.keep < 1 and self.image_tower == "frozen":
            raise _refuse("keep", f"{self.keep} with a frozen image tower", "1: its vectors are of all patches")
        if self.chunk and self.image_tower == self.text_tower == "frozen":
            raise _refuse("chunk", f"{self.chunk} with frozen towers", "0: nothing is embedded in training")
        if self.prompt.count("{}") != 1 or set("{}") & set(self.prompt.replace("{}", "")):
            raise _refuse("prompt", repr(self.prompt), "a sentence with one {} for the class name")

    def text(self) -> str:
        """JSON, stable in its order."""
        return json.dumps(asdict(self), indent=2, sort_keys=True)


def align(
    config: AlignConfig,
    data: Pairs,
    folder: Path,
    *,
    image: ImageEncoder,
    text: TextEncoder,
    encoder: str,
    report: Callable[[Report], None] | None = None,
) -> Words:
    """Train, or go on training, in ``folder``; the words of the model that is saved there as ``model/``.

    ``alidade.load(folder / "model")`` opens network and words together. A text tower that has learned lies there too,
    as ``text/``, and an image tower of Hugging Face that has learned as ``image/``, both as their libraries save them;
    of one that stayed frozen only the words are saved. The words name a text tower that lies there by its place in that
    folder, so that the folder can be moved, and remember the settings of any text encoder.

    Neither ``image`` nor ``text`` is changed: what learns is a copy.

    Args:
        config: how.
        data: images with sentences; see ``AlignConfig`` for which must have vectors.
        folder: of the run; a run that is resumed there must have the same config, towers and data.
        image: the image tower; a ``Model`` in float32. Only ``Model`` and ``VisionEncoder`` can learn.
        text: the text encoder. Only ``SentenceEncoder`` and ``CausalEncoder`` can learn.
        encoder: its name for ``load_text_encoder``, saved with the words; what it is set to is read from ``text``.
        report: called after each step, in the first process.

    Raises:
        AlignError: data that do not go with the config, a tower that cannot learn, or a batch larger than the data.
        TrainingError, CheckpointError: see ``loop.train``.
    """
    processes = Processes(precision=config.precision, shard=False)
    check(config, data, image, text, processes.count)
    aligner = build(config, data, image, text, device=str(processes.device))
    told = {"image_identity": image.identity, "text_identity": text.identity, "encoder": encoder}
    recipe = json.dumps(json.loads(config.text()) | told, indent=2, sort_keys=True)
    train(aligner, config, data, folder, recipe=recipe, processes=processes, report=report)
    directory = folder / "model"
    if processes.first:
        with writing(folder):
            save(config, aligner, directory, image, text, encoder, data.images.towers)
    # the others wait for what the first writes
    processes.any(False)
    words = load_words(directory, saved_identity(directory, image, learned=aligner.image is not None))
    assert words is not None
    own = text if aligner.text is None else None
    return Words(words.config, words.head, words.bank, own, folder=directory.resolve())


def check(config: AlignConfig, data: Pairs, image: ImageEncoder, text: TextEncoder, processes: int) -> None:
    """See that data and towers go with the config.

    Raises:
        AlignError: they do not.
    """
    learns = isinstance(data.images, ImageCuts), not data.text_vectors
    if learns != (config.image_tower != "frozen", config.text_tower != "frozen"):
        raise AlignError(
            "data of an alignment",
            got=f"{type(data.images).__name__} and text vectors: {data.text_vectors}",
            expected="ImageVectors for a frozen image tower and ImageCuts for one that learns; text vectors for a "
            "frozen text tower only",
            next_step="Make the data with `align_batches.make_pairs`.",
        )
    made_by = data.images.encoder, data.sentences.identity
    if made_by != (image.identity, text.identity):
        raise AlignError(
            "data of an alignment",
            got=f"images of {made_by[0]} and sentences of {made_by[1]}",
            expected=f"those of {image.identity} and {text.identity}",
            next_step="Make the data with the towers that are aligned.",
        )
    if config.batch * processes > len(data):
        raise AlignError(
            "batch",
            got=f"{config.batch} samples in each of {processes} processes",
            expected=f"at most the {len(data)} images there are: an image is no stranger to itself",
            next_step="Choose a smaller batch.",
        )
    if isinstance(image, Model) and image.precision.dtype != torch.float32:
        raise AlignError(
            image.identity, got=f"weights in {image.precision.dtype}", expected="float32, since they are saved again",
            next_step="Load the model with dtype=torch.float32.",
        )  # fmt: skip


def build(config: AlignConfig, data: Pairs, image: ImageEncoder, text: TextEncoder, device: str = "cpu") -> Aligner:
    """The module at the start of a run, in training mode, with copies of the towers that learn.

    Raises:
        AlignError: a tower that cannot learn.
    """
    image_tower = None if config.image_tower == "frozen" else _image_tower(config, data, image, device)
    text_tower = None if config.text_tower == "frozen" else _text_tower(config, data, text, device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        head = TextHead(text.dim, config.hidden, image.dim)
    aligner = Aligner(head, loss=config.loss, image=image_tower, text=text_tower, chunk=config.chunk)
    return aligner.train()


def _image_tower(config: AlignConfig, data: Pairs, image: ImageEncoder, device: str) -> ImageTower | VisionTower:
    assert isinstance(data.images, ImageCuts)
    if isinstance(image, Model):
        network = ScaleAlibi(image.network.config)
        network.load_state_dict(image.network.state_dict())
        network.requires_grad_(config.image_tower == "full")
        if config.image_tower == "lora":
            adapt(network.trunks, rank=config.rank, alpha=config.alpha, seed=config.seed)
        return ImageTower(network, data.images.tower, keep=config.keep)
    if not isinstance(image, VisionEncoder) or image.config.precision != "float32" or config.keep < 1:
        raise _cannot_learn("image", image, "a Model, or a VisionEncoder in float32 that sees all patches (keep 1)")
    own = VisionEncoder(image.config, device=device)
    if own.module.config.model_type == "clip_vision_model":
        # transformers saves the tower alone under a name by which its projection is not found again
        raise _cannot_learn("image", image, "a vision model without a text tower, such as DINOv3 or ViT")
    _let_learn(own.module, config, config.image_tower)
    return VisionTower(own)


def _text_tower(config: AlignConfig, data: Pairs, text: TextEncoder, device: str) -> TextTower:
    inner = text.inner if isinstance(text, CachedEncoder) else text
    own: SentenceEncoder | CausalEncoder
    if isinstance(inner, SentenceEncoder):
        own = SentenceEncoder(inner.config, device=device)
    elif isinstance(inner, CausalEncoder) and inner.config.precision == "float32":
        own = CausalEncoder(inner.config, device=device)
    else:
        raise _cannot_learn("text", inner, "a SentenceEncoder, or a CausalEncoder in float32")
    _let_learn(own.module, config, config.text_tower)
    return TextTower(own, data.sentences.texts)


def _let_learn(module: nn.Module, config: AlignConfig, how: str) -> None:
    if how == "lora":
        adapt(module, rank=config.rank, alpha=config.alpha, seed=config.seed)
    else:
        module.requires_grad_(True)


def save(
    config: AlignConfig,
    aligner: Aligner,
    directory: Path,
    image: ImageEncoder,
    text: TextEncoder,
    encoder: str,
    bands: tuple[str, ...],
) -> None:
    """Write towers that have learned, the network and the words; ``aligner`` learns no more afterwards.

    Args:
        config: see ``align``.
        aligner: what was trained.
        directory: of the model.
        image: see ``align``.
        text: see ``align``.
        encoder: see ``align``.
        bands: see ``WordsConfig``.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for tower in (aligner.image, aligner.text):
        if tower is not None and "lora" in (config.image_tower, config.text_tower):
            merge(tower)
    if isinstance(image, Model):
        save_model(aligner.image.network if isinstance(aligner.image, ImageTower) else image.network, directory)
    elif isinstance(aligner.image, VisionTower):
        _save_vision(aligner.image, directory / IMAGE_FOLDER)
    name, text_identity, settings = _lasting(encoder), text.identity, settings_of(text)
    if aligner.text is not None:
        _save_text(aligner.text, directory / TEXT_FOLDER)
        kind = CAUSAL if isinstance(aligner.text.encoder, CausalEncoder) else ""
        name = f"{kind}{HERE}{TEXT_FOLDER}"
        text_identity = load_text_encoder(f"{kind}{directory / TEXT_FOLDER}", settings=settings).identity
    words = WordsConfig(
        encoder=name,
        text_identity=text_identity,
        image_identity=saved_identity(directory, image, learned=aligner.image is not None),
        text_dim=text.dim,
        hidden=config.hidden,
        dim=image.dim,
        prompt=config.prompt,
        settings=settings,
        bands=bands,
    )
    Words(words, aligner.head).save(directory)


def _save_vision(tower: VisionTower, directory: Path) -> None:
    with _replaced(directory) as temporary:
        tower.encoder.module.save_pretrained(str(temporary))
        for name in ("preprocessor_config.json", "processor_config.json"):
            if (tower.encoder.folder / name).is_file():
                shutil.copyfile(tower.encoder.folder / name, temporary / name)


def _lasting(encoder: str) -> str:
    """The name of a text encoder that means the same in any working directory."""
    kind = next((k for k in (BANK, CAUSAL) if encoder.startswith(k)), "")
    path = Path(encoder.removeprefix(kind))
    there = path.is_file() if kind == BANK else path.is_dir()
    return f"{kind}{path.resolve()}" if there else encoder


def _save_text(tower: TextTower, directory: Path) -> None:
    encoder = tower.encoder
    with _replaced(directory) as temporary:
        if isinstance(encoder, SentenceEncoder):
            encoder.module.save(str(temporary), create_model_card=False)
        else:
            encoder.module.save_pretrained(str(temporary))
            encoder.tokenizer.save_pretrained(str(temporary))


@contextmanager
def _replaced(directory: Path) -> Iterator[Path]:
    """A folder to write to, that takes the place of ``directory`` when it is whole."""
    temporary = directory.with_name(f".{directory.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    with quiet(warnings=True):
        yield temporary
    shutil.rmtree(directory, ignore_errors=True)
    temporary.rename(directory)


def saved_identity(directory: Path, image: ImageEncoder, *, learned: bool) -> str:
    """The identity of the image tower as it was saved: weights are stored in half precision."""
    if isinstance(image, Model):
        return identity(load_model(directory))
    if learned and isinstance(image, VisionEncoder):
        return VisionEncoder(replace(image.config, name=str(directory / IMAGE_FOLDER))).identity
    return image.identity


def _cannot_learn(which: str, tower: object, expected: str) -> AlignError:
    return AlignError(
        f"{which} tower that learns",
        got=f"{tower!r}",
        expected=expected,
        next_step="Leave it frozen, or choose another.",
    )


def _refuse(name: str, got: object, expected: str) -> AlignError:
    return AlignError(name, got=got, expected=expected, next_step="Choose another value.")
