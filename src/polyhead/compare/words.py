"""What each stage of a token's way is called, and what it is in a sentence."""

from __future__ import annotations

import math
from collections.abc import Callable

from polyhead.spec import Alibi, AttentionSpec, Differential, Latent, Linear, Softmax
from polyhead.spec.position import ShawBias

NAMES = {
    "rotated query": "query turned",
    "rotated keys": "keys turned",
    "relative keys": "keys with distances",
    "query features": "φ(q)",
    "key features": "φ(k)",
    "feature products": "φ(q)·φ(k)",
    "seen products": "mask",
    "products": "q·k",
    "capped": "capped",
    "biased": "with the bias",
    "masked": "mask",
    "exponentials": "e^(score − largest)",
    "lambda": "λ",
    "difference": "map 1 − λ·map 2",
    "clipped": "negatives to 0",
    "mixed": "weighted values",
}
"""Names to read of stages that go by another in the oracle."""


def shown_name(name: str) -> str:
    """Return the name to read of a stage."""
    return NAMES.get(name, name)


def what_is(name: str, spec: AttentionSpec, tokens: str = "") -> str:
    """Say in a sentence what a stage is.

    Args:
        name: Its name in the oracle, ``"latent"``, or ``"tile"``.
        spec: The mechanism.
        tokens: A tile's keys.

    Returns:
        The sentence.
    """
    if name == "tile":
        return f"The keys {tokens}: what came before shrinks where a larger score has come, and theirs is added."
    words = _WORDS[name]
    return words if isinstance(words, str) else words(spec)


def _query(spec: AttentionSpec) -> str:
    pieces = " in each head" if spec.num_heads > 1 else ""
    return f"What the token asks with{pieces}{', cut into two maps' if spec.num_maps > 1 else ''}."


def _keys(spec: AttentionSpec) -> str:
    source = ", unfolded from the latent" if isinstance(spec.storage, Latent) else ""
    return f"What it meets: a key for each token{source}."


def _rotated_query(spec: AttentionSpec) -> str:
    after = ", after φ" if isinstance(spec.weighting, Linear) else ""
    return f"The query turned by its position{after}: pair by pair of widths, each pair at its own speed."


def _products(spec: AttentionSpec) -> str:
    if isinstance(spec.weighting, Linear):
        return "The products of the turned features, which stand above the line; the sum below it knows no position."
    return "The dot product of the query with each key: how well they match."


def _scaled(spec: AttentionSpec) -> str:
    is_usual = math.isclose(spec.scale, 1.0 / math.sqrt(spec.qk_head_dim))
    source = f", which is 1/√{spec.qk_head_dim}" if is_usual else ""
    return f"Times {spec.scale:.4g}{source}: the score."


def _capped(spec: AttentionSpec) -> str:
    assert isinstance(spec.weighting, Softmax)
    return f"Bounded to ±{spec.weighting.softcap:g}, by {spec.weighting.softcap:g}·tanh(score / …)."


def _bias(spec: AttentionSpec) -> str:
    if isinstance(spec.position, Alibi):
        return "What ALiBi adds: minus the head's slope times the distance to each key."
    return "What the bias holds for the distance to each key."


def _masked(spec: AttentionSpec) -> str:
    return f"What {spec.pattern!r} hides is struck out."


def _sum(spec: AttentionSpec) -> str:
    if isinstance(spec.weighting, Linear):
        return "Their sum over the keys that the token sees; decoding keeps Σ φ(k) for it, and no key."
    has_sink = isinstance(spec.weighting, Softmax) and spec.weighting.sink
    return f"Their sum{', with that of the sink, which takes weight and gives no value' if has_sink else ''}."


def _weights(spec: AttentionSpec) -> str:
    if isinstance(spec.weighting, Linear):
        return "Each over the sum: the share that a key has in the output, which linear attention itself never forms."
    if isinstance(spec.weighting, Differential):
        if spec.weighting.form == "clipped":
            return "Each over their sum, so that they add up to 1 again."
        return "The first map less λ times the second, kept as it is: some are negative, and the sum is about 1 − λ."
    return f"Each over the sum: shares that add up to 1{' with the sink' if spec.weighting.sink else ''}."


def _values(spec: AttentionSpec) -> str:
    source = ", unfolded from the latent" if isinstance(spec.storage, Latent) else ""
    relative = "; the vector of its distance is added to each" if isinstance(spec.position, ShawBias) else ""
    return f"What each key's token has to give{source}{relative}."


def _output(spec: AttentionSpec) -> str:
    if isinstance(spec.weighting, Differential) and spec.weighting.form != "clipped":
        factor = 1 - spec.weighting.initial_lambda
        return f"That over its root mean square, times 1 − λ_init = {factor:.4g}."
    return "The values weighted and summed."


def _features(spec: AttentionSpec) -> str:
    assert isinstance(spec.weighting, Linear)
    return {"elu+1": "elu(x) + 1", "relu": "max(x, 0)", "softplus": "log(1 + eˣ)"}[spec.weighting.feature_map]


_WORDS: dict[str, str | Callable[[AttentionSpec], str]] = {
    "latent": "What is stored for each token, and all that a cache would hold of it.",
    "query": _query,
    "keys": _keys,
    "rotated query": _rotated_query,
    "rotated keys": "Each key turned by its own position, so that a product knows how far apart they are.",
    "relative keys": "To each key the vector learned for its distance is added.",
    "products": _products,
    "scaled": _scaled,
    "capped": _capped,
    "bias": _bias,
    "biased": "The score with what was added.",
    "masked": _masked,
    "seen products": _masked,
    "exponentials": "e to the power of each score, less the largest first, which changes no share.",
    "sum": _sum,
    "softmax": "Each over its map's sum: two sets of shares, each adding up to 1.",
    "lambda": "How much of the second map is taken from the first.",
    "difference": "What both maps like cancels.",
    "clipped": "What only the second map likes is set to 0.",
    "query features": lambda spec: f"φ(q), with φ(x) = {_features(spec)}: no number is negative.",
    "key features": lambda spec: f"φ of each key, with φ(x) = {_features(spec)}.",
    "feature products": "The dot product of the query's features with each key's: what takes the place of e^score.",
    "weights": _weights,
    "values": _values,
    "mixed": "The values weighted and summed.",
    "output": _output,
}
