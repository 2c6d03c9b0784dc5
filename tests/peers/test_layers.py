"""`ph.Attention` with the weights of other people's attention layers: a forward pass, its gradients, and decoding."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import polyhead as ph
from tests.peers.helpers import PADDED, assert_same_function, eager, filled, mask, modeling, normal, padding
from tests.tolerances import assert_close

LENGTH, EMBED_DIM, WINDOW, EPS = 9, 32, 4, 0.05  # a large ε, so that it shows
Weights = dict[str, Tensor]


def by_name(module: nn.Module) -> Weights:
    return dict(module.named_parameters())


@dataclasses.dataclass(frozen=True)
class Peer:
    """Someone's attention layer, what it is in our words, and where its weights go."""

    layer: ph.LayerSpec
    build: Callable[[], nn.Module]
    run: Callable[[nn.Module, Tensor, Tensor | None], Tensor]
    weights: Callable[[nn.Module], Weights] = by_name
    dtype: torch.dtype = torch.float32

    def x(self) -> Tensor:
        return normal(2, LENGTH, self.layer.embed_dim, dtype=self.dtype)

    def loaded(self, module: nn.Module) -> ph.Attention:
        """Return our layer with the module's weights."""
        layer = ph.Attention(self.layer, dtype=self.dtype).eval()
        layer.load_state_dict(self.weights(module), strict=True)
        return layer


def with_weights(spec: ph.LayerSpec, weights: Weights, *inputs: Tensor, **given: Any) -> Tensor:
    """Run our layer on given weights, into which gradients flow."""
    return functional_call(ph.Attention(spec, device="meta"), weights, inputs, given, strict=True)


# --- decoders of transformers that are given cos and sin


def decoder(
    model: str, prefix: str, layer: ph.LayerSpec, weights: Callable[[nn.Module], Weights] = by_name, **config: Any
) -> Peer:
    def made(part: str, *args: Any, **options: Any) -> Any:
        return getattr(modeling(model), f"{prefix}{part}")(*args, **options)

    def build() -> nn.Module:
        return filled(made("Attention", eager(made("Config", **{**SHAPE, **config})), layer_idx=0))

    def run(module: nn.Module, x: Tensor, key_mask: Tensor | None) -> Tensor:
        kind = "causal" if layer.attention.pattern == ph.Causal() else "sliding_window_causal"
        cos_sin = made("RotaryEmbedding", module.config)(x, torch.arange(x.shape[1])[None])
        return module(x, position_embeddings=cos_sin, attention_mask=mask(kind, module.config, x, key_mask))[0]

    return Peer(layer, build, run, weights)


def rope(kind: str = "default", **fields: Any) -> dict[str, Any]:
    return {"rope_type": kind, "rope_theta": 10_000.0, **fields}


SHAPE = {
    "hidden_size": EMBED_DIM,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "head_dim": 8,
    "rms_norm_eps": EPS,
    "rope_parameters": rope(),
}
GROUPED = ph.Grouped(num_heads=4, num_kv_heads=2, head_dim=8)
WINDOWED = ph.SlidingWindow.causal(WINDOW)
YARN = {"factor": 32.0, "truncate": False}
SLIDING = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}


def layer_of(choices: Mapping[str, Any], **fields: Any) -> ph.LayerSpec:
    attention = ph.AttentionSpec(**{"storage": GROUPED, "position": ph.Rotary(), "pattern": ph.Causal(), **choices})
    return ph.LayerSpec(attention=attention, **{"embed_dim": EMBED_DIM, "norm_eps": EPS, **fields})


GPT_OSS = {
    "position": ph.Rotary(scaling=ph.YarnScaling(original_max_seq_len=4096, **YARN)),
    "pattern": WINDOWED,
    "weighting": ph.Softmax(sink=True),
}

# --- DeepSeek: one projection makes keys and values of all heads

RANK, NOPE, ROPE_DIM, WIDE = 10, 6, 8, 5
RENAMED = {"kv_a_proj_with_mqa": "kv_a_proj", "kv_a_layernorm": "kv_a_norm", "q_a_layernorm": "q_a_norm"}


def split_up_projection(module: nn.Module) -> Weights:
    weights = {}
    for name, weight in module.named_parameters():
        part, _, kind = name.rpartition(".")
        weights[f"{RENAMED.get(part, part)}.{kind}"] = weight
    up = weights.pop("kv_b_proj.weight").unflatten(0, (4, NOPE + WIDE))
    return {**weights, "w_uk": up[:, :NOPE], "w_uv": up[:, NOPE:]}


def deepseek(version: str, q_lora_rank: int | None, pairs: str, **config: Any) -> Peer:
    sizes = {"kv_lora_rank": RANK, "q_lora_rank": q_lora_rank, "v_head_dim": WIDE}
    widths = {"qk_nope_head_dim": NOPE, "qk_rope_head_dim": ROPE_DIM}
    storage = ph.Latent(num_heads=4, **sizes, **widths)
    bias = config.get("attention_bias", False)
    # the norms' ε is no setting there, but DeepSeek's 1e-6
    layer = layer_of(
        {"storage": storage, "position": ph.Rotary(pairs=pairs)}, qkv_bias=bias, out_bias=bias, norm_eps=1e-6
    )
    config = {"num_key_value_heads": 4, "head_dim": ROPE_DIM, **sizes, **widths, **config}
    return decoder(f"deepseek_{version.lower()}", f"Deepseek{version}", layer, split_up_projection, **config)


# --- DiffLlama: maps i and i + num_heads make head i, and so do the halves of its value


def side_by_side(maps: Tensor) -> Tensor:
    """Put what belongs to one head, half the rows apart, next to each other."""
    return maps.unflatten(0, (2, -1, 8)).transpose(0, 1).flatten(0, 2)


def diffllama(form: str) -> Peer:
    layer = layer_of({"weighting": ph.Differential(form=form, norm_eps=EPS)}, qkv_bias=True, out_bias=True)

    def weights(module: nn.Module) -> Weights:
        moved = ("v_proj",) if form == "diffllama" else ("q_proj", "k_proj", "v_proj")
        found = {
            name: side_by_side(weight) if name.startswith(moved) else weight
            for name, weight in module.named_parameters()
        }
        return found if form == "diffllama" else {**found, "sub_norm": torch.ones(16)}

    maps = {"num_attention_heads": 8, "num_key_value_heads": 4}
    return decoder("diffllama", "DiffLlama", layer, weights, **maps, attention_bias=True)


# --- models without cos and sin


def t5(*, is_decoder: bool) -> Peer:
    position = ph.RelativeBias.t5(num_buckets=8, max_distance=6, bidirectional=not is_decoder)
    choices = {"storage": ph.Grouped(num_heads=3, head_dim=4), "position": position, "weighting": ph.Softmax(scale=1.0)}
    layer = layer_of({**choices, "pattern": ph.Causal() if is_decoder else ph.Full()}, embed_dim=10)

    def build() -> nn.Module:
        code = modeling("t5")
        buckets = {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 6}
        config = code.T5Config(d_model=10, d_kv=4, num_heads=3, is_decoder=is_decoder, **buckets)
        attention = code.T5Attention(eager(config), has_relative_attention_bias=True, layer_idx=0)
        return filled(attention, torch.float64)

    def run(module: Any, x: Tensor, key_mask: Tensor | None) -> Tensor:
        kind = "causal" if is_decoder else "bidirectional"
        return module(x, mask=mask(kind, module.config, x, key_mask))[0]

    def weights(module: Any) -> Weights:
        projections = {f"{name}_proj.weight": getattr(module, name).weight for name in "qkvo"}
        return {**projections, "bias_table": module.relative_attention_bias.weight}

    return Peer(layer, build, run, weights, torch.float64)


def bloom(num_heads: int) -> Peer:
    width = 4 * num_heads
    storage = ph.Grouped(num_heads=num_heads, head_dim=4)
    layer = layer_of({"storage": storage, "position": ph.Alibi()}, embed_dim=width, qkv_bias=True, out_bias=True)

    def build() -> nn.Module:
        code = modeling("bloom")
        return filled(code.BloomAttention(code.BloomConfig(hidden_size=width, n_head=num_heads), layer_idx=0))

    def run(module: Any, x: Tensor, key_mask: Tensor | None) -> Tensor:
        code, real = modeling("bloom"), torch.ones(x.shape[:2]) if key_mask is None else key_mask
        config = eager(code.BloomConfig(hidden_size=width, n_head=num_heads))
        alibi = code.build_alibi_tensor(real, num_heads, x.dtype)
        return module(x, torch.zeros_like(x), alibi, mask("causal", config, x, key_mask))[0]

    def weights(module: Any) -> Weights:
        found = {"o_proj.weight": module.dense.weight, "o_proj.bias": module.dense.bias}
        for kind in ("weight", "bias"):
            fused = getattr(module.query_key_value, kind).unflatten(0, (num_heads, 3, 4))  # head by head
            for index, name in enumerate("qkv"):
                found[f"{name}_proj.{kind}"] = fused[:, index].flatten(0, 1)
        return found

    return Peer(layer, build, run, weights)


PEERS = {
    "llama": decoder("llama", "Llama", layer_of({})),
    "llama-biases": decoder("llama", "Llama", layer_of({}, qkv_bias=True, out_bias=True), attention_bias=True),
    "mistral": decoder("mistral", "Mistral", layer_of({"pattern": WINDOWED}), sliding_window=WINDOW),
    "qwen2": decoder("qwen2", "Qwen2", layer_of({}, qkv_bias=True)),
    "qwen3": decoder("qwen3", "Qwen3", layer_of({}, qk_norm=True)),
    "gpt-oss": decoder(
        "gpt_oss",
        "GptOss",
        layer_of(GPT_OSS, qkv_bias=True, out_bias=True),
        **SLIDING,
        rope_parameters=rope("yarn", original_max_position_embeddings=4096, **YARN),
    ),
    "deepseek-v2": deepseek("V2", None, "interleaved"),
    "deepseek-v2-queries": deepseek("V2", 7, "interleaved", attention_bias=True),
    "deepseek-v3": deepseek("V3", 7, "interleaved", rope_interleave=True),
    "deepseek-v3-half": deepseek("V3", None, "half", rope_interleave=False),
    "diffllama": diffllama("diffllama"),
    "diffllama-as-paper": diffllama("paper"),
    "bloom": bloom(8),
    "bloom-12-heads": bloom(12),
    "t5-encoder": t5(is_decoder=False),
    "t5-decoder": t5(is_decoder=True),
}
DECODERS = {name: peer for name, peer in PEERS.items() if peer.layer.attention.pattern.is_causal}
by_decoder = pytest.mark.parametrize("peer", DECODERS.values(), ids=DECODERS)


@PADDED
@pytest.mark.parametrize("peer", PEERS.values(), ids=PEERS)
def test_a_forward_pass_and_its_gradients(peer: Peer, padded: dict[str, int]) -> None:
    module, x, real = peer.build(), peer.x().requires_grad_(), padding(length=LENGTH, **padded)
    given = {"lengths": real.sum(dim=-1)} if "right" in padded else {"key_mask": real}
    ours = with_weights(peer.layer, peer.weights(module), x, **given)
    assert_same_function(ours, peer.run(module, x, real), [x, *module.parameters()], rows=real)


@by_decoder
@torch.no_grad()
def test_decoding_token_by_token_is_the_peers_forward_pass(peer: Peer) -> None:
    module, x = peer.build(), peer.x()
    layer = peer.loaded(module)
    cache = layer.new_cache(len(x), LENGTH)
    pieces = [layer(x[:, token : token + 1], cache=cache) for token in range(LENGTH)]
    assert_close(torch.cat(pieces, dim=1), peer.run(module, x, None), peer.dtype)


@by_decoder
@torch.no_grad()
def test_prompts_of_unlike_lengths_decode_as_the_peers_forward_pass(peer: Peer) -> None:
    module, x = peer.build(), peer.x()
    layer, theirs = peer.loaded(module), peer.run(module, x, None)
    cache = layer.new_cache(2)
    prompts = [5, 2]
    output = layer(x[:, :5], cache=cache, lengths=prompts)
    for row, length in enumerate(prompts):
        assert_close(output[row, :length], theirs[row, :length], peer.dtype, what=f"prompt {row}")
    for step in range(LENGTH - 5):
        rows, tokens = torch.arange(2), torch.tensor(prompts) + step
        assert_close(layer(x[rows, tokens][:, None], cache=cache)[:, 0], theirs[rows, tokens], peer.dtype)


# --- nn.MultiheadAttention


def multihead(**options: Any) -> nn.MultiheadAttention:
    return filled(nn.MultiheadAttention(12, 3, batch_first=True, **options), torch.float64)


def multihead_weights(module: nn.MultiheadAttention) -> Weights:
    projections = [module.q_proj_weight, module.k_proj_weight, module.v_proj_weight]
    if module.in_proj_weight is not None:
        projections = list(module.in_proj_weight.chunk(3))
    found = {f"{name}_proj.weight": weight for name, weight in zip("qkv", projections, strict=True)}
    found["o_proj.weight"] = module.out_proj.weight
    if module.in_proj_bias is not None:
        found |= {f"{name}_proj.bias": bias for name, bias in zip("qkv", module.in_proj_bias.chunk(3), strict=True)}
        found["o_proj.bias"] = module.out_proj.bias
    return found


def multihead_layer(pattern: Any, *, bias: bool = True, **fields: Any) -> ph.LayerSpec:
    choices = {"storage": ph.Grouped(num_heads=3, head_dim=4), "position": ph.NoPosition(), "pattern": pattern}
    return layer_of(choices, embed_dim=12, qkv_bias=bias, out_bias=bias, **fields)


@pytest.mark.parametrize("bias", [True, False], ids=["biases", "no-biases"])
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_multi_head_self_attention(causal: bool, bias: bool) -> None:
    module, x, real = multihead(bias=bias), normal(2, 6, 12, requires_grad=True), padding(length=6, right=2)
    later = torch.ones(6, 6, dtype=torch.bool).triu(1) if causal else None
    theirs, _ = module(x, x, x, key_padding_mask=~real, attn_mask=later)
    spec = multihead_layer(ph.Causal() if causal else ph.Full(), bias=bias)
    ours = with_weights(spec, multihead_weights(module), x, key_mask=real)
    assert_same_function(ours, theirs, [x, *module.parameters()])


@pytest.mark.parametrize("context_dim", [None, 7])
def test_multi_head_cross_attention(context_dim: int | None) -> None:
    module = multihead(kdim=context_dim, vdim=context_dim)
    x, real = normal(2, 4, 12, seed=1, requires_grad=True), padding(length=7, right=3)
    context = normal(2, 7, context_dim or 12, seed=2, requires_grad=True)
    theirs, _ = module(x, context, context, key_padding_mask=~real)
    spec = multihead_layer(ph.Full(), source="cross", context_dim=context_dim)
    ours = with_weights(spec, multihead_weights(module), x, context=context, key_mask=real)
    assert_same_function(ours, theirs, [x, context, *module.parameters()])


@torch.no_grad()
def test_cross_attention_decodes_over_a_context_given_once() -> None:
    module = multihead(kdim=7, vdim=7)
    x, context, real = normal(2, 4, 12, seed=1), normal(2, 7, 7, seed=2), padding(length=7, right=3)
    theirs, _ = module(x, context, context, key_padding_mask=~real)
    layer = ph.Attention(multihead_layer(ph.Full(), source="cross", context_dim=7), dtype=torch.float64).eval()
    layer.load_state_dict(multihead_weights(module))
    cache = layer.new_cache(2)
    pieces = [layer(x[:, :1], context=context, key_mask=real, cache=cache)]
    pieces += [layer(x[:, token : token + 1], cache=cache) for token in range(1, 4)]
    assert_close(torch.cat(pieces, dim=1), theirs, torch.float64)
