"""Text from a prompt, token by token: what came, how fast, and what the cache holds of it."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from polyhead.errors import ShapeError, SpecError, UnsupportedError, require_extra
from polyhead.hf.checks import quiet
from polyhead.hf.load import Loaded
from polyhead.spec.choice import as_float, as_int

if TYPE_CHECKING:
    import torch

_CONTEXT = 8  # tokens of the prompt that are decoded with the first new ones: some decoders drop a text's first blank


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is drawn, where it is not simply the likeliest.

    Attributes:
        temperature: What logits are divided by.
        top_p: Drawn from are the likeliest tokens whose probabilities together reach this.
        top_k: Drawn from are this many of the likeliest. None: any number.
        seed: Makes the same draws again. None: torch's own generator goes on.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        as_float("temperature", self.temperature, above=0.0)
        if as_float("top_p", self.top_p, above=0.0) > 1.0:
            raise SpecError(f"top_p={self.top_p!r} is not allowed; give a probability above 0 and at most 1")
        if self.top_k is not None:
            as_int("top_k", self.top_k, at_least=1)
        if self.seed is not None:
            as_int("seed", self.seed, at_least=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CacheBytes:
    """What a cache takes.

    Attributes:
        used: Bytes of what the tokens so far need.
        allocated: Bytes of what is reserved for it.
        layers: Number of layers that keep something.
    """

    used: int
    allocated: int
    layers: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generation:
    """What a model wrote.

    Attributes:
        text: The new text: the prompt's tokens and the new ones decode to the prompt and this. No special tokens.
        token_ids: The new tokens, with the one that ended the text, if one did.
        prompt_tokens: Number of tokens in the prompt.
        prefill_seconds: From the call to the first new token.
        decode_seconds: From the first new token to the last.
        cache: What the cache takes at the end; None where the model keeps none that can be counted. The last new token
            is not in it, since nothing has read it.
        stopped: Why no more came: ``"end"`` (the model ended the text), ``"max_new_tokens"`` or ``"positions"`` (it has
            none beyond).
    """

    text: str
    token_ids: tuple[int, ...]
    prompt_tokens: int
    prefill_seconds: float
    decode_seconds: float
    cache: CacheBytes | None
    stopped: str

    @property
    def new_tokens(self) -> int:
        """Number of new tokens."""
        return len(self.token_ids)

    @property
    def tokens_per_second(self) -> float | None:
        """New tokens a second after the first one, which the prefill makes; None for a single one."""
        return (self.new_tokens - 1) / self.decode_seconds if self.new_tokens > 1 else None


def generate(
    loaded: Loaded,
    prompt: str,
    *,
    max_new_tokens: int = 100,
    sampling: Sampling | None = None,
    chat: bool = False,
    on_text: Callable[[str], object] | None = None,
) -> Generation:
    """Let a model go on with a text.

    It is transformers' ``model.generate``, with the model as it stands: its own attention, ``"polyhead"``, or adopted.
    Of the checkpoint's own settings for generation (generation_config.json) only the special tokens count, so that
    the likeliest token is taken unless ``sampling`` says otherwise.

    ::

        written = generate(load("smollm2"), "The capital of France is", on_text=print)
        written.tokens_per_second, written.cache.used

    Args:
        loaded: The model, from `polyhead.hf.load`.
        prompt: The text, one sequence.
        max_new_tokens: How many tokens may come. A model without positions for so many ends earlier.
        sampling: How tokens are drawn. None: the likeliest each time.
        chat: Whether the prompt is what a user says to the model, in the tokenizer's chat template.
        on_text: Called with each piece of text as soon as its characters are whole.

    Returns:
        The text and its figures.

    Raises:
        ShapeError: If the prompt has no token, or more than the model has positions for.
        SpecError: If ``max_new_tokens`` is no whole number of at least 1.
        UnsupportedError: If the model generates no text, if the tokenizer has no chat template, or if the model's
            attention or cache is not what the polyhead in it can compute.
        CheckpointError: If the tokenizer is another model's.
        MissingExtraError: If torch or transformers is not installed.
    """
    torch = require_extra("torch", "hf", "generating text")
    check_generates(loaded.model)
    wanted = as_int("max_new_tokens", max_new_tokens, at_least=1)
    numbers = loaded.token_ids(prompt, chat=chat)
    allowed = int(min(wanted, _room(loaded.model.config, len(numbers))))
    ids = torch.tensor([numbers], device=loaded.model.device)
    stream = _Stream(loaded.tokenizer, on_text)
    with quiet(), _only_special_tokens(loaded), _seeded(sampling, ids.device):
        started = time.perf_counter()
        past = loaded.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=allowed,
            streamer=stream,
            return_dict_in_generate=True,
            use_cache=True,
            **_drawing(sampling),
        ).get("past_key_values")
    return Generation(
        text="".join(stream.pieces),
        token_ids=tuple(stream.new_ids),
        prompt_tokens=len(numbers),
        prefill_seconds=stream.times[0] - started,
        decode_seconds=stream.times[-1] - stream.times[0],
        cache=cache_bytes(past) if _is_countable(past) else None,
        stopped=_why(loaded.model, stream.new_ids, wanted),
    )


def check_generates(model: Any) -> None:
    """Raise unless a model makes text out of text.

    Args:
        model: A model of transformers, with or without its weights.

    Raises:
        UnsupportedError: If it does not.
    """
    name = type(model).__name__
    if not model.can_generate():
        raise UnsupportedError(
            f"the architecture {name} writes no text: it has no head that predicts the next token; give a checkpoint "
            "whose config.json names another, such as LlamaForCausalLM"
        )
    masked = require_extra("transformers.models.auto.modeling_auto", "hf", "generating text")
    is_encoder = not model.config.is_encoder_decoder and not getattr(model.config, "is_decoder", True)
    if is_encoder and model.config.model_type in masked.MODEL_FOR_MASKED_LM_MAPPING_NAMES:  # others never look at it
        raise UnsupportedError(
            f"the architecture {name} is an encoder here (is_decoder is false in its config.json), which writes no text"
        )
    if model.main_input_name != "input_ids":
        raise UnsupportedError(f"the architecture {name} does not begin with a text: it reads {model.main_input_name}")


def _room(config: Any, prompt_tokens: int) -> float:
    """Return how many tokens may come before the model's positions are used up; the last one needs none."""
    positions = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
    if positions is None:
        return math.inf
    if prompt_tokens > positions:
        raise ShapeError(f"the prompt has {prompt_tokens} tokens and the model positions for {positions}; shorten it")
    return int(positions) if config.is_encoder_decoder else int(positions) - prompt_tokens + 1


def _why(model: Any, new_ids: list[int], wanted: int) -> str:
    """Return why a text ended with its last token."""
    ends = model.generation_config.eos_token_id
    if new_ids[-1] in (ends if isinstance(ends, list) else [ends]):
        return "end"
    return "max_new_tokens" if len(new_ids) == wanted else "positions"


def _drawing(sampling: Sampling | None) -> dict[str, Any]:
    if sampling is None:
        return {"do_sample": False}
    top_k = sampling.top_k or 0  # which is any number to transformers
    return {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": top_k}


@contextlib.contextmanager
def _seeded(sampling: Sampling | None, device: torch.device) -> Iterator[None]:
    """Begin at a seed, and leave torch's own generators as they were."""
    if sampling is None or sampling.seed is None:
        yield
        return
    torch = require_extra("torch", "hf", "generating text")
    with torch.random.fork_rng(devices=[] if device.type == "cpu" else [device], device_type=device.type):
        torch.manual_seed(sampling.seed)
        yield


@contextlib.contextmanager
def _only_special_tokens(loaded: Loaded) -> Iterator[None]:
    """Let nothing but the special tokens of a checkpoint's own settings reach ``model.generate``.

    It takes what its caller leaves out from there: sampling, penalties, forced beams.
    """
    transformers = require_extra("transformers", "hf", "generating text")
    model, before = loaded.model, loaded.model.generation_config
    kept = {name: value for name, value in before.to_dict().items() if name.endswith("_token_id")}
    if kept.get("pad_token_id") is None:
        kept["pad_token_id"] = loaded.tokenizer.pad_token_id
    if kept["pad_token_id"] is None:  # a single sequence is never padded, and transformers asks all the same
        ends = kept.get("eos_token_id")
        kept["pad_token_id"] = ends[0] if isinstance(ends, list) else ends
    model.generation_config = transformers.GenerationConfig(**kept)
    try:
        yield
    finally:
        model.generation_config = before


class _Stream:
    """What ``model.generate`` hands tokens to: notes when each came, and passes on text whose characters are whole.

    Text is decoded from a little before what is new, since decoders treat a text's beginning in their own ways, and
    not from the beginning, which would take ever longer.
    """

    def __init__(self, tokenizer: Any, on_text: Callable[[str], object] | None) -> None:
        self.times: list[float] = []
        self.new_ids: list[int] = []
        self.pieces: list[str] = []
        self._tokenizer = tokenizer
        self._on_text = on_text
        self._window: list[int] | None = None  # of the prompt at first
        self._shown = 0  # tokens of the window whose text has been passed on

    def put(self, tokens: Any) -> None:
        """Take the prompt, at the first call, or a token."""
        now = time.perf_counter()
        numbers = tokens.flatten().tolist()
        if self._window is None:
            self._window = numbers[-_CONTEXT:]
            self._shown = len(self._window)
            return
        self.times.append(now)
        self.new_ids += numbers
        self._window += numbers
        self._pass_on(last=False)

    def end(self) -> None:
        """Pass on what is left, whole or not."""
        self._pass_on(last=True)

    def _pass_on(self, *, last: bool) -> None:
        window = self._window or []
        before, now = self._decoded(window[: self._shown]), self._decoded(window)
        if len(now) <= len(before) or (now.endswith("\ufffd") and not last):  # a character of which bytes are missing
            return
        piece = now[len(before) :]
        self._window, self._shown = window[self._shown :], len(window) - self._shown
        self.pieces.append(piece)
        if self._on_text is not None:
            self._on_text(piece)

    def _decoded(self, numbers: list[int]) -> str:
        return str(self._tokenizer.decode(numbers, skip_special_tokens=True, clean_up_tokenization_spaces=False))


# --- what a cache holds ---------------------------------------------------------------------------


def cache_bytes(past: Any) -> CacheBytes:
    """Count the bytes of a cache of transformers, with its own layers or with ours.

    Args:
        past: A ``Cache``, such as ``past_key_values`` of what a model returns.

    Returns:
        Of ours what `polyhead.cache` says. Of transformers' own what is used are the tensors as they are, or as far as
        they are filled (static caches); allocated is the memory behind them, which is more where they are views.

    Raises:
        UnsupportedError: If the cache is quantised, whose bytes are not counted.
    """
    caches = (
        [past.self_attention_cache, past.cross_attention_cache] if hasattr(past, "self_attention_cache") else [past]
    )
    layers = [layer for cache in caches for layer in cache.layers]
    sizes = [_layer_bytes(layer) for layer in layers]
    beside = [_tensor_bytes(list(_tensors(vars(cache)))) for cache in caches]  # MiniMax keeps sums next to its layers
    return CacheBytes(
        used=sum(used for used, _ in sizes + beside),
        allocated=sum(allocated for _, allocated in sizes + beside),
        layers=sum(allocated > 0 for _, allocated in sizes),
    )


def _is_countable(past: Any) -> bool:
    return hasattr(past, "layers") or hasattr(past, "self_attention_cache")


def _layer_bytes(layer: Any) -> tuple[int, int]:
    """Return the bytes that a layer uses, and those that are reserved for it."""
    from polyhead.hf.caches import CacheLayer

    if isinstance(layer, CacheLayer):
        return layer.cache.used_bytes, layer.cache.allocated_bytes
    if "Quantized" in type(layer).__name__:
        raise UnsupportedError(f"the bytes of a {type(layer).__name__} are not counted; use transformers' DynamicCache")
    used, allocated = _tensor_bytes(list(_tensors(vars(layer))))
    if (capacity := getattr(layer, "max_cache_len", None)) is not None:
        grown, _ = _tensor_bytes([x for x in (layer.keys, layer.values) if x is not None])
        used -= grown - grown * min(int(layer.get_seq_length()), capacity) // capacity
    return used, allocated


def _tensor_bytes(tensors: list[Any]) -> tuple[int, int]:
    """Return the bytes of tensors, and of the memory behind them, each counted once."""
    views = {(x.data_ptr(), x.shape): x.numel() * x.element_size() for x in tensors}
    memory = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors}
    return sum(views.values()), sum(memory.values())


def _tensors(value: Any) -> Iterator[Any]:
    """Yield the tensors in a dict or list that hold states, and no counters."""
    torch = require_extra("torch", "hf", "counting a cache")
    if isinstance(value, torch.Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item)
