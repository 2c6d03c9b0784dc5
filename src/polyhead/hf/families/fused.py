"""GPT-2, Falcon and Bloom: one projection makes queries, keys and values, each model in an order of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from polyhead.errors import UnsupportedError
from polyhead.hf.families.base import Adopted, Family, Shape
from polyhead.spec import Alibi, LayerSpec


def _fused_width(spec: LayerSpec) -> int:
    shapes = spec.parameter_shapes()
    return sum(shapes[f"{name}_proj.weight"][0] for name in "qkv")


class Gpt2(Adopted):
    """GPT-2's module. Its weights are ``[in, out]``; transposed and cut they are ours, without a copy."""

    def forward(
        self,
        hidden_states: Tensor,
        past_key_values: Any = None,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        output_attentions: bool | None = False,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend, called as the module of the model is."""
        if encoder_hidden_states is not None:
            raise UnsupportedError("encoder_hidden_states ask for cross-attention, which an adopted GPT-2 has not")
        weights = self.wants_weights(output_attentions)
        output, seen = self.attend(hidden_states, attention_mask, past_key_values, None, weights=weights)
        return self.original.resid_dropout(output), seen

    @staticmethod
    def shapes(spec: LayerSpec) -> dict[str, Shape]:
        """Return the model's parameters."""
        width, fused = spec.embed_dim, _fused_width(spec)
        weights = {"c_attn.weight": (width, fused), "c_proj.weight": (width, width)}
        return {**weights, "c_attn.bias": (fused,), "c_proj.bias": (width,)}

    @staticmethod
    def parts(given: Mapping[str, Tensor], spec: LayerSpec) -> dict[str, Tensor]:
        """Return our parameters, all views."""
        ours = {"o_proj.weight": given["c_proj.weight"].mT, "o_proj.bias": given["c_proj.bias"]}
        fused = zip("qkv", given["c_attn.weight"].mT.chunk(3), given["c_attn.bias"].chunk(3), strict=True)
        for name, weight, bias in fused:
            ours |= {f"{name}_proj.weight": weight, f"{name}_proj.bias": bias}
        return ours

    @staticmethod
    def dropout(original: Any) -> float:
        """Return the probability with which the original drops weights in training."""
        return float(original.attn_dropout.p)


class Grouping(Adopted):
    """A module whose rows lie group by group: a group's queries, then its key, then its value.

    With one group, as in Falcon's multi-query form, each part is a view. With more, a part's rows lie apart, and it
    is copied.
    """

    @staticmethod
    def shapes(spec: LayerSpec) -> dict[str, Shape]:
        """Return the model's parameters."""
        width, fused = spec.embed_dim, _fused_width(spec)
        shapes: dict[str, Shape] = {"query_key_value.weight": (fused, width), "dense.weight": (width, width)}
        if spec.qkv_bias:
            shapes |= {"query_key_value.bias": (fused,), "dense.bias": (width,)}
        return shapes

    @staticmethod
    def parts(given: Mapping[str, Tensor], spec: LayerSpec) -> dict[str, Tensor]:
        """Return our parameters; those of queries, keys and values are views ``[groups, heads, head_dim, ...]``."""
        groups, size = spec.attention.num_kv_heads, spec.attention.group_size
        ours: dict[str, Tensor] = {}
        for name, tensor in given.items():
            module, _, kind = name.partition(".")
            if module == "dense":
                ours[f"o_proj.{kind}"] = tensor
                continue
            rows = tensor.unflatten(0, (groups, size + 2, spec.attention.qk_head_dim))
            parts = rows.split([size, 1, 1], dim=1)
            ours |= {f"{one}_proj.{kind}": part for one, part in zip("qkv", parts, strict=True)}
        return ours


class Falcon(Grouping):
    """Falcon's module with RoPE."""

    def forward(
        self,
        hidden_states: Tensor,
        alibi: Tensor | None,
        attention_mask: Tensor | None,
        position_ids: Tensor | None = None,
        layer_past: Any = None,
        use_cache: bool = False,
        output_attentions: bool = False,
        position_embeddings: Any = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend, called as the module of the model is."""
        weights = self.wants_weights(output_attentions)
        return self.attend(hidden_states, attention_mask, layer_past, position_ids, weights=weights)

    @staticmethod
    def dropout(original: Any) -> float:
        """Return 0: with RoPE the original drops no weights, whatever its config says."""
        return 0.0


class Bloom(Grouping):
    """Bloom's module. Each head is a group of its own, so queries, keys and values are copied."""

    def forward(
        self,
        hidden_states: Tensor,
        residual: Tensor,
        alibi: Tensor | None,
        attention_mask: Tensor | None,
        layer_past: Any = None,
        use_cache: bool = False,
        output_attentions: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend and add the residual, called as the module of the model is."""
        tokens = hidden_states.shape[1]
        past = 0 if layer_past is None else layer_past.get_seq_length(self.layer_idx)
        positions = torch.arange(past, past + tokens, device=hidden_states.device)[None]
        if attention_mask is not None:  # Bloom counts its bias by the tokens that are no padding
            positions = attention_mask.cumsum(dim=1)[:, -tokens:] - 1
        output, weights = self.attend(
            hidden_states, attention_mask, layer_past, positions, weights=self.wants_weights(output_attentions)
        )
        output = nn.functional.dropout(output, self.original.hidden_dropout, self.training)
        return residual + output, weights

    @staticmethod
    def dropout(original: Any) -> float:
        """Return the probability with which the original drops weights in training."""
        return float(original.attention_dropout.p)


def _rounded_bias(spec: LayerSpec) -> str | None:
    if isinstance(spec.attention.position, Alibi):
        return (
            "alibi of its config stands in the way: transformers rounds a Falcon's biases to bfloat16, ours are exact"
        )
    return None


FAMILIES = {
    "gpt2": Family(attention="gpt2.GPT2Attention", adopted=Gpt2),
    "falcon": Family(attention="falcon.FalconAttention", adopted=Falcon, refuse=_rounded_bias),
    "bloom": Family(attention="bloom.BloomAttention", adopted=Bloom),
}
