"""What published models stack, as a Markdown table: ``python scripts/model_table.py llama-3-8b mistral-7b-v0.1``.

Every cell is computed from the catalogue, that is from the fields of each model's config.json. Without names all of
the catalogue's models come.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

import polyhead as ph
from polyhead.errors import SpecError
from polyhead.spec import (
    Alibi,
    AnyOf,
    Band,
    Causal,
    Differential,
    Full,
    Latent,
    LayerSpec,
    NoPosition,
    Pattern,
    Position,
    Retention,
    Rotary,
    Softmax,
    Storage,
    Weighting,
    retention,
)

LONGEST = 2**17  # 128K tokens
BYTES = 2  # of a bfloat16
HEADER = ("model", "layers", "storage", "position", "pattern", "weighting", "kept of a token", "bfloat16, all layers")


def table(names: Sequence[str]) -> str:
    """Return the table of some models, a row for each group of layers that it says the same of."""
    found = [ph.model(name) for name in names] or ph.models()
    lines = [HEADER, ["---"] * len(HEADER), *(row for model in found for row in rows(model))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def rows(model: ph.Model) -> Iterator[tuple[str, ...]]:
    """Yield a model's rows; its name and what its layers keep together stand in the first alone."""
    stacks = {"encoder, ": model.encoder_layers, "": model.layers, "to the encoder, ": model.cross_layers}
    title, total = model.title, in_all(model)
    for stack, layers in stacks.items():
        groups: dict[tuple[str, ...], list[int]] = {}
        for number, layer in enumerate(layers):
            groups.setdefault(choices(layer), []).append(number)
        for cells, numbers in groups.items():
            yield title, stack + counted(numbers, len(layers)), *cells, total
            title, total = "", ""


def choices(layer: LayerSpec) -> tuple[str, ...]:
    """Return a layer's four choices and what its cache keeps of a token."""
    spec = layer.attention
    kept = "none" if (found := retained(layer)) is None else f"{found.row:,}"
    return (
        storage(spec.storage) + biases(layer),
        position(spec.position),
        pattern(spec.pattern),
        weighting(spec.weighting, spec.qk_head_dim),
        kept,
    )


def counted(numbers: Sequence[int], of: int) -> str:
    """Return which layers a group is."""
    return f"all {of}" if len(numbers) == of else f"{len(numbers)}: {', '.join(map(str, numbers[:2]))}, …"


def storage(choice: Storage) -> str:
    """Return what is kept, and for which heads."""
    if isinstance(choice, Latent):
        return f"{choice.num_heads} heads, latent {choice.kv_lora_rank} + {choice.qk_rope_head_dim}"
    return f"{choice.num_heads} heads, {choice.num_kv_heads} kv, width {choice.head_dim}"


def biases(layer: LayerSpec) -> str:
    """Return which projections have a bias."""
    which = {"q, k, v": layer.qkv_bias, "output": layer.out_bias}
    named = " and ".join(name for name, has in which.items() if has)
    return f"; biases on {named}" if named else ""


def position(choice: Position) -> str:
    """Return what tells positions apart."""
    if isinstance(choice, Rotary):
        scaling = "" if choice.scaling is None else f", {type(choice.scaling).__name__} ×{choice.scaling.factor:g}"
        return f"RoPE, θ {choice.theta:,.0f}{scaling}"
    if isinstance(choice, NoPosition):
        return "none in attention"
    return "ALiBi" if isinstance(choice, Alibi) else "relative bias"


def pattern(choice: Pattern) -> str:
    """Return which pairs may meet."""
    for name, plain in {"causal": Causal(), "full": Full()}.items():
        if choice == plain:
            return name
    if isinstance(choice, AnyOf):
        return " + ".join(type(part).__name__ for part in choice.parts)
    if isinstance(choice, Band) and choice.is_causal and choice.left is not None:
        return f"causal, window {choice.left + 1:,}"
    return repr(choice)


def weighting(choice: Weighting, width: int) -> str:
    """Return how scores become weights, and what is not usual in it."""
    if not isinstance(choice, Softmax):
        return "differential" if isinstance(choice, Differential) else "linear"
    factor = 1.0 if choice.scale is None else choice.scale * width**0.5
    more = [f"scale ×{factor:.3g}"] if abs(factor - 1) > 1e-6 else []
    more += [] if choice.softcap is None else [f"cap {choice.softcap:g}"]
    return ", ".join(["softmax", *more, *(["sink"] if choice.sink else [])])


def retained(layer: LayerSpec) -> Retention | None:
    """Return what a layer's cache keeps, or None where all tokens come at once."""
    try:
        return retention(layer.attention, layer.source)
    except SpecError:
        return None


def in_all(model: ph.Model) -> str:
    """Return what the layers that decode keep of as many tokens as a model may read, at most 128K."""
    length = min(LONGEST, model.max_seq_len or LONGEST)
    found = [one for layer in model.layers if (one := retained(layer)) is not None]
    size = BYTES * sum(one.numbers(length) for one in found)
    return f"{size / 2**30:.2f} GiB at {length:,}" if size else "none"


if __name__ == "__main__":
    print(table(sys.argv[1:]))
