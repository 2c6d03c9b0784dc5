"""Bloom and Falcon: one projection for queries, keys and values; ALiBi in Bloom, RoPE or ALiBi in Falcon.

*Source*: transformers 5.23, configuration and modeling of bloom and falcon.
"""

from __future__ import annotations

import math

from polyhead.catalog.configs.counting import Parameters, attention, layer_norm, plain
from polyhead.catalog.configs.fields import Config, Family, Stacks, head_dim_of, in_the_way
from polyhead.catalog.configs.rope import rotary
from polyhead.spec import Alibi, AttentionSpec, Causal, Grouped, LayerSpec, Position
from polyhead.spec.position import alibi_slopes


def _bloom(config: Config) -> Stacks:
    num_heads = config.whole("n_head")
    storage = Grouped(num_heads=num_heads, head_dim=head_dim_of(config.embed_dim, num_heads))
    spec = AttentionSpec(storage=storage, position=Alibi(), pattern=Causal())
    layer = LayerSpec(attention=spec, embed_dim=config.embed_dim, qkv_bias=True, out_bias=True)
    return Stacks(layers=(layer,) * config.whole("n_layer"))


def _count_bloom(config: Config, stacks: Stacks) -> Parameters:
    width = config.embed_dim
    mlp = plain(width, 4 * width, bias=True)
    blocks = sum(attention(layer) + mlp + 2 * layer_norm(width) for layer in stacks.layers)
    return Parameters(config.vocabulary + blocks + 2 * layer_norm(width))  # after the embeddings, and at the end


def _falcon(config: Config) -> Stacks:
    num_heads = config.whole("num_attention_heads")
    head_dim = head_dim_of(config.embed_dim, num_heads)
    storage = Grouped(num_heads=num_heads, num_kv_heads=_falcon_kv_heads(config, num_heads), head_dim=head_dim)
    spec = AttentionSpec(storage=storage, position=_falcon_position(config, storage), pattern=Causal())
    bias = config.flag("bias")
    layer = LayerSpec(attention=spec, embed_dim=config.embed_dim, qkv_bias=bias, out_bias=bias)
    return Stacks(layers=(layer,) * config.whole("num_hidden_layers"))


def _falcon_kv_heads(config: Config, num_heads: int) -> int:
    """Return the number of key/value heads, which ``num_kv_heads`` says in the new architecture alone."""
    given = config.whole_or("num_kv_heads", num_heads)
    if config.flag("new_decoder_architecture"):
        return given
    if config.flag("multi_query"):
        return 1
    if given != num_heads:
        raise in_the_way("num_kv_heads", f"the file says {given}, and without groups each of {num_heads} has its own")
    return num_heads


def _falcon_position(config: Config, storage: Grouped) -> Position:
    """Return RoPE or ALiBi, whose slopes Falcon divides by √d as it does the scores.

    *Differs from* transformers, which rounds slopes and biases to bfloat16 in every dtype, and whose eager code (not
    the default one) adds the bias twice.
    """
    if not config.flag("alibi"):
        return rotary(config)
    scale = math.sqrt(storage.head_dim)
    return Alibi(slopes=tuple(slope / scale for slope in alibi_slopes(storage.num_heads)))


def _count_falcon(config: Config, stacks: Stacks) -> Parameters:
    width, bias, new = config.embed_dim, config.flag("bias"), config.flag("new_decoder_architecture")
    mlp = plain(width, config.whole_or("ffn_hidden_size", 4 * width), bias=bias)
    parallel_norms = config.whole_or("num_ln_in_parallel_attn", 2 if new else 1)
    norms = 2 if not config.flag("parallel_attn") or parallel_norms == 2 else 1
    blocks = sum(attention(layer) + mlp + norms * layer_norm(width) for layer in stacks.layers)
    return Parameters(config.vocabulary + blocks + layer_norm(width))


FAMILIES = (
    Family(
        model_type="bloom",
        architecture="BloomForCausalLM",
        read=_bloom,
        count=_count_bloom,
        length="seq_length",
        tied=True,
        aliases={
            "hidden_size": ("n_embed",),
            "n_head": ("num_attention_heads",),
            "n_layer": ("num_hidden_layers",),
        },
        fixed={"is_causal": True},
    ),
    Family(
        model_type="falcon",
        architecture="FalconForCausalLM",
        read=_falcon,
        count=_count_falcon,
        tied=True,
        aliases={"hidden_size": ("n_embed",)},
        # Falcon's files were published before these two fields existed
        omitted={"rope_theta": 10000.0, "max_position_embeddings": 2048},
        fixed={"is_causal": True},
    ),
)
