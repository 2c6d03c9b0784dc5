"""DeepSeek-V2 and V3: multi-head latent attention, with YaRN's mscale in the scale of the scores.

*Source*: transformers 5.23, configuration and modeling of deepseek_v2 and deepseek_v3; arXiv 2405.04434, 2412.19437.
"""

from __future__ import annotations

import functools
import math

from polyhead.catalog.configs.counting import Parameters, attention, experts, gated, linear
from polyhead.catalog.configs.fields import Config, Family, Stacks, in_the_way
from polyhead.catalog.configs.rope import rope_fields, rotary
from polyhead.spec import AttentionSpec, Causal, Latent, LayerSpec, Softmax
from polyhead.spec.choice import as_int
from polyhead.spec.scaling import yarn_mscale


def _read(config: Config) -> Stacks:
    storage, bias = _storage(config), config.flag("attention_bias")
    pairs = "interleaved" if config.model_type == "deepseek_v2" or config.flag("rope_interleave") else "half"
    spec = AttentionSpec(
        storage=storage,
        position=rotary(config, pairs=pairs),
        pattern=Causal(),
        weighting=Softmax(scale=_scale(config, storage)),
    )
    # what goes into a latent has the bias, so without one of queries these have none; the latents' norms are made
    # without the config's ε, so they keep their class's
    layer = LayerSpec(attention=spec, embed_dim=config.embed_dim, qkv_bias=bias, out_bias=bias, norm_eps=1e-6)
    return Stacks(layers=(layer,) * config.whole("num_hidden_layers"))


def _storage(config: Config) -> Latent:
    num_heads, rank = config.whole("num_attention_heads"), config.need_stated("q_lora_rank")
    if config.get("num_key_value_heads") not in (None, num_heads):
        raise in_the_way("num_key_value_heads", f"a latent is expanded for each of the {num_heads} heads")
    widths = ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
    return Latent(
        num_heads=num_heads,
        q_lora_rank=None if rank is None else as_int("q_lora_rank", rank, at_least=1),
        **{name: config.whole(name) for name in widths},
    )


def _scale(config: Config, storage: Latent) -> float | None:
    """Return the factor on the scores, ``mscale² / √d`` under YaRN; None: the usual one."""
    rope = rope_fields(config)
    if rope.kind == "default" or not rope.fields.get("mscale_all_dim"):
        return None
    mscale = yarn_mscale(rope.factor, rope.fields["mscale_all_dim"])
    return mscale * mscale / math.sqrt(storage.qk_head_dim)


def _count(config: Config, stacks: Stacks) -> Parameters:
    """Count a decoder whose first layers are dense and whose others route between experts beside shared ones."""
    width = config.embed_dim
    num_dense = as_int("first_k_dense_replace", config.need("first_k_dense_replace"), at_least=0)
    bias = bool(config.get("mlp_bias")) and config.model_type == "deepseek_v2"
    dense = Parameters(gated(width, config.whole("intermediate_size"), bias=bias))
    routed = _routed(config, bias=bias) if num_dense < len(stacks.layers) else dense
    blocks = (
        Parameters(attention(layer) + 2 * width) + (dense if number < num_dense else routed)
        for number, layer in enumerate(stacks.layers)
    )
    return sum(blocks, Parameters(config.vocabulary + width))


def _routed(config: Config, *, bias: bool) -> Parameters:
    width, inner, count = config.embed_dim, config.whole("moe_intermediate_size"), config.whole("n_routed_experts")
    shared = gated(width, inner * config.whole("n_shared_experts"), bias=bias)
    router = linear(width, count, bias=False)
    return Parameters(router + shared) + experts(count, config.whole("num_experts_per_tok"), gated(width, inner))


_family = functools.partial(
    Family,
    read=_read,
    count=_count,
    fixed={"is_causal": True, "moe_layer_freq": 1},
)

FAMILIES = (
    _family(
        model_type="deepseek_v2",
        architecture="DeepseekV2ForCausalLM",
        aliases={"n_routed_experts": ("num_experts",)},
    ),
    _family(
        model_type="deepseek_v3",
        architecture="DeepseekV3ForCausalLM",
        aliases={"n_routed_experts": ("num_local_experts",)},
        omitted={"rope_interleave": True},  # which came after DeepSeek's files
    ),
)
