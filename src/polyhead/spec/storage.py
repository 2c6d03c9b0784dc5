"""The first choice: what is stored for each token, and which heads share it."""

from __future__ import annotations

import dataclasses

from polyhead.errors import SpecError
from polyhead.spec.choice import Choice, as_int, divisors


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Grouped(Choice):
    """Keys and values per head, shared by groups of query heads.

    ``num_kv_heads == num_heads`` is multi-head attention, ``1`` is multi-query, anything between is
    grouped-query. Query head h reads key/value head ``h // (num_heads // num_kv_heads)``.
    The cache holds ``num_kv_heads · (head_dim + v_head_dim)`` numbers per token.

    Attributes:
        num_heads: Number of query heads, which is the number of outputs.
        num_kv_heads: Number of key/value heads; it must divide ``num_heads``. None: ``num_heads``.
        head_dim: Width of a query and of a key (with differential weighting: of one map's).
        v_head_dim: Width of a value. None: ``head_dim``, or twice that with differential weighting.

    *Source*: MHA arXiv 1706.03762, MQA arXiv 1911.02150, GQA arXiv 2305.13245.
    """

    num_heads: int
    num_kv_heads: int | None = None
    head_dim: int
    v_head_dim: int | None = None

    def __post_init__(self) -> None:
        self._keep(as_int, "num_heads", "num_kv_heads", "head_dim", "v_head_dim", at_least=1)
        if self.num_heads % self.kv_heads:
            *most, last = map(str, divisors(self.num_heads))
            allowed = f"{', '.join(most)} or {last}" if most else last
            raise SpecError(
                f"num_kv_heads={self.num_kv_heads} does not divide num_heads={self.num_heads}; use {allowed}"
            )
        object.__setattr__(self, "num_kv_heads", self.kv_heads)  # so that the default and the number compare equal

    @property
    def kv_heads(self) -> int:
        """Number of key/value heads, never None."""
        return self.num_kv_heads or self.num_heads

    @property
    def qk_head_dim(self) -> int:
        """Width of a query and of a key."""
        return self.head_dim


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Latent(Choice):
    """Multi-head latent attention: one low-rank row per token, from which all heads' keys and values come.

    ``key_h = [W_UK,h · c | k_rope]`` and ``value_h = W_UV,h · c``; only the latent c and the RoPE key
    shared by all heads are cached: ``kv_lora_rank + qk_rope_head_dim`` numbers per token.

    Attributes:
        num_heads: Number of heads.
        kv_lora_rank: Width of the latent c.
        q_lora_rank: Width of the query's own latent, a matter of the layer's projections. None: there is none.
        qk_nope_head_dim: Width of a query and key that no rotation touches.
        qk_rope_head_dim: Width of the RoPE key and of each query's part that meets it; may be 0.
        v_head_dim: Width of a value.

    *Source*: DeepSeek-V2, arXiv 2405.04434, eqs. 9-19.
    """

    num_heads: int
    kv_lora_rank: int
    q_lora_rank: int | None = None
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int

    def __post_init__(self) -> None:
        self._keep(as_int, "num_heads", "kv_lora_rank", "q_lora_rank", "qk_nope_head_dim", "v_head_dim", at_least=1)
        self._keep(as_int, "qk_rope_head_dim", at_least=0)

    @property
    def kv_heads(self) -> int:
        """Number of key/value heads after expansion: every head has its own."""
        return self.num_heads

    @property
    def qk_head_dim(self) -> int:
        """Width of a query and of an expanded key."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim


Storage = Grouped | Latent
