"""Attention, the whole flow on one page: `attend` on tensors, and `Attention`, the layer built on it.

::

    x ─► project ─► rotate ─► cache appends ─► kernel ─► project out ─► y
         └ layer ┘ └───────── attend ──────────────────┘ └── layer ───┘
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from polyhead.cache import Cache, ContextCache, files as cache_files, new_cache as make_cache
from polyhead.errors import ShapeError
from polyhead.kernels import checks, select
from polyhead.kernels.common import Call, full_precision, prepared
from polyhead.kernels.projection import project
from polyhead.spec import AttentionSpec, Latent, LayerSpec


def attend(
    query: Float[Tensor, "batch query_maps q_len qk_head_dim"],
    key: Float[Tensor, "batch key_maps kv_len key_width"],
    value: Float[Tensor, "batch num_kv_heads kv_len v_head_dim"] | None,
    spec: AttentionSpec,
    *,
    params: Mapping[str, Tensor] | None = None,
    query_positions: Int[Tensor, "*query_batch q_len"] | None = None,
    key_positions: Int[Tensor, "*key_batch kv_len"] | None = None,
    key_mask: Bool[Tensor, "batch kv_len"] | None = None,
    segments: Int[Tensor, "batch len"] | None = None,
    cache: Cache | None = None,
    lengths: Sequence[int] | Int[Tensor, " batch"] | None = None,
    dropout_p: float = 0.0,
    kernel: str = "auto",
    return_weights: bool = False,
) -> Any:
    """Compute attention as a spec says, forward and backward, with the kernel that the case allows.

    ::

        output_h = weighting(scale · q_h·k_g + bias, over the pairs that the pattern allows) · v_g

    A query that may see no key gets zeros. Values are not checked: a NaN reaches the rows that may see it and no
    other. Sums are made in at least float32, and the output has the query's dtype. Under autocast the three
    inputs are cast to its dtype first.

    Args:
        query: ``[batch, num_heads, q_len, qk_head_dim]`` before rotation; with differential weighting
            ``2·num_heads`` maps. With `Latent` each is ``[nope | rope]``.
        key: ``[batch, num_kv_heads, kv_len, head_dim]`` before rotation; with differential weighting
            ``2·num_kv_heads`` maps. With `Latent` the stored rows
            ``[batch, 1, kv_len, kv_lora_rank + qk_rope_head_dim]``.
        value: ``[batch, num_kv_heads, kv_len, v_head_dim]``; None with `Latent`.
        spec: The mechanism.
        params: The learned tensors named by ``spec.parameter_shapes()``.
        query_positions: Whole numbers ``[q_len]`` or ``[batch, q_len]``. None: the last query at the last key.
        key_positions: Whole numbers ``[kv_len]`` or ``[batch, kv_len]``. None: from 0.
        key_mask: Booleans ``[batch, kv_len]``, True may be attended. None: all may.
        segments: Whole numbers ``[batch, len]``; a pair meets only inside one segment. None: one segment.
        cache: The past, from `polyhead.cache.new_cache` or `Attention.new_cache`: these tokens are appended to it,
            and attend to all that it holds. Nothing is recorded for a backward pass then. None: there is no past.
        lengths: With a cache, how many of these tokens each sequence has; the rest is padding at the right,
            which is not stored, and whose output says nothing. None: all.
        dropout_p: Probability of dropping a weight, for training.
        kernel: A kernel's name, or ``"auto"``; a named kernel runs or raises.
        return_weights: Whether to return the weights too. With linear weighting they are the equivalent ones,
            with differential weighting the difference, which may be negative.

    Returns:
        Output ``[batch, num_heads, q_len, v_head_dim]``; with weights the pair of it and
        ``[batch, num_heads, q_len, kv_len]``, in at least float32.

    Raises:
        ShapeError: If a tensor does not fit the spec, its neighbours or the cache, or a learned tensor is missing.
        UnsupportedError: If the kernel asked for by name does not take the case, or a cache is given beside
            positions or segments.
        UnknownNameError: If no kernel has that name.

    *Differs from* ``scaled_dot_product_attention``, whose ``is_causal`` aligns the first query with the first
    key; here the last query is aligned with the last key, so cached decoding needs no mask.
    """
    inputs = {"query": query, "key": key, "value": value}
    with _recording(cache):
        call = checks.checked_call(
            inputs,
            spec,
            params=params or {},
            query_positions=query_positions,
            key_positions=key_positions,
            key_mask=key_mask,
            segments=segments,
            lengths=lengths,
            dropout_p=dropout_p,
            return_weights=return_weights,
        )
        with full_precision(call.case.device), _over_past(call, cache) as full:
            output, weights = select.choose(full.case, kernel).run(full)
    return (output, weights) if return_weights else output


class Attention(nn.Module):
    """An attention layer: projections in, `attend`, projection out.

    ::

        layer = Attention(spec, embed_dim=4096)
        y = layer(x)  # all tokens at once, as in training
        cache = layer.new_cache(batch=1, max_seq_len=8192)
        y = layer(prompt, cache=cache)  # decoding: any number of tokens, after those before
        y = layer(token, cache=cache)

    Its parameters are those of `LayerSpec.parameter_shapes`, by those names; `reset_parameters` says how each
    begins.

    Args:
        spec: The layer; or its four choices alone, with ``embed_dim``.
        embed_dim: Width of input and output, if ``spec`` is an `AttentionSpec`.
        dropout_p: Probability of dropping a weight while training.
        device: Where to make the parameters; ``"meta"`` makes none.
        dtype: Their dtype.

    Raises:
        SpecError: If ``embed_dim`` is missing, or given twice.
        ShapeError: If ``dropout_p`` is no probability below 1.

    *Differs from* ``torch.nn.MultiheadAttention``, which masks nothing by itself: here the spec's pattern always
    holds.
    """

    q_proj: nn.Linear
    k_proj: nn.Linear
    v_proj: nn.Linear
    o_proj: nn.Linear
    q_a_proj: nn.Linear
    q_b_proj: nn.Linear
    kv_a_proj: nn.Linear

    def __init__(
        self,
        spec: LayerSpec | AttentionSpec,
        *,
        embed_dim: int | None = None,
        dropout_p: float = 0.0,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.spec = LayerSpec.of(spec, embed_dim)
        self.dropout_p = checks.check_dropout(dropout_p)
        self._learned = tuple(self.spec.attention.parameter_shapes())
        shapes = self.spec.parameter_shapes()
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        for name, shape in shapes.items():
            module, _, kind = name.rpartition(".")
            if not module:  # the mechanism's own: w_uk, bias_table, sinks, ...
                self.register_parameter(name, nn.Parameter(torch.empty(shape, **made)))
            elif module.endswith("_norm"):
                self.add_module(module, nn.RMSNorm(shape, eps=self.spec.norm_eps, **made))
            elif kind == "weight":
                has_bias = f"{module}.bias" in shapes
                self.add_module(module, nn.Linear(shape[1], shape[0], bias=has_bias, **made))
        self.reset_parameters()

    def forward(
        self,
        x: Float[Tensor, "batch tokens embed_dim"],
        *,
        context: Float[Tensor, "batch context_tokens context_dim"] | None = None,
        cache: Cache | None = None,
        lengths: Sequence[int] | Int[Tensor, " batch"] | None = None,
        positions: Int[Tensor, "*position_batch tokens"] | None = None,
        key_mask: Bool[Tensor, "batch source_tokens"] | None = None,
        segments: Int[Tensor, "batch tokens"] | None = None,
        kernel: str = "auto",
        return_weights: bool = False,
    ) -> Any:
        """Attend.

        Args:
            x: ``[batch, tokens, embed_dim]``; with a cache the new tokens.
            context: ``[batch, tokens, context_dim]``, what cross-attention attends to. With a cache it is given
                once, with the first call.
            cache: From `new_cache`. Nothing is recorded for a backward pass then.
            lengths: How many tokens of ``x`` each sequence has, the rest being padding at the right: it is not
                seen, not stored, and its output is 0. None: all.
            positions: Whole numbers ``[tokens]`` or ``[batch, tokens]``, for self-attention without a cache, which
                counts by itself. None: from 0.
            key_mask: Booleans ``[batch, tokens]`` over the tokens given, of ``x`` or of the context; True may be
                attended. A masked token keeps its position, which patterns and scalings that count from the start
                of a sequence (`Global`, `Chunked`, dynamic NTK) count too. None: all may.
            segments: Whole numbers ``[batch, tokens]``; a pair meets only inside one segment. Not with a cache.
            kernel: A kernel's name, or ``"auto"``; a named kernel runs or raises.
            return_weights: Whether to return the weights too, ``[batch, num_heads, tokens, kv_len]``.

        Returns:
            ``[batch, tokens, embed_dim]``; with weights the pair of it and them.

        Raises:
            ShapeError: If a tensor does not fit the layer or the cache.
            UnsupportedError: As `attend`.
        """
        with _recording(cache):
            source = self._source(x, context, cache)
            real = None if lengths is None else checks.real_tokens(x, lengths)
            if cache is None and self.spec.source == "self" and real is not None:
                checks.check_padding(self.spec.attention, real)
                key_mask = real if key_mask is None else checks.check_mask(key_mask, *real.shape).to(x.device) & real
            query_positions, key_positions = self._positions(x, source, cache, positions)
            output = attend(
                *self._projected(x, source),
                self.spec.attention,
                params={name: getattr(self, name) for name in self._learned},
                query_positions=query_positions,
                key_positions=key_positions,
                key_mask=key_mask,
                segments=segments,
                cache=cache,
                lengths=None if cache is None else lengths,
                dropout_p=self.dropout_p if self.training else 0.0,
                kernel=kernel,
                return_weights=return_weights,
            )
            output, *weights = output if return_weights else (output,)
            (y,) = project([self.o_proj], output.transpose(1, 2).flatten(2))
            y = y if real is None else y.masked_fill(~real[..., None], 0.0)
            return (y, *weights) if return_weights else y

    def new_cache(
        self,
        batch: int,
        max_seq_len: int | None = None,
        *,
        slack: int = 0,
        dtype: torch.dtype | None = None,
        device: str | torch.device | None = None,
    ) -> Cache:
        """Make an empty cache for this layer; its class follows from the spec.

        Args:
            batch: Number of sequences.
            max_seq_len: Length that no sequence may pass; see `polyhead.cache.new_cache`.
            slack: How many of the last tokens a rolling cache can crop.
            dtype: Dtype of keys and values. None: the layer's, or autocast's where that is on.
            device: Where to keep them. None: where the layer is.

        Returns:
            The cache.

        Raises:
            SpecError: If the spec has no cache, which the message explains.
            UnsupportedError: If ``slack`` is asked of a cache that keeps sums.
        """
        weight = self.o_proj.weight
        device = weight.device if device is None else torch.device(device)
        if dtype is None:
            dtype = checks.autocast_dtype(device.type, weight.dtype)
        where: dict[str, Any] = {"dtype": dtype, "device": device, "source": self.spec.source}
        return make_cache(self.spec.attention, batch=batch, max_seq_len=max_seq_len, slack=slack, **where)

    def load_cache(self, path: str | os.PathLike[str]) -> Cache:
        """Read a cache of this layer that `Cache.save` wrote.

        Args:
            path: The file.

        Returns:
            The cache, where the layer is.

        Raises:
            CheckpointError: If the file is missing, cut short, of a newer version, or not what it says.
            SpecError: If it was saved from another spec.
        """
        return cache_files.load(path, self.spec.attention, source=self.spec.source, device=self.o_proj.weight.device)

    def reset_parameters(self) -> None:
        """Draw the parameters anew, each as its source does.

        Projections, W_UK, W_UV and Shaw's vectors are Xavier uniform, as in the Transformer's code; norms are 1, biases
        and sinks 0; T5's and the clipped table are normal with a deviation of ``1/√embed_dim``, as in T5's code;
        λ vectors normal with 0.1, as in differential attention's.
        """
        for name, parameter in self.named_parameters():
            if name.endswith(".bias") or name == "sinks":
                nn.init.zeros_(parameter)
            elif name.endswith(("_norm.weight", "sub_norm")):
                nn.init.ones_(parameter)
            elif name == "bias_table":
                nn.init.normal_(parameter, std=self.spec.embed_dim**-0.5)
            elif name.startswith("lambda_"):
                nn.init.normal_(parameter, std=0.1)
            else:
                fan_in = parameter.shape[-1]  # W_UK and W_UV are one projection for all heads
                bound = math.sqrt(6.0 / (fan_in + parameter.numel() // fan_in))
                nn.init.uniform_(parameter, -bound, bound)

    def extra_repr(self) -> str:
        """Return the spec, for ``print(layer)``."""
        return repr(self.spec)

    def _projected(self, x: Tensor, source: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Project queries, and keys and values or the rows that a latent stores, as `attend` takes them."""
        of_query = self.q_a_proj if "q_a_proj" in self._modules else self.q_proj
        is_latent = isinstance(self.spec.attention.storage, Latent)
        of_source = [self.kv_a_proj] if is_latent else [self.k_proj, self.v_proj]
        if source is x:  # they are read together
            query, *stored = project([of_query, *of_source], x)
        else:
            (query,), stored = project([of_query], x), project(of_source, source)
        return self._queries(query), *self._keys_and_values(*stored)

    def _queries(self, x: Tensor) -> Tensor:
        """Return queries ``[batch, num_heads · maps, tokens, qk_head_dim]`` of what was projected first."""
        if "q_b_proj" in self._modules:  # queries have a latent of their own, which is not stored
            (x,) = project([self.q_b_proj], self._norm("q_a_norm", x))
        return self._norm("q_norm", _heads(x, self.spec.attention.qk_head_dim))

    def _keys_and_values(self, key: Tensor, value: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Return keys and values of what was projected, or the rows that a latent stores."""
        spec = self.spec.attention
        if isinstance(spec.storage, Latent):
            latent, rope_key = key.split([spec.storage.kv_lora_rank, spec.storage.qk_rope_head_dim], dim=-1)
            return torch.cat([self._norm("kv_a_norm", latent), rope_key], dim=-1)[:, None], None
        assert value is not None
        return self._norm("k_norm", _heads(key, spec.qk_head_dim)), _heads(value, spec.v_head_dim)

    def _norm(self, name: str, x: Tensor) -> Tensor:
        """Apply a norm, if the layer has it."""
        if name not in self._modules:
            return x
        norm = getattr(self, name)
        output: Tensor = norm(x.to(norm.weight.dtype))  # under autocast they differ
        return output

    def _source(self, x: Tensor, context: Tensor | None, cache: Cache | None) -> Tensor:
        """Return what keys and values are made of, and check it."""
        if cache is not None and cache.source != self.spec.source:
            came, own = cache.source, self.spec.source
            raise ShapeError(f"the cache is for source={came!r} and the layer has {own!r}; give one from its new_cache")
        checks.check_tokens("x", x, self.spec.embed_dim, self.o_proj.weight)
        if self.spec.context_dim is None:
            if context is not None:
                raise ShapeError("context is given, and this layer attends to x alone; make it with source='cross'")
            return x
        if context is None:
            if not (isinstance(cache, ContextCache) and cache.has_context):
                raise ShapeError("a layer with source='cross' needs context=, [batch, tokens, context_dim]")
            return x.new_zeros(x.shape[0], 0, self.spec.context_dim)  # what the cache has needs nothing added
        checks.check_tokens("context", context, self.spec.context_dim, self.o_proj.weight)
        return context

    def _positions(
        self, x: Tensor, source: Tensor, cache: Cache | None, positions: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        if positions is not None and self.spec.source == "cross":
            raise ShapeError("positions are given, and with source='cross' each sequence counts from 0; leave them out")
        if cache is not None or self.spec.source == "self":
            return positions, positions
        return torch.arange(x.shape[1], device=x.device), torch.arange(source.shape[1], device=x.device)


def _heads(x: Tensor, width: int) -> Tensor:
    """Lay ``[batch, tokens, heads · width]`` out as ``[batch, heads, tokens, width]``."""
    return x.reshape(*x.shape[:-1], x.shape[-1] // width, width).transpose(1, 2)


def _recording(cache: Cache | None) -> contextlib.AbstractContextManager[Any]:
    """Record nothing for a backward pass over a cache: its buffers would tie every step's graph to the next one's."""
    return torch.no_grad() if cache is not None and torch.is_grad_enabled() else contextlib.nullcontext()


def _over_past(call: Call, cache: Cache | None) -> contextlib.AbstractContextManager[Call]:
    """Rotate, and let the cache append; what fails inside the block leaves the cache as it was."""
    if cache is None:
        if call.lengths is not None:
            raise ShapeError("lengths say which tokens a cache keeps, and there is none; without one, give key_mask")
        return contextlib.nullcontext(prepared(call))
    return cache.appending(prepared(cache.placed(call)))
