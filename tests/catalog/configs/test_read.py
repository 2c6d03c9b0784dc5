"""config.json read into a model: published files, sizes and sources, what is missing, files themselves."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import polyhead as ph
from polyhead.catalog.configs import MODEL_TYPES, describe, hf_config, layer_specs, read_config
from polyhead.errors import CheckpointError, UnsupportedError
from polyhead.spec import AttentionSpec, Causal, Grouped, LayerSpec, Llama3Scaling, Rotary, SlidingWindow
from tests.catalog.configs.files import (
    BIG_BIRD,
    BLOOM,
    DEEPSEEK,
    DIFFLLAMA,
    FALCON,
    GEMMA2,
    GPT2,
    GPT_OSS,
    LLAMA,
    MISTRAL,
    QWEN2,
    QWEN3,
    SLIDING,
    T5,
    without,
)

# --- published files ------------------------------------------------------------------------------


def is_a(embed_dim: int, num_heads: int, num_kv_heads: int, head_dim: int, **fields: Any) -> LayerSpec:
    choices = {name: fields.pop(name) for name in ("position", "pattern") if name in fields}
    storage = Grouped(num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim)
    attention = AttentionSpec(storage=storage, **{"pattern": Causal(), **choices})
    return LayerSpec(attention=attention, embed_dim=embed_dim, **fields)


# what bears on attention in files on the Hub, and what it makes of each layer
PUBLISHED: dict[str, tuple[str, LayerSpec]] = {
    "llama-2-7b, from before rope_theta": (
        """{"model_type": "llama", "hidden_size": 4096, "num_attention_heads": 32, "num_hidden_layers": 32,
            "max_position_embeddings": 4096, "rms_norm_eps": 1e-05, "rope_scaling": null}""",
        is_a(4096, 32, 32, 128, position=Rotary()),
    ),
    "llama-3.1-8b": (
        """{"model_type": "llama", "attention_bias": false, "hidden_size": 4096, "num_attention_heads": 32,
            "num_key_value_heads": 8, "num_hidden_layers": 32, "max_position_embeddings": 131072,
            "rope_theta": 500000.0, "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192, "rope_type": "llama3"}}""",
        is_a(4096, 32, 8, 128, position=Rotary(theta=5e5, scaling=Llama3Scaling())),
    ),
    "mistral-7b-v0.1": (
        """{"model_type": "mistral", "hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8,
            "num_hidden_layers": 32, "max_position_embeddings": 32768, "rope_theta": 10000.0,
            "sliding_window": 4096}""",
        is_a(4096, 32, 8, 128, position=Rotary(), pattern=SlidingWindow(left=4095, right=0)),
    ),
    "mistral-nemo, whose heads together are narrower than its width": (
        """{"model_type": "mistral", "hidden_size": 5120, "head_dim": 128, "num_attention_heads": 32,
            "num_key_value_heads": 8, "num_hidden_layers": 40, "max_position_embeddings": 131072,
            "rope_theta": 1000000.0, "sliding_window": null}""",
        is_a(5120, 32, 8, 128, position=Rotary(theta=1e6)),
    ),
    "qwen2.5-7b": (
        """{"model_type": "qwen2", "hidden_size": 3584, "num_attention_heads": 28, "num_key_value_heads": 4,
            "num_hidden_layers": 28, "max_position_embeddings": 32768, "max_window_layers": 28,
            "rope_theta": 1000000.0, "sliding_window": 131072, "use_sliding_window": false}""",
        is_a(3584, 28, 4, 128, position=Rotary(theta=1e6), qkv_bias=True),
    ),
    "qwen3-0.6b, with rope_parameters": (
        """{"model_type": "qwen3", "attention_bias": false, "head_dim": 128, "hidden_size": 1024,
            "num_attention_heads": 16, "num_key_value_heads": 8, "num_hidden_layers": 28, "rms_norm_eps": 1e-06,
            "rope_parameters": {"rope_theta": 1000000, "rope_type": "default"}, "sliding_window": null,
            "use_sliding_window": false}""",
        is_a(1024, 16, 8, 128, position=Rotary(theta=1e6), qk_norm=True, norm_eps=1e-6),
    ),
    "gpt2": (
        """{"model_type": "gpt2", "n_ctx": 1024, "n_embd": 768, "n_head": 12, "n_layer": 12}""",
        is_a(768, 12, 12, 64, qkv_bias=True, out_bias=True),
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_files(name: str) -> None:
    text, expected = PUBLISHED[name]
    config = json.loads(text)
    assert layer_specs(config) == [expected] * config.get("num_hidden_layers", 12)


def test_what_is_read() -> None:
    built_like_llama = ("llama", "mistral", "mixtral", "qwen2", "qwen3", "gemma2", "gpt_oss", "diffllama")
    others = ("gpt2", "deepseek_v2", "deepseek_v3", "bloom", "falcon", "t5", "big_bird")
    assert built_like_llama + others == MODEL_TYPES


def test_reading_needs_no_torch() -> None:
    code = "import sys; import polyhead.catalog.configs; print({'torch', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# --- a model --------------------------------------------------------------------------------------

WHOLE = LLAMA | {"vocab_size": 100, "intermediate_size": 48, "tie_word_embeddings": True}


def test_a_file_becomes_a_model(tmp_path: Path) -> None:
    folder = tmp_path / "my-model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(WHOLE))
    read = hf_config(folder)
    assert read == ph.hf_config(folder / "config.json")
    assert (read.name, read.title, read.model_type) == ("my-model", "my-model, a llama", "llama")
    assert (read.embed_dim, read.num_layers, read.vocab_size, read.max_seq_len) == (64, 2, 100, 128)
    assert list(read.layers) == layer_specs(WHOLE)
    assert (read.encoder_layers, read.cross_layers) == ((), ())
    assert read.config == WHOLE
    assert (
        read.parameters == read.active_parameters == 100 * 64 + 2 * (64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 48 + 128) + 64
    )


def test_every_figure_has_a_source(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(WHOLE))
    file = str(tmp_path / "config.json")
    counted = "counted from the same fields, as LlamaForCausalLM of transformers holds them"
    figures = ("layers", "embed_dim", "vocab_size", "max_seq_len")
    assert hf_config(file).sources == {**dict.fromkeys(figures, file), "parameters": counted}
    elsewhere = describe(WHOLE, name="n", title="t", source="a", sources={"layers": "b"})
    assert elsewhere.sources == {**dict.fromkeys(figures, "a"), "layers": "b", "parameters": counted}


def test_a_length_that_no_field_names_is_none() -> None:
    fields = BLOOM | {"vocab_size": 100}
    read = describe(fields, name="n", title="t", source="s")
    assert read.max_seq_len is None
    assert "max_seq_len" not in read.sources
    assert describe(fields | {"seq_length": 32}, name="n", title="t", source="s").max_seq_len == 32


@pytest.mark.parametrize("name", ["vocab_size", "intermediate_size"])
def test_sizes_that_a_model_needs(name: str) -> None:
    with pytest.raises(CheckpointError, match=f"config.json has no {name}, which a llama needs; add it"):
        describe(without(WHOLE, name), name="n", title="t", source="s")


@pytest.mark.parametrize(
    "fields", [{"vocab_size": 0}, {"tie_word_embeddings": "yes"}, {"max_position_embeddings": -1}], ids=str
)
def test_sizes_that_are_none(fields: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=f"config.json gives a size that is none: {next(iter(fields))}="):
        describe(WHOLE | fields, name="n", title="t", source="s")


# --- what is refused ------------------------------------------------------------------------------

IN_THE_WAY = [
    (
        LLAMA | {"model_type": "rwkv"},
        "model_type='rwkv' is not read; what is read: llama, mistral, mixtral, qwen2, qwen3, gemma2, gpt_oss, difflla",
    ),
    (
        LLAMA | {"sliding_window": 8},
        "sliding_window of config.json .*: the file says 8, and a llama always runs as None",
    ),
    (LLAMA | {"is_causal": False}, "is_causal of config.json .* the file says False, and a llama always runs as True"),
    (MISTRAL | {"attention_bias": True}, "attention_bias of config.json .* says True, and a mistral always"),
    (QWEN2 | {"attention_bias": False}, "attention_bias of config.json .* says False, and a qwen2 always"),
    (GPT2 | {"add_cross_attention": True}, "add_cross_attention of config.json stands in the way"),
    (GEMMA2 | {"use_bidirectional_attention": True}, "use_bidirectional_attention of config.json stands in the way"),
    (DIFFLLAMA | {"attention_dropout": 0.1}, "attention_dropout of config.json .* a diffllama always runs as 0.0"),
    (DEEPSEEK | {"moe_layer_freq": 2}, "moe_layer_freq of config.json .* a deepseek_v3 always runs as 1"),
    (T5 | {"is_encoder_decoder": False}, "is_encoder_decoder of config.json .* a t5 always runs as True"),
    (BIG_BIRD | {"is_decoder": True}, "is_decoder of config.json .* a big_bird always runs as False"),
    (LLAMA | {"per_layer_config": {"0": {}}}, "per_layer_config of config.json stands in the way: it gives single"),
]


@pytest.mark.parametrize(("config", "message"), IN_THE_WAY)
def test_fields_that_cannot_be_expressed(config: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        layer_specs(config)


NEEDED = [
    *((LLAMA, name) for name in ("hidden_size", "num_attention_heads", "num_hidden_layers")),
    *((MISTRAL, name) for name in ("num_key_value_heads", "rope_theta")),
    *((QWEN2, name) for name in ("num_key_value_heads", "rope_theta", "use_sliding_window")),
    *((QWEN3, name) for name in ("head_dim", "attention_bias", "rms_norm_eps")),
    (QWEN2 | SLIDING | {"max_window_layers": 1}, "sliding_window"),
    (QWEN2 | SLIDING | {"max_window_layers": 1}, "max_window_layers"),
    (LLAMA | {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "max_position_embeddings"),
    *((GEMMA2, name) for name in ("head_dim", "sliding_window", "query_pre_attn_scalar", "attn_logit_softcapping")),
    *((GPT_OSS, name) for name in ("head_dim", "sliding_window", "attention_bias", "rope_theta", "rope_scaling")),
    *((DIFFLLAMA, name) for name in ("num_key_value_heads", "rms_norm_eps")),
    *((DEEPSEEK, name) for name in ("q_lora_rank", "kv_lora_rank", "qk_rope_head_dim", "attention_bias")),
    *((GPT2, name) for name in ("n_embd", "n_head", "n_layer")),
    *((BLOOM, name) for name in ("hidden_size", "n_head", "n_layer")),
    *((FALCON, name) for name in ("alibi", "bias", "multi_query", "new_decoder_architecture")),
    *((T5, name) for name in ("d_model", "d_kv", "num_heads", "num_layers", "relative_attention_num_buckets")),
    *((BIG_BIRD, name) for name in ("attention_type", "block_size", "num_random_blocks", "use_bias")),
]


@pytest.mark.parametrize(("config", "name"), NEEDED)
def test_fields_that_are_needed(config: dict[str, Any], name: str) -> None:
    layer_specs(config)
    with pytest.raises(CheckpointError, match=f"config.json has no {name}, which a {config['model_type']} needs; add"):
        layer_specs(without(config, name))


def test_a_file_without_a_type() -> None:
    with pytest.raises(CheckpointError, match=r"config.json has no model_type"):
        layer_specs(without(LLAMA, "model_type"))


RENAMED = [
    (GPT2, {"n_embd": "hidden_size", "n_head": "num_attention_heads", "n_layer": "num_hidden_layers"}),
    (BLOOM, {"hidden_size": "n_embed", "n_head": "num_attention_heads", "n_layer": "num_hidden_layers"}),
    (FALCON, {"hidden_size": "n_embed"}),
    (T5, {"d_model": "hidden_size", "d_kv": "head_dim", "num_heads": "num_attention_heads"}),
    (T5, {"num_layers": "num_hidden_layers"}),
]


@pytest.mark.parametrize(("config", "names"), RENAMED)
def test_fields_by_their_other_names(config: dict[str, Any], names: dict[str, str]) -> None:
    renamed = {names.get(name, name): value for name, value in config.items()}
    assert renamed.keys() != config.keys()
    assert layer_specs(renamed) == layer_specs(config)


BROKEN = [
    (LLAMA | {"num_attention_heads": 5}, "5 heads do not divide the width of 64 that config.json gives"),
    (LLAMA | {"num_key_value_heads": 3}, "no attention that is defined: num_kv_heads=3 does not divide num_heads=4"),
    (LLAMA | {"hidden_size": "64"}, "no attention that is defined: hidden_size='64' is not allowed"),
    (LLAMA | {"attention_bias": "no"}, "no attention that is defined: attention_bias='no' is not allowed"),
]


@pytest.mark.parametrize(("config", "message"), BROKEN)
def test_numbers_that_do_not_fit(config: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        layer_specs(config)


# --- files ----------------------------------------------------------------------------------------


def test_a_file_or_its_directory(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    assert read_config(tmp_path) == read_config(str(tmp_path / "config.json")) == LLAMA


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cannot read .*config.json: No such file"):
        read_config(tmp_path)


@pytest.mark.parametrize("contents", [b"", b"{", b"\xff\xfe"])
def test_a_file_that_is_not_json(tmp_path: Path, contents: bytes) -> None:
    (tmp_path / "config.json").write_bytes(contents)
    with pytest.raises(CheckpointError, match=r"config.json is not JSON"):
        read_config(tmp_path)


def test_a_file_that_holds_no_object(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(CheckpointError, match=r"holds a list, where a config.json holds an object"):
        read_config(tmp_path)
