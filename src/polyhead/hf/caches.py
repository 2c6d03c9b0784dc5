"""Our caches inside transformers' `Cache`, and what a model says of its tokens from call to call."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from polyhead.attention import Attention
from polyhead.cache import Cache, GrowingCache, RollingCache
from polyhead.errors import ShapeError, UnsupportedError, require_extra

_REPLACED = ("DynamicLayer", "DynamicSlidingWindowLayer", "StaticLayer", "StaticSlidingWindowLayer")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seen:
    """Which of the tokens so far are padding, and where a model's positions begin.

    Here a token's position is its index. A model may count otherwise, from each sequence's first real token: that
    shifts all positions of a sequence alike, which relative positions do not see. Any other way of counting they do.

    Attributes:
        mask: Booleans ``[batch, tokens]``, False for padding. None: there was none.
        least: ``[batch]``, the least of position minus index among real tokens. None: no positions were given.
        most: ``[batch]``, the greatest.
    """

    mask: Tensor | None = None
    least: Tensor | None = None
    most: Tensor | None = None

    def then(
        self,
        past: int,
        batch: int,
        tokens: int,
        *,
        mask: Bool[Tensor, "batch seen"] | None,
        positions: Int[Tensor, "position_batch new"] | None,
    ) -> Seen:
        """Check what a model says of its next tokens, and return it with what it said before.

        Args:
            past: Number of tokens before.
            batch: Number of sequences.
            tokens: Number of new tokens in each.
            mask: Booleans ``[batch, past + tokens]``, False for padding, or None.
            positions: The new tokens' positions in the model, ``[batch or 1, tokens]``, or None.

        Returns:
            What is known now.

        Raises:
            ShapeError: If the mask is not over all tokens.
            UnsupportedError: If it now says something else of earlier ones, or if positions do not count on.
        """
        if mask is not None and mask.shape[1] != past + tokens:
            raise ShapeError(
                f"attention_mask has {mask.shape[1]} columns for {past} earlier tokens and {tokens} new ones; "
                f"give {past + tokens}"
            )
        if past and not _same(self.mask, None if mask is None else mask[:, :past]):
            raise UnsupportedError(
                "attention_mask hides other earlier tokens than it did when they came, and a cache keeps what it said "
                "then; give the mask of every token at each call, or begin with a new cache"
            )
        if positions is None or not tokens:
            return dataclasses.replace(self, mask=mask)
        shift = (positions - torch.arange(past, past + tokens, device=positions.device)).expand(batch, -1)
        limits = torch.iinfo(shift.dtype)
        padding = torch.zeros_like(shift, dtype=torch.bool) if mask is None else ~mask[:, past:]
        least = shift.masked_fill(padding, limits.max).amin(dim=1)
        most = shift.masked_fill(padding, limits.min).amax(dim=1)
        if self.least is not None and self.most is not None:
            least, most = torch.minimum(least, self.least), torch.maximum(most, self.most)
        if bool((least < most).any()):
            raise UnsupportedError(
                "positions do not count on by one from each real token to the next, as after padding inside a sequence "
                "or where sequences are packed into one; pad at the left, one sequence in each row, or release the "
                "model"
            )
        return Seen(mask=mask, least=least, most=most)

    def rows(self, index: Tensor) -> Seen:
        """Return this for sequences picked by number."""
        picked = {name: None if x is None else x.index_select(0, index.to(x.device)) for name, x in vars(self).items()}
        return Seen(**picked)

    def upto(self, length: int) -> Seen:
        """Return this for the first tokens alone."""
        if not length:
            return Seen()
        return dataclasses.replace(self, mask=None if self.mask is None else self.mask[:, :length])


class CacheLayer:
    """One layer's cache as transformers' `Cache` holds it; it counts as a ``CacheLayerMixin``.

    Args:
        cache: The cache.
        record_past: Whether to begin with `activate_past_recording`.

    Attributes:
        cache: The cache.
        seen: What the model said of its tokens, kept in the first layer alone.
        record_past: Whether every token is kept, even of a window, so that any number can be cropped.
    """

    is_compileable = False
    supports_early_init = False
    is_initialized = True
    keys = None  # what it keeps has its own layout, in `cache`
    values = None

    def __init__(self, cache: Cache, *, record_past: bool = False) -> None:
        self.cache = cache
        self.seen = Seen()
        self.record_past = False
        if record_past:
            self.activate_past_recording()

    @property
    def is_sliding(self) -> bool:
        """Whether it keeps a window, as transformers asks."""
        return self.cache.spec.pattern.reach.left is not None

    @property
    def is_croppable(self) -> bool:
        """Whether any number of tokens can be cropped."""
        return not isinstance(self.cache, RollingCache)

    def get_seq_length(self) -> int:
        """Return how many tokens have gone through."""
        return self.cache.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return how many keys a mask is over, and the first one's position: all of them, from 0."""
        return self.cache.length + query_length, 0

    def get_max_length(self) -> int:
        """Return the length that no sequence may pass, or -1: a window has none, nor what is not static."""
        return -1 if self.cache.max_seq_len is None else self.cache.max_seq_len

    def update(self, *states: Any, **more: Any) -> Any:
        """Refuse keys and values: an adopted module appends to `cache` itself."""
        raise UnsupportedError(
            "this cache was filled by an adopted model, and the model's own attention cannot go on with it; "
            "begin with a new cache after release()"
        )

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last tokens.

        Args:
            tokens_to_remove: Minus their number, as in transformers.

        Raises:
            ShapeError: If it is positive, or if there are fewer tokens.
            UnsupportedError: If a window has forgotten what the shorter sequence needs.
        """
        if tokens_to_remove > 0:
            raise ShapeError(f"crop({tokens_to_remove}) says nothing; give minus the number of tokens to remove")
        left = self.cache.length + tokens_to_remove
        self.cache.crop(left)
        self.seen = self.seen.upto(left)

    def reset(self) -> None:
        """Forget everything."""
        self.cache.reset()
        self.seen = Seen()

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Let sequence n continue what sequence ``beam_idx[n]`` was."""
        self.cache.reorder(beam_idx)
        self.seen = self.seen.rows(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each sequence so many times."""
        self.reorder_cache(torch.arange(self.cache.batch).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some sequences: their numbers, or booleans over all."""
        self.reorder_cache(torch.arange(self.cache.batch)[indices.cpu()])

    def activate_past_recording(self) -> None:
        """Keep every token from now on, so that any number can be cropped.

        Raises:
            UnsupportedError: If a window has begun to forget.
        """
        self.record_past = True
        if self.is_croppable:
            return
        if self.cache.length:
            raise UnsupportedError(
                "this cache keeps a window and has begun to forget, so tokens cannot be taken back from it, as "
                "assisted decoding does; pass a new cache"
            )
        made: dict[str, Any] = {"batch": self.cache.batch, "dtype": self.cache.dtype, "device": self.cache.device}
        self.cache = GrowingCache(self.cache.spec, max_seq_len=None, **made)

    def offload(self) -> None:
        """Refuse: an adopted layer's cache stays where the layer is."""
        raise UnsupportedError(
            "an adopted layer's cache is not offloaded; leave cache_implementation out, or release the model"
        )

    prefetch = offload

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.cache!r})"


def layer_of(past: Any, index: int, attention: Attention, batch: int) -> CacheLayer:
    """Return an adopted layer's place in a cache of transformers, and put ours there if nothing has come yet.

    Where theirs is static, ours reserves as many tokens at once, and takes no more.

    Args:
        past: transformers' ``Cache``.
        index: The layer's number.
        attention: The layer.
        batch: Number of sequences.

    Returns:
        Our cache layer.

    Raises:
        UnsupportedError: If the cache is of a kind that ours cannot replace, or already holds the model's own keys.
    """
    if not hasattr(past, "layers") or past.offloading:
        kind = "an offloaded cache" if hasattr(past, "layers") else f"a {type(past).__name__}"
        raise UnsupportedError(f"{kind} cannot hold what adopted layers keep; use a DynamicCache or StaticCache")
    while past.layer_class_to_replicate is not None and len(past.layers) <= index:
        past.layers.append(past.layer_class_to_replicate())
    held = past.layers[index]
    if isinstance(held, CacheLayer):
        if held.cache.length or held.cache.batch == batch:
            return held
        reserved = held.cache.max_seq_len
    else:
        _check_replaceable(held)
        reserved = getattr(held, "max_cache_len", None)
    require_extra("transformers.cache_utils", "hf", "adopting a model").CacheLayerMixin.register(CacheLayer)
    made = CacheLayer(attention.new_cache(batch, reserved), record_past=getattr(held, "record_past", False))
    past.layers[index] = made
    return made


def _check_replaceable(held: Any) -> None:
    name = type(held).__name__
    if name not in _REPLACED:
        raise UnsupportedError(
            f"a {name} cannot hold what an adopted layer keeps, and another in its place would not do what it was "
            "asked for; use transformers' DynamicCache or StaticCache: cache_implementation='dynamic' or 'static'"
        )
    if held.get_seq_length():
        raise UnsupportedError(
            f"the cache holds {held.get_seq_length()} tokens of the model's own attention, which adopted layers cannot "
            "go on with; begin with a new one"
        )


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    """Whether two masks say the same, where None says that all are real."""
    if one is None or other is None:
        given = other if one is None else one
        return given is None or bool(given.all())
    return torch.equal(one, other)
