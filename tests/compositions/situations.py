"""What can be given beside the tensors: positions with gaps, masks, segments, alone and together."""

from __future__ import annotations

import numpy as np

import polyhead as ph
from tests.compositions.choices import LONGEST
from tests.inputs import Array, Inputs

BATCH = 2


def _lengths(rng: np.random.Generator) -> tuple[int, int]:
    return int(rng.integers(1, LONGEST)), int(rng.integers(1, LONGEST + 1))


def _mask(rng: np.random.Generator, kv_len: int) -> Array:
    mask = rng.random((BATCH, kv_len)) < 0.6
    mask[rng.integers(BATCH)] &= rng.random() < 0.5  # half of the time one sequence has no key at all
    return mask


def _apart(rng: np.random.Generator, *lengths: int) -> Array:
    """Return growing positions with gaps, some of them past the longest sequence."""
    steps = rng.integers(1, 3, size=lengths)
    return steps.cumsum(axis=-1) - 1


def nothing_given(spec: ph.AttentionSpec, rng: np.random.Generator) -> Inputs:
    q_len, kv_len = _lengths(rng)
    return Inputs.draw(spec, rng, batch=BATCH, q_len=q_len, kv_len=kv_len)


def masked(spec: ph.AttentionSpec, rng: np.random.Generator) -> Inputs:
    inputs = nothing_given(spec, rng)
    return inputs.giving(key_mask=_mask(rng, inputs.learned["key"].shape[2]))


def packed(spec: ph.AttentionSpec, rng: np.random.Generator) -> Inputs:
    length = int(rng.integers(1, LONGEST + 1))
    segments = np.sort(rng.integers(0, 3, size=(BATCH, length)), axis=-1)
    return Inputs.draw(spec, rng, batch=BATCH, q_len=length, kv_len=length).giving(segments=segments)


def apart(spec: ph.AttentionSpec, rng: np.random.Generator) -> Inputs:
    inputs = nothing_given(spec, rng)
    q_len, kv_len = (inputs.learned[name].shape[2] for name in ("query", "key"))
    return inputs.giving(query_positions=_apart(rng, q_len), key_positions=_apart(rng, kv_len))


def queries_at_their_own_places(spec: ph.AttentionSpec, rng: np.random.Generator) -> Inputs:
    inputs = nothing_given(spec, rng)
    return inputs.giving(query_positions=_apart(rng, BATCH, inputs.learned["query"].shape[2]))


def everything_given(spec: ph.AttentionSpec, rng: np.random.Generator) -> Inputs:
    inputs = packed(spec, rng)
    length = inputs.learned["key"].shape[2]
    shuffled = rng.permuted(_apart(rng, BATCH, length), axis=-1)
    return inputs.giving(
        key_mask=_mask(rng, length), query_positions=shuffled, key_positions=rng.permuted(shuffled, axis=-1)
    )


SITUATIONS = (nothing_given, masked, packed, apart, queries_at_their_own_places, everything_given)
"""Each draws inputs for a spec."""
