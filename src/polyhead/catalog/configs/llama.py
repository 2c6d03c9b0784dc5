"""LLaMA and the model types built like it: projections of queries, keys and values, RoPE, groups, windows.

*Source*: these types' configuration and modeling files in transformers 5.23.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

from polyhead.catalog.configs.counting import Parameters, attention, experts, gated, linear
from polyhead.catalog.configs.fields import Config, Family, Stacks, head_dim_of
from polyhead.catalog.configs.patterns import patterns
from polyhead.catalog.configs.rope import rotary
from polyhead.errors import CheckpointError
from polyhead.spec import AttentionSpec, Differential, Grouped, LayerSpec, Pattern, Softmax, Weighting
from polyhead.spec.choice import as_float, as_int

_OLDER = {"rope_theta": 10000.0, "num_key_value_heads": None, "attention_bias": False}
"""Fields that LLaMA 1 and 2 were published before."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Kind:
    """What a model type's attention has of its own.

    Attributes:
        bias: Whether q, k and v have a bias, and whether the output projection has one. None: the field
            ``attention_bias`` says so of all four.
        qk_norm: Whether queries and keys are normalised per head.
        windows: Which layers may slide, see `polyhead.catalog.configs.patterns.WINDOWS`.
        own_head_dim: Whether ``head_dim`` must be stated: the config class derives no width but has a number, and
            every published file states its own.
        own_scaling: Whether RoPE's scaling must be stated, the config class having one of its own.
        maps: How many of its heads are maps of one output head.
        weighting: A layer's weighting.
    """

    bias: tuple[bool, bool] | None = None
    qk_norm: bool = False
    windows: str = "none"
    own_head_dim: bool = False
    own_scaling: bool = False
    maps: int = 1
    weighting: Callable[[Config, int], Weighting] = lambda config, layer: Softmax()


def _read(config: Config, kind: _Kind) -> Stacks:
    if kind.own_scaling and not config.get("rope_parameters"):
        config.need("rope_scaling")
    storage, position = _storage(config, kind), rotary(config)
    bias = kind.bias or (config.flag("attention_bias"),) * 2
    norm = {"qk_norm": True, "norm_eps": config.need("rms_norm_eps")} if kind.qk_norm else {}

    def layer(number: int, pattern: Pattern) -> LayerSpec:
        weighting = kind.weighting(config, number)
        spec = AttentionSpec(storage=storage, position=position, pattern=pattern, weighting=weighting)
        return LayerSpec(attention=spec, embed_dim=config.embed_dim, qkv_bias=bias[0], out_bias=bias[1], **norm)

    seen = patterns(config, config.whole("num_hidden_layers"), kind.windows)
    return Stacks(layers=tuple(layer(number, pattern) for number, pattern in enumerate(seen)))


def _storage(config: Config, kind: _Kind) -> Grouped:
    num_heads = config.whole("num_attention_heads")
    num_kv_heads = config.need_stated("num_key_value_heads")  # null: one per query head
    num_kv_heads = num_heads if num_kv_heads is None else as_int("num_key_value_heads", num_kv_heads, at_least=1)
    if num_heads % kind.maps or num_kv_heads % kind.maps:
        raise CheckpointError(
            f"{num_heads} heads with {num_kv_heads} for keys are not whole pairs of maps, as a {config.model_type} has"
        )
    given = config.need("head_dim") if kind.own_head_dim else config.get("head_dim")
    head_dim = head_dim_of(config.embed_dim, num_heads) if given is None else as_int("head_dim", given, at_least=1)
    return Grouped(num_heads=num_heads // kind.maps, num_kv_heads=num_kv_heads // kind.maps, head_dim=head_dim)


def _gemma2(config: Config, layer: int) -> Weighting:
    scalar = as_float("query_pre_attn_scalar", config.need("query_pre_attn_scalar"), above=0.0)
    scale = None if scalar == config.need("head_dim") else scalar**-0.5  # the usual scale is not written out
    return Softmax(scale=scale, softcap=config.need_stated("attn_logit_softcapping"))


def _diffllama(config: Config, layer: int) -> Weighting:
    return Differential(form="diffllama", layer=layer + 1, norm_eps=config.need("rms_norm_eps"))


# --- parameters -----------------------------------------------------------------------------------


def _mlp(config: Config) -> Parameters:
    bias = bool(config.get("mlp_bias")) and config.model_type == "llama"
    return Parameters(gated(config.embed_dim, config.whole("intermediate_size"), bias=bias))


def _mixtral_mlp(config: Config) -> Parameters:
    width, count = config.embed_dim, config.whole("num_local_experts")
    each = gated(width, config.whole("intermediate_size"))
    return Parameters(linear(width, count, bias=False)) + experts(count, config.whole("num_experts_per_tok"), each)


def _gpt_oss_mlp(config: Config) -> Parameters:
    width, count = config.embed_dim, config.whole("num_local_experts")
    each = gated(width, config.whole("intermediate_size"), bias=True)
    return Parameters(linear(width, count, bias=True)) + experts(count, config.whole("num_experts_per_tok"), each)


def _count(config: Config, stacks: Stacks, *, norms: int = 2, mlp: Callable[[Config], Parameters] = _mlp) -> Parameters:
    """Count a decoder of blocks with so many RMS norms each, and one at the end."""
    width = config.embed_dim
    blocks = (Parameters(attention(layer) + norms * width) + mlp(config) for layer in stacks.layers)
    return sum(blocks, Parameters(config.vocabulary + width))


# --- the model types ------------------------------------------------------------------------------


def _family(
    model_type: str,
    architecture: str,
    kind: _Kind,
    *,
    fixed: dict[str, Any] | None = None,
    count: Callable[[Config, Stacks], Parameters] = _count,
    **more: Any,
) -> Family:
    return Family(
        model_type=model_type,
        architecture=architecture,
        read=functools.partial(_read, kind=kind),
        count=count,
        fixed={"is_causal": True, **(fixed or {})},
        **more,
    )


LLAMA = _family("llama", "LlamaForCausalLM", _Kind(), omitted=_OLDER, fixed={"sliding_window": None})

# A file without sliding_window relies on MistralConfig's 4096; from v0.2 on files say null: no window.
MISTRAL = _family(
    "mistral",
    "MistralForCausalLM",
    _Kind(bias=(False, False), windows="all"),
    omitted={"sliding_window": 4096},
    fixed={"attention_bias": False},
)

MIXTRAL = _family(
    "mixtral",
    "MixtralForCausalLM",
    _Kind(bias=(False, False), windows="all"),
    aliases={"num_local_experts": ("num_experts",)},
    fixed={"attention_bias": False},
    count=functools.partial(_count, mlp=_mixtral_mlp),
)

QWEN2 = _family("qwen2", "Qwen2ForCausalLM", _Kind(bias=(True, False), windows="some"), fixed={"attention_bias": True})

QWEN3 = _family("qwen3", "Qwen3ForCausalLM", _Kind(qk_norm=True, windows="some", own_head_dim=True))


GEMMA2 = _family(
    "gemma2",
    "Gemma2ForCausalLM",
    _Kind(windows="alternate", own_head_dim=True, weighting=_gemma2),
    tied=True,
    fixed={"use_bidirectional_attention": False},
    count=functools.partial(_count, norms=4),
)

GPT_OSS = _family(
    "gpt_oss",
    "GptOssForCausalLM",
    _Kind(windows="alternate", own_head_dim=True, own_scaling=True, weighting=lambda config, layer: Softmax(sink=True)),
    aliases={"num_local_experts": ("num_experts",)},
    count=functools.partial(_count, mlp=_gpt_oss_mlp),
)

DIFFLLAMA = _family(
    "diffllama",
    "DiffLlamaForCausalLM",
    _Kind(maps=2, weighting=_diffllama),
    fixed={"attention_dropout": 0.0},  # with dropout transformers does not build one
)

FAMILIES = (LLAMA, MISTRAL, MIXTRAL, QWEN2, QWEN3, GEMMA2, GPT_OSS, DIFFLLAMA)
