"""``attn_implementation="polyhead"``: transformers' models as they are, their attention function ours."""

from __future__ import annotations

import inspect
import types
from collections.abc import Iterator
from typing import Any

from polyhead.errors import UnsupportedError, require_extra

NAME = "polyhead"
"""What a config calls our attention function."""


def register() -> None:
    """Let ``attn_implementation="polyhead"`` name `polyhead.attend` in transformers.

    Modules, weights and caches stay transformers' own; what changes is the attention function that its modules call,
    and the mask that they hand to it. A mask is read as a pattern, padding and segments, and never listed pair by pair;
    what cannot be read is an UnsupportedError, and never left out. Calling this again changes nothing.

    ::

        polyhead.hf.register()
        model = AutoModelForCausalLM.from_pretrained(path, attn_implementation="polyhead")
        polyhead.hf.check(model)
        model.generate(**tokenizer("The cat", return_tensors="pt"))

    Raises:
        MissingExtraError: If torch or transformers is not installed.

    *Differs from* transformers' eager attention for a query that sees no key, such as padding at the left: there it is
    the average of all values, here 0. Other queries do not see it.

    See `polyhead.hf.adopt` for a model whose modules become ours too, with our caches; it takes some types that compute
    attention by themselves.
    """
    torch = require_extra("torch", "hf", "registering an attention function")
    modeling = require_extra("transformers.modeling_utils", "hf", "registering an attention function")
    masking = require_extra("transformers.masking_utils", "hf", "registering an attention function")
    from polyhead.hf.interface import attention_function
    from polyhead.hf.masks import lazy_mask

    # Data are decided upon, which a compiled graph cannot do: it ends before each of the two, and goes on after it.
    modeling.AttentionInterface.register(NAME, torch.compiler.disable(attention_function))
    masking.AttentionMaskInterface.register(NAME, torch.compiler.disable(lazy_mask))


def check(model: Any) -> None:
    """Raise unless a model's attention is what `register` registered.

    Some models of transformers compute attention by themselves, whatever their config names; those that also make a
    mask of their own would do so without a word. Told by the code: each part of the model that has attention modules
    must have one whose methods look the attention function up in transformers' registry. Nothing is run.

    Args:
        model: A model of transformers.

    Raises:
        UnsupportedError: If a config in it names another attention, or if it or a part of it never looks it up.
        MissingExtraError: If torch or transformers is not installed.
    """
    modeling = require_extra("transformers.modeling_utils", "hf", "checking a model")
    if not isinstance(model, modeling.PreTrainedModel):
        raise UnsupportedError(
            f"a {type(model).__name__} is no model of transformers; give what from_pretrained returns"
        )
    parts = [module for module in model.modules() if isinstance(module, modeling.PreTrainedModel)]
    for part in parts:
        if (named := part.config._attn_implementation) != NAME:
            raise UnsupportedError(
                f"the config of {type(part).__name__} names the attention {named!r}; load the model with "
                f"attn_implementation={NAME!r}, since setting it later does nothing where a model does not support it"
            )
    calls = {kind: _looks_up(kind) for kind in {type(module) for module in model.modules()}}
    for part in parts:
        own = [type(module) for module in _own_modules(part, modeling.PreTrainedModel)]
        attention = sorted({kind.__name__ for kind in own if "attention" in kind.__name__.lower()})
        if attention and not any(calls[kind] for kind in own):
            raise _bypass(part, f"none of {', '.join(attention)}")
    if not any(calls.values()):
        raise _bypass(model, "nothing in it")


def _bypass(part: Any, who: str) -> UnsupportedError:
    return UnsupportedError(
        f"{type(part).__name__} computes by itself what it has of attention: {who} looks up the function that "
        f"attn_implementation={NAME!r} names; use polyhead.hf.adopt(model) if its type is adopted, else "
        "attn_implementation='eager'"
    )


def _own_modules(part: Any, model_class: type) -> Iterator[Any]:
    """Yield the modules inside a part of a model that belong to no smaller part."""
    for child in part.children():
        if not isinstance(child, model_class):
            yield child
            yield from _own_modules(child, model_class)


def _looks_up(kind: type) -> bool:
    """Whether a method of a class, or of one it inherits from, names transformers' registry of attention functions."""
    bases = [base for base in kind.__mro__ if base.__module__ != "transformers.modeling_utils"]  # which manages it
    methods = [inspect.unwrap(value) for base in bases for value in vars(base).values() if inspect.isfunction(value)]
    return any("ALL_ATTENTION_FUNCTIONS" in _names(method.__code__) for method in methods)


def _names(code: types.CodeType) -> set[str]:
    inner = [_names(value) for value in code.co_consts if isinstance(value, types.CodeType)]
    return set(code.co_names).union(*inner)
