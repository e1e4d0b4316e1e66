"""Text encoders against independent references; attention, pooling, limits, refusals. Models are tiny and random, or
the packaged MiniLM; nothing is downloaded."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from alidade.models.text.causal import CausalConfig, CausalEncoder
from alidade.models.text.encoder import EncodedText, TextError, check_texts, length_batches, require
from alidade.models.text.folders import find_folder, fingerprint
from alidade.models.text.loading import load_text_encoder
from alidade.models.text.sentence import SentenceConfig, SentenceEncoder
from text_models import POSITIONS, SENTENCES, WIDTH, save_model, save_sentence_model, word_tokenizer

FAMILIES = ("llama", "mistral", "qwen2", "gpt2")


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("language-models")
    return {family: save_model(family, root / family) for family in (*FAMILIES, "bert", "t5")}


@pytest.fixture(scope="session")
def tiny_sentence(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_sentence_model(tmp_path_factory.mktemp("sentence-models") / "tiny")


@pytest.fixture(scope="session")
def minilm() -> SentenceEncoder:
    return SentenceEncoder()


def causal(path: Path, **options: object) -> CausalEncoder:
    return CausalEncoder(replace(CausalConfig(name=str(path), max_length=POSITIONS), **options))


def refused(action, *words: str) -> None:
    with pytest.raises(TextError) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


def python(code: str, **environment: str) -> str:
    """What a fresh interpreter says to ``code``."""
    known = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=known | environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# what every encoder shares


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        ([], ["no text"]),
        ("river", ["one string"]),
        (["river", ""], ["text 2 of 2", "an empty text"]),
        (["river", "town", " \t\n"], ["text 3 of 3", "only white space"]),
        (["river", 7], ["text 2 of 2", "int 7"]),
        (["\ud83d river"], ["text 1 of 1", "surrogate"]),
    ],
)
def test_texts_that_say_nothing_are_refused_by_number(texts, words: list[str]) -> None:
    refused(lambda: check_texts(texts), *words)


def test_texts_pass_unchanged() -> None:
    assert check_texts((" a River ", "Fluß", "河")) == [" a River ", "Fluß", "河"]


@pytest.mark.parametrize(
    ("vectors", "cut", "word"),
    [
        (np.zeros(3, np.float32), (), "shape (3,)"),
        (np.zeros((2, 3)), (), "float64"),
        (np.array([[1, 2], [3, np.nan]], np.float32), (), "text 2"),
        (np.zeros((2, 3), np.float32), (2,), "cut texts"),
        (np.zeros((2, 3), np.float32), (1, 0), "cut texts"),
    ],
)
def test_encoded_text_is_what_it_says(vectors, cut: tuple[int, ...], word: str) -> None:
    refused(lambda: EncodedText(vectors=vectors, cut=cut), word)


def test_batches_hold_every_text_once_longest_first() -> None:
    lengths = [3, 9, 1, 9, 5, 2, 7]
    batches = list(length_batches(lengths, 3))
    assert sorted(i for b in batches for i in b) == list(range(7))
    assert [lengths[i] for b in batches for i in b] == sorted(lengths, reverse=True)
    assert [len(b) for b in batches] == [3, 3, 1]


def test_a_missing_extra_is_one_line_with_the_command() -> None:
    refused(lambda: require("no_such_package"), "no-such-package", "pip install 'alidade[text]'")


def test_nothing_is_imported_before_an_encoder_is_used() -> None:
    heavy = ("transformers", "sentence_transformers", "huggingface_hub", "tokenizers", "peft", "sklearn")
    code = f"""
import sys
import alidade.models.text, alidade.models.text.bank, alidade.models.text.cache, alidade.models.text.encoder
from alidade.models.text.loading import load_text_encoder
assert load_text_encoder().identity.startswith("sentence:all-MiniLM-L6-v2:")
print([m for m in {heavy} if m in sys.modules])
"""
    assert python(code).strip() == "[]"


def test_nothing_is_downloaded_without_being_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[object] = []
    monkeypatch.setattr(socket.socket, "connect", lambda self, address: tried.append(address))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: tried.append(a) or [])
    refused(lambda: SentenceEncoder(SentenceConfig(name="no-such-model-of-ours")), "no-such-model-of-ours", "download")
    refused(lambda: CausalEncoder(CausalConfig(name="nobody/no-such-model-of-ours")), "nobody/no-such", "download")
    assert tried == []


def test_a_download_that_fails_is_one_line() -> None:
    code = """
from alidade.models.text.folders import find_folder
from alidade.models.text.encoder import TextError
try:
    find_folder("nobody/no-such-model-of-ours", download=True)
except TextError as error:
    print(error)
"""
    out = python(code, HF_HUB_OFFLINE="1").strip()
    assert "or the hub" in out
    assert len(out.splitlines()) == 1


# loading by name


def test_names_of_encoders(saved: dict[str, Path], tiny_sentence: Path) -> None:
    assert load_text_encoder().identity == SentenceEncoder().identity
    assert load_text_encoder("sentence-transformers/all-MiniLM-L6-v2").identity == SentenceEncoder().identity
    assert load_text_encoder(str(tiny_sentence)).identity.startswith("sentence:tiny:")
    by_name = load_text_encoder(f"causal:{saved['llama']}")
    assert by_name.identity == CausalEncoder(CausalConfig(name=str(saved["llama"]))).identity
    config = CausalConfig(name=str(saved["llama"]), pooling="eos", max_length=POSITIONS)
    assert load_text_encoder(config).identity == CausalEncoder(config).identity != by_name.identity


@pytest.mark.parametrize("name", ["", " ", "banks:x", "bank:", "causal:", "mini:lm"])
def test_unknown_kinds_of_encoders_are_refused(name: str) -> None:
    refused(lambda: load_text_encoder(name), repr(name), "causal:NAME")


# sentence encoders


def reference_minilm(texts: list[str]) -> np.ndarray:
    """MiniLM by hand: one sentence at a time through BERT, the mean of its states, normalised."""
    from transformers import AutoTokenizer, BertModel

    folder = str(find_folder("all-MiniLM-L6-v2", download=False))
    tokenizer, model = AutoTokenizer.from_pretrained(folder), BertModel.from_pretrained(folder).eval()
    rows = []
    for text in texts:
        ids = tokenizer(text, truncation=True, max_length=256, return_tensors="pt", padding=False)["input_ids"]
        with torch.inference_mode():
            rows.append(F.normalize(model(input_ids=ids).last_hidden_state.mean(dim=1), dim=-1)[0])
    return torch.stack(rows).numpy()


def test_minilm_equals_its_model_by_hand(minilm: SentenceEncoder) -> None:
    texts = [*SENTENCES, "Wasserfläche ☃", "word " * 300]
    encoded = minilm.encode(texts)
    np.testing.assert_allclose(encoded.vectors, reference_minilm(texts), atol=1e-6)
    assert encoded.vectors.shape == (7, 384) == (7, minilm.dim)
    assert encoded.vectors.dtype == np.float32
    assert encoded.cut == (6,)


def test_minilm_knows_what_belongs_together(minilm: SentenceEncoder) -> None:
    river, stream, airport = minilm.encode(["a river", "a stream of water", "planes on a runway"]).vectors
    assert river @ stream > river @ airport + 0.2


def test_the_limit_counts_special_tokens(minilm: SentenceEncoder) -> None:
    fits, over = minilm.encode(["word " * 254, "word " * 255]).vectors
    assert minilm.encode(["word " * 254, "word " * 255, "word"]).cut == (1,)
    np.testing.assert_allclose(fits, over, atol=1e-6)
    short = SentenceEncoder(SentenceConfig(max_length=5))
    encoded = short.encode(["the river near the town", "the river near"])
    assert encoded.cut == (0,)
    np.testing.assert_allclose(encoded.vectors[0], encoded.vectors[1], atol=1e-6)


@pytest.mark.parametrize("text", ["ᚠᚢᚦ ᚨᚱᚲ", "🛰🛰", "\u200b"])
def test_text_of_unknown_characters_only_is_refused(minilm: SentenceEncoder, text: str) -> None:
    refused(lambda: minilm.encode(["a river", text]), "text 2 of 2", "does not know")


def test_a_text_with_some_unknown_characters_has_a_vector(minilm: SentenceEncoder) -> None:
    plain, marked = minilm.encode(["a river", "a river 🛰"]).vectors
    assert 0.5 < plain @ marked < 0.999


def test_batches_do_not_change_sentence_vectors(tiny_sentence: Path) -> None:
    config = SentenceConfig(name=str(tiny_sentence))
    alone, together = SentenceEncoder(config, batch_size=1), SentenceEncoder(config, batch_size=64)
    np.testing.assert_allclose(alone.encode(SENTENCES).vectors, together.encode(SENTENCES).vectors, atol=1e-6)


def test_a_prompt_of_the_model_stands_in_front_and_counts(tiny_sentence: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_sentence, tmp_path / "tiny"))
    plain = SentenceEncoder(SentenceConfig(name=str(tiny_sentence)))
    settings = json.loads((folder / "config_sentence_transformers.json").read_text())
    settings |= {"prompts": {"describe": "describe the "}, "default_prompt_name": "describe"}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(settings))
    prompted = SentenceEncoder(SentenceConfig(name=str(folder)))
    assert prompted.identity != plain.identity
    # 12 tokens: the begin token, two words of the prompt, nine of the text
    text = "field and road and field and forest of town"
    with_prompt = plain.encode([f"describe the {text}"])
    got = prompted.encode([text])
    np.testing.assert_allclose(got.vectors, with_prompt.vectors, atol=1e-6)
    assert (got.cut, with_prompt.cut, plain.encode([text]).cut) == ((), (), ())
    assert prompted.encode([text + " near water"]).cut == (0,)


def test_the_identity_names_everything_that_changes_a_vector(tiny_sentence: Path, tmp_path: Path) -> None:
    def identity(change=lambda folder: None, name: str = "tiny", **options) -> str:
        folder = tmp_path / str(len(list(tmp_path.iterdir()))) / name
        shutil.copytree(tiny_sentence, folder)
        change(folder)
        return SentenceEncoder(SentenceConfig(name=str(folder), **options)).identity

    def edit(file: str, **entries):
        def change(folder: Path) -> None:
            content = json.loads((folder / file).read_text())
            (folder / file).write_text(json.dumps(content | entries, indent=1))

        return change

    def weights(folder: Path) -> None:
        state = load_file(folder / "model.safetensors")
        next(iter(state.values())).view(-1)[0] += 1e-4
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})

    def words(folder: Path) -> None:
        text = (folder / "tokenizer.json").read_text()
        (folder / "tokenizer.json").write_text(text.replace('"river"', '"brook"'))

    def unnormalised(folder: Path) -> None:
        (folder / "modules.json").write_text(json.dumps(json.loads((folder / "modules.json").read_text())[:2]))

    same = identity()
    assert same == SentenceEncoder(SentenceConfig(name=str(tiny_sentence))).identity
    assert same == identity(edit("config.json", transformers_version="9", architectures=["Other"]))
    assert same == identity(lambda folder: (folder / "README.md").write_text("other words"))
    different = [
        identity(name="other"),
        identity(max_length=7),
        identity(weights),
        identity(words),
        identity(unnormalised),
        identity(edit("1_Pooling/config.json", pooling_mode="cls")),
        identity(edit("config.json", layer_norm_eps=0.1)),
        identity(edit("tokenizer_config.json", model_max_length=9)),
    ]
    assert len({same, *different}) == len(different) + 1


@pytest.mark.parametrize("max_length", [0, 2, -1])
def test_a_limit_without_room_for_a_word_is_refused(max_length: int) -> None:
    refused(lambda: SentenceConfig(max_length=max_length), "max length")


def test_folders_that_are_no_safe_model_are_refused(tiny_sentence: Path, tmp_path: Path) -> None:
    def broken(change):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        shutil.copytree(tiny_sentence, folder)
        change(folder)
        return lambda: SentenceEncoder(SentenceConfig(name=str(folder))).encode(["a river"])

    def pickled(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")

    def dense(folder: Path) -> None:
        (folder / "1_Pooling" / "pytorch_model.bin").write_bytes(b"pickle")

    refused(broken(pickled), "unpickling")
    refused(broken(dense), "unpickling", "1_Pooling")
    refused(broken(lambda f: (f / "model.safetensors").unlink()), "no weights")
    refused(broken(lambda f: (f / "modules.json").write_text("[{")), "modules.json")
    refused(broken(lambda f: (f / "modules.json").write_text('[{"path": "../x", "type": "a"}]')), "modules.json")
    refused(broken(lambda f: (f / "config.json").write_text("{}")), "sentence-transformers can load")
    refused(broken(lambda f: os.truncate(f / "model.safetensors", 2000)), "sentence-transformers can load")


# causal language models


def states(encoder: CausalEncoder, ids: list[int]) -> torch.Tensor:
    row = torch.tensor([ids])
    with torch.inference_mode():
        return encoder._states(encoder.module, row, torch.ones_like(row))[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_causal_attention_never_looks_ahead_and_bidirectional_always_does(saved: dict[str, Path], family: str) -> None:
    one, other = [5, 6, 7, 8, 9, 10, 11], [5, 6, 7, 8, 9, 10, 14]
    for attention in ("causal", "bidirectional"):
        encoder = causal(saved[family], attention=attention)
        change = (states(encoder, one) - states(encoder, other)).abs().amax(dim=1)
        # Mistral's window of 3 tokens is no limit either
        assert bool((change[:-1] > 1e-3).all()) == (attention == "bidirectional"), change
        assert bool((change[:-1] < 1e-6).all()) == (attention == "causal"), change
        assert change[-1] > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_states_equal_those_of_transformers_itself(saved: dict[str, Path], family: str) -> None:
    from transformers import AutoModelForCausalLM

    ids = torch.tensor([[5, 6, 7]])
    whole = AutoModelForCausalLM.from_pretrained(str(saved[family]), dtype=torch.float32).eval()
    for attention in ("causal", "bidirectional"):
        # the library's own switch for bidirectional decoders, another road than the mask that is given here
        whole.config.is_causal = whole.base_model.config.is_causal = attention == "causal"
        with torch.inference_mode():
            expected = whole(input_ids=ids, output_hidden_states=True).hidden_states[-1][0]
        got = states(causal(saved[family], attention=attention), ids[0].tolist())
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("attention", "pooling"),
    [
        ("causal", "mean"),
        ("causal", "eos"),
        ("bidirectional", "mean"),
        ("bidirectional", "eos"),
        ("bidirectional", "bos"),
    ],
)
def test_one_text_alone_equals_the_same_text_in_a_batch(
    saved: dict[str, Path], family: str, attention: str, pooling: str
) -> None:
    encoder = causal(saved[family], attention=attention, pooling=pooling)
    together = encoder.encode(SENTENCES).vectors
    alone = np.concatenate([encoder.encode([text]).vectors for text in SENTENCES])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert together.shape == (len(SENTENCES), WIDTH) == (len(SENTENCES), encoder.dim)
    assert len(np.unique(together.round(4), axis=0)) == len(SENTENCES)


def test_what_is_pooled(saved: dict[str, Path]) -> None:
    """Words are tokens here: <s> is 2, </s> is 3."""
    text, said = "near the water", "describe the image :"
    number = {w: i for i, w in enumerate(["<unk>", "<pad>", "<s>", "</s>"])}
    number |= json.loads((saved["llama"] / "tokenizer.json").read_text())["model"]["vocab"]
    words, instruction = [number[w] for w in text.split()], [number[w] for w in said.split()]

    def vector(**options) -> torch.Tensor:
        return torch.from_numpy(causal(saved["llama"], **options).encode([text]).vectors[0])

    for attention in ("causal", "bidirectional"):
        plain = states(causal(saved["llama"], attention=attention), [2, *words])
        with_end = states(causal(saved["llama"], attention=attention), [2, *words, 3])
        led = states(causal(saved["llama"], attention=attention), [2, *instruction, *words])
        expected = {
            "mean": plain[1:].mean(dim=0),
            "eos": with_end[-1],
            "unpooled": led[1 + len(instruction) :].mean(dim=0),
            "pooled": led[1:].mean(dim=0),
        }
        got = {
            "mean": vector(attention=attention),
            "eos": vector(attention=attention, pooling="eos"),
            "unpooled": vector(attention=attention, instruction=said),
            "pooled": vector(attention=attention, instruction=said, pool_instruction=True),
        }
        for name, value in expected.items():
            torch.testing.assert_close(got[name], value, atol=1e-5, rtol=0)
        assert (
            torch.cdist(torch.stack(list(got.values())), torch.stack(list(got.values()))).fill_diagonal_(1).min() > 0.1
        )
    begin = states(causal(saved["llama"], attention="bidirectional"), [2, *words])[0]
    torch.testing.assert_close(vector(attention="bidirectional", pooling="bos"), begin, atol=1e-5, rtol=0)


def test_the_instruction_ends_where_the_text_begins_also_inside_byte_pairs(saved: dict[str, Path]) -> None:
    said, text = "near the", "river"
    encoder = causal(saved["gpt2"], instruction=said)
    [tokens] = encoder._tokens([text])
    pooled = encoder.tokenizer.decode([i for i, p in zip(tokens.ids, tokens.pooled, strict=True) if p])
    assert pooled == " river"
    assert encoder.tokenizer.decode(tokens.ids) == "near the river"


def test_a_long_text_is_cut_at_its_end_and_said_to_be(saved: dict[str, Path]) -> None:
    # begin token, two words of instruction, end token: room for three words
    options = {"instruction": "describe the", "pooling": "eos", "max_length": 7}
    encoder = causal(saved["llama"], **options)
    encoded = encoder.encode(["river near town", "river near town and road", "river"])
    assert encoded.cut == (1,)
    np.testing.assert_allclose(encoded.vectors[0], encoded.vectors[1], atol=1e-5)
    assert [len(t.ids) for t in encoder._tokens(["river near town and road", "river"])] == [7, 5]


def test_an_instruction_that_leaves_no_room_is_refused(saved: dict[str, Path]) -> None:
    encoder = causal(saved["llama"], instruction="describe the image of the town", max_length=6)
    refused(lambda: encoder.encode(["river"]), "instruction of 6 tokens", "room")


def test_bfloat16_is_near_float32_and_another_identity(saved: dict[str, Path]) -> None:
    fine, coarse = (causal(saved["llama"], precision=p) for p in ("float32", "bfloat16"))
    assert next(coarse.module.parameters()).dtype == torch.bfloat16
    a, b = fine.encode(SENTENCES).vectors, coarse.encode(SENTENCES).vectors
    assert b.dtype == np.float32
    assert ((a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min() > 0.99
    assert fine.identity != coarse.identity


def test_the_causal_identity_names_every_choice(saved: dict[str, Path]) -> None:
    choices = [
        {},
        {"attention": "bidirectional"},
        {"pooling": "eos"},
        {"instruction": "describe"},
        {"instruction": "describe the"},
        {"instruction": "describe", "pool_instruction": True},
        {"max_length": 32},
        {"precision": "bfloat16"},
    ]
    identities = [causal(saved["llama"], **c).identity for c in choices]
    assert len(set(identities)) == len(choices)
    assert identities == [causal(saved["llama"], **c).identity for c in choices]
    # what changes no vector changes no identity
    assert causal(saved["llama"], pool_instruction=True).identity == identities[0]
    assert fingerprint(saved["llama"]) != fingerprint(saved["mistral"])


def test_gradients_reach_the_weights_that_ask_for_them(saved: dict[str, Path], tiny_sentence: Path) -> None:
    for encoder in (causal(saved["llama"]), SentenceEncoder(SentenceConfig(name=str(tiny_sentence)))):
        assert not any(p.requires_grad for p in encoder.module.parameters())
        weight = next(p for p in encoder.module.parameters() if p.ndim == 2).requires_grad_(True)
        encoder.vectors(SENTENCES)[:, 0].sum().backward()
        assert weight.grad is not None
        assert weight.grad.abs().max() > 0


@pytest.mark.parametrize("precision", ["int8", "nf4"])
def test_quantised_loading_without_cuda_is_refused(saved: dict[str, Path], precision: str) -> None:
    refused(lambda: causal(saved["llama"], precision=precision), precision, "device cpu", "bitsandbytes", "CUDA")


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"attention": "both"}, "causal or bidirectional"),
        ({"pooling": "max"}, "mean or bos or eos"),
        ({"precision": "int4"}, "nf4"),
        ({"pooling": "bos"}, "alike for all texts"),
        ({"max_length": 3}, "4 tokens"),
    ],
)
def test_configs_that_make_no_sense_are_refused(options: dict[str, object], word: str) -> None:
    refused(lambda: CausalConfig(name="x", **options), word)


def test_models_that_are_not_what_was_asked_for_are_refused(saved: dict[str, Path]) -> None:
    # BERT has no causal mask, so what is asked for is measured, not believed
    refused(lambda: causal(saved["bert"]).encode(["river"]), "sees the last", "causal attention")
    refused(lambda: causal(saved["t5"]).encode(["river"]), "an encoder and a decoder")
    too_long = CausalEncoder(CausalConfig(name=str(saved["llama"])))
    refused(lambda: too_long.encode(["river"]), "positions for 64 tokens")


def test_a_model_that_ignores_the_mask_is_not_taken_for_bidirectional(saved: dict[str, Path]) -> None:
    encoder = causal(saved["llama"], attention="bidirectional")
    model = encoder.module
    inner = model.forward
    model.forward = lambda input_ids, attention_mask, use_cache: inner(input_ids=input_ids, use_cache=use_cache)
    refused(lambda: encoder._measure_attention(model), "does not see the last", "bidirectional attention")


def test_damaged_causal_folders_are_refused(saved: dict[str, Path], tmp_path: Path) -> None:
    def broken(change, **options):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        shutil.copytree(saved["llama"], folder)
        change(folder)
        return lambda: causal(folder, **options).encode(["the river"])

    def lacking(folder: Path) -> None:
        state = load_file(folder / "model.safetensors")
        del state["model.layers.1.mlp.up_proj.weight"]
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})

    def foreign(folder: Path) -> None:
        word_tokenizer(folder, begin=True)
        content = json.loads((folder / "tokenizer.json").read_text())
        content["model"]["vocab"]["river"] = 999
        (folder / "tokenizer.json").write_text(json.dumps(content))

    refused(broken(lacking), "1 tensors missing", "up_proj")
    refused(broken(foreign), "token 999")
    refused(broken(lambda f: os.truncate(f / "model.safetensors", 3000)), "SafetensorError")
    refused(broken(lambda f: (f / "config.json").write_text('{"model_type": "no-such-family"}')), "no-such-family")
    refused(broken(lambda f: (f / "adapter_config.json").write_text("{}")), "an adapter without its model")
    refused(broken(lambda f: (f / "tokenizer.json").write_text("{}")), "a tokeniser beside the model")
    refused(broken(lambda f: word_tokenizer(f, begin=False, eos=False), pooling="eos"), "without a eos token")
    refused(
        broken(lambda f: word_tokenizer(f, begin=False, bos=False), pooling="bos", attention="bidirectional"),
        "without a bos token",
    )


def test_a_tokeniser_that_the_family_would_misread_is_refused(saved: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(saved["qwen2"], tmp_path / "qwen2"))
    word_tokenizer(folder, begin=False)
    refused(lambda: causal(folder).encode(["the river"]), "WordLevel", "BPE")


def test_unknown_words_of_a_causal_model(saved: dict[str, Path]) -> None:
    encoder = causal(saved["llama"], instruction="describe the")
    refused(lambda: encoder.encode(["river", "ᚠᚢᚦ"]), "text 2 of 2", "does not know")
    assert encoder.encode(["river ᚠᚢᚦ"]).vectors.shape == (1, WIDTH)
    # bytes know everything
    assert causal(saved["gpt2"]).encode(["ᚠᚢᚦ"]).vectors.shape == (1, WIDTH)
