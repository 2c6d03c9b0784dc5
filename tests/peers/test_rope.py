"""transformers' RoPE: which widths make a plane, how far each turns, and every scaling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

import polyhead as ph
from polyhead.position import rotary
from tests.peers.helpers import modeling, normal
from tests.tolerances import assert_close

HEAD_DIM = 32
TRAINED = 256  # tokens
BELOW_1024 = 1024 * 2.0**-23  # two last places of an angle near 1,024 in float32, in which the peer forms it


def spec(position: ph.Rotary) -> ph.AttentionSpec:
    return ph.AttentionSpec(storage=ph.Grouped(num_heads=3, head_dim=HEAD_DIM), position=position)


# --- which widths make a plane: the peer is given our own angles, so float64 leaves nothing but the layout ----


def full(model: str) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a peer's rotation that takes cos and sin twice as wide as there are planes."""

    def rotate(x: Tensor, angles: Tensor) -> Tensor:
        wide = angles.repeat_interleave(2, dim=-1) if model == "cohere" else angles.repeat(1, 2)
        return modeling(model).apply_rotary_pos_emb(x, x, wide[None].cos(), wide[None].sin())[0]

    return rotate


def gptj(x: Tensor, angles: Tensor) -> Tensor:
    rotated = modeling("gptj").apply_rotary_pos_emb(x.transpose(1, 2), angles[None].sin(), angles[None].cos())
    return rotated.transpose(1, 2)


def deepseek_v2(x: Tensor, angles: Tensor) -> Tensor:
    return modeling("deepseek_v2").apply_rotary_emb(x, x, torch.polar(torch.ones_like(angles), angles)[None])[0]


@pytest.mark.parametrize(
    ("peer", "pairs", "rotary_dim", "dtype"),
    [
        (full("llama"), "half", HEAD_DIM, torch.float64),
        (full("gpt_neox"), "half", 8, torch.float64),
        (full("glm"), "interleaved", HEAD_DIM, torch.float64),
        (full("glm"), "interleaved", 16, torch.float64),
        (gptj, "interleaved", HEAD_DIM, torch.float64),
        (full("cohere"), "interleaved", HEAD_DIM, torch.float32),  # these two turn in float32, whatever comes
        (deepseek_v2, "interleaved", HEAD_DIM, torch.float32),
    ],
    ids=["llama", "gpt_neox-partial", "glm", "glm-partial", "gptj", "cohere", "deepseek_v2"],
)
def test_layout(peer: Callable[[Tensor, Tensor], Tensor], pairs: str, rotary_dim: int, dtype: torch.dtype) -> None:
    position = ph.Rotary(pairs=pairs, rotary_dim=rotary_dim)
    x, positions = normal(2, 3, 5, HEAD_DIM, dtype=dtype), torch.tensor([0, 1, 7, 1023, 999_999])
    angles = positions[:, None] * torch.from_numpy(position.frequencies(rotary_dim))
    theirs = peer(x, angles)
    assert_close(rotary.rotate(x, positions[None], spec(position), start=0), theirs, dtype)
    assert (theirs - x)[..., :rotary_dim].abs().amax() > 0.5


# --- how far each plane turns --------------------------------------------------------------------------------


class Scaled(NamedTuple):
    """One setting of ours, and the same in a transformers configuration."""

    scaling: Any
    rope_parameters: dict[str, Any]
    seq_len: int = 1


def yarn(factor: float, original: int = TRAINED, **more: Any) -> Scaled:
    ours = ph.YarnScaling(factor=factor, original_max_seq_len=original, **more)
    theirs = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original, **more}
    return Scaled(ours, theirs)


def llama3(factor: float, low: float = 1.0, high: float = 4.0, original: int = 8192) -> Scaled:
    fields = {"factor": factor, "low_freq_factor": low, "high_freq_factor": high}
    ours = ph.Llama3Scaling(original_max_seq_len=original, **fields)
    return Scaled(ours, {"rope_type": "llama3", "original_max_position_embeddings": original, **fields})


def dynamic(factor: float, seq_len: int) -> Scaled:
    ours = ph.DynamicNTKScaling(factor=factor, original_max_seq_len=TRAINED)
    return Scaled(ours, {"rope_type": "dynamic", "factor": factor}, seq_len)


def longrope(seq_len: int, *, planes: int, **more: Any) -> Scaled:
    short, long = ([start + step * plane for plane in range(planes)] for start, step in ((1.0, 0.05), (2.0, 1.0)))
    factors = {"short_factor": short, "long_factor": long}
    ours = ph.LongRopeScaling(original_max_seq_len=TRAINED, **factors, **more)
    theirs = {"rope_type": "longrope", "original_max_position_embeddings": TRAINED, **factors, **more}
    return Scaled(ours, theirs, seq_len)


def linear(factor: float) -> Scaled:
    return Scaled(ph.LinearScaling(factor=factor), {"rope_type": "linear", "factor": factor})


PLANES = HEAD_DIM // 2
FIXED = {
    "linear": linear(4.0),
    "yarn": yarn(8.0),
    "yarn-attention_factor": yarn(8.0, attention_factor=1.25),
    "yarn-betas": yarn(8.0, beta_fast=16.0, beta_slow=2.0),
    "yarn-mscales": yarn(40.0, mscale=1.0, mscale_all_dim=0.707),
    "yarn-equal-mscales": yarn(40.0, 4096, mscale=0.707, mscale_all_dim=0.707),  # DeepSeek-V2-Lite
    "yarn-one-mscale": yarn(40.0, mscale=0.707),  # one alone is not looked at
    "yarn-not-truncated": yarn(32.0, 4096, truncate=False),  # gpt-oss
    "yarn-a-step": yarn(4.0, 5),  # the ramp's ends fall together
    "llama3": llama3(8.0),
    "llama3-short": llama3(32.0, low=2.0, high=8.0, original=512),
}
BY_LENGTH = {
    "dynamic-below": dynamic(4.0, TRAINED - 1),
    "dynamic-at": dynamic(4.0, TRAINED),
    "dynamic-past": dynamic(4.0, 3 * TRAINED + 7),
    "longrope-short": longrope(TRAINED, planes=PLANES),
    "longrope-long": longrope(TRAINED + 1, planes=PLANES),
    "longrope-factor": longrope(TRAINED + 1, planes=PLANES, factor=32.0),
    "longrope-attention_factor": longrope(TRAINED + 1, planes=PLANES, factor=32.0, attention_factor=1.5),
}
PARTIAL = {
    "linear": linear(4.0),
    "yarn": yarn(8.0),
    "llama3": llama3(8.0, original=512),
    "dynamic": dynamic(4.0, 1000),
    "longrope": longrope(1000, planes=6),
}


def config(case: Scaled, **more: Any) -> Any:
    return modeling("llama").LlamaConfig(
        hidden_size=3 * HEAD_DIM,
        num_attention_heads=3,
        max_position_embeddings=TRAINED,
        rope_parameters={"rope_theta": 10_000.0, **case.rope_parameters, **more},
    )


def assert_turns_alike(case: Scaled, rotary_dim: int, **more: Any) -> None:
    frequencies_of = modeling("llama").ROPE_INIT_FUNCTIONS[case.rope_parameters["rope_type"]]
    theirs, attention_factor = frequencies_of(config(case, **more), torch.device("cpu"), seq_len=case.seq_len)
    position = ph.Rotary(scaling=case.scaling)
    ours = torch.from_numpy(position.frequencies(rotary_dim, np.array(case.seq_len - 1)))
    assert_close(ours / theirs, torch.ones_like(theirs), theirs.dtype, what="frequencies")
    assert position.amplitude == pytest.approx(attention_factor, rel=1e-12)


@pytest.mark.parametrize("name", [*FIXED, *BY_LENGTH])
def test_scaled_frequencies_and_amplitude(name: str) -> None:
    assert_turns_alike((FIXED | BY_LENGTH)[name], HEAD_DIM)


@pytest.mark.parametrize("name", PARTIAL)
def test_a_scaling_of_some_widths_counts_only_those(name: str) -> None:
    assert_turns_alike(PARTIAL[name], 12, partial_rotary_factor=12 / HEAD_DIM)


@pytest.mark.parametrize(("alpha", "seq_len"), [(1.0, 4 * TRAINED), (2.0, 3 * TRAINED), (8.0, 5 * TRAINED // 2)])
def test_ntk_is_dynamic_ntk_at_a_fixed_length(alpha: float, seq_len: int) -> None:
    """NTK-aware scaling has no function in transformers, but an identity leads to one that has.

    Dynamic NTK multiplies the base by (α·L/trained − (α − 1))^(d/(d − 2)), NTK by factor^(d/(d − 2)): the same
    where factor = α·L/trained − (α − 1).
    """
    factor = alpha * seq_len / TRAINED - (alpha - 1.0)
    their_dynamic = {"rope_type": "dynamic", "factor": alpha}
    assert_turns_alike(Scaled(ph.NTKScaling(factor=factor), their_dynamic, seq_len), HEAD_DIM)


@pytest.mark.parametrize("name", ["default", *FIXED])
def test_rotated_queries_below_position_1024(name: str) -> None:
    llama = modeling("llama")
    case = FIXED.get(name, Scaled(None, {"rope_type": "default"}))
    x, positions = normal(2, 3, 6, HEAD_DIM, dtype=torch.float32), torch.tensor([[0, 1, 2, 30, 511, 1023]])
    cos, sin = llama.LlamaRotaryEmbedding(config(case))(x, positions)
    theirs = llama.apply_rotary_pos_emb(x, x, cos, sin)[0]
    ours = rotary.rotate(x, positions, spec(ph.Rotary(scaling=case.scaling)), start=0)
    assert (ours - theirs).abs().max() <= BELOW_1024
