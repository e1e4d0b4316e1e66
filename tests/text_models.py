"""Tiny language models with random weights and the tokenisers that fit them, saved as Hugging Face would."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    T5Config,
    T5Model,
)

WORDS = "a the of satellite image river forest airport road town field water beside near and describe : ground cover"
SENTENCES = [
    "a river",
    "a satellite image of a forest beside the river",
    "the airport near a town",
    "water",
    "field and road and field and forest of the town",
]
WIDTH, POSITIONS = 32, 64


def word_tokenizer(
    path: Path, *, begin: bool, bos: bool = True, eos: bool = True, pad: bool = False
) -> PreTrainedTokenizerFast:
    """One token per word; ``begin`` sets ``<s>`` in front as Llama's does."""
    special = ["<unk>", "<pad>", "<s>", "</s>"]
    vocabulary = {token: i for i, token in enumerate(special + WORDS.split())}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    if begin:
        inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 2)])
    return _saved(
        inner, path, unk="<unk>", bos="<s>" if bos else None, eos="</s>" if eos else None, pad="<pad>" if pad else None
    )


def byte_tokenizer(path: Path) -> PreTrainedTokenizerFast:
    """Byte-pair encoding learned from the sentences, as GPT-2's: no unknown token, spaces inside the tokens."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.post_processor = processors.ByteLevel(trim_offsets=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(SENTENCES * 3, trainer)
    return _saved(inner, path, unk=None, bos="<|end|>", eos="<|end|>", pad=None)


def _saved(
    inner: Tokenizer, path: Path, *, unk: str | None, bos: str | None, eos: str | None, pad: str | None
) -> PreTrainedTokenizerFast:
    named = {"unk_token": unk, "bos_token": bos, "eos_token": eos, "pad_token": pad}
    made = PreTrainedTokenizerFast(tokenizer_object=inner, **{k: v for k, v in named.items() if v})
    made.save_pretrained(str(path))
    return made


def save_model(family: str, path: Path) -> Path:
    """A model of ``family`` with two layers of width 32, and its tokeniser."""
    path.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(7)
    if family in ("gpt2", "qwen2"):
        tokenizer = byte_tokenizer(path)
    else:  # causal models often have no padding token
        tokenizer = word_tokenizer(path, begin=True, pad=family == "bert")
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    sizes = {
        "vocab_size": len(tokenizer),
        "hidden_size": WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "max_position_embeddings": POSITIONS,
        # larger than usual, so that attention matters in an untrained model
        "initializer_range": 0.2,
    }
    grouped = {**sizes, **ids, "num_key_value_heads": 2}
    if family == "llama":
        model = LlamaForCausalLM(LlamaConfig(**grouped))
    elif family == "qwen2":
        model = Qwen2ForCausalLM(Qwen2Config(**grouped))
    elif family == "mistral":
        model = MistralForCausalLM(MistralConfig(**grouped, sliding_window=3))
    elif family == "gpt2":
        shape = {"n_embd": WIDTH, "n_layer": 2, "n_head": 4, "n_positions": POSITIONS, "initializer_range": 0.2}
        model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **shape, **ids))
    elif family == "bert":
        model = BertModel(BertConfig(**sizes))
    else:
        model = T5Model(T5Config(vocab_size=len(tokenizer), d_model=WIDTH, d_ff=48, d_kv=8, num_layers=1, num_heads=2))
    model.save_pretrained(str(path))
    return path


def save_sentence_model(path: Path, *, normalise: bool = True, pooling: str = "mean", max_length: int = 12) -> Path:
    """A sentence-transformers model: a tiny BERT, pooled and normalised."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    bert = save_model("bert", path.parent / f"{path.name}-bert")
    transformer = Transformer(str(bert), max_seq_length=max_length)
    modules = [transformer, Pooling(WIDTH, pooling_mode=pooling), *([Normalize()] if normalise else [])]
    SentenceTransformer(modules=modules, device="cpu").save(str(path), create_model_card=False)
    return path
