"""ALiBi's bias: minus a slope for each head times the distance."""

from __future__ import annotations

import torch

import polyhead as ph
from polyhead.position import alibi
from tests.inputs import spec


def test_the_bias_falls_with_distance_on_both_sides() -> None:
    whole = spec(position=ph.Alibi(slopes=(1.0, 0.5, 0.25, 0.0)))
    bias = alibi.bias(whole, torch.tensor([[2]]), torch.arange(5)[None], torch.float64)
    assert bias.dtype == torch.float64
    assert bias[0, 0].tolist() == [[-2.0, -1.0, 0.0, -1.0, -2.0]]
    assert bias[0, 1].tolist() == [[-1.0, -0.5, 0.0, -0.5, -1.0]]
    assert not bias[0, 3].any()


def test_each_sequence_has_its_own_positions() -> None:
    whole = spec(position=ph.Alibi())
    places = torch.tensor([[0, 1], [5, 9]])
    bias = alibi.bias(whole, places, places, torch.float32)
    assert bias.shape == (2, 4, 2, 2)
    assert torch.equal(bias[1, :, 0, 1], 4 * bias[0, :, 0, 1])
    assert torch.equal(-bias[0, :, 0, 1], torch.tensor(whole.position.head_slopes(4)))


def test_distances_far_apart_stay_exact() -> None:
    whole = spec(position=ph.Alibi(slopes=(1.0,) * 4))
    far = 2**24 + 1  # float32 cannot hold it: the difference is taken before the conversion
    bias = alibi.bias(whole, torch.tensor([[far]]), torch.tensor([[far - 1]]), torch.float32)
    assert bias.unique().tolist() == [-1.0]
