"""Peers that are other people's attention layers, given the weights of ours."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from polyhead.bench.contender import Contender, Peer, missing
from polyhead.bench.work import Work, lacking
from polyhead.spec import (
    Alibi,
    AnyOf,
    AttentionSpec,
    Band,
    Causal,
    Differential,
    Full,
    Latent,
    LayerSpec,
    RandomLinks,
    Rotary,
)
from polyhead.spec.links import Links
from polyhead.spec.position import T5Bias

Forward = Callable[[Tensor], Tensor]


def _transformers(build: Callable[..., Contender | str], **options: str) -> Callable[[Work], Contender | str]:
    """Make a peer of a function that needs transformers."""

    def peer(work: Work) -> Contender | str:
        try:
            importlib.import_module("transformers")
        except ImportError as error:
            return missing("transformers", "transformers", error)
        return build(work, **options)

    return peer


def _modeling(model: str) -> Any:
    return importlib.import_module(f"transformers.models.{model}.modeling_{model}")


def _mask(kind: str, config: Any, x: Tensor) -> Any:
    """Return the mask that a model makes once for its layers, or None where it would leave it out."""
    utilities = importlib.import_module("transformers.masking_utils")
    return getattr(utilities, f"create_{kind}_mask")(config, x, None, past_key_values=None)


def _contender(work: Work, module: nn.Module, forward: Forward, spec: AttentionSpec | None = None) -> Contender:
    x = work.tensors["x"]
    module.eval().requires_grad_(work.case.training)
    run = work.timed(lambda: forward(x), [x, *module.parameters()])
    return Contender(run, same=True, spec=spec)


def _ours(work: Work) -> tuple[LayerSpec, dict[str, Tensor]]:
    """Return what our layer is, and its weights by name."""
    assert work.layer is not None
    return work.layer.spec, dict(work.layer.state_dict())


def t5(work: Work, *, implementation: str) -> Contender | str:
    """Run T5's self-attention, its bias computed as it does."""
    code, (spec, weights) = _modeling("t5"), _ours(work)
    attention = spec.attention
    if not isinstance(attention.position, T5Bias):
        return f"T5's layer has T5's bias, not {attention.position!r}"
    heads, length = attention.num_heads, work.case.length
    if reason := lacking(5.0 * heads * length**2 * work.dtype.itemsize, "for T5's scores"):
        return reason
    config = code.T5Config(
        d_model=spec.embed_dim,
        d_kv=attention.qk_head_dim,
        num_heads=heads,
        relative_attention_num_buckets=attention.position.num_buckets,
        relative_attention_max_distance=attention.position.max_distance,
        dropout_rate=0.0,
        is_decoder=False,
    )
    config._attn_implementation = implementation
    module = code.T5Attention(config, has_relative_attention_bias=True, layer_idx=0).to(work.dtype)
    renamed = {f"{name}.weight": weights[f"{name}_proj.weight"] for name in "qkvo"}
    module.load_state_dict({**renamed, "relative_attention_bias.weight": weights["bias_table"]})
    mask = _mask("bidirectional", config, work.tensors["x"])
    return _contender(work, module, lambda x: module(x, mask=mask)[0])


def _decoder(
    work: Work, model: str, prefix: str, weights: Mapping[str, Tensor], mask: str = "causal", **config: Any
) -> Contender:
    """Run a decoder's attention of transformers with SDPA; its mask, cos and sin are made outside the timing.

    In decoding its cache holds random keys and values of every head, to which a token's are appended.
    """
    code, x = _modeling(model), work.tensors["x"]
    spec, _ = _ours(work)
    position = spec.attention.position
    assert isinstance(position, Rotary)
    rope = {"rope_type": "default", "rope_theta": position.theta}
    made = getattr(code, f"{prefix}Config")(hidden_size=spec.embed_dim, rope_parameters=rope, **config)
    made._attn_implementation = "sdpa"
    module = getattr(code, f"{prefix}Attention")(made, layer_idx=0).to(work.dtype)
    module.load_state_dict(weights)
    past = work.case.length - work.case.q_len if work.case.decoding else 0
    angles = getattr(code, f"{prefix}RotaryEmbedding")(made)(x, past + torch.arange(x.shape[1])[None])
    if work.case.decoding:
        return _step(work, module, functools.partial(module, position_embeddings=angles, attention_mask=None), past)
    seen = _mask(mask, made, x)
    return _contender(work, module, lambda x: module(x, position_embeddings=angles, attention_mask=seen)[0])


def _step(work: Work, module: nn.Module, call: Callable[..., Any], past: int) -> Contender:
    """Run a module for the tokens after those in transformers' default cache, and take them back."""
    cache_utils = importlib.import_module("transformers.cache_utils")
    module.eval().requires_grad_(False)
    one, cache = cache_utils.DynamicCache(), cache_utils.DynamicCache()
    call(work.tensors["x"], past_key_values=one)  # what it keeps of a token is its own affair
    kept = [(*x.shape[:2], past, x.shape[3]) for x in (one.layers[0].keys, one.layers[0].values)]
    cache.update(*(torch.randn(shape, dtype=work.dtype) for shape in kept), 0)

    def forward() -> Tensor:
        output: Tensor = call(work.tensors["x"], past_key_values=cache)[0]
        cache.crop(-work.case.q_len)
        return output

    return Contender(work.timed(forward, []), same=False)


def mistral(work: Work) -> Contender | str:
    """Run Mistral's attention, its window as the boolean mask that it makes."""
    spec, weights = _ours(work)
    attention = spec.attention
    if not isinstance(attention.pattern, Band) or attention.pattern.left is None:
        return f"Mistral has a causal window, not {attention.pattern!r}"
    return _decoder(
        work,
        "mistral",
        "Mistral",
        weights,
        "sliding_window_causal",
        num_attention_heads=attention.num_heads,
        num_key_value_heads=attention.num_kv_heads,
        head_dim=attention.qk_head_dim,
        sliding_window=attention.pattern.left + 1,
    )


def diffllama(work: Work) -> Contender | str:
    """Run DiffLlama's attention, which keeps the halves of a head's value half the rows apart."""
    spec, weights = _ours(work)
    attention = spec.attention
    weighting = attention.weighting
    if not isinstance(weighting, Differential) or weighting.form != "diffllama":
        return f"DiffLlama has its own form of differential weighting, not {weighting!r}"
    value = weights["v_proj.weight"]
    weights["v_proj.weight"] = value.unflatten(0, (-1, 2, attention.qk_head_dim)).transpose(0, 1).flatten(0, 2)
    return _decoder(
        work,
        "diffllama",
        "DiffLlama",
        weights,
        num_attention_heads=2 * attention.num_heads,
        num_key_value_heads=2 * attention.num_kv_heads,
        head_dim=attention.qk_head_dim,
        rms_norm_eps=weighting.norm_eps,
    )


def deepseek_v2(work: Work) -> Contender | str:
    """Run DeepSeek-V2's attention, in which one projection makes keys and values of all heads."""
    spec, weights = _ours(work)
    storage = spec.attention.storage
    if not isinstance(storage, Latent):
        return f"DeepSeek-V2 stores a latent, not {storage!r}"
    up = torch.cat([weights.pop("w_uk"), weights.pop("w_uv")], dim=1).flatten(0, 1)
    theirs = {"kv_a_proj": "kv_a_proj_with_mqa", "kv_a_norm": "kv_a_layernorm", "q_a_norm": "q_a_layernorm"}
    renamed = {f"{theirs.get(part, part)}.weight": tensor for (part, _), tensor in _by_module(weights)}
    return _decoder(
        work,
        "deepseek_v2",
        "DeepseekV2",
        {**renamed, "kv_b_proj.weight": up},
        num_attention_heads=storage.num_heads,
        num_key_value_heads=storage.num_heads,
        kv_lora_rank=storage.kv_lora_rank,
        q_lora_rank=storage.q_lora_rank,
        qk_nope_head_dim=storage.qk_nope_head_dim,
        qk_rope_head_dim=storage.qk_rope_head_dim,
        head_dim=storage.qk_rope_head_dim,
        v_head_dim=storage.v_head_dim,
    )


def _by_module(weights: Mapping[str, Tensor]) -> list[tuple[tuple[str, str], Tensor]]:
    return [((name.rpartition(".")[0], name.rpartition(".")[2]), tensor) for name, tensor in weights.items()]


def bigbird(work: Work) -> Contender | str:
    """Run BigBird's block-sparse attention and its output projection, without the norm and the sum that follow.

    Its random blocks are drawn once, as in training, outside the timing; in evaluation it would take block 0 for all.
    """
    code, (spec, weights) = _modeling("big_bird"), _ours(work)
    attention, length = spec.attention, work.case.length
    links = _random_blocks(attention)
    if links is None or links.block is None:
        return f"BigBird has random blocks, and {attention.pattern!r} has none"
    config = code.BigBirdConfig(
        hidden_size=spec.embed_dim,
        num_attention_heads=attention.num_heads,
        block_size=links.block,
        num_random_blocks=links.per_query,
        use_bias=spec.qkv_bias,
        attention_probs_dropout_prob=0.0,
    )
    if length % links.block:
        return f"BigBird takes multiples of {links.block} tokens, not {length}"
    module = code.BigBirdBlockSparseAttention(config, seed=links.seed).to(work.dtype)
    dense = nn.Linear(spec.embed_dim, spec.embed_dim, bias=spec.out_bias, dtype=work.dtype)
    whole = nn.ModuleDict({"self": module, "dense": dense})
    theirs = {"q_proj": "self.query", "k_proj": "self.key", "v_proj": "self.value", "o_proj": "dense"}
    whole.load_state_dict({f"{theirs[part]}.{kind}": tensor for (part, kind), tensor in _by_module(weights)})
    real = torch.ones(1, length, dtype=work.dtype)
    blocked, band, rows, columns = code.BigBirdModel.create_masks_for_block_sparse_attn(real, links.block)

    def forward(x: Tensor) -> Tensor:
        output: Tensor = dense(module(x, band, rows, columns, blocked, blocked)[0])
        return output

    drawn = _draw_once(module, functools.partial(forward, work.tensors["x"]), attention.num_heads)
    middle = drawn[:, : length // links.block - 2]  # at 1024 and 3072 tokens it draws for 4096, and uses the first
    if (middle == length // links.block - 1).any():  # so it does at 1024 tokens
        return f"at {length} tokens BigBird draws the last block, which every query sees, and counts it twice"
    return _contender(work, whole, forward, links_as(attention, middle, links.block))


def _random_blocks(spec: AttentionSpec) -> RandomLinks | None:
    parts = spec.pattern.parts if isinstance(spec.pattern, AnyOf) else (spec.pattern,)
    return next((part for part in parts if isinstance(part, RandomLinks)), None)


def links_as(spec: AttentionSpec, drawn: Any, block: int) -> AttentionSpec:
    """Return a BigBird spec with given random blocks ``[heads, blocks - 2, links]`` in place of its own."""
    table = tuple(((), *(tuple(row) for row in head), ()) for head in drawn.tolist())  # global blocks draw none
    parts = spec.pattern.parts if isinstance(spec.pattern, AnyOf) else (spec.pattern,)
    kept = [part for part in parts if not isinstance(part, RandomLinks)]
    return dataclasses.replace(spec, pattern=AnyOf.of([*kept, Links(table=table, block=block)]))


def _draw_once(module: Any, run: Callable[[], Tensor], num_heads: int) -> Any:
    """Let a BigBird module draw its blocks as in training, make it keep them, and return them."""
    drawn: list[Any] = []
    names = ("_bigbird_block_rand_mask", "_bigbird_block_rand_mask_with_head")
    original = {name: getattr(module, name) for name in names}

    def recording(name: str) -> Callable[..., Any]:
        def draw(*args: Any, **kwargs: Any) -> Any:
            drawn.append(original[name](*args, **kwargs))
            return drawn[-1]

        return draw

    state = np.random.get_state()  # noqa: NPY002 - which it seeds anew
    for name in names:
        setattr(module, name, recording(name))
    with torch.no_grad():
        module.train()
        run()
        module.eval()
    np.random.set_state(state)  # noqa: NPY002
    by_head = drawn if len(drawn) == num_heads else drawn[0]
    again = itertools.cycle(by_head)  # at some lengths it draws head by head
    setattr(module, names[0], lambda *args, **kwargs: next(again))
    setattr(module, names[1], lambda *args, **kwargs: by_head)
    return np.stack(list(by_head))


def x_transformers(work: Work) -> Contender | str:
    """Run x-transformers' attention with its ALiBi, which it makes once and keeps, over PyTorch's SDPA."""
    try:
        code: Any = importlib.import_module("x_transformers.x_transformers")
    except ImportError as error:
        return missing("x_transformers", "x-transformers", error)
    spec, weights = _ours(work)
    attention = spec.attention
    if not isinstance(attention.position, Alibi) or attention.pattern not in (Causal(), Full()):
        return f"it is written here for ALiBi, full or causal, not for {attention!r}"
    causal = attention.pattern == Causal()
    heads, width = attention.num_heads, attention.qk_head_dim
    module = code.Attention(spec.embed_dim, dim_head=width, heads=heads, causal=causal, flash=True).to(work.dtype)
    renamed = {f"to_{name}.weight": weights[f"{name}_proj.weight"] for name in "qkv"}
    module.load_state_dict({**renamed, "to_out.weight": weights["o_proj.weight"]})
    bias = code.AlibiPositionalBias(heads=heads, total_heads=heads)
    bias.slopes = bias.slopes.to(work.dtype)

    def forward(x: Tensor) -> Tensor:
        output = module(x, rel_pos=bias)
        first: Tensor = output[0] if isinstance(output, tuple) else output
        return first

    return _contender(work, module, forward)


PEERS: Mapping[str, Peer] = {
    "t5-sdpa": Peer("transformers' T5 layer, SDPA", _transformers(t5, implementation="sdpa")),
    "t5-eager": Peer("transformers' T5 layer, eager", _transformers(t5, implementation="eager")),
    "mistral-sdpa": Peer("transformers' Mistral layer, SDPA", _transformers(mistral)),
    "bigbird": Peer("transformers' BigBird layer, block-sparse", _transformers(bigbird)),
    "diffllama-sdpa": Peer("transformers' DiffLlama layer, SDPA", _transformers(diffllama)),
    "deepseek-v2-sdpa": Peer("transformers' DeepSeek-V2 layer, SDPA", _transformers(deepseek_v2)),
    "deepseek-v2-step": Peer("transformers' DeepSeek-V2 layer and cache", _transformers(deepseek_v2)),
    "x-transformers": Peer("x-transformers' layer", x_transformers),
}
