"""config.json read into specs: published files, both spellings, every scaling against transformers, every refusal."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polyhead.catalog.hf_config import MODEL_TYPES, layer_specs, read_config
from polyhead.errors import CheckpointError, UnsupportedError
from polyhead.spec import (
    AttentionSpec,
    Causal,
    DynamicNTKScaling,
    Grouped,
    LayerSpec,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    Rotary,
    Scaling,
    SlidingWindow,
    Softmax,
    YarnScaling,
)

LLAMA = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2}
LLAMA |= {"num_key_value_heads": 2, "max_position_embeddings": 128, "rope_theta": 5000.0}
MISTRAL = LLAMA | {"model_type": "mistral", "sliding_window": None}
QWEN2 = LLAMA | {"model_type": "qwen2", "use_sliding_window": False, "num_hidden_layers": 4}
QWEN3 = QWEN2 | {"model_type": "qwen3", "head_dim": 32, "attention_bias": False, "rms_norm_eps": 1e-6}
GPT2 = {"model_type": "gpt2", "n_embd": 64, "n_head": 4, "n_layer": 3}
SLIDING = {"use_sliding_window": True, "sliding_window": 8}


def without(config: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name not in names}


def only(config: dict[str, Any]) -> LayerSpec:
    """Return the one spec that all layers have."""
    first, *others = layer_specs(config)
    assert all(other == first for other in others)
    return first


def rotary(config: dict[str, Any]) -> Rotary:
    position = only(config).attention.position
    assert isinstance(position, Rotary)
    return position


def patterns(config: dict[str, Any]) -> list[Any]:
    return [layer.attention.pattern for layer in layer_specs(config)]


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
    assert MODEL_TYPES == ("llama", "mistral", "qwen2", "qwen3", "gpt2")


def test_reading_needs_no_torch() -> None:
    code = "import sys; import polyhead.catalog.hf_config; print({'torch', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# --- fields ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "biases"),
    [
        (LLAMA, (False, False)),
        (LLAMA | {"attention_bias": True}, (True, True)),
        (QWEN3 | {"attention_bias": True}, (True, True)),
        (MISTRAL, (False, False)),
        (QWEN2, (True, False)),
        (GPT2, (True, True)),
    ],
)
def test_biases(config: dict[str, Any], biases: tuple[bool, bool]) -> None:
    layer = only(config)
    assert (layer.qkv_bias, layer.out_bias) == biases


def test_null_is_one_kv_head_for_each_query_head() -> None:
    assert only(QWEN2 | {"num_key_value_heads": None}).attention.num_kv_heads == 4


def test_a_stated_width_wins_over_the_derived_one() -> None:
    assert only(LLAMA | {"head_dim": 24}).attention.qk_head_dim == 24
    assert only(LLAMA | {"head_dim": None}).attention.qk_head_dim == 16


def test_mistral_windows() -> None:
    assert patterns(MISTRAL) == [Causal()] * 2
    assert patterns(MISTRAL | {"sliding_window": 8}) == [SlidingWindow.causal(8)] * 2
    assert patterns(without(MISTRAL, "sliding_window")) == [SlidingWindow.causal(4096)] * 2
    types = {"layer_types": ["sliding_attention"] * 2}
    assert patterns(MISTRAL | types | {"sliding_window": 8}) == [SlidingWindow.causal(8)] * 2


@pytest.mark.parametrize("base", [QWEN2, QWEN3], ids=["qwen2", "qwen3"])
def test_qwen_windows(base: dict[str, Any]) -> None:
    full, slide = Causal(), SlidingWindow.causal(8)
    assert patterns(base | {"sliding_window": 8, "max_window_layers": 0}) == [full] * 4
    assert patterns(base | SLIDING | {"max_window_layers": 3}) == [full, full, full, slide]
    assert patterns(base | SLIDING | {"max_window_layers": 28}) == [full] * 4
    assert patterns(base | SLIDING | {"sliding_window": None}) == [full] * 4
    types = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
    assert patterns(base | SLIDING | {"layer_types": types}) == [slide, full, slide, full]


def test_gpt2_scales() -> None:
    def scales(**fields: bool) -> list[float]:
        return [layer.attention.scale for layer in layer_specs(GPT2 | fields)]

    assert scales() == [0.25, 0.25, 0.25]
    assert scales(scale_attn_weights=False) == [1.0, 1.0, 1.0]
    assert scales(scale_attn_by_inverse_layer_idx=True) == [0.25, 0.125, 0.25 / 3]
    assert scales(scale_attn_weights=False, scale_attn_by_inverse_layer_idx=True) == [1.0, 0.5, 1 / 3]
    assert only(GPT2).attention.weighting == Softmax()  # the usual scale is not written out


# --- rotation -------------------------------------------------------------------------------------

TRAINED = {"original_max_position_embeddings": 32}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
FACTORS = {"short_factor": [1.0 + 0.1 * i for i in range(8)], "long_factor": [2.0 + i for i in range(8)]}
TUPLES = {name: tuple(values) for name, values in FACTORS.items()}
YARN = {"beta_fast": 16.0, "beta_slow": 2.0, "mscale": 0.8, "mscale_all_dim": 0.5, "truncate": False}

SCALINGS: list[tuple[dict[str, Any], Scaling | None]] = [
    ({"rope_type": "default"}, None),
    ({"rope_type": "linear", "factor": 2.0}, LinearScaling(factor=2.0)),
    ({"rope_type": "dynamic", "factor": 4}, DynamicNTKScaling(factor=4.0, original_max_seq_len=128)),
    # whose trained length is not looked at
    ({"rope_type": "dynamic", "factor": 4, **TRAINED}, DynamicNTKScaling(factor=4.0, original_max_seq_len=128)),
    ({"rope_type": "yarn", "factor": 4.0}, YarnScaling(factor=4.0, original_max_seq_len=128)),
    (
        {"rope_type": "yarn", "factor": None, "finetuned": True, **TRAINED},
        YarnScaling(factor=4.0, original_max_seq_len=32),
    ),
    (
        {"rope_type": "yarn", "factor": 3.0, **TRAINED, **YARN},
        YarnScaling(factor=3.0, original_max_seq_len=32, **YARN),  # type: ignore[arg-type]
    ),
    (
        {"rope_type": "yarn", "factor": 2.0, "attention_factor": 1.5},
        YarnScaling(factor=2.0, original_max_seq_len=128, attention_factor=1.5),
    ),
    ({"rope_type": "llama3", **LLAMA3, **TRAINED}, Llama3Scaling(original_max_seq_len=32)),
    ({"rope_type": "llama3", **LLAMA3}, Llama3Scaling(original_max_seq_len=128)),
    (
        {"rope_type": "longrope", **FACTORS, **TRAINED},
        LongRopeScaling(**TUPLES, original_max_seq_len=32, factor=4.0),
    ),
    (
        {"rope_type": "longrope", **FACTORS, "factor": 3.0, "attention_factor": 1.25},
        LongRopeScaling(**TUPLES, original_max_seq_len=128, factor=3.0, attention_factor=1.25),
    ),
]
IDS = [f"{fields['rope_type']}-{number}" for number, (fields, _) in enumerate(SCALINGS)]


@pytest.mark.parametrize(("fields", "scaling"), SCALINGS, ids=IDS)
def test_both_spellings(fields: dict[str, Any], scaling: Scaling | None) -> None:
    expected = Rotary(theta=5000.0, scaling=scaling)
    assert rotary(LLAMA | {"rope_scaling": fields}) == expected
    assert rotary(without(LLAMA, "rope_theta") | {"rope_parameters": {"rope_theta": 5000.0, **fields}}) == expected
    older = {"type" if name == "rope_type" else name: value for name, value in fields.items()}
    assert rotary(LLAMA | {"rope_scaling": older, "rope_parameters": {"rope_type": "linear"}}) == expected


@pytest.mark.parametrize("nothing", [None, {}])
def test_no_scaling(nothing: Any) -> None:
    assert rotary(LLAMA | {"rope_scaling": nothing}) == rotary(LLAMA | {"rope_parameters": nothing}) == rotary(LLAMA)


@pytest.mark.parametrize(("fields", "scaling"), SCALINGS, ids=IDS)
def test_scalings_turn_as_transformers_does(fields: dict[str, Any], scaling: Scaling | None) -> None:
    code = pytest.importorskip("transformers.models.llama.modeling_llama", reason="transformers is the peer")
    config = without(LLAMA, "model_type") | {"rope_scaling": dict(fields)}
    theirs = code.LlamaRotaryEmbedding(code.LlamaConfig(**config))
    ours = rotary(LLAMA | {"rope_scaling": fields})
    frequencies = ours.frequencies(16, np.arange(4)) if ours.per_query else ours.frequencies(16)[None]
    np.testing.assert_allclose(frequencies[0], theirs.inv_freq.numpy(), rtol=1e-5)
    assert ours.amplitude == pytest.approx(theirs.attention_scaling, rel=1e-6)


def test_the_length_beside_the_rotation_wins() -> None:
    config = LLAMA | {"original_max_position_embeddings": 64, "rope_scaling": {"type": "llama3", **LLAMA3, **TRAINED}}
    assert rotary(config).scaling == Llama3Scaling(original_max_seq_len=64)
    code = pytest.importorskip("transformers.models.llama.modeling_llama", reason="transformers is the peer")
    theirs = code.LlamaRotaryEmbedding(code.LlamaConfig(**without(config, "model_type")))
    np.testing.assert_allclose(rotary(config).frequencies(16), theirs.inv_freq.numpy(), rtol=1e-5)


def test_the_base_among_the_rotation_wins() -> None:
    assert rotary(LLAMA | {"rope_parameters": {"rope_theta": 7.0}}).theta == 7.0
    assert rotary(LLAMA | {"rope_parameters": {"rope_theta": None}}).theta == 5000.0
    assert rotary(without(LLAMA, "rope_theta")).theta == 10_000.0  # LLaMA 1 and 2 say nothing


def test_whole_heads_may_be_called_a_part_of_one() -> None:
    assert rotary(LLAMA | {"partial_rotary_factor": 1.0}) == rotary(LLAMA)


# --- what is refused ------------------------------------------------------------------------------

IN_THE_WAY = [
    (
        LLAMA | {"model_type": "bloom"},
        "model_type='bloom' is not read; what is read: llama, mistral, qwen2, qwen3, gpt2",
    ),
    (
        LLAMA | {"sliding_window": 8},
        "sliding_window of config.json .*: the file says 8, and a llama always runs as None",
    ),
    (LLAMA | {"is_causal": False}, "is_causal of config.json .* the file says False, and a llama always runs as True"),
    (MISTRAL | {"attention_bias": True}, "attention_bias of config.json .* says True, and a mistral always"),
    (QWEN2 | {"attention_bias": False}, "attention_bias of config.json .* says False, and a qwen2 always"),
    (GPT2 | {"add_cross_attention": True}, "add_cross_attention of config.json stands in the way"),
    (LLAMA | {"partial_rotary_factor": 0.5}, "partial_rotary_factor .*: the file says 0.5; this type turns whole h"),
    (LLAMA | {"rope_parameters": {"partial_rotary_factor": 0.25}}, "partial_rotary_factor .*: the file says 0.25"),
    (
        LLAMA | {"rope_scaling": {"type": "su"}},
        "rope_scaling.rope_type .*: 'su' is not read; what is read: default, li",
    ),
    (
        LLAMA | {"rope_scaling": {"mrope_section": [1]}},
        "rope_scaling.mrope_section .*: it is not; what is read: rope_t",
    ),
    (LLAMA | {"rope_parameters": {"full_attention": {}}}, "rope_parameters.full_attention of config.json stands in"),
    (LLAMA | {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types .* a llama .* as 'full_attention'"),
    (MISTRAL | {"layer_types": ["sliding_attention"] * 2}, "layer_types .* a mistral .* as 'full_attention'"),
    (QWEN2 | {"layer_types": ["linear_attention"] * 4}, "layer_types .*: 'linear_attention' is not read; what is r"),
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
    *((GPT2, name) for name in ("n_embd", "n_head", "n_layer")),
]


@pytest.mark.parametrize(("config", "name"), NEEDED)
def test_fields_that_are_needed(config: dict[str, Any], name: str) -> None:
    layer_specs(config)
    with pytest.raises(CheckpointError, match=f"config.json has no {name}, which a {config['model_type']} needs; add"):
        layer_specs(without(config, name))


def test_a_file_without_a_type() -> None:
    with pytest.raises(CheckpointError, match=r"config.json has no model_type"):
        layer_specs(without(LLAMA, "model_type"))


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"type": "linear"}, "factor"),
        ({"type": "dynamic"}, "factor"),
        ({"type": "llama3", **without(LLAMA3, "low_freq_factor")}, "low_freq_factor"),
        ({"type": "longrope", **without(FACTORS, "long_factor")}, "long_factor"),
    ],
)
def test_fields_that_a_scaling_needs(fields: dict[str, Any], name: str) -> None:
    with pytest.raises(CheckpointError, match=f"config.json has no rope_scaling.{name}, which its rope_type needs"):
        layer_specs(LLAMA | {"rope_scaling": fields})


BROKEN = [
    (LLAMA | {"num_attention_heads": 5}, "5 heads do not divide the width of 64 that config.json gives"),
    (LLAMA | {"num_key_value_heads": 3}, "no attention that is defined: num_kv_heads=3 does not divide num_heads=4"),
    (LLAMA | {"hidden_size": "64"}, "no attention that is defined: hidden_size='64' is not allowed"),
    (LLAMA | {"rope_theta": "big"}, "no attention that is defined: theta='big' is not allowed"),
    (LLAMA | {"rope_scaling": "linear"}, "rope_scaling='linear' of config.json is not an object"),
    (LLAMA | {"rope_scaling": {"type": "longrope", **FACTORS, "short_factor": 2.0}}, "short_factor .* is not a list"),
    (LLAMA | {"rope_scaling": {"type": "longrope", **FACTORS, "short_factor": [1.0]}}, "short_factor has 1 entries"),
    (MISTRAL | {"sliding_window": 0}, "no attention that is defined: sliding_window=0 is not allowed"),
    (QWEN2 | SLIDING | {"layer_types": ["full_attention"]}, "layer_types=.* does not give each of the 4 layers its"),
    (QWEN2 | {"layer_types": ["sliding_attention"] * 4}, "layer_types has 'sliding_attention', .* gives no window"),
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
