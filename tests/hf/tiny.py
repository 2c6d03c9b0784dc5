"""Tiny models of every family that is adopted, with weights under which attention is far from even."""

from __future__ import annotations

import importlib
from typing import Any

import pytest

WINDOW = 5
SHAPE = {"vocab_size": 61, "hidden_size": 24, "intermediate_size": 20, "num_hidden_layers": 2}
SHAPE |= {"max_position_embeddings": 64, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
GROUPS = SHAPE | {"num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 4}
GPT2 = {
    "vocab_size": 61,
    "n_embd": 24,
    "n_layer": 2,
    "n_head": 3,
    "n_positions": 64,
    "bos_token_id": None,
    "eos_token_id": None,
}
FALCON = SHAPE | {"num_attention_heads": 6, "bias": True}
LATENT = SHAPE | {"num_attention_heads": 3, "num_key_value_heads": 3, "first_k_dense_replace": 2, "n_routed_experts": 4}
LATENT |= {"kv_lora_rank": 10, "qk_nope_head_dim": 6, "qk_rope_head_dim": 4, "v_head_dim": 5, "q_lora_rank": 8}
LATENT |= {"n_group": 1, "topk_group": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 8}


def rope(kind: str, **fields: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 1000.0, **fields}}


YARN = rope("yarn", factor=40.0, original_max_position_embeddings=16, mscale=1.0, mscale_all_dim=0.707)
YARN |= {"max_position_embeddings": 640}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
SLIDING = {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", GROUPS | {"attention_bias": True}),
    "llama-llama3": ("llama", GROUPS | rope("llama3", **LLAMA3)),
    "llama-yarn": ("llama", GROUPS | rope("yarn", factor=4.0, original_max_position_embeddings=16)),
    "mistral": ("mistral", GROUPS | {"sliding_window": WINDOW}),
    "mistral-no-window": ("mistral", GROUPS | {"sliding_window": None}),
    "mixtral": ("mixtral", GROUPS | {"sliding_window": WINDOW, "num_local_experts": 2, "num_experts_per_tok": 2}),
    "qwen2": ("qwen2", GROUPS),
    "qwen2-sliding": ("qwen2", GROUPS | SLIDING),
    "qwen3": ("qwen3", GROUPS),
    "gemma2": (
        "gemma2",
        GROUPS | {"sliding_window": WINDOW, "query_pre_attn_scalar": 5, "attn_logit_softcapping": 1.5},
    ),
    "gpt2": ("gpt2", GPT2),
    "gpt2-inverse": ("gpt2", GPT2 | {"scale_attn_by_inverse_layer_idx": True}),
    "falcon-mqa": ("falcon", FALCON | {"multi_query": True}),
    "falcon-mha": ("falcon", FALCON | {"multi_query": False, "bias": False, "parallel_attn": False}),
    "falcon-new": ("falcon", FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "bloom": (
        "bloom",
        {"vocab_size": 61, "hidden_size": 24, "n_layer": 2, "n_head": 3, "bos_token_id": None, "eos_token_id": None},
    ),
    "deepseek-v2": ("deepseek_v2", LATENT | YARN),
    "deepseek-v2-plain": ("deepseek_v2", LATENT | {"q_lora_rank": None}),
    "deepseek-v2-biased": ("deepseek_v2", LATENT | {"q_lora_rank": None, "attention_bias": True}),
    "deepseek-v3": ("deepseek_v3", LATENT | YARN | {"attention_bias": True}),
    "deepseek-v3-half": ("deepseek_v3", LATENT | {"rope_interleave": False}),
    "diffllama": ("diffllama", GROUPS | {"num_attention_heads": 8, "num_key_value_heads": 4}),
}
"""By name: the model type, and what its config has."""


def tiny(name: str, *, seed: int = 0, **fields: Any) -> Any:
    """Return a new model: float32, the model's own plain attention, evaluating."""
    transformers = pytest.importorskip("transformers", reason="the models are transformers'")
    model_type, given = MODELS[name]
    config = transformers.AutoConfig.for_model(model_type, **{**given, **fields})
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    fill(model, seed=seed)
    return model


def fill(model: Any, *, seed: int = 0) -> None:
    """Give every weight a size that matters: norms are not 1, biases not 0, and scores about 1."""
    torch = importlib.import_module("torch")
    numbers = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            size = min(parameter.shape[-2:]) ** -0.5 if parameter.dim() > 1 else 0.5
            shift = 1.0 if parameter.dim() == 1 else 0.0
            parameter.copy_(size * torch.randn(parameter.shape, generator=numbers) + shift)
