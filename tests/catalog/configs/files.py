"""Small config.json files, and what is asked of what they are read into."""

from __future__ import annotations

from typing import Any

from polyhead.catalog.configs import layer_specs
from polyhead.spec import LayerSpec, Rotary

LLAMA = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2}
LLAMA |= {"num_key_value_heads": 2, "max_position_embeddings": 128, "rope_theta": 5000.0}
MISTRAL = LLAMA | {"model_type": "mistral", "sliding_window": None}
QWEN2 = LLAMA | {"model_type": "qwen2", "use_sliding_window": False, "num_hidden_layers": 4}
QWEN3 = QWEN2 | {"model_type": "qwen3", "head_dim": 32, "attention_bias": False, "rms_norm_eps": 1e-6}
GEMMA2 = LLAMA | {"model_type": "gemma2", "head_dim": 32, "attention_bias": False, "num_hidden_layers": 3}
GEMMA2 |= {"query_pre_attn_scalar": 16, "attn_logit_softcapping": 50.0, "sliding_window": 8}
GPT_OSS = LLAMA | {"model_type": "gpt_oss", "head_dim": 32, "attention_bias": True, "sliding_window": 8}
GPT_OSS |= {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "truncate": False}}
DIFFLLAMA = LLAMA | {"model_type": "diffllama", "attention_bias": False, "rms_norm_eps": 1e-5}
DEEPSEEK = {"model_type": "deepseek_v3", "hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2}
DEEPSEEK |= {"q_lora_rank": 24, "kv_lora_rank": 16, "qk_nope_head_dim": 12, "qk_rope_head_dim": 4, "v_head_dim": 10}
DEEPSEEK |= {"attention_bias": False, "rope_theta": 5000.0, "max_position_embeddings": 128}
GPT2 = {"model_type": "gpt2", "n_embd": 64, "n_head": 4, "n_layer": 3}
BLOOM = {"model_type": "bloom", "hidden_size": 64, "n_head": 4, "n_layer": 2}
FALCON = {"model_type": "falcon", "hidden_size": 64, "num_attention_heads": 8, "num_hidden_layers": 2}
FALCON |= {"alibi": False, "bias": False, "multi_query": True, "new_decoder_architecture": False}
T5 = {"model_type": "t5", "d_model": 64, "d_kv": 8, "num_heads": 4, "num_layers": 2}
T5 |= {"relative_attention_num_buckets": 16}
BIG_BIRD = {"model_type": "big_bird", "hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2}
BIG_BIRD |= {"attention_type": "block_sparse", "block_size": 8, "num_random_blocks": 3, "use_bias": True}
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
