"""The fourth choice: how scores become weights."""

from __future__ import annotations

import dataclasses
import math

from polyhead.spec.choice import Choice, as_flag, as_float, as_int, one_of

FEATURE_MAPS = ("elu+1", "relu", "softplus")
DIFFERENTIAL_FORMS = ("paper", "diffllama", "clipped")


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Softmax(Choice):
    """Softmax over the scores a query may see.

    The order is fixed: ``scale``, then ``softcap · tanh(score / softcap)``, then the position's bias, the
    mask, the sink, and the softmax.

    Attributes:
        scale: Factor on q·k. None: ``1/√(query width)``. T5 uses 1.
        softcap: Bound on the scores, as in Gemma 2. None: no bound.
        sink: Whether each head has a learned logit that takes weight and gives no value, as in gpt-oss.

    *Source*: arXiv 1706.03762; softcap arXiv 2408.00118; sink arXiv 2309.17453, in gpt-oss's form.
    """

    scale: float | None = None
    softcap: float | None = None
    sink: bool = False

    def __post_init__(self) -> None:
        self._keep(as_float, "scale")
        self._keep(as_float, "softcap", above=0.0)
        self._keep(as_flag, "sink")


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Linear(Choice):
    """Linear attention: ``φ(q)·Σ φ(k) vᵀ / φ(q)·Σ φ(k)``, no softmax and no scale.

    With RoPE the features are rotated in the numerator only (RoFormer's eq. 19), so that the weights stay
    a function of distance. A row whose denominator is 0 (possible with ``relu``) gives zeros.

    Attributes:
        feature_map: φ: ``"elu+1"`` (the paper's), ``"relu"`` or ``"softplus"``.

    *Source*: arXiv 2006.16236, eqs. 4-7; with RoPE arXiv 2104.09864, eq. 19.
    """

    feature_map: str = "elu+1"

    def __post_init__(self) -> None:
        one_of("feature_map", self.feature_map, FEATURE_MAPS)


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Differential(Choice):
    """The difference of two softmax maps, ``softmax(Q₁K₁ᵀ/√d) − λ·softmax(Q₂K₂ᵀ/√d)``, times V.

    Queries come as ``2·num_heads`` maps and keys as ``2·num_kv_heads``; values as ``num_kv_heads`` of width
    ``v_head_dim``. The forms:

    - ``"paper"``: maps 2h and 2h+1 make head h; ``λ = exp(λ_q1·λ_k1) − exp(λ_q2·λ_k2) + λ_init``; the output
      goes through an RMS norm per head with a learned weight, times ``1 − λ_init``.
    - ``"diffllama"``: the same with maps h and h + num_heads, and a norm without a weight.
    - ``"clipped"``: maps 2h and 2h+1, ``λ = λ_init``, negative weights set to 0 and each row renormalised
      to 1; no norm. A row without a positive weight gives zeros.

    Attributes:
        form: Which of the three.
        layer: The layer's number counted from 1, from which the default λ_init follows.
        lambda_init: λ_init itself. None: ``0.8 − 0.6·exp(−0.3·(layer − 1))``.
        norm_eps: ε of the RMS norm (``"paper"`` and ``"diffllama"``).

    *Source*: arXiv 2410.05258, eqs. 1-3; transformers' DiffLlama for its pairing.
    """

    form: str = "paper"
    layer: int = 1
    lambda_init: float | None = None
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        one_of("form", self.form, DIFFERENTIAL_FORMS)
        self._keep(as_int, "layer", at_least=1)
        self._keep(as_float, "lambda_init")
        self._keep(as_float, "norm_eps", above=0.0)

    @property
    def initial_lambda(self) -> float:
        """λ_init, given or from the layer's number."""
        if self.lambda_init is not None:
            return self.lambda_init
        return 0.8 - 0.6 * math.exp(-0.3 * (self.layer - 1))


Weighting = Softmax | Linear | Differential
