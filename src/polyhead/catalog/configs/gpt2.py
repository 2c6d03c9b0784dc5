"""GPT-2: learned positions outside attention, one projection for queries, keys and values, biases throughout.

*Source*: transformers 5.23, configuration and modeling of gpt2.
"""

from __future__ import annotations

import math

from polyhead.catalog.configs.counting import Parameters, attention, layer_norm, plain
from polyhead.catalog.configs.fields import Config, Family, Stacks, head_dim_of
from polyhead.catalog.configs.patterns import patterns
from polyhead.spec import AttentionSpec, Grouped, LayerSpec, Softmax


def _read(config: Config) -> Stacks:
    num_heads = config.whole("n_head")
    storage = Grouped(num_heads=num_heads, head_dim=head_dim_of(config.embed_dim, num_heads))
    scaled, by_layer = config.get("scale_attn_weights"), config.get("scale_attn_by_inverse_layer_idx")

    def scale(layer: int) -> float | None:
        if not by_layer:
            return None if scaled else 1.0
        return (1.0 / math.sqrt(storage.head_dim) if scaled else 1.0) / (layer + 1)

    specs = (
        AttentionSpec(storage=storage, pattern=pattern, weighting=Softmax(scale=scale(layer)))
        for layer, pattern in enumerate(patterns(config, config.whole("n_layer"), "none"))
    )
    layers = (LayerSpec(attention=spec, embed_dim=config.embed_dim, qkv_bias=True, out_bias=True) for spec in specs)
    return Stacks(layers=tuple(layers))


def _count(config: Config, stacks: Stacks) -> Parameters:
    width = config.embed_dim
    mlp = plain(width, config.whole_or("n_inner", 4 * width), bias=True)
    blocks = sum(attention(layer) + mlp + 2 * layer_norm(width) for layer in stacks.layers)
    positions = config.whole("n_positions") * width
    return Parameters(config.vocabulary + positions + blocks + layer_norm(width))


FAMILIES = (
    Family(
        model_type="gpt2",
        architecture="GPT2LMHeadModel",
        read=_read,
        count=_count,
        width="n_embd",
        length="n_positions",
        tied=True,
        aliases={
            "n_embd": ("hidden_size",),
            "n_head": ("num_attention_heads",),
            "n_layer": ("num_hidden_layers",),
            "n_positions": ("max_position_embeddings",),
        },
        # OpenAI's files have neither field; both came later, with defaults that keep the old arithmetic.
        omitted={"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False},
        fixed={"add_cross_attention": False, "is_causal": True},
    ),
)
