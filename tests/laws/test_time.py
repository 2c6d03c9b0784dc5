"""What position and order may and may not change."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import polyhead as ph
from tests.inputs import Inputs, spec
from tests.tolerances import assert_close

LENGTH = 9

WEIGHTINGS = {
    "softmax": ph.Softmax(),
    "softcap": ph.Softmax(softcap=2.0),
    "sink": ph.Softmax(sink=True),
    "linear": ph.Linear(),
    "paper": ph.Differential(),
    "diffllama": ph.Differential(form="diffllama"),
    "clipped": ph.Differential(form="clipped"),
}
by_weighting = pytest.mark.parametrize("weighting", WEIGHTINGS.values(), ids=WEIGHTINGS)

CAUSAL = {
    "causal": ph.Causal(),
    "window": ph.SlidingWindow.causal(4),
    "chunks": ph.Chunked(size=3) & ph.Causal(),
    "links": ph.RandomLinks(per_query=2, seed=0),
    "bigbird": ph.BigBird() & ph.Causal(),
    "linear": ph.Causal(),
}


def tensor(values: Any) -> torch.Tensor:
    return torch.tensor(values)


# --- the future cannot change the past


@pytest.mark.parametrize("position", [ph.NoPosition(), ph.Rotary(), ph.Alibi(), ph.RelativeBias.shaw(max_distance=2)])
@pytest.mark.parametrize("name", CAUSAL)
def test_the_future_cannot_change_the_past(name: str, position: Any) -> None:
    if name == "linear" and not isinstance(position, ph.Rotary | ph.NoPosition):
        position = ph.Rotary(pairs="interleaved")
    weighting = ph.Linear() if name == "linear" else ph.Softmax()
    inputs = Inputs.draw(
        spec("gqa", position=position, pattern=CAUSAL[name], weighting=weighting), 1, q_len=LENGTH, kv_len=LENGTH
    )
    before = inputs.attend(torch.float64)
    other = Inputs.draw(inputs.spec, 2, q_len=LENGTH, kv_len=LENGTH).learned
    for cut in (1, 4, 8):
        changed = {
            n: np.concatenate([inputs.learned[n][:, :, :cut], other[n][:, :, cut:]], axis=2)
            for n in ("query", "key", "value")
        }
        after = inputs.changing(**changed).attend(torch.float64)
        assert_close(after[:, :, :cut], before[:, :, :cut], torch.float64)
        assert (after[:, :, cut:] - before[:, :, cut:]).abs().min() > 1e-6


# --- a NaN reaches the rows that may see it, and no other


def poisoned(inputs: Inputs, name: str, key: int) -> Inputs:
    planted = inputs.learned[name].copy()
    planted[0, 0, key, 0] = np.nan
    return inputs.changing(**{name: planted})


def rows_of_first_group(inputs: Inputs, kernel: str, **given: np.ndarray) -> torch.Tensor:
    """Return, for the heads that read head 0 of keys and values, which rows are NaN."""
    return inputs.giving(**given).attend(torch.float64, kernel=kernel).isnan()


@by_weighting
@pytest.mark.parametrize("pattern", [ph.Causal(), ph.SlidingWindow(left=2, right=1)], ids=repr)
@pytest.mark.parametrize("name", ["key", "value"])
@pytest.mark.parametrize("kernel", ["auto", "plain"])
def test_nan_reaches_the_rows_that_may_see_it_and_no_other(
    weighting: Any, pattern: ph.spec.Pattern, name: str, kernel: str
) -> None:
    if isinstance(weighting, ph.Linear):
        pattern = ph.Causal()
    clean = Inputs.draw(spec("gqa", pattern=pattern, weighting=weighting), 3, q_len=LENGTH, kv_len=LENGTH)
    bad = 4
    output, expected = poisoned(clean, name, bad).attend(torch.float64, kernel=kernel), clean.oracle()
    sees = pattern.allowed(np.arange(LENGTH), np.array([bad]), kv_len=LENGTH)[:, 0]
    readers = slice(0, clean.spec.group_size)  # the heads that read the first of keys and values
    assert output[0, readers][:, tensor(sees)].isnan().any(dim=-1).all()
    assert_close(output[0, readers][:, tensor(~sees)], expected[0, readers][:, ~sees], torch.float64)
    assert_close(output[0, readers.stop :], expected[0, readers.stop :], torch.float64)
    assert_close(output[1], expected[1], torch.float64)


@by_weighting
@pytest.mark.parametrize("storage", ["gqa", "mla"])
@pytest.mark.parametrize("kernel", ["auto", "plain"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nothing_of_a_masked_key_reaches_row_or_gradient(weighting: Any, storage: str, kernel: str, bad: float) -> None:
    clean = Inputs.draw(spec(storage, weighting=weighting, position=ph.Rotary()), 4, q_len=LENGTH, kv_len=LENGTH)
    mask = np.ones((2, LENGTH), dtype=bool)
    mask[0, [2, 5]] = False
    clean = clean.giving(key_mask=mask)
    planted = {name: clean.learned[name].copy() for name in ("key", "value") if name in clean.learned}
    for array in planted.values():
        array[0, :, [2, 5]] = bad
    assert_close(clean.changing(**planted).attend(torch.float64, kernel=kernel), clean.oracle(), torch.float64)
    ours, theirs = (gradients(inputs, kernel) for inputs in (clean.changing(**planted), clean))
    for name, gradient in ours.items():
        assert_close(gradient, theirs[name], torch.float64, what=f"gradient of {name}")


def gradients(inputs: Inputs, kernel: str) -> dict[str, torch.Tensor]:
    leaves = inputs.tensors(torch.float64, requires_grad=True)
    inputs.attend(leaves, kernel=kernel).square().sum().backward()
    return {name: leaf.grad for name, leaf in leaves.items()}


@by_weighting
def test_the_oracle_confines_nan_as_the_kernels_do(weighting: Any) -> None:
    clean = Inputs.draw(spec("mha", pattern=ph.Causal(), weighting=weighting), 5, q_len=LENGTH, kv_len=LENGTH)
    for name in ("key", "value"):
        bad = poisoned(clean, name, 4)
        np.testing.assert_array_equal(np.isnan(bad.oracle()).any(-1), bad.attend(torch.float64).isnan().any(-1).numpy())
        assert_close(bad.oracle()[:, :, :4], clean.oracle()[:, :, :4], torch.float64)


# --- order and shifts


@by_weighting
def test_without_positions_the_order_of_keys_is_nothing(weighting: Any) -> None:
    inputs = Inputs.draw(spec("gqa", weighting=weighting), 6, q_len=4, kv_len=LENGTH)
    order = np.random.default_rng(0).permutation(LENGTH)
    shuffled = inputs.changing(**{name: inputs.learned[name][:, :, order] for name in ("key", "value")})
    assert_close(shuffled.attend(torch.float64), inputs.oracle(), torch.float64)


ROTARY = [
    ph.NoPosition(),
    ph.Rotary(),
    ph.Rotary(pairs="interleaved", rotary_dim=4, scaling=ph.NTKScaling(factor=2.0)),
    ph.Rotary(direction="reversed", scaling=ph.YarnScaling(factor=4.0, original_max_seq_len=8)),
]
BIASES = [
    ph.Alibi(),
    ph.RelativeBias.t5(num_buckets=8, max_distance=6),
    ph.RelativeBias.t5(num_buckets=8, max_distance=6, bidirectional=False),
    ph.RelativeBias.clipped(max_distance=3),
    ph.RelativeBias.shaw(max_distance=3),
]


@pytest.mark.parametrize(
    ("position", "weighting"),
    [(p, ph.Softmax()) for p in ROTARY + BIASES] + [(p, ph.Linear()) for p in ROTARY],
    ids=repr,
)
@pytest.mark.parametrize("shift", [1, 10_000])
def test_a_shift_of_all_positions_changes_nothing(position: Any, weighting: Any, shift: int) -> None:
    inputs = Inputs.draw(
        spec("gqa", position=position, pattern=ph.Causal(), weighting=weighting), 7, q_len=5, kv_len=LENGTH
    )
    places = {"query_positions": np.arange(4, LENGTH), "key_positions": np.arange(LENGTH)}
    moved = {name: place + shift for name, place in places.items()}
    assert_close(inputs.giving(**moved).attend(torch.float64), inputs.attend(torch.float64), torch.float64)
    if not isinstance(position, ph.NoPosition):
        stretched = {name: 2 * place for name, place in places.items()}
        assert (inputs.giving(**stretched).attend(torch.float64) - inputs.attend(torch.float64)).abs().max() > 1e-4


def test_linear_with_rope_has_weights_of_distance_alone() -> None:
    """RoFormer's eq. 19 rotates features; rotating before the feature map would not survive a shift."""
    inputs = Inputs.draw(spec("mha", position=ph.Rotary(), weighting=ph.Linear()), 8, q_len=LENGTH, kv_len=LENGTH)
    _, weights = inputs.attend(torch.float64, return_weights=True)
    shifted = inputs.giving(query_positions=np.arange(LENGTH) + 5, key_positions=np.arange(LENGTH) + 5)
    assert_close(shifted.attend(torch.float64, return_weights=True)[1], weights, torch.float64)


@pytest.mark.parametrize("weighting", [ph.Softmax(), ph.Differential(form="clipped")])
def test_implied_positions_put_the_last_query_at_the_last_key(weighting: Any) -> None:
    inputs = Inputs.draw(
        spec("gqa", position=ph.Rotary(), pattern=ph.Causal(), weighting=weighting), 9, q_len=3, kv_len=LENGTH
    )
    given = inputs.giving(query_positions=np.array([6, 7, 8]), key_positions=np.arange(LENGTH))
    assert_close(inputs.attend(torch.float64), given.attend(torch.float64), torch.float64)
    longer = Inputs.draw(inputs.spec, 9, q_len=LENGTH, kv_len=LENGTH).changing(
        key=inputs.learned["key"], value=inputs.learned["value"]
    )
    query = longer.learned["query"].copy()
    query[:, :, 6:] = inputs.learned["query"]
    assert_close(
        longer.changing(query=query).attend(torch.float64)[:, :, 6:], inputs.attend(torch.float64), torch.float64
    )
