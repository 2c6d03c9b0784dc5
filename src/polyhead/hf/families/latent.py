"""DeepSeek-V2 and V3: multi-head latent attention, whose cache keeps latent rows that decoding never expands."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from polyhead.hf.families.base import Family, Shape
from polyhead.hf.families.rotary import Rotating
from polyhead.spec import LayerSpec

_THEIRS = {"q_a_norm": "q_a_layernorm", "kv_a_norm": "kv_a_layernorm", "kv_a_proj": "kv_a_proj_with_mqa"}


def _their_name(name: str) -> str:
    module, _, kind = name.partition(".")
    return f"{_THEIRS.get(module, module)}.{kind}"


class RotatingLatent(Rotating):
    """Multi-head latent attention; ``kv_b_proj`` holds W_UK and W_UV of each head one after the other."""

    @staticmethod
    def shapes(spec: LayerSpec) -> dict[str, Shape]:
        """Return the model's parameters."""
        ours = spec.parameter_shapes()
        (heads, nope, rank), (_, wide, _) = ours.pop("w_uk"), ours.pop("w_uv")
        return {"kv_b_proj.weight": (heads * (nope + wide), rank), **{_their_name(n): s for n, s in ours.items()}}

    @staticmethod
    def parts(given: Mapping[str, Tensor], spec: LayerSpec) -> dict[str, Tensor]:
        """Return our parameters; all are the model's own, or views."""
        ours = {name: given[_their_name(name)] for name in spec.parameter_shapes() if "." in name}
        (heads, nope, _), (_, wide, _) = (spec.parameter_shapes()[name] for name in ("w_uk", "w_uv"))
        both = given["kv_b_proj.weight"].unflatten(0, (heads, nope + wide))
        return {**ours, "w_uk": both[:, :nope], "w_uv": both[:, nope:]}


class RotatingLatentMaskFirst(RotatingLatent):
    """The same, with arguments in DeepSeek-V2's order."""

    def forward(  # type: ignore[override]
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        position_embeddings: Any = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend, called as the module of the model is."""
        return super().forward(hidden_states, position_embeddings, attention_mask, past_key_values, **kwargs)


FAMILIES = {
    "deepseek_v2": Family(attention="deepseek_v2.DeepseekV2Attention", adopted=RotatingLatentMaskFirst),
    "deepseek_v3": Family(attention="deepseek_v3.DeepseekV3Attention", adopted=RotatingLatent),
}
