"""The module that stands in for a model's attention, and how the model's tensors become those of our layer."""

from __future__ import annotations

import dataclasses
import importlib
import math
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from polyhead.attention import Attention
from polyhead.errors import CheckpointError, UnsupportedError
from polyhead.hf.caches import CacheLayer, Seen, layer_of
from polyhead.spec import LayerSpec

Shape = tuple[int, ...]


class Adopted(nn.Module):
    """A model's attention module, computed by `polyhead.Attention`; base of one class for each way of being called.

    ``attention`` holds the model's own parameters where both have the same ones, and views of them where the model
    fuses or transposes what we keep apart. Where no view can be a matrix, it holds copies, and what training makes of
    these goes back at `release`; see `parts`. Optimisers are made after adopting, from ``model.parameters()``.
    ``state_dict()`` and ``load_state_dict()`` speak of the model's own tensors, so checkpoints stay what they were.

    Args:
        original: The module to stand in for.
        spec: What it is.

    Attributes:
        attention: Our layer.
        layer_idx: Its number in the model.
        config: The model's config, or None where the original has none.
        implementation_before: What the config named as the model's attention before adoption.
    """

    attention: Attention
    implementation_before: str | None

    def __init__(self, original: nn.Module, spec: LayerSpec) -> None:
        nn.Module.__init__(self)  # and not the original's class, which stands between, see `stand_in`
        self._original = (original,)  # in a tuple, or its parameters would be counted twice
        self.layer_idx = cast("int", original.layer_idx)
        self.config: Any = getattr(original, "config", None)
        self.attention = Attention(spec, dropout_p=self.dropout(original), device="meta")
        for name, hooks in vars(original).items():
            if name.startswith("_forward") and "hooks" in name:
                self.__dict__[name] = hooks  # the same object, so that hooks stay through adoption and release
        self.bind()
        nn.Module.train(self, original.training)

    @staticmethod
    def shapes(spec: LayerSpec) -> dict[str, Shape]:
        """Return the parameters that the original must have, by its names; here they are ours."""
        return spec.parameter_shapes()

    @staticmethod
    def parts(given: Mapping[str, Tensor], spec: LayerSpec) -> dict[str, Tensor]:
        """Return our parameters as the original's, or as views of them, which may have more dimensions than ours."""
        return dict(given)

    @staticmethod
    def dropout(original: Any) -> float:
        """Return the probability with which the original drops weights in training."""
        return float(original.attention_dropout)

    @property
    def original(self) -> Any:
        """The module that this one stands in for."""
        return self._original[0]

    def _shared(self) -> dict[str, Tensor]:
        with torch.enable_grad():  # so that a view knows whether its parameter is trained
            return self.parts(dict(self.original.named_parameters()), self.attention.spec)

    def bind(self) -> None:
        """Let our layer have the original's tensors, as they are now."""
        shapes = self.attention.spec.parameter_shapes()
        for name, part in self._shared().items():
            owner, _, kind = name.rpartition(".")
            module = self.attention.get_submodule(owner)
            ours = getattr(module, kind)
            if isinstance(part, nn.Parameter):
                setattr(module, kind, part)
            elif ours.is_meta:
                ours = nn.Parameter(part.detach().reshape(shapes[name]), requires_grad=part.requires_grad)
                setattr(module, kind, ours)
            else:
                ours.data = part.detach().reshape(shapes[name])

    def write_back(self) -> None:
        """Let the original have what our copies hold; the rest is shared."""
        with torch.no_grad():
            for name, part in self._shared().items():
                ours = self.attention.get_parameter(name)
                if ours.untyped_storage().data_ptr() != part.untyped_storage().data_ptr():
                    part.copy_(ours.reshape(part.shape))

    def train(self, mode: bool = True) -> Adopted:
        """Set the mode of the original too, which ``model.train()`` no longer finds."""
        self.original.train(mode)
        nn.Module.train(self, mode)
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Adopted:
        """Move or convert the original, which ``model.to()`` no longer finds, and let our layer follow."""
        self.write_back()
        self.original._apply(fn, recurse)
        self.bind()
        return self

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Return the original's tensors by its names, see ``torch.nn.Module``."""
        self.write_back()
        return self.original.state_dict(*args, **kwargs)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Load what `state_dict` returned; see ``torch.nn.Module``."""
        given = {name.removeprefix(prefix): x for name, x in state_dict.items() if name.startswith(prefix)}
        try:
            report = self.original.load_state_dict(given, strict=False)
        except RuntimeError as error:  # a shape
            error_msgs.append(f"{prefix.removesuffix('.')}: {error}")
        else:
            missing_keys.extend(prefix + name for name in report.missing_keys)
            unexpected_keys.extend(prefix + name for name in report.unexpected_keys)
        self.bind()
        state_dict.update(self.attention.state_dict(prefix=f"{prefix}attention."))  # torch looks for these next

    def attend(
        self,
        x: Float[Tensor, "batch tokens width"],
        mask: Bool[Tensor, "batch seen"] | None,
        past: Any,
        positions: Int[Tensor, "position_batch tokens"] | None,
        *,
        weights: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend to a model's tokens.

        Args:
            x: ``[batch, tokens, width]``.
            mask: Booleans ``[batch, past + tokens]`` from `padding_mask`, False for padding, or None.
            past: transformers' ``Cache``, or None.
            positions: The tokens' positions in the model, ``[batch or 1, tokens]``, where attention depends on them.
            weights: Whether to return the weights.

        Returns:
            The output ``[batch, tokens, width]``, and the weights ``[batch, num_heads, tokens, kv_len]`` or None.

        Raises:
            ShapeError: If the mask does not fit.
            UnsupportedError: If the mask is none of padding, if positions do not count on, if the cache is of another
                kind, or if a gradient is asked for through cached tokens.
        """
        if mask is not None and mask.dim() != 2:
            raise UnsupportedError(
                f"attention_mask reached layer {self.layer_idx} as {list(mask.shape)}, and an adopted layer's pattern "
                "comes from its spec; give a mask [batch, tokens] that is 0 for padding"
            )
        attend = self._attend if past is None else self._attend_with_past
        return attend(x, mask, past, positions, weights=weights)

    def _attend(
        self, x: Tensor, mask: Tensor | None, past: Any, positions: Tensor | None, *, weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        held = None if past is None else layer_of(past, self.layer_idx, self.attention, len(x))
        length = 0 if held is None else held.cache.length
        seen = Seen() if held is None else held.seen
        if self.layer_idx == 0:  # a model says the same to all its layers
            seen = seen.then(length, *x.shape[:2], mask=mask, positions=positions)
        key_mask = None if mask is None else mask[:, length:]
        output = self._run(x, key_mask, held, return_weights=weights)
        if held is not None:
            held.seen = seen
        return output if weights else (output, None)

    # A cache counts in Python, so a compiled graph would be made anew for each token; it goes on after this instead.
    _attend_with_past = torch.compiler.disable(_attend)

    def _run(self, x: Tensor, key_mask: Tensor | None, held: CacheLayer | None, *, return_weights: bool) -> Any:
        asked: dict[str, Any] = {"key_mask": key_mask, "return_weights": return_weights}
        if held is None or not self._is_differentiated(x):
            return self.attention(x, cache=None if held is None else held.cache, **asked)
        if held.cache.length:
            raise UnsupportedError(
                "a gradient is asked for through cached tokens, and no cache here records one; call the model under "
                "torch.no_grad(), or with use_cache=False"
            )
        with torch.no_grad():  # the cache takes the tokens, and the gradient goes another way
            self.attention(x, cache=held.cache, key_mask=key_mask)
        return self.attention(x, **asked)

    def _is_differentiated(self, x: Tensor) -> bool:
        if not torch.is_grad_enabled():
            return False
        return x.requires_grad or any(parameter.requires_grad for parameter in self.attention.parameters())

    def wants_weights(self, asked: bool | None) -> bool:
        """Whether a caller or the config asks for the weights."""
        return bool(asked or getattr(self.config, "output_attentions", False))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """How models of one type are adopted.

    Attributes:
        attention: Its attention module in transformers, as ``"llama.LlamaAttention"``.
        adopted: What stands in for it.
        refuse: Returns why a layer of that type is not adopted though its spec is defined, or None.
    """

    attention: str
    adopted: type[Adopted]
    refuse: Callable[[LayerSpec], str | None] = lambda spec: None

    def replaced(self) -> type[nn.Module]:
        """Return the class of its attention module."""
        model, name = self.attention.split(".")
        module = importlib.import_module(f"transformers.models.{model}.modeling_{model}")
        return cast("type[nn.Module]", getattr(module, name))


def adopted_class(family: Family) -> type[Adopted]:
    """Return a new class for what stands in for a family's attention modules.

    It is one of the original's too, as transformers finds the modules whose outputs it records. One is enough for all
    layers of a model, so that what is compiled for one of them is there for the others.
    """
    theirs = family.replaced()
    return cast("type[Adopted]", type(f"Adopted{theirs.__name__}", (family.adopted, theirs), {}))


def stand_in(original: nn.Module, kind: type[Adopted], spec: LayerSpec) -> Adopted:
    """Return what stands in for a model's attention module, which stays as it is.

    Args:
        original: The module.
        kind: Its class, from `adopted_class`.
        spec: What the module is.

    Returns:
        The new module.

    Raises:
        CheckpointError: If a tensor is missing, too many, misshapen, not loaded or not finite.
        ShapeError: If its dropout is no probability below 1.
        UnsupportedError: If something changes how the module or a part of it runs, or if its scale or the ε of its
            norms is not the spec's.
    """
    _check_runs_as_written(original)
    _check_tensors(original, kind.shapes(spec))
    _check_numbers(original, spec)
    return kind(original, spec)


def _check_runs_as_written(original: nn.Module) -> None:
    for name, module in original.named_modules():
        if "forward" in vars(module):
            raise UnsupportedError(f"the forward of its {name or 'own'} is patched, as offloading does; load it whole")
        if name and (module._forward_hooks or module._forward_pre_hooks):
            raise UnsupportedError(f"its {name} has hooks, which would not run; remove them first")


def _check_tensors(original: nn.Module, expected: Mapping[str, Shape]) -> None:
    given = dict(original.named_parameters())
    if missing := sorted(expected.keys() - given.keys()):
        raise CheckpointError(f"it lacks {missing[0]}, which its config asks for")
    if more := sorted(given.keys() - expected.keys()):
        raise CheckpointError(f"it has {more[0]}, which its config does not ask for; merge adapters before adopting")
    for name, tensor in given.items():
        if tuple(tensor.shape) != expected[name]:
            raise CheckpointError(f"its {name} is {list(tensor.shape)}; its config asks for {list(expected[name])}")
        if not tensor.is_floating_point():
            raise CheckpointError(f"its {name} is {tensor.dtype}; load the model without quantisation")
        if tensor.is_meta:
            raise CheckpointError(f"its {name} has no values, being on the meta device; load the weights first")
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"its {name} has values that are not finite; fetch the weights again")


def _check_numbers(original: nn.Module, spec: LayerSpec) -> None:
    scale = getattr(original, "scaling", getattr(original, "inv_norm_factor", spec.attention.scale))
    read = {"multiplies scores by": (scale, spec.attention.scale)}
    for module in original.modules():
        if hasattr(module, "variance_epsilon"):
            read[f"has a {type(module).__name__} with ε ="] = (module.variance_epsilon, spec.norm_eps)
    for what, (found, said) in read.items():
        if not math.isclose(found, said, rel_tol=1e-6):
            raise UnsupportedError(f"it {what} {found:g}, and its config says {said:g}; adopt a model as loaded")


def padding_mask(
    *,
    q_length: int,
    q_offset: int | Tensor = 0,
    attention_mask: Bool[Tensor, "batch seen"] | None = None,
    use_vmap: bool = False,
    **unread: Any,
) -> Bool[Tensor, "batch seen"] | None:
    """Return what a model gives its adopted layers as a mask: padding, and nothing of the pattern, which they know.

    transformers calls it in place of what builds a mask for each pair.

    Args:
        q_length: Number of new tokens.
        q_offset: Number of tokens before them.
        attention_mask: Booleans ``[batch, past + tokens]``, False for padding, or None. With a static cache a model may
            fill it up with padding to the cache's length.
        use_vmap: Whether the model adds a mask function of its own.
        **unread: What only a mask for each pair needs.

    Returns:
        The mask, or None if there is no padding.

    Raises:
        UnsupportedError: If the model masks more than padding.
    """
    if use_vmap:
        raise UnsupportedError("the model adds a mask of its own to the pattern, which adopted layers do not read")
    if attention_mask is None:
        return None
    tokens = int(q_offset) + q_length
    if not attention_mask[:, tokens:].any():
        attention_mask = attention_mask[:, :tokens]
    return None if bool(attention_mask.all()) else attention_mask
