"""A transformers model whose attention is ours: the same weights and `generate()`, other modules and caches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from polyhead.catalog.configs import layer_specs
from polyhead.errors import PolyheadError, UnsupportedError, require_extra
from polyhead.spec import LayerSpec, Rotary

if TYPE_CHECKING:
    from polyhead.hf.families import Adopted, Family

_NAME = "polyhead_adopted"
"""What an adopted model's config names as its attention, so that `padding_mask` makes its masks.

transformers' registry of mask functions keeps the name after `release`, where no config says it any more."""


def adopt(model: Any) -> Any:
    """Let `polyhead.Attention` compute every attention layer of a transformers model, in place.

    Each attention module is replaced by one that is called as it was and holds our layer around the same weights,
    and what `generate()` keeps of the past is our cache. Greedy search, sampling, beams, assisted decoding and
    padding at the left work as before. What cannot be as before is an error:

    - a mask for each pair, positions that do not count on by one, packed sequences;
    - caches other than transformers' ``DynamicCache`` and ``StaticCache``: quantised, offloaded ones;
    - a gradient through cached tokens.

    A ``StaticCache`` is reserved at once and bounded, as theirs is. Where ``generate()`` compiles, as it does with one
    on a GPU, what attends with a cache stays outside the compiled graphs.

    Weights are shared, not copied, but where rows that belong together lie apart in the model's tensor (queries, keys
    and values of Bloom and of Falcon's other forms than multi-query, DiffLlama's values): those are copied, and what
    training makes of them goes back at `release`. Make optimisers after adopting, from ``model.parameters()``. A
    ``state_dict()`` is the model's own all the while.

    ::

        model = polyhead.hf.adopt(AutoModelForCausalLM.from_pretrained(path))
        model.generate(**tokenizer("The cat", return_tensors="pt"))
        polyhead.hf.release(model)  # its own modules again

    Args:
        model: A model of transformers, of a type in `polyhead.hf.families.FAMILIES`.

    Returns:
        The model.

    Raises:
        CheckpointError: If a tensor is missing, misshapen, not loaded or not finite, or does not fit the config.
        UnsupportedError: If the type is not on the list, if a field of its config cannot be expressed, if it is
            adopted already, or if something changes how its modules run.
        MissingExtraError: If torch or transformers is not installed.

    After any error the model is as it was.

    *Differs from* transformers where a RoPE scaling depends on the length: it is refused, since there all tokens of
    a call are rotated alike.
    """
    _check_is_model(model)
    from polyhead.hf import families

    if any(isinstance(module, families.Adopted) for module in model.modules()):
        raise UnsupportedError("this model is adopted already; release(model) first")
    family = families.FAMILIES.get(model.config.model_type)
    if family is None:
        known = ", ".join(families.FAMILIES)
        raise UnsupportedError(f"model_type={model.config.model_type!r} is not adopted; what is adopted: {known}")
    specs = _specs(model, family)
    modules = {path: module for path, module in model.named_modules() if type(module) is family.replaced()}
    numbers = [module.layer_idx for module in modules.values()]
    if numbers != list(range(len(specs))):
        raise UnsupportedError(
            f"the config has {len(specs)} layers, and the model's modules {family.attention} are numbered {numbers}; "
            "adopt a model as transformers makes it"
        )
    kind = families.adopted_class(family)
    stand_ins = {path: _stand_in(path, module, kind, specs) for path, module in modules.items()}
    torch = require_extra("torch", "hf", "adopting a model")
    masking = require_extra("transformers.masking_utils", "hf", "adopting a model")
    # Data are decided upon, which a compiled graph cannot do: it ends before this, and goes on after it.
    masking.ALL_MASK_ATTENTION_FUNCTIONS.register(_NAME, torch.compiler.disable(families.padding_mask))
    for stand_in in stand_ins.values():
        stand_in.implementation_before = model.config._attn_implementation
    _swap(model, stand_ins)
    model.config._attn_implementation = _NAME
    return model


def release(model: Any) -> Any:
    """Give a model its own attention modules back: the same objects, bit for bit but for what training changed.

    Args:
        model: What `adopt` returned.

    Returns:
        The model.

    Raises:
        UnsupportedError: If it is not adopted.
    """
    _check_is_model(model)
    from polyhead.hf import families

    stand_ins = {path: module for path, module in model.named_modules() if isinstance(module, families.Adopted)}
    if not stand_ins:
        raise UnsupportedError("this model is not adopted, so there is nothing to release; adopt(model) first")
    for stand_in in stand_ins.values():
        stand_in.write_back()
    _swap(model, {path: stand_in.original for path, stand_in in stand_ins.items()})
    model.config._attn_implementation = next(iter(stand_ins.values())).implementation_before
    return model


def _swap(model: Any, modules: Mapping[str, Any]) -> None:
    """Put modules into a model at their paths, all or none."""
    before = {path: model.get_submodule(path) for path in modules}
    try:
        for path, module in modules.items():
            model.set_submodule(path, module)
    except BaseException:
        for path, module in before.items():
            owner, _, name = path.rpartition(".")
            setattr(model.get_submodule(owner), name, module)
        raise


def _check_is_model(model: Any) -> None:
    require_extra("torch", "hf", "adopting a model")
    transformers = require_extra("transformers", "hf", "adopting a model")
    if not isinstance(model, transformers.PreTrainedModel):
        raise UnsupportedError(
            f"a {type(model).__name__} is no model of transformers; give what from_pretrained returns"
        )


def _specs(model: Any, family: Family) -> list[LayerSpec]:
    """Return what each layer is, if it can be adopted."""
    specs = layer_specs(model.config.to_dict())
    for spec in specs:
        if reason := family.refuse(spec):
            raise UnsupportedError(f"{reason}; use the model as it is")
        position = spec.attention.position
        if isinstance(position, Rotary) and position.per_query:
            raise UnsupportedError(
                f"{type(position.scaling).__name__} depends on the length: transformers turns all tokens of a call "
                "alike, and our layer each query by its own position; the two would differ past the trained length"
            )
    return specs


def _stand_in(path: str, module: Any, kind: type[Adopted], specs: list[LayerSpec]) -> Adopted:
    from polyhead.hf import families

    try:
        return families.stand_in(module, kind, specs[module.layer_idx])
    except PolyheadError as error:
        raise type(error)(f"{path}: {error}") from error
