"""T5, an encoder and a decoder with relative biases, and BigBird, an encoder of sparse blocks.

*Source*: transformers 5.23, configuration and modeling of t5 and big_bird.
"""

from __future__ import annotations

import dataclasses

from polyhead.catalog.configs.counting import Parameters, attention, gated, layer_norm, linear, plain
from polyhead.catalog.configs.fields import Config, Family, Stacks, head_dim_of, in_the_way
from polyhead.spec import (
    AttentionSpec,
    Causal,
    Chunked,
    Full,
    Global,
    Grouped,
    LayerSpec,
    Pattern,
    RandomLinks,
    RelativeBias,
    Softmax,
)
from polyhead.spec.choice import as_int


def _t5(config: Config) -> Stacks:
    """Read an encoder, a decoder, and its attention to the encoder.

    The first layer of each stack holds the bias's table and the others use it, so that each layer's spec has it.
    Attention to the encoder has no bias.
    """
    storage = Grouped(num_heads=config.whole("num_heads"), head_dim=config.whole("d_kv"))
    bias = RelativeBias.t5(
        num_buckets=config.whole("relative_attention_num_buckets"),
        max_distance=config.whole("relative_attention_max_distance"),
    )
    unscaled, width = Softmax(scale=1.0), config.embed_dim
    encoder = AttentionSpec(storage=storage, position=bias, weighting=unscaled)
    past = dataclasses.replace(bias, bidirectional=False)
    decoder = AttentionSpec(storage=storage, position=past, pattern=Causal(), weighting=unscaled)
    cross = AttentionSpec(storage=storage, weighting=unscaled)
    num_layers = config.whole("num_layers")
    num_decoder_layers = config.whole_or("num_decoder_layers", num_layers)
    return Stacks(
        layers=(LayerSpec(attention=decoder, embed_dim=width),) * num_decoder_layers,
        encoder_layers=(LayerSpec(attention=encoder, embed_dim=width),) * num_layers,
        cross_layers=(LayerSpec(attention=cross, embed_dim=width, source="cross"),) * num_decoder_layers,
    )


def _count_t5(config: Config, stacks: Stacks) -> Parameters:
    width = config.embed_dim
    is_gated = str(config.need("feed_forward_proj")).startswith("gated")
    mlp = (gated if is_gated else plain)(width, config.whole("d_ff"), bias=False)
    every = (*stacks.encoder_layers, *stacks.layers, *stacks.cross_layers)
    num_mlps = len(stacks.encoder_layers) + len(stacks.layers)
    blocks = sum(map(attention, every)) + num_mlps * mlp
    norms = (len(every) + num_mlps + 2) * width  # before each attention and feed-forward layer, and after each stack
    table = config.whole("num_heads") * config.whole("relative_attention_num_buckets")
    shared = (num_mlps - 2) * table  # a stack has one table, and each of its layers' specs the shape of it
    return Parameters(config.whole("vocab_size") * width + blocks - shared + norms)  # embeddings are always tied


def _big_bird(config: Config) -> Stacks:
    num_heads = config.whole("num_attention_heads")
    storage = Grouped(num_heads=num_heads, head_dim=head_dim_of(config.embed_dim, num_heads))

    def layer(number: int) -> LayerSpec:
        spec = AttentionSpec(storage=storage, pattern=_blocks(config, number))
        return LayerSpec(attention=spec, embed_dim=config.embed_dim, qkv_bias=config.flag("use_bias"), out_bias=True)

    return Stacks(layers=tuple(layer(number) for number in range(config.whole("num_hidden_layers"))))


def _blocks(config: Config, layer: int) -> Pattern:
    """Return a layer's pattern: three neighbouring blocks, the first and last for all, and random blocks.

    *Differs from* transformers in the random blocks alone, which are drawn here by `RandomLinks`, anew for each layer
    from its number. Training, transformers draws them from NumPy's generator, seeded by the same number, among the
    blocks that are not seen anyway; evaluating, it takes the first block for all of them, and so counts it more than
    once. Sequences of at most ``(5 + 2 · num_random_blocks) · block_size`` tokens it attends to in full.
    """
    kind = config.need("attention_type")
    if kind == "original_full":
        return Full()
    if kind != "block_sparse":
        raise in_the_way("attention_type", f"{kind!r} is not read; what is read: block_sparse, original_full")
    size, per_query = config.whole("block_size"), config.need("num_random_blocks")
    pattern = Chunked(size=size, left=1, right=1) | Global(first=size, last=size)
    if as_int("num_random_blocks", per_query, at_least=0):
        pattern = pattern | RandomLinks(per_query=per_query, seed=layer, block=size, span="all")
    return pattern


def _count_big_bird(config: Config, stacks: Stacks) -> Parameters:
    width = config.embed_dim
    tables = sum(config.whole(name) for name in ("max_position_embeddings", "type_vocab_size")) * width
    mlp = plain(width, config.whole("intermediate_size"), bias=True)
    blocks = sum(attention(layer) + mlp + 2 * layer_norm(width) for layer in stacks.layers)
    pooler = linear(width, width, bias=True)
    words = linear(width, width, bias=True) + layer_norm(width) + config.whole("vocab_size")  # its bias
    order = linear(width, 2, bias=True)
    return Parameters(config.vocabulary + tables + layer_norm(width) + blocks + pooler + words + order)


FAMILIES = (
    Family(
        model_type="t5",
        architecture="T5ForConditionalGeneration",
        read=_t5,
        count=_count_t5,
        width="d_model",
        length="n_positions",
        tied=True,
        aliases={
            "d_model": ("hidden_size",),
            "d_kv": ("head_dim",),
            "num_heads": ("num_attention_heads",),
            "num_layers": ("num_hidden_layers",),
        },
        # T5's files were published before these two fields existed
        omitted={"relative_attention_max_distance": 128, "feed_forward_proj": "relu"},
        fixed={"is_encoder_decoder": True, "is_decoder": False},
    ),
    Family(
        model_type="big_bird",
        architecture="BigBirdForPreTraining",
        read=_big_bird,
        count=_count_big_bird,
        tied=True,
        fixed={"is_decoder": False, "add_cross_attention": False},
    ),
)
