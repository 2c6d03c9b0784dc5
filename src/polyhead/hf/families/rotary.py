"""LLaMA and those built like it: projections by our names, RoPE, groups, windows."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from polyhead.hf.families.base import Adopted, Family


class Rotating(Adopted):
    """A module that is given cos and sin, which our layer makes itself, and the positions that they come from."""

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: Any = None,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend, called as the module of the model is."""
        return self.attend(
            hidden_states,
            attention_mask,
            past_key_values,
            kwargs.get("position_ids"),
            weights=self.wants_weights(kwargs.get("output_attentions")),
        )


FAMILIES = {
    "llama": Family(attention="llama.LlamaAttention", adopted=Rotating),
    "mistral": Family(attention="mistral.MistralAttention", adopted=Rotating),
    "qwen2": Family(attention="qwen2.Qwen2Attention", adopted=Rotating),
    "qwen3": Family(attention="qwen3.Qwen3Attention", adopted=Rotating),
    "mixtral": Family(attention="mixtral.MixtralAttention", adopted=Rotating),
    "gemma2": Family(attention="gemma2.Gemma2Attention", adopted=Rotating),
}
