"""Whole attention layers of decoders in transformers, eager, with the same weights and transformers' own masks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import polyhead as ph
from tests.peers.helpers import (
    PADDED,
    assert_same_layer,
    eager,
    filled,
    heads,
    joined,
    mask,
    modeling,
    normal,
    padding,
)
from tests.tolerances import assert_close

WINDOW, LENGTH = 4, 9
SHAPE = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2}
GROUPED = ph.Grouped(num_heads=4, num_kv_heads=2, head_dim=8)


def rope(kind: str = "default", **fields: Any) -> dict[str, Any]:
    return {"rope_type": kind, "rope_theta": 10_000.0, **fields}


@dataclasses.dataclass(frozen=True)
class Decoder:
    """A model's attention layer, and what it is in our words."""

    model: str
    prefix: str
    spec: ph.AttentionSpec
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    params: Callable[[nn.Module], dict[str, Tensor]] = lambda module: {}

    def build(self) -> tuple[nn.Module, nn.Module]:
        """Return the attention layer and the rotary embedding."""
        code = modeling(self.model)
        config = eager(getattr(code, f"{self.prefix}Config")(**{**SHAPE, "rope_parameters": rope(), **self.config}))
        attention = getattr(code, f"{self.prefix}Attention")(config, layer_idx=0)
        return filled(attention), getattr(code, f"{self.prefix}RotaryEmbedding")(config)

    def theirs(
        self, module: nn.Module, rotary: nn.Module, x: Tensor, key_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        kind = "causal" if self.spec.pattern == ph.Causal() else "sliding_window_causal"
        seen, cos_sin = mask(kind, module.config, x, key_mask), rotary(x, torch.arange(x.shape[1])[None])
        return module(x, position_embeddings=cos_sin, attention_mask=seen)

    def ours(self, module: nn.Module, x: Tensor, key_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        projections = (module.q_proj, module.k_proj, module.v_proj)
        query, key, value = (heads(project(x), self.spec.qk_head_dim) for project in projections)
        output, weights = ph.attend(
            query, key, value, self.spec, params=self.params(module), key_mask=key_mask, return_weights=True
        )
        project_out = module.dense if hasattr(module, "dense") else module.o_proj
        return project_out(joined(output)), weights


def spec(**choices: Any) -> ph.AttentionSpec:
    return ph.AttentionSpec(**{"storage": GROUPED, "position": ph.Rotary(), "pattern": ph.Causal(), **choices})


PARTIAL = {"rope_parameters": rope(partial_rotary_factor=0.5)}
SLIDING = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"], "head_dim": 8}
GPT_OSS_YARN = {"factor": 32.0, "original_max_position_embeddings": 4096, "truncate": False}
WINDOWED = ph.SlidingWindow.causal(WINDOW)
DECODERS = [
    Decoder("llama", "Llama", spec()),
    Decoder("mistral", "Mistral", spec(pattern=WINDOWED), {"sliding_window": WINDOW}),
    Decoder("cohere", "Cohere", spec(position=ph.Rotary(pairs="interleaved"))),
    Decoder("phi", "Phi", spec(position=ph.Rotary(rotary_dim=4)), PARTIAL),
    Decoder("glm", "Glm", spec(position=ph.Rotary(rotary_dim=4, pairs="interleaved")), PARTIAL | {"head_dim": 8}),
    Decoder(
        "gemma2",
        "Gemma2",
        spec(pattern=WINDOWED, weighting=ph.Softmax(scale=5**-0.5, softcap=0.7)),
        SLIDING | {"query_pre_attn_scalar": 5, "attn_logit_softcapping": 0.7},
    ),
    Decoder(
        "gpt_oss",
        "GptOss",
        spec(
            position=ph.Rotary(scaling=ph.YarnScaling(factor=32.0, original_max_seq_len=4096, truncate=False)),
            pattern=WINDOWED,
            weighting=ph.Softmax(sink=True),
        ),
        SLIDING | {"rope_parameters": rope("yarn", **GPT_OSS_YARN)},
        lambda module: {"sinks": module.sinks},
    ),
]


@PADDED
@pytest.mark.parametrize("case", DECODERS, ids=lambda case: case.model)
def test_layer(case: Decoder, padded: dict[str, int]) -> None:
    module, rotary = case.build()
    x = normal(2, LENGTH, SHAPE["hidden_size"], dtype=torch.float32, requires_grad=True)
    key_mask = padding(length=LENGTH, **padded)
    ours, theirs = case.ours(module, x, key_mask), case.theirs(module, rotary, x, key_mask)
    assert_same_layer(ours, theirs, [x, *module.parameters()], rows=key_mask)


TRAINED = 5
FACTORS = {"short_factor": [1.0, 1.5, 2.0, 2.5], "long_factor": [3.0, 4.0, 5.0, 6.0]}
DYNAMIC = ph.DynamicNTKScaling(factor=4.0, original_max_seq_len=TRAINED)
LONGROPE = ph.LongRopeScaling(original_max_seq_len=TRAINED, factor=4.0, **FACTORS)


@pytest.mark.parametrize(
    ("scaling", "longest", "rope_parameters"),
    [
        (DYNAMIC, TRAINED, rope("dynamic", factor=4.0)),
        (LONGROPE, 4 * TRAINED, rope("longrope", original_max_position_embeddings=TRAINED, **FACTORS)),
    ],
    ids=["dynamic", "longrope"],
)
def test_each_row_is_the_last_of_a_call_of_its_length(
    scaling: Any, longest: int, rope_parameters: dict[str, Any]
) -> None:
    """A call of transformers turns all rows by its longest position; each row of ours looks at its own alone."""
    config = {"max_position_embeddings": longest, "rope_parameters": rope_parameters}
    case = Decoder("llama", "Llama", spec(position=ph.Rotary(scaling=scaling)), config)
    module, _ = case.build()
    x = normal(2, LENGTH, SHAPE["hidden_size"], dtype=torch.float32)
    ours = case.ours(module, x)[0]
    for length in range(1, LENGTH + 1):
        rotary = case.build()[1]  # a new one: it keeps the longest length that it has seen
        theirs = case.theirs(module, rotary, x[:, :length])[0]
        assert_close(ours[:, length - 1], theirs[:, -1], theirs.dtype, what=f"row {length - 1}")
