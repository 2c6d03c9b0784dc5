"""DiffLlama: LLaMA's projections, read as two maps for each head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from polyhead.errors import UnsupportedError
from polyhead.hf.families.base import Family
from polyhead.hf.families.rotary import Rotating
from polyhead.spec import LayerSpec


class RotatingMaps(Rotating):
    """DiffLlama's module, whose heads are maps: head i and i + half of them make one of ours.

    Its value heads i and i + half lie side by side in one of ours, which no view of ``v_proj.weight`` gives but
    where there are two: else it is copied.
    """

    @staticmethod
    def dropout(original: Any) -> float:
        """Return 0: transformers refuses a DiffLlama with dropout."""
        return 0.0

    @staticmethod
    def parts(given: Mapping[str, Tensor], spec: LayerSpec) -> dict[str, Tensor]:
        """Return our parameters; value heads are ``[2, heads, head_dim]`` there and ``[heads, 2, head_dim]`` here."""
        half = (2, spec.attention.num_kv_heads, spec.attention.qk_head_dim)
        values = {name: x.unflatten(0, half).transpose(0, 1) for name, x in given.items() if name.startswith("v_proj")}
        return {**given, **values}

    def wants_weights(self, asked: bool | None) -> bool:
        """Refuse what the model would return: the weights of each map, which our layer returns the difference of."""
        if super().wants_weights(asked):
            raise UnsupportedError(
                "output_attentions asks for the weights of each map, and an adopted layer has their difference; "
                "leave it out, or release the model"
            )
        return False


FAMILIES = {"diffllama": Family(attention="diffllama.DiffLlamaAttention", adopted=RotatingMaps)}
