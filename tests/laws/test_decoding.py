"""Decoding from a cache, in any pieces, equals one forward over whole sequences, and so says the oracle."""

from __future__ import annotations

import functools
import itertools
import typing
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, note, settings

import polyhead as ph
from polyhead import cache as caches
from polyhead.spec import retention
from polyhead.spec.position import ClippedBias, ShawBias, T5Bias
from polyhead.spec.weighting import DIFFERENTIAL_FORMS, FEATURE_MAPS
from tests import reference
from tests.inputs import Array, spec
from tests.laws.decoding import CLASSES
from tests.laws.programs import (
    FAILURES,
    Crop,
    Fail,
    Feed,
    Operation,
    Program,
    Reorder,
    Save,
    programs,
    run,
)
from tests.tolerances import assert_close
from tests.walk import walk

# --- any program of operations


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder for all examples: each writes its file anew."""
    return tmp_path_factory.mktemp("caches")


@pytest.fixture
def small_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a dozen tokens outgrow what otherwise thousands do."""
    monkeypatch.setattr("polyhead.cache.growing.SMALLEST", 2)
    monkeypatch.setattr("polyhead.kernels.linear.CHUNK", 3)
    monkeypatch.setattr("polyhead.kernels.stages.PER_QUERY_ELEMENTS", 50)


@pytest.mark.usefixtures("small_sizes")
@pytest.mark.parametrize("examples", [500, pytest.param(20_000, marks=pytest.mark.slow)])
def test_any_operations_on_a_cache_leave_what_one_forward_gives(examples: int, folder: Path) -> None:
    seen: Counter[Any] = Counter()

    @settings(max_examples=examples)
    @given(program=programs())
    def each(program: Program) -> None:
        seen.update(features(program))
        note(f"run({program!r}, folder)")
        run(program, folder)

    each()
    # which examples come first, hypothesis does not promise: it draws on what happens to be imported
    expected = [*EVERY, *RARE] if examples >= 20_000 else [*itertools.product(CLASSES, (Feed, Crop, Reorder, Save))]
    assert not [one for one in expected if not seen[one]], "the examples say nothing of these"


def features(program: Program) -> list[Any]:
    """Return what a program is an example of."""
    layer, operations = program.layer, program.operations
    kept, chosen = retention(layer.attention, layer.source), layer.attention
    weighting, position = chosen.weighting, chosen.position
    return [
        program.dtype,
        (kept.kind, type(chosen.storage)),
        (type(chosen.storage), type(weighting)),
        getattr(weighting, "form", None) or getattr(weighting, "feature_map", "softmax"),
        type(position),
        type(getattr(position, "scaling", None)),
        (kept.kind, "keeps first", kept.reach.first > 0),
        (kept.kind, "ragged", any(getattr(one, "counts", None) for one in operations)),
        (kept.kind, "masked", any(getattr(one, "masked", False) for one in operations)),
        *((kept.kind, type(one)) for one in operations),
        *(one.how for one in operations if isinstance(one, Fail)),
    ]


EVERY = [
    *itertools.product(CLASSES, (ph.Grouped, ph.Latent)),
    *itertools.product(CLASSES, ("ragged", "masked"), (True,)),
    *itertools.product(CLASSES, typing.get_args(Operation)),
    *itertools.product((ph.Grouped, ph.Latent), (ph.Softmax, ph.Linear, ph.Differential)),
    *[("rolling", "keeps first", is_kept) for is_kept in (True, False)],
    *("float32", "float64", "softmax", *FEATURE_MAPS, *DIFFERENTIAL_FORMS, *FAILURES),
    *(ph.NoPosition, ph.Rotary, ph.Alibi, T5Bias, ClippedBias, ShawBias),
]
"""Of what there must be examples where there are many."""

RARE = [ph.DynamicNTKScaling, ph.LongRopeScaling, ph.YarnScaling, ph.LinearScaling, ph.Llama3Scaling, ph.NTKScaling]
"""Of what there must be examples besides, fewer than of the others."""

# --- named stacks, in given pieces

LENGTH, BATCH, CONTEXT = 14, 3, 5
TRAINED = 4

ROPE = ph.Rotary(theta=50.0)
LONG_ROPE = ph.LongRopeScaling(
    short_factor=(1.0, 1.1, 1.2, 1.3), long_factor=(1.0, 1.7, 2.4, 3.1), original_max_seq_len=TRAINED, factor=4.0
)
NTK = ph.DynamicNTKScaling(factor=3.0, original_max_seq_len=TRAINED)
WINDOW = ph.SlidingWindow.causal(4)
SINKS = (ph.SlidingWindow.causal(3) | ph.Global(first=2)) & ph.Causal()
T5 = ph.RelativeBias.t5(num_buckets=8, max_distance=7)
T5_ONE_SIDED = ph.RelativeBias.t5(num_buckets=6, max_distance=8, bidirectional=False)


def causal(storage: str, position: Any = ROPE, pattern: Any = ph.Causal(), **choices: Any) -> ph.LayerSpec:  # noqa: B008
    return ph.LayerSpec(attention=spec(storage, position=position, pattern=pattern, **choices), embed_dim=6)


def cross(storage: str, position: Any, **choices: Any) -> ph.LayerSpec:
    whole = spec(storage, position=position, **choices)
    return ph.LayerSpec(attention=whole, embed_dim=6, source="cross", context_dim=4)


STACKS = {
    "MHA with RoPE": causal("mha"),
    "GQA with RoPE in a window": causal("gqa", pattern=WINDOW),
    "a window and kept first tokens": causal("gqa", pattern=SINKS),
    "MLA": causal("mla"),
    "MLA in a window": causal("mla", pattern=WINDOW),
    "ALiBi": causal("gqa", ph.Alibi()),
    "T5": causal("mha", T5, weighting=ph.Softmax(scale=1.0)),
    "T5 one-sided": causal("mqa", T5_ONE_SIDED, weighting=ph.Softmax(scale=1.0)),
    "Shaw": causal("gqa", ph.RelativeBias.shaw(max_distance=3)),
    "softcap and sinks": causal("gqa", weighting=ph.Softmax(softcap=2.0, sink=True)),
    "paper's differential": causal("gqa", weighting=ph.Differential(layer=2)),
    "DiffLlama's": causal("gqa", weighting=ph.Differential(form="diffllama"), pattern=WINDOW),
    "clipped differential": causal("mla", weighting=ph.Differential(form="clipped", lambda_init=0.5)),
    "linear": causal("gqa", ph.NoPosition(), weighting=ph.Linear()),
    "linear relu": causal("mqa", ph.NoPosition(), weighting=ph.Linear(feature_map="relu")),
    "linear softplus": causal("mla", ph.NoPosition(), weighting=ph.Linear(feature_map="softplus")),
    "linear with RoPE": causal("gqa", weighting=ph.Linear()),
    "linear with dynamic NTK": causal("gqa", ph.Rotary(theta=50.0, scaling=NTK), weighting=ph.Linear()),
    "BigBird by token": causal("gqa", pattern=ph.BigBird() & ph.Causal()),
    "BigBird by block": causal("gqa", pattern=ph.BigBird(block=2) & ph.Causal()),
    "chunks": causal("gqa", pattern=ph.Chunked(size=3) & ph.Causal()),
    "dynamic NTK": causal("gqa", ph.Rotary(theta=50.0, scaling=NTK)),
    "LongRoPE in a window": causal("mla", ph.Rotary(theta=50.0, scaling=LONG_ROPE), WINDOW),
    "cross": cross("gqa", T5),
    "cross with a latent": cross("mla", ROPE, pattern=ph.Causal()),
}
by_stack = pytest.mark.parametrize("name", STACKS)


class Stack(NamedTuple):
    """A layer and its sequences, in a dtype, and what one forward over all of them gives."""

    layer: ph.LayerSpec
    numbers: reference.Numbers
    module: ph.Attention
    x: Array
    context: Array | None

    def expected(self, x: Array | None = None, **given: Any) -> Array:
        return reference.forward(self.layer, self.numbers, self.x if x is None else x, self.context, **given)

    def new_cache(self, **options: Any) -> caches.Cache:
        return self.module.new_cache(BATCH, **options)

    def feed(self, cache: caches.Cache, x: Array, **given: Any) -> torch.Tensor:
        """Give tokens to the layer, with the first ones the context."""
        dtype = self.module.o_proj.weight.dtype
        if self.context is not None and not cache.has_context:
            given["context"] = torch.tensor(self.context, dtype=dtype)
        return self.module(torch.tensor(x, dtype=dtype), cache=cache, **given)


@functools.cache
def stack(name: str, dtype: torch.dtype = torch.float64) -> Stack:
    layer, rng = STACKS[name], np.random.default_rng(0)
    numbers = reference.drawn_numbers(layer, 1, dtype)
    x, context = (
        torch.tensor(rng.standard_normal((BATCH, length, width)), dtype=dtype).double().numpy()
        for length, width in ((LENGTH, layer.embed_dim), (CONTEXT, layer.context_dim or 1))
    )
    module = reference.layer_of(layer, numbers, dtype)
    return Stack(layer, numbers, module, x, context if layer.source == "cross" else None)


@functools.cache
def expected(name: str, dtype: torch.dtype = torch.float64) -> Array:
    return stack(name, dtype).expected()


def pieces(*sizes: int) -> list[slice]:
    """Return the sequence cut into pieces of these sizes, and what is left token by token."""
    sizes = (*sizes, *[1] * (LENGTH - sum(sizes)))
    ends = list(itertools.accumulate(sizes))
    return [slice(end - size, end) for size, end in zip(sizes, ends, strict=True)]


PIECES = {
    "token by token": pieces(),
    "all at once": pieces(LENGTH),
    "a prompt longer than the window": pieces(9),
    "a prompt of nothing": pieces(0, 0, 3),
    "a prompt of one": pieces(1, 6, 0),
    "chunks": pieces(3, 1, 5, 2),
    "other chunks": pieces(2, 7, 1, 4),
}


@walk("dtype, how, name", [torch.float64, torch.float32], list(PIECES), list(STACKS))
def test_decoding_in_pieces_equals_one_forward(dtype: torch.dtype, how: str, name: str) -> None:
    whole = stack(name, dtype)
    cache = whole.new_cache()
    output = torch.cat([whole.feed(cache, whole.x[:, piece]) for piece in PIECES[how]], dim=1)
    assert_close(output, expected(name, dtype), dtype)
    assert cache.lengths == (LENGTH,) * BATCH


@by_stack
def test_prompts_of_unlike_lengths_decode_as_if_alone(name: str) -> None:
    whole, prompts = stack(name), (5, 0, 9)
    cache = whole.new_cache()
    padded = np.full((BATCH, max(prompts), whole.layer.embed_dim), np.nan)
    for row, prompt in enumerate(prompts):
        padded[row, :prompt] = whole.x[row, :prompt]
    output = whole.feed(cache, padded, lengths=prompts)
    for row, prompt in enumerate(prompts):
        assert_close(output[row, :prompt], expected(name)[row, :prompt], torch.float64)
        assert (output[row, prompt:] == 0).all()
    each = np.arange(BATCH)
    while (lengths := np.array(cache.lengths)).min() < LENGTH:
        token = np.minimum(lengths, LENGTH - 1)
        goes_on = lengths < LENGTH
        output = whole.feed(cache, whole.x[each, token][:, None], lengths=goes_on.astype(int).tolist())
        assert_close(output[goes_on, 0], expected(name)[each, token][goes_on], torch.float64)


ANYWHERE = [
    name
    for name, layer in STACKS.items()
    if layer.source == "self"
    and layer.attention.pattern in (ph.Causal(), WINDOW)
    and not getattr(layer.attention.position, "per_query", False)
]
"""Stacks in which distance alone matters, and no token's place from the start."""


def left_padded(whole: Stack, prompts: Sequence[int]) -> tuple[Array, Array]:
    """Return prompts padded at the left, and where they are no padding."""
    longest = max(prompts)
    real = np.arange(longest) >= longest - np.array(prompts)[:, None]
    padded = np.full((BATCH, longest, whole.layer.embed_dim), 9.0)
    padded[real] = np.concatenate([whole.x[row, :prompt] for row, prompt in enumerate(prompts)])
    return padded, real


@pytest.mark.parametrize("name", [name for name, layer in STACKS.items() if layer.source == "self"])
def test_prompts_padded_at_the_left_decode_as_one_masked_forward(name: str) -> None:
    whole, prompts, more = stack(name), (2, 6, 3), 4
    padded, real = left_padded(whole, prompts)
    after = whole.x[:, -more:]
    cache = whole.new_cache()
    pieces = [whole.feed(cache, padded, key_mask=torch.tensor(real))]
    pieces += [whole.feed(cache, after[:, token : token + 1]) for token in range(more)]
    mask = np.concatenate([real, np.ones((BATCH, more), dtype=bool)], axis=1)
    output = whole.expected(np.concatenate([padded, after], axis=1), key_mask=mask)
    assert_close(torch.cat(pieces, dim=1), output, torch.float64)


@pytest.mark.parametrize("name", ANYWHERE)
def test_where_distance_alone_matters_padding_at_the_left_is_nothing(name: str) -> None:
    whole, prompts = stack(name), (2, 6, 3)
    padded, real = left_padded(whole, prompts)
    cache = whole.new_cache()
    output = whole.feed(cache, padded, key_mask=torch.tensor(real))
    for row, prompt in enumerate(prompts):
        assert_close(output[row, real[row]], expected(name)[row, :prompt], torch.float64)
    for step in range(4):
        token = np.array(prompts) + step
        output = whole.feed(cache, whole.x[np.arange(BATCH), token][:, None])
        assert_close(output[:, 0], expected(name)[np.arange(BATCH), token], torch.float64)


ROLLING = [name for name, layer in STACKS.items() if retention(layer.attention, layer.source).kind == "rolling"]


@walk("slack, past_the_edge, name", [0, 1, 2], [-1, 0, 1, 2], ROLLING)
def test_chunks_across_the_edge_of_a_window_decode_as_one_forward(slack: int, past_the_edge: int, name: str) -> None:
    whole = stack(name)
    left, first = retention(whole.layer.attention).reach
    prompt = first + left + past_the_edge
    for chunk in (1, 2, slack + 1, slack + 2, left + 1, LENGTH - prompt):
        cache = whole.new_cache(slack=slack)
        whole.feed(cache, whole.x[:, :prompt])
        for start in range(prompt, LENGTH, chunk):
            piece = slice(start, min(start + chunk, LENGTH))
            assert_close(whole.feed(cache, whole.x[:, piece]), expected(name)[:, piece], torch.float64)


def test_the_stacks_have_every_kind_of_cache() -> None:
    assert {retention(layer.attention, layer.source).kind for layer in STACKS.values()} == set(CLASSES)


@by_stack
def test_no_sequence_is_a_batch_too(name: str) -> None:
    whole = stack(name)
    cache = whole.new_cache()
    whole.feed(cache, whole.x[:, :2])
    cache.reorder([])
    assert whole.feed(cache, whole.x[:0, 2:3]).shape == (0, 1, whole.layer.embed_dim)
    assert (cache.batch, cache.lengths, cache.used_bytes) == (0, (), 0)
