"""transformers' models of every type that is read: tiny ones whose attention is run, and any size without numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
import torch

WINDOW = 5
SHAPE = {"vocab_size": 61, "hidden_size": 24, "intermediate_size": 20, "num_hidden_layers": 3, "rms_norm_eps": 1e-6}
SHAPE |= {"max_position_embeddings": 64, "rope_theta": 1000.0, "attention_bias": False, "pad_token_id": None}
GROUPS = SHAPE | {"num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 4}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
GEMMA2 = GROUPS | {"sliding_window": WINDOW, "query_pre_attn_scalar": 5, "attn_logit_softcapping": 1.5}
GPT_OSS_ROPE = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 16, "truncate": False}
GPT_OSS = GROUPS | EXPERTS | {"sliding_window": WINDOW, "attention_bias": True, "rope_scaling": GPT_OSS_ROPE}
DIFFLLAMA = GROUPS | {"num_attention_heads": 8, "num_key_value_heads": 4}
LATENT = SHAPE | {"num_attention_heads": 3, "num_key_value_heads": 3, "q_lora_rank": 8, "kv_lora_rank": 10}
LATENT |= {"qk_nope_head_dim": 6, "qk_rope_head_dim": 4, "v_head_dim": 5, "first_k_dense_replace": 1}
LATENT |= {"n_routed_experts": 4, "n_shared_experts": 2, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
LATENT |= {"n_group": 1, "topk_group": 1}
YARN = {"rope_type": "yarn", "factor": 40.0, "original_max_position_embeddings": 16, "mscale": 1.0}
YARN |= {"mscale_all_dim": 0.707}
GPT2 = {"vocab_size": 61, "n_embd": 24, "n_layer": 3, "n_head": 3, "n_positions": 64}
BLOOM = {"vocab_size": 61, "hidden_size": 24, "n_layer": 3, "n_head": 3}
FALCON = {"vocab_size": 61, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 8, "alibi": False}
FALCON |= {"bias": False, "multi_query": True, "new_decoder_architecture": False, "parallel_attn": True}
T5 = {"vocab_size": 61, "d_model": 24, "d_kv": 5, "d_ff": 20, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 3}
T5 |= {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 12, "decoder_start_token_id": 0}
BIG_BIRD = {"vocab_size": 61, "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3, "block_size": 2}
BIG_BIRD |= {"intermediate_size": 20, "max_position_embeddings": 64, "type_vocab_size": 2, "use_bias": True}
BIG_BIRD |= {"attention_type": "block_sparse", "num_random_blocks": 1}

CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", **GROUPS, "attention_bias": True, "mlp_bias": True},
    "mistral": {"model_type": "mistral", **GROUPS, "sliding_window": WINDOW},
    "mixtral": {"model_type": "mixtral", **GROUPS, **EXPERTS, "sliding_window": None},
    "mixtral, sliding": {"model_type": "mixtral", **GROUPS, **EXPERTS, "sliding_window": WINDOW},
    "qwen2": {"model_type": "qwen2", **GROUPS, "use_sliding_window": False} | {"attention_bias": None},
    "qwen3": {"model_type": "qwen3", **GROUPS, "use_sliding_window": True, "sliding_window": WINDOW}
    | {"max_window_layers": 1},
    "gemma2": {"model_type": "gemma2", **GEMMA2},
    "gemma2, the usual scale and no cap": {"model_type": "gemma2", **GEMMA2}
    | {"query_pre_attn_scalar": 4, "attn_logit_softcapping": None, "layer_types": ["full_attention"] * 3},
    "gpt_oss": {"model_type": "gpt_oss", **GPT_OSS},
    "diffllama": {"model_type": "diffllama", **DIFFLLAMA},
    "gpt2": {"model_type": "gpt2", **GPT2},
    "gpt2, scaled by layer": {"model_type": "gpt2", **GPT2, "n_inner": 40, "scale_attn_by_inverse_layer_idx": True},
    "deepseek_v2": {"model_type": "deepseek_v2", **LATENT, "rope_scaling": YARN, "mlp_bias": True},
    "deepseek_v2, no latent of queries": {"model_type": "deepseek_v2", **LATENT, "q_lora_rank": None}
    | {"attention_bias": True},
    "deepseek_v3": {"model_type": "deepseek_v3", **LATENT, "rope_scaling": YARN, "attention_bias": True},
    "deepseek_v3, halves, all dense": {"model_type": "deepseek_v3", **LATENT, "rope_interleave": False}
    | {"first_k_dense_replace": 3},
    "bloom": {"model_type": "bloom", **BLOOM},
    "falcon, one key": {"model_type": "falcon", **FALCON},
    "falcon, all keys, in sequence": {"model_type": "falcon", **FALCON, "multi_query": False, "parallel_attn": False}
    | {"bias": True},
    "falcon, groups": {"model_type": "falcon", **FALCON, "new_decoder_architecture": True, "num_kv_heads": 2},
    "falcon, groups and one norm": {"model_type": "falcon", **FALCON, "new_decoder_architecture": True}
    | {"num_kv_heads": 2, "num_ln_in_parallel_attn": 1},
    "falcon, alibi": {"model_type": "falcon", **FALCON, "alibi": True, "multi_query": False},
    "t5": {"model_type": "t5", **T5},
    "t5, gated": {"model_type": "t5", **T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    "big_bird": {"model_type": "big_bird", **BIG_BIRD},
    "big_bird, full": {"model_type": "big_bird", **BIG_BIRD, "attention_type": "original_full", "use_bias": False},
}
"""By name, what a config.json would have."""

ARCHITECTURES = {"gpt2": "GPT2LMHeadModel", "t5": "T5ForConditionalGeneration", "big_bird": "BigBirdForPreTraining"}
"""The class that published files of a type name, where it is not the one for causal language models."""


def module(config: Mapping[str, Any], device: str = "cpu") -> Any:
    """Return transformers' model for a config.json, with the attention of its eager code, evaluating.

    But for Falcon with ALiBi, whose eager code adds the bias twice: once as it is, once in the mask.
    """
    transformers = pytest.importorskip("transformers", reason="transformers is the peer")
    fields = json.loads(json.dumps(config))  # it changes what it is given
    read = transformers.AutoConfig.for_model(**fields)
    read._attn_implementation = "sdpa" if fields.get("alibi") else "eager"
    read._experts_implementation = "eager"  # the only one in float64
    kind = ARCHITECTURES.get(fields["model_type"])
    with torch.device(device):
        made = (
            transformers.AutoModelForCausalLM.from_config(read) if kind is None else getattr(transformers, kind)(read)
        )
    return made.eval()


def counted(config: Mapping[str, Any]) -> tuple[int, int]:
    """Return how many parameters transformers' model for a config.json has, and how many a token goes through."""
    made = module(config, "meta")
    total = sum(parameter.numel() for parameter in made.parameters())  # which are listed once where they are tied
    routed = sum(parameter.numel() for name, parameter in made.named_parameters() if ".experts." in name)
    count = next(
        (
            getattr(made.config, name)
            for name in ("num_local_experts", "n_routed_experts")
            if hasattr(made.config, name)
        ),
        1,
    )
    return total, total - routed * (count - getattr(made.config, "num_experts_per_tok", 1)) // count
